package repo

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Verdict is what a verification has found of a point.
type Verdict string

// The verdicts.
const (
	Proved       Verdict = "good"     // every byte that it holds is what was stored
	Unproved     Verdict = "unproved" // sound, but without digests: the Python tool made it, or it has data of such a point; or without keyed ones
	FoundDamaged Verdict = "damaged"
	FoundChanged Verdict = "changed" // other content, and another mtime: a program has written to it
)

// Bad says that a point can't be relied on.
func (v Verdict) Bad() bool { return v == FoundDamaged || v == FoundChanged }

// Verified notes what a verification has found of a point's file.
type Verified struct {
	Point   PointName `json:"point"`
	Time    time.Time `json:"time,omitzero"`    // when it was last verified as a whole; zero: it never was
	Sampled time.Time `json:"sampled,omitzero"` // when a part of it was, chosen at random
	Verdict Verdict   `json:"verdict,omitempty"`
	Reason  string    `json:"reason,omitempty"` // the first damage
	// Next is the guest offset from which the next verification goes on, where the last one ran out of time, in bytes.
	Next int64 `json:"next,omitempty"`
	// Hidden are points that don't show the damage, and neither does any that lies on them; nil: that is not known.
	Hidden *Hidden `json:"hidden,omitempty"`
	// Since is when the verification began that Next is of.
	Since *time.Time `json:"since,omitempty"`
	// MAC is a hash of all the rest, which needs the key of the digests, where there is one: good news without it is none.
	MAC string `json:"mac,omitempty"`
	// File tells one content of the file from another: see Point.Fingerprint.
	File string `json:"file"`
}

// Hidden are points that hold other data where one below them is damaged. It is of the verification that has the same time alone.
type Hidden struct {
	Time time.Time   `json:"time"`
	By   []PointName `json:"by"`
}

// isHidden says whether one of the points, which lie on the damaged one, hides the damage.
func (v *Verified) isHidden(above []*Point) bool {
	return v.Hidden != nil && v.Hidden.Time.Equal(v.Time) &&
		slices.ContainsFunc(above, func(p *Point) bool { return slices.Contains(v.Hidden.By, p.Name) })
}

// verifiedNotes is the content of the file of what was verified.
type verifiedNotes struct {
	Points []Verified `json:"points"`
}

// Fingerprint tells the file of a point from what it becomes by a fold: by its identity; where it has none by size and mtime.
func (p *Point) Fingerprint() string {
	if p.IdentityRaw != nil {
		return HashIdentity(p.IdentityRaw)
	}
	return fmt.Sprintf("%d bytes of %d", p.FileSize, p.ModTime.UnixNano())
}

// Verified gives what is noted of the points of the folder, as far as their files are still those that were verified. What
// can't be read was never noted.
func (f *Folder) Verified(points []*Point) map[PointName]Verified {
	noted := map[PointName]Verified{}
	for _, v := range f.readVerified() {
		noted[v.Point] = v
	}
	for name, v := range noted {
		i := slices.IndexFunc(points, func(p *Point) bool { return p.Name == name })
		if i < 0 || points[i].Fingerprint() != v.File {
			delete(noted, name)
		}
	}
	return noted
}

func (f *Folder) readVerified() []Verified {
	b, err := os.ReadFile(f.StatePath("verified.json"))
	var notes verifiedNotes
	if err != nil || json.Unmarshal(b, &notes) != nil {
		return nil
	}
	return slices.DeleteFunc(notes.Points, func(v Verified) bool { return !v.Verdict.Bad() && f.noteMAC(v) != v.MAC })
}

// noteMAC is what the MAC of a note has to be.
func (f *Folder) noteMAC(v Verified) string {
	if f.key == nil {
		return v.MAC // whatever it is
	}
	v.MAC = ""
	b, err := json.Marshal(&struct {
		Folder string
		Verified
	}{f.Name, v})
	if err != nil {
		return ""
	}
	mac := f.key.NoteDigest(b)
	return hex.EncodeToString(mac[:])
}

