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
	Good    State = "good"
	Copied  State = "copied"  // good but for its mtime: a copy, or changed in place; its digests tell
	Foreign State = "foreign" // made by the Python tool: by its name, and no record of ours
	Damaged State = "damaged" // not as it was made
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
}

// Path is the path of the point's file.
func (p *Point) Path() string { return p.Folder.Path(p.Name) }

// Point reads what a point says of itself and checks it quickly: nothing that takes longer for a larger disk.
func (f *Folder) Point(name PointName) *Point {
	p := &Point{Name: name, Folder: f}
	if err := p.read(); err != nil {
		p.State, p.Err = Damaged, err
	}
	return p
}

func (p *Point) read() error {
	file, err := os.Open(p.Path())
	if err != nil {
		return err
	}
	defer file.Close()
	if err := p.stat(file); err != nil {
		return err
	}
	if p.Header, err = qcow2.ReadHeader(file, p.FileSize); err != nil {
		return err
	}
	if p.Header.RecordError != nil {
		return p.Header.RecordError
	}
	record := p.Header.Record
	if record == nil {
		if !p.Name.Foreign() {
			return errors.New("it has no record of this program")
		}
		p.State = Foreign
		return nil
	}
	if record.FileLength != p.FileSize {
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
		p.DiskSize = sys.Blocks * 512
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
	switch {
	case id.Point != p.Name:
		return fmt.Errorf("the file is named %s and says that it is %s", p.Name, id.Point)
	case h.BackingFile != backing:
		return fmt.Errorf("backing file %q, by the identity it is %q", h.BackingFile, backing)
	case h.ClusterSize() != id.ClusterSize:
		return fmt.Errorf("clusters of %d bytes, by the identity of %d", h.ClusterSize(), id.ClusterSize)
	case h.Size != (id.Image.Size+511)/512*512:
		return fmt.Errorf("virtual size %d, by the identity %d", h.Size, id.Image.Size)
	}
	p.State = Good
	// In seconds: what archives and some file systems keep of a time.
	if !p.ModTime.Truncate(time.Second).Equal(id.Created.Truncate(time.Second)) {
		p.State = Copied
	}
	return nil
}

// BackingName is how a child names its parent: with "./", so that QEMU takes a colon for no protocol.
func (f *Folder) BackingName(parent PointName) string {
	return "./" + f.FileName(parent)
}

// Created is when the point was made: by its identity, otherwise by its name.
func (p *Point) Created() time.Time {
	if p.Identity != nil {
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
