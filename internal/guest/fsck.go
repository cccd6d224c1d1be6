package guest

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// fsck checks the file systems of a point. The error says why that could not be done.
func (f *Fsck) fsck(ctx context.Context, point string) (*verify.Trial, error) {
	disk, err := newOverlay(ctx, point)
	if err != nil {
		return nil, err
	}
	defer disk.remove()
	late := fmt.Errorf("the file systems are not checked within %s: %w", f.Timeout, errTimeout)
	working, stop := context.WithTimeoutCause(ctx, f.Timeout, late)
	defer stop()
	list, err := disk.volumes(working)
	if err != nil {
		return nil, err
	}
	t := &verify.Trial{}
	for _, v := range list {
		result, err := f.checkVolume(working, disk, v)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", v.where, err)
		}
		if result != nil {
			t.FileSystems = append(t.FileSystems, *result)
		}
	}
	conclude(t)
	return t, nil
}

// conclude makes the result of a point from those of its file systems: the worst.
func conclude(t *verify.Trial) {
	if len(t.FileSystems) == 0 {
		t.Status, t.Message = verify.TrialUnsupported, "no file system found"
		return
	}
	t.Status = verify.TrialPassed
	var messages []string
	for _, fs := range t.FileSystems {
		if fs.Status == verify.TrialFailed || fs.Status == verify.TrialUnsupported && t.Status == verify.TrialPassed {
			t.Status = fs.Status
		}
		if fs.Status != verify.TrialPassed {
			messages = append(messages, fs.String())
		}
	}
	t.Message = strings.Join(messages, "; ")
}

func (o *overlay) volumes(ctx context.Context) ([]volume, error) {
	file, hide, err := o.expose(ctx, 0, 0)
	if err != nil {
		return nil, err
	}
	defer hide()
	return volumes(ctx, file)
}

// checkVolume checks what a volume holds. Of swap space, which holds nothing that is kept, there is no result.
func (f *Fsck) checkVolume(ctx context.Context, disk *overlay, v volume) (*verify.FileSystem, error) {
	file, hide, err := disk.expose(ctx, v.offset, v.length)
	if err != nil {
		return nil, err
	}
	defer hide()
	if v.length > 0 {
		found, err := probe(ctx, file)
		if err != nil {
			return nil, err
		}
		v.kind = found["TYPE"]
	}
	if v.kind == "swap" || v.kind == "swsuspend" {
		return nil, nil
	}
	result := &verify.FileSystem{Where: v.where, Type: v.kind, Status: verify.TrialPassed}
	switch err := f.check(ctx, v.kind, file, disk.dir); {
	case err == nil:
	case errors.As(err, new(damage)):
		result.Status, result.Message = verify.TrialFailed, err.Error()
	case errors.As(err, new(unsupported)):
		result.Status, result.Message = verify.TrialUnsupported, err.Error()
	default:
		return nil, err
	}
	return result, nil
}

// damage is what a checker has found.
type damage string

func (d damage) Error() string { return string(d) }

// unsupported is why something can't be checked on this host.
type unsupported string

func (u unsupported) Error() string { return string(u) }

// check checks a file system. The errors are those of the methods of check.
func (f *Fsck) check(ctx context.Context, kind, file, dir string) error {
	c := check{file: file, dir: dir, mount: f.Mount}
	method, program := c.method(kind)
	switch {
	case method == nil && kind == "":
		return unsupported("nothing known is there")
	case method == nil:
		return unsupported("there is no checker for it")
	}
	if _, err := lookUp(program); err != nil {
		return unsupported(program + " is not installed")
	}
	return method(ctx)
}
