package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
)

// FoldFile is the file that a fold changes in place; *os.File is one, if it can be read and written.
type FoldFile interface {
	File
	io.ReaderAt
}

// FoldOptions describes the result of a fold.
type FoldOptions struct {
	Identity    []byte // of the result, to be found by Image.Identity
	BackingFile string // of the result; "" for none, which needs that there is none now, or one that holds nothing
	// Compress says whether clusters that are put together anew are compressed, by Codec, which has to be of the target's
	// CompressionType; nil: the codec with which the target is read. What is moved stays as it is.
	Compress bool
	Codec    Codec
	// Parallel is how many clusters are read, decoded and encoded at a time; 0: one.
	Parallel int
	// Scratch is what WriterOptions has; it may be called three times.
	Scratch func() (Scratch, error)
	// Confirm is asked right before the switch; its error undoes the fold. nil: nobody is asked.
	Confirm func() error

	limits foldLimits
}

// foldLimits bounds what a fold holds in memory; tests make it small.
type foldLimits struct {
	refcounts int64 // bytes of refcount blocks
	window    int64 // host clusters whose references are counted at a time
	batch     int64 // bytes of clusters that are read and encoded together
	queue     int64 // bytes of L2 tables that are written together
}

// FoldStats counts what a fold has done.
type FoldStats struct {
	CopiedClusters  int64 // moved as they were
	EncodedClusters int64 // put together anew
	ZeroClusters    int64 // explicit ones that were added
	DroppedClusters int64 // of the target's data, superseded
	WrittenBytes    int64 // to the file, tables and all
	FreedBytes      int64 // that Punch can give back
	FileBytes       int64 // length of the file
}

// Folded is a file after a fold.
type Folded struct {
	Stats FoldStats
	dead  *deadSpans
}

// FoldIntoChild removes the backing file of child from its chain: the file of child gets what it lacks of it, and then
// stands on the file below. See FoldIntoBacking.
func FoldIntoChild(ctx context.Context, f FoldFile, child *Image, o FoldOptions) (*Folded, error) {
	return foldInto(ctx, f, child, o, false)
}

// FoldIntoBacking removes the backing file of child from its chain the other way round: that file gets what child holds,
// and so becomes what child is. The caller renames it over the file of child; until then child reads as before.
//
// f is the file that changes, the target, and child its chain as it is now, opened with OpenOptions.Prove. What is there
// stays as it is: everything new is written to free space in the file or behind its end, and a last write, of the first
// sector, between two syncs, switches from the old state to the new. At every instant the file is the one or the
// other, and child reads the same. After an error that came before that write the file has its old length;
// a file that is longer than its Record says has been cut short in the middle of a fold, and nothing more.
// After the switch what was superseded is still in the file: see Punch.
//
// All data that is moved is compared with its digest before, and the refcounts of the target with the references in it. If
// any file that data comes from is not Proved, the result has no digests either.
//
// Errors are *CorruptError, *UnsupportedError where the target has what a fold does not know (internal snapshots,
// bitmaps, refcounts of other than 16 bits, the dirty flag), ctx's, or those of the files. child is of no use after a fold.
// Memory is bounded: beside the caches of the chain some 64 MiB, L1 and refcount table and digest directory.
func FoldIntoBacking(ctx context.Context, f FoldFile, child *Image, o FoldOptions) (*Folded, error) {
	return foldInto(ctx, f, child, o, true)
}

func foldInto(ctx context.Context, file FoldFile, child *Image, o FoldOptions, intoBacking bool) (*Folded, error) {
	f, err := newFold(ctx, file, child, o, intoBacking)
	if err != nil {
		return nil, fmt.Errorf("fold: %w", err)
	}
	defer f.close()
	if err := f.run(ctx); err != nil {
		return nil, fmt.Errorf("fold: %w", errors.Join(err, f.dead.close(), f.undo()))
	}
	return &Folded{Stats: f.stats, dead: f.dead}, nil
}

// fold is a fold at work. The layers are named by what they are to the target: other is the file whose place it takes in
// the chain, or that takes its place.
type fold struct {
	o           FoldOptions
	f           *foldFile
	child       *Image
	target      *Image
	other       *Image
	below       *Image // nil: nothing, or nothing that holds data
	intoBacking bool
	size        int64 // of the disk
	backingSize int64 // of the file that is folded away or into
	length      int64 // of the committed file
	oldSector   []byte
	switched    bool // the header was written, or may have been

	header   Header // of the result
	l1       []uint64
	keep     int64 // tables of the target that stay or change; those behind go
	space    *space
	refs     *refcounts
	packer   packer
	out      output
	queue    []queuedTable // L2 tables to be written
	buf      []byte
	proved   bool             // the result has digests
	old      *directoryReader // the target's digest directory
	trailer  trailer
	dead     *deadSpans
	jobs     []*foldJob // clusters on their way, of the current table
	encoders []*ChunkEncoder
	stats    FoldStats
}

