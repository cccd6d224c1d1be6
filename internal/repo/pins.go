package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// Pin says that a point is to be kept whatever the rules of retention say.
type Pin struct {
	Point   PointName `json:"point"`
	Time    time.Time `json:"time"` // when it was pinned
	Comment string    `json:"comment,omitempty"`
}

// PinnedError says that a point is not removed because it is pinned.
type PinnedError struct{ Pin }

func (e *PinnedError) Error() string {
	if e.Comment != "" {
		return fmt.Sprintf("point %s is pinned (%s)", e.Point, e.Comment)
	}
	return fmt.Sprintf("point %s is pinned", e.Point)
}

// pins is the content of the file of that name.
type pins struct {
	Pins []Pin `json:"pins"`
}

// Pins lists the pins of the folder in the order of their points. Points that are gone may be among them.
func (f *Folder) Pins() ([]Pin, error) {
	b, err := os.ReadFile(f.StatePath("pins.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pins: %w", err)
	}
	var p pins
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("read %s: %w", f.StatePath("pins.json"), err)
	}
	return p.Pins, nil
}

// Pin pins a point. One that is pinned already gets the new comment. No lock is needed.
func (f *Folder) Pin(ctx context.Context, name PointName, comment string) error {
	if !f.has(name) {
		return fmt.Errorf("pin point: there is no %s", f.Path(name))
	}
	_, err := f.changePins(ctx, name, &Pin{Point: name, Time: time.Now().UTC().Truncate(time.Second), Comment: comment})
	return err
}

// Unpin ends a pin, and says whether there was one. No lock is needed.
func (f *Folder) Unpin(ctx context.Context, name PointName) (was bool, err error) {
	return f.changePins(ctx, name, nil)
}

// changePins replaces the pin of a point; nil is none.
func (f *Folder) changePins(ctx context.Context, name PointName, pin *Pin) (was bool, err error) {
	if err := f.Create(); err != nil { // a folder of the Python tool has no place for them
		return false, err
	}
	lock, err := f.lockNotes(ctx, "pins.lock")
	if err != nil {
		return false, fmt.Errorf("lock pins: %w", err)
	}
	defer lock.Close()
	old, err := f.Pins()
	if err != nil {
		return false, err
	}
	changed := slices.DeleteFunc(slices.Clone(old), func(p Pin) bool { return p.Point == name })
	was = len(changed) < len(old)
	if pin != nil {
		changed = append(changed, *pin)
	}
	slices.SortFunc(changed, func(a, b Pin) int { return a.Point.Time().Compare(b.Point.Time()) })
	b, err := json.MarshalIndent(&pins{changed}, "", "  ")
	if err != nil {
		return false, err
	}
	if err := f.writeState("pins.json", b); err != nil {
		return false, fmt.Errorf("write pins: %w", err)
	}
	return was, nil
}

// notesWait bounds the wait for the lock of pins and the like, which is held for moments only.
const notesWait = 10 * time.Second

// lockNotes waits for a lock of what is noted of the points, which ends when the file is closed. The folder's own lock would
// be that of a backup, which may take hours.
func (f *Folder) lockNotes(ctx context.Context, name string) (*os.File, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, notesWait, errors.New("another run has them locked"))
	defer cancel()
	file, err := os.OpenFile(f.StatePath(name), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	if err := awaitFlock(ctx, file); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// checkPin gives a *PinnedError where a point is pinned.
func (f *Folder) checkPin(name PointName) error {
	all, err := f.Pins()
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.Point == name {
			return &PinnedError{p}
		}
	}
	return nil
}
