package repo

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// State says what the quick check of a point has found: of its header, record, identity, length and mtime, not of
// its data.
type State string

// The states.
const (
	Good     State = "good"
	Copied   State = "copied"   // good but for its mtime or bytes at its end: a copy, or changed in place; its digests tell
	Foreign  State = "foreign"  // made by the Python tool, by its name
	Removing State = "removing" // its file is that of the point above already: the removal was cut short
	Damaged  State = "damaged"  // not as it was made
)

// Point is a restore point as its file describes it.
type Point struct {
	Name        PointName
	Folder      *Folder
	State       State
	Err         error         // why it is Damaged
	Header      *qcow2.Header // nil if it can't be read
	Identity    *Identity     // nil if it can't be read, or if there is none
	IdentityRaw []byte
	FileSize    int64 // apparent, bytes
	DiskSize    int64 // allocated, bytes
	ModTime     time.Time
	inode       uint64
	links       uint64
}

// Path is the path of the point's file.
func (p *Point) Path() string { return p.Folder.Path(p.Name) }

// Point reads what a point says of itself and checks it quickly: nothing that takes longer for a larger disk.
func (f *Folder) Point(name PointName) *Point {
	file, err := os.Open(f.Path(name))
	if err != nil {
		return &Point{Name: name, Folder: f, State: Damaged, Err: err}
	}
	defer file.Close()
	return f.pointIn(name, file)
}

// pointIn is Point for a file that is open.
func (f *Folder) pointIn(name PointName, file *os.File) *Point {
	p := &Point{Name: name, Folder: f}
	if err := p.read(file); err != nil {
		p.State, p.Err = Damaged, err
	}
	return p
}

func (p *Point) read(file *os.File) (err error) {
	if err := p.stat(file); err != nil {
		return err
	}
	header, err := qcow2.ReadHeader(file, p.FileSize)
	if err != nil {
		return err
	}
	p.Header = header
	if header.RecordError != nil {
		return header.RecordError
	}
	if err := header.CheckKey(file, p.Folder.key); err != nil {
		return err
	}
	record := header.Record
	if record == nil {
		if !p.Name.Foreign() {
			return errors.New("it has no record of this program")
		}
		p.State = Foreign
		return nil
	}
	if record.FileLength > p.FileSize {
		return fmt.Errorf("the file has %d bytes and was made with %d", p.FileSize, record.FileLength)
	}
	if p.IdentityRaw, err = record.ReadIdentity(file, p.FileSize); err != nil {
		return err
	}
	if p.Identity, err = DecodeIdentity(p.IdentityRaw); err != nil {
		return err
	}
	return p.compare()
}

func (p *Point) stat(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	p.FileSize, p.ModTime = info.Size(), info.ModTime()
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		p.DiskSize, p.inode, p.links = sys.Blocks*512, sys.Ino, uint64(sys.Nlink)
	}
	return nil
}

// compare holds header and file against the identity.
func (p *Point) compare() error {
	id, h := p.Identity, p.Header
	backing := ""
	if id.Parent != nil {
		backing = p.Folder.BackingName(id.Parent.Point)
	}
	removing := id.Folded != nil && id.Folded.Point == p.Name && p.Name.Time().Before(id.Point.Time())
	switch {
	case id.Point != p.Name && !removing:
		return fmt.Errorf("the file is named %s and says that it is %s", p.Name, id.Point)
	case id.Folder != "" && id.Folder != p.Folder.Name:
		return fmt.Errorf("the file lies in folder %s and says that it was made in %s", p.Folder.Name, id.Folder)
	case h.BackingFile != backing:
		return fmt.Errorf("backing file %q, by the identity it is %q", h.BackingFile, backing)
	case h.ClusterSize() != id.ClusterSize:
		return fmt.Errorf("clusters of %d bytes, by the identity of %d", h.ClusterSize(), id.ClusterSize)
	case h.Size != (id.Image.Size+511)/512*512:
		return fmt.Errorf("virtual size %d, by the identity %d", h.Size, id.Image.Size)
	}
	switch {
	case removing:
		p.State = Removing
	case p.Name.Foreign():
		p.State = Foreign
	case p.excess() > 0 || !p.hasOwnTime():
		p.State = Copied
	default:
		p.State = Good
	}
	return nil
}

// excess is how much longer the file is than it was made, in bytes: by a fold that was cut short.
func (p *Point) excess() int64 {
	if p.Header == nil || p.Header.Record == nil {
		return 0
	}
	return p.FileSize - p.Header.Record.FileLength
}

// hasOwnTime says whether the file has the mtime that it was made with: in seconds, which is what archives and some file
// systems keep of a time.
func (p *Point) hasOwnTime() bool {
	return p.ModTime.Truncate(time.Second).Equal(p.Identity.Created.Truncate(time.Second))
}

// Touched says whether the file's mtime is another one than it was made with: somebody has copied it or written to it.
func (p *Point) Touched() bool {
	switch {
	case p.Identity != nil:
		return !p.hasOwnTime()
	case p.Name.Foreign():
		return false // nobody knows
	}
	return !p.ModTime.Truncate(time.Second).Equal(p.Name.Time())
}

// OriginHash is what the points above know this one by: the hash, in hex, of the identity that it was made with. It
// outlives folds. "" where there is no identity.
func (p *Point) OriginHash() string {
	switch {
	case p.Identity == nil:
		return ""
	case p.Identity.OriginSHA256 != "":
		return p.Identity.OriginSHA256
	}
	return HashIdentity(p.IdentityRaw)
}

// AsParent is how a point that is made on this one refers to it.
func (p *Point) AsParent() *Parent {
	parent := &Parent{Point: p.Name, IdentitySHA256: p.OriginHash()}
	if p.Identity != nil {
		parent.PointID = p.Identity.PointID
	}
	return parent
}

// carries says whether the file is the one that a child lies on, by what the child says of its parent. The file of a point
// that is being removed has all that the child has, and is one for this child alone.
func (p *Point) carries(child *Point) bool {
	var parent Parent
	if child.Identity != nil && child.Identity.Parent != nil {
		parent = *child.Identity.Parent
	}
	if p.State == Removing {
		id := p.Identity
		return id.Point == child.Name && (child.Identity == nil || child.Identity.PointID == id.PointID) &&
			(parent.PointID == "" || parent.PointID == id.Folded.PointID)
	}
	return parent.IdentitySHA256 == "" || parent.IdentitySHA256 == p.OriginHash()
}

// BackingName is how a child names its parent: with "./", so that QEMU takes a colon for no protocol.
func (f *Folder) BackingName(parent PointName) string {
	return "./" + f.FileName(parent)
}

// Created is when the point was made: by its identity, otherwise by its name.
func (p *Point) Created() time.Time {
	if p.Identity != nil && p.State != Removing {
		return p.Identity.Created
	}
	return p.Name.Time()
}

// Kind is "full" or "incremental".
func (p *Point) Kind() string {
	switch {
	case p.Identity != nil:
		return p.Identity.Kind()
	case p.Header == nil:
		return "unknown"
	case p.Header.BackingFile == "" || p.Header.BackingFile == foreignBase:
		return "full"
	}
	return "incremental"
}

// Parent names the point below, "" where there is none.
func (p *Point) Parent() PointName {
	if p.Identity != nil && p.Identity.Parent != nil {
		return p.Identity.Parent.Point
	}
	if p.Header == nil {
		return ""
	}
	name, _ := p.Folder.parseBacking(p.Header.BackingFile)
	return name
}