// NoteVerified notes what was found of points, and forgets those that are gone. No lock is needed.
func (f *Folder) NoteVerified(ctx context.Context, found ...Verified) error {
	if err := f.Create(); err != nil { // a folder of the Python tool has no place for it
		return err
	}
	lock, err := f.lockNotes(ctx, "verified.lock")
	if err != nil {
		return fmt.Errorf("lock notes of verifications: %w", err)
	}
	defer lock.Close()
	names, err := f.pointNames()
	if err != nil {
		return err
	}
	for i := range found {
		found[i].MAC = ""
		found[i].MAC = f.noteMAC(found[i])
	}
	all := append(f.readVerified(), found...)
	var notes verifiedNotes
	for i, v := range all {
		again := slices.ContainsFunc(all[i+1:], func(later Verified) bool { return later.Point == v.Point })
		if !again && slices.Contains(names, v.Point) {
			notes.Points = append(notes.Points, v)
		}
	}
	slices.SortFunc(notes.Points, func(a, b Verified) int { return a.Point.Time().Compare(b.Point.Time()) })
	b, err := json.MarshalIndent(&notes, "", "  ")
	if err != nil {
		return err
	}
	if err := f.writeState("verified.json", b); err != nil {
		return fmt.Errorf("note what was verified: %w", err)
	}
	return nil
}

// CheckParent says why a point does not lie on the one that it was made on; that one's own damage is no reason.
func (p *Point) CheckParent() error {
	name := p.Parent()
	switch {
	case p.Header == nil || p.State == Removing:
		return nil
	case name == "" && p.Header.BackingFile == foreignBase && p.State == Foreign:
		_, err := os.Stat(filepath.Join(p.Folder.Dir, foreignBase))
		return err
	case name == "" && p.Header.BackingFile != "":
		return fmt.Errorf("backing file %q: %w", p.Header.BackingFile, errOutside)
	case name == "":
		return nil
	case !p.Folder.has(name):
		return fmt.Errorf("point %s, which it lies on, is missing", name)
	case !name.Time().Before(p.Name.Time()):
		return fmt.Errorf("point %s, which it lies on, is not older", name)
	}
	below := p.Folder.Point(name)
	if below.State != Damaged && !below.carries(p) {
		return fmt.Errorf("point %s, which it lies on, is not the one that it was made on", name)
	}
	return nil
}

// CheckKey refuses a point whose digests were made without the key, while those of others in its chain were made with it.
func (p *Point) CheckKey(others []*Point) error {
	key := p.Folder.key
	if key == nil || p.Header == nil || p.Header.IsKeyed(key) {
		return nil
	}
	for _, o := range others {
		if o.Header != nil && o.Header.IsKeyed(key) && (o.Parent() == p.Name || p.Parent() == o.Name) {
			return fmt.Errorf("its digests were made without the key that those of %s were made with", o.Name)
		}
	}
	return nil
}

// Refuse says why a chain is not to be relied on, by what verifications have noted: see Verified. Damage that a point of it hides
// is no reason.
func (c *Chain) Refuse() error {
	var noted map[PointName]Verified
	for i, p := range c.Points {
		if noted == nil {
			noted = p.Folder.Verified(c.Points)
		}
		if v := noted[p.Name]; v.Verdict.Bad() && !v.isHidden(c.Points[:i]) {
			return &MarkedError{p.Path(), v}
		}
	}
	return nil
}

// MarkedError says that a verification has found a point damaged, or changed by another program.
type MarkedError struct {
	Path  string
	Found Verified
}

func (e *MarkedError) Error() string {
	return fmt.Sprintf("point %s was found %s by a verification at %s (%s)", e.Path, e.Found.Verdict,
		e.Found.Time.Local().Format(time.DateTime), e.Found.Reason)
}
