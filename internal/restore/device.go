package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// head is how much of a device's beginning is written last, in bytes: partition table, boot sector, superblocks. A
	// device whose restore has failed begins with zeroes.
	head = 1 << 20
	// block is the part of the head that is written last of all, and what discarded ranges are aligned to.
	block = 4096
)

// Device is a block device.
type Device struct {
	file  *os.File
	mu    sync.Mutex
	first []byte // the head, until Finish
}

// OpenDevice opens a block device for a disk of size bytes. One that the kernel uses (mounted, part of another device)
// or that somebody has opened for himself is refused, as is one that is too small; both are left as they are. What the
// device has behind the end of the disk stays.
func OpenDevice(path string, size int64) (*Device, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		err = errors.New("it is in use (mounted?)")
	}
	if err != nil {
		return nil, fmt.Errorf("restore to %s: %w", path, err)
	}
	if err := checkDevice(f, size); err != nil {
		f.Close()
		return nil, fmt.Errorf("restore to %s: %w", path, err)
	}
	d := &Device{file: f, first: make([]byte, min(head, size))}
	if err := d.wipe(); err != nil {
		f.Close()
		return nil, fmt.Errorf("restore to %s: %w", path, err)
	}
	return d, nil
}

// checkDevice says what is wrong with a device before anything is written.
func checkDevice(f *os.File, size int64) error {
	room, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if room < size {
		return fmt.Errorf("it has %d bytes, the disk has %d", room, size)
	}
	if readOnly, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKROGET); err == nil && readOnly != 0 {
		return errors.New("it is read-only") // and could be opened all the same
	}
	return nil
}

// Layout implements Target.
func (d *Device) Layout() Layout { return Layout{Hole: 64 << 10} }

// Write implements Target. The head is kept back.
func (d *Device) Write(_ context.Context, p []byte, off int64) error {
	if off < int64(len(d.first)) {
		d.mu.Lock()
		n := copy(d.first[off:], p)
		d.mu.Unlock()
		p, off = p[n:], off+int64(n)
	}
	if _, err := d.file.WriteAt(p, off); err != nil {
		return fmt.Errorf("restore to %s: %w", d.file.Name(), err)
	}
	return nil
}

// Zero implements Target.
func (d *Device) Zero(_ context.Context, off, length int64) error {
	if kept := int64(len(d.first)) - off; kept > 0 { // zero already
		off, length = off+kept, length-kept
	}
	if length <= 0 {
		return nil
	}
	if err := d.clear(off, length); err != nil {
		return fmt.Errorf("restore to %s: %w", d.file.Name(), err)
	}
	return nil
}

// wipe clears the head, durably: else a power cut could leave an old partition table on top of half a new disk.
func (d *Device) wipe() error {
	if err := d.clear(0, int64(len(d.first))); err != nil {
		return err
	}
	return d.file.Sync()
}

// clear discards a range where the device then reads zeroes, and writes zeroes where it can't.
func (d *Device) clear(off, length int64) error {
	from, to := (off+block-1)/block*block, (off+length)/block*block
	if from < to {
		fd := int(d.file.Fd())
		err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
		if err != nil {
			err = unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
		}
		if err == nil {
			if err := d.zeroes(off, from); err != nil {
				return err
			}
			return d.zeroes(to, off+length)
		}
	}
	return d.zeroes(off, off+length)
}

// zeroes writes zeroes.
func (d *Device) zeroes(off, end int64) error {
	zeros := make([]byte, min(1<<20, max(0, end-off)))
	for off < end {
		n, err := d.file.WriteAt(zeros[:min(int64(len(zeros)), end-off)], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// Finish implements Target: everything is written and synced before the head is, and that before its first block.
func (d *Device) Finish(context.Context) error {
	first := min(block, len(d.first))
	err := d.file.Sync()
	if err == nil {
		_, err = d.file.WriteAt(d.first[first:], int64(first))
	}
	if err == nil {
		err = d.file.Sync()
	}
	if err == nil {
		_, err = d.file.WriteAt(d.first[:first], 0)
	}
	if err == nil {
		err = d.file.Sync()
	}
	if err != nil {
		return fmt.Errorf("restore to %s: %w", d.file.Name(), err)
	}
	d.file.Close()
	return nil
}

// Abort implements Target: the device begins with zeroes.
func (d *Device) Abort() error {
	defer d.file.Close()
	if err := d.wipe(); err != nil {
		return fmt.Errorf("give up %s: %w", d.file.Name(), err)
	}
	return nil
}
