package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// overlay is a disk that can be written to on top of a point, and all that goes with it.
type overlay struct {
	dir  string
	path string
}

// newOverlay makes an overlay of a point's file in a temporary directory.
func newOverlay(ctx context.Context, point string) (_ *overlay, err error) {
	point, err = filepath.Abs(point)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "rbd2qcow2-guest-")
	if err != nil {
		return nil, fmt.Errorf("make overlay: %w", err)
	}
	o := &overlay{dir: dir, path: filepath.Join(dir, "overlay.qcow2")}
	if err := succeed(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", point, o.path); err != nil {
		o.remove()
		return nil, fmt.Errorf("make overlay: %w", err)
	}
	return o, nil
}

// remove removes the directory. It is this package's own, so what stays is of no interest to anybody.
func (o *overlay) remove() { _ = os.RemoveAll(o.dir) }

// node describes the overlay as QEMU's -blockdev takes it: of that name, and never flushed to disk.
func (o *overlay) node(name string) string {
	return blockdev{
		"driver": "qcow2", "node-name": name, "discard": "unmap", "cache": blockdev{"no-flush": true},
		"file": blockdev{"driver": "file", "filename": o.path},
	}.String()
}

// blockdev is a node of QEMU's block graph.
type blockdev map[string]any

func (b blockdev) String() string {
	text, _ := json.Marshal(b) // strings, numbers and the like: no error
	return string(text)
}