func newFold(ctx context.Context, file FoldFile, child *Image, o FoldOptions, intoBacking bool) (*fold, error) {
	backing := child.Backing()
	if backing == nil {
		return nil, errors.New("no backing file: nothing to fold")
	}
	if o.limits == (foldLimits{}) {
		o.limits = foldLimits{refcounts: 32 << 20, window: refcountWindow, batch: 4 << 20, queue: queueBytes}
	}
	f := &fold{
		o: o, f: &foldFile{FoldFile: file}, child: child, target: child, other: backing, below: backing.Backing(),
		intoBacking: intoBacking, size: child.Size(), backingSize: backing.Size(),
		proved: child.Proved() && backing.Proved(),
	}
	if intoBacking {
		f.target, f.other = backing, child
	}
	if err := f.check(ctx); err != nil {
		return nil, err
	}
	h := f.target.header
	f.header = Header{
		Version: 3, ClusterBits: h.ClusterBits, Size: f.size, L1Size: uint32(l1Entries(f.size, h.ClusterSize())),
		RefcountOrder: refcountOrder, Compression: h.Compression, BackingFile: o.BackingFile, BackingFormat: "qcow2",
	}
	f.length = f.target.fileLength
	if h.Record != nil {
		f.length = h.Record.FileLength
	}
	var err error
	if f.header.backingOffset, err = backingNamePlace(h, o.BackingFile); err != nil {
		return nil, err
	}
	if f.space, err = newSpace(f.target, f.length); err != nil {
		return nil, err
	}
	if f.old, err = f.target.openDirectory(); err != nil {
		return nil, err
	}
	if f.oldSector, err = readSector(file); err != nil {
		return nil, err
	}
	f.dead = newDeadSpans(o.Scratch)
	f.refs = newRefcounts(f.f, f.space, h.ClusterBits, f.freeCluster)
	f.refs.memory = o.limits.refcounts
	f.packer.clusterBits = h.ClusterBits
	f.out.f = f.f
	f.buf = make([]byte, min(h.ClusterSize(), 64<<10))
	f.trailer = trailer{blocks: newSpool(o.Scratch), key: f.target.key}
	f.header.key = f.target.key
	return f, f.makeEncoders()
}

// check refuses what can't be folded.
func (f *fold) check(ctx context.Context) error {
	if int64(len(f.o.Identity)) > maxIdentity {
		return fmt.Errorf("identity of %d bytes: more than %d", len(f.o.Identity), maxIdentity)
	}
	if err := f.target.checkFoldable(f.size); err != nil {
		return err
	}
	if err := errors.Join(f.target.checkProves(), f.other.checkProves()); err != nil {
		return err
	}
	for im := f.child; im != nil; im = im.Backing() { // data from below get digests of the target's key, too
		if !f.target.key.is(im.key) {
			return &UnsupportedError{"digests of two keys, or with a key and without, in a fold"}
		}
	}
	if f.o.Codec != nil && f.o.Codec.Type() != f.target.header.Compression {
		return fmt.Errorf("codec of type %s for a file of type %s", f.o.Codec.Type(), f.target.header.Compression)
	}
	if f.o.BackingFile != "" || f.below == nil {
		return nil
	}
	holds, err := f.below.holdsData(ctx, 0, f.below.Size())
	if err == nil && holds {
		err = errors.New("no backing file for the result: the one below holds data")
	}
	f.below = nil
	return err
}

// checkFoldable says why a file can't be changed to a disk of size bytes.
func (im *Image) checkFoldable(size int64) error {
	h := im.header
	for _, test := range []struct {
		is      bool
		feature string
	}{
		{h.Snapshots > 0, "internal snapshots in a fold"},
		{h.RefcountOrder != refcountOrder, "refcounts of other than 16 bits in a fold"},
		{h.Incompatible&incompatDirty != 0, "a dirty file in a fold"},
		{h.Autoclear != 0 || h.bitmaps, "bitmaps or other data of later versions in a fold"},
		{l1Entries(size, h.ClusterSize())*8 > maxL1Bytes, fmt.Sprintf("a disk of %d bytes in clusters of %d", size, h.ClusterSize())},
	} {
		if test.is {
			return &UnsupportedError{test.feature}
		}
	}
	return nil
}

// checkProves says whether a file that has digests was opened to be compared with them.
func (im *Image) checkProves() error {
	if r, err := im.record(); err != nil && !errors.Is(err, ErrNoRecord) {
		return err
	} else if err == nil && r.Digests != NoDigest && !im.Proved() {
		return errors.New("a file with digests that is not proved")
	}
	return nil
}

// backingNamePlace finds room for the name of the result's backing file in the first cluster: neither what the committed
// header needs nor the sector that is to be switched.
func backingNamePlace(old *Header, name string) (int64, error) {
	if name == "" {
		return 0, nil
	}
	n := int64(len(name))
	oldEnd := old.backingOffset + old.backingLength
	first := max(backingNameHome, int64(old.headerAndExtensions)+7) / 8 * 8
	if old.backingOffset != 0 && first < oldEnd && old.backingOffset < first+n {
		first = (oldEnd + 7) / 8 * 8
	}
	if n > maxBackingName || first > old.ClusterSize()-n {
		return 0, &UnsupportedError{fmt.Sprintf("a backing file name of %d bytes in clusters of %d", n, old.ClusterSize())}
	}
	return first, nil
}

// undo gives the file its old length, where it is known to be in its old state.
func (f *fold) undo() error {
	if f.switched {
		if now, err := readSector(f.f); err != nil || !bytes.Equal(now, f.oldSector) {
			return err // both states are whole: whichever it is
		}
	}
	return f.f.Truncate(f.length)
}

func readSector(r io.ReaderAt) ([]byte, error) {
	b := make([]byte, sectorSize)
	_, err := readFullAt(r, b, 0)
	return b, err
}

// close gives back what the fold holds beside the file.
func (f *fold) close() { _ = f.trailer.blocks.close() } // which was only read
