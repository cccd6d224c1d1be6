package qcow2

import (
	"errors"
	"fmt"
	"io"
)

// maxChain bounds the number of files in a chain.
const maxChain = 4096

// OpenOptions says how to read a file. The zero value reads a file without a backing file.
type OpenOptions struct {
	// Backing opens the backing file that a header names, in the format it names ("" if it does not say).
	// nil: a file that has one is refused. Which names and formats are allowed, and that a chain does not bite
	// its tail, is for the caller to see to.
	Backing func(name, format string) (*Image, error)
	// Codec gives the codec for compressed clusters; it must be comparable. nil: DefaultCodec.
	Codec func(CompressionType) Codec
	// Prove compares all that is read of the file with its digests, where it has them: see Image.Proved. A cluster is
	// read as a whole for that. Data or tables that are not as they were written are a *CorruptError.
	Prove bool
	// Key is needed to prove files whose digests were made with one; of no meaning for others. What Prove can't do without is a *KeyError.
	Key *DigestKey
	// Alone leaves the backing file where it is, for those who ask about this file only: where it has nothing, the image is
	// said to have nothing. Backing is not called.
	Alone bool
}

// Image is what a guest sees of a file and its backing files. Its methods may be called concurrently.
// The files of a chain share one cache of bounded size.
type Image struct {
	r          io.ReaderAt
	fileLength int64
	header     *Header
	backing    *Image // nil without one
	depth      int    // number of files below
	codec      Codec
	idle       chan *inflater
	shared     *shared
	proof      *proof // nil: what is read is not compared with digests
	given      *DigestKey
	key        *DigestKey // the one given, if the file's digests were made with it
}

var _ io.ReaderAt = (*Image)(nil)

// Open opens the file of fileLength bytes that r reads, and its backing files. It does not take r over: the caller
// closes it, and those that o.Backing opened, after the last use of the Image. Nothing but headers is read.
// Errors are those of ReadHeader and of o.Backing.
func Open(r io.ReaderAt, fileLength int64, o OpenOptions) (*Image, error) {
	h, err := ReadHeader(r, fileLength)
	if err != nil {
		return nil, err
	}
	im := &Image{r: r, fileLength: fileLength, header: h}
	if h.BackingFile != "" && !o.Alone {
		if im.backing, err = openBacking(h, o); err != nil {
			return nil, err
		}
		im.depth = im.backing.depth + 1
		im.shared = im.backing.shared
	} else {
		im.shared = newShared()
	}
	if o.Codec == nil {
		o.Codec = DefaultCodec
	}
	if im.codec = o.Codec(h.Compression); im.codec == nil {
		return nil, &UnsupportedError{h.Compression.String()}
	}
	if im.idle, err = im.shared.idle(im.codec); err != nil {
		return nil, err
	}
	if err := im.useKey(o.Key); err != nil {
		return nil, err
	}
	if o.Prove {
		if im.proof, err = newProof(im); err != nil {
			return nil, err
		}
	}
	return im, nil
}

func openBacking(h *Header, o OpenOptions) (*Image, error) {
	if o.Backing == nil {
		return nil, fmt.Errorf("open backing file %q: not allowed here", h.BackingFile)
	}
	b, err := o.Backing(h.BackingFile, h.BackingFormat)
	if err != nil {
		return nil, fmt.Errorf("open backing file %q: %w", h.BackingFile, err)
	}
	if b == nil {
		return nil, fmt.Errorf("open backing file %q: %w", h.BackingFile, errors.ErrUnsupported)
	}
	if b.depth+2 > maxChain {
		return nil, fmt.Errorf("open backing file %q: more than %d files in the chain", h.BackingFile, maxChain)
	}
	return b, nil
}

// Size is the virtual size in bytes. Like QEMU it rounds a size that is no multiple of 512 down.
func (im *Image) Size() int64 { return im.header.Size / sectorSize * sectorSize }

// Header is the header of the file itself. It is not to be changed.
func (im *Image) Header() *Header { return im.header }

// Proved says whether what is read of this file, not of those below it, is compared with its digests.
func (im *Image) Proved() bool { return im.proof != nil }

// allProved is Proved for all files of the chain.
func (im *Image) allProved() bool {
	for ; im != nil; im = im.backing {
		if !im.Proved() {
			return false
		}
	}
	return true
}

// Backing is the image of the backing file, or nil.
func (im *Image) Backing() *Image { return im.backing }
