package repo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// gone is the content of the note that the cluster has no such image any more.
type gone struct {
	Since time.Time `json:"since"` // when that was first noticed
}

// Gone says since when a folder's image is known to be gone from its pool, by what backups have noted; ok is false where
// nothing is known of that. It may be in the pool's trash.
func (f *Folder) Gone() (since time.Time, ok bool, err error) {
	b, err := os.ReadFile(f.StatePath("gone.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, false, nil
	}
	if err != nil {
		return time.Time{}, false, fmt.Errorf("read note of a gone image: %w", err)
	}
	var note gone
	if err := json.Unmarshal(b, &note); err != nil {
		return time.Time{}, false, fmt.Errorf("read %s: %w", f.StatePath("gone.json"), err)
	}
	return note.Since, true, nil
}

// NoteGone notes whether the image was gone from its pool at a point in time, and says whether that is news. The time of an
// older note stays.
func (f *Folder) NoteGone(isGone bool, now time.Time) (news bool, err error) {
	_, was, err := f.Gone()
	if err == nil && was == isGone {
		return false, nil
	}
	if !isGone {
		return true, os.Remove(f.StatePath("gone.json"))
	}
	if err := f.Create(); err != nil { // a folder of the Python tool has no place for it
		return false, err
	}
	b, err := json.Marshal(&gone{now.UTC().Truncate(time.Second)})
	if err != nil {
		return false, err
	}
	if err := f.writeState("gone.json", b); err != nil {
		return false, fmt.Errorf("note that an image is gone: %w", err)
	}
	return true, nil
}
