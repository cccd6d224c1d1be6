package rbd

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// Errors to test for with errors.Is. An error that came from librados or librbd
// also matches its [syscall.Errno].
var (
	ErrNotFound     = errors.New("not found")                               // ENOENT
	ErrPermission   = errors.New("permission denied")                       // EPERM, EACCES
	ErrExists       = errors.New("exists already")                          // EEXIST
	ErrBusy         = errors.New("in use or protected")                     // EBUSY
	ErrNotEmpty     = errors.New("it has snapshots")                        // ENOTEMPTY
	ErrQuota        = errors.New("limit reached")                           // EDQUOT, ENOSPC
	ErrTimeout      = errors.New("the cluster did not answer in time")      // ETIMEDOUT, or the watchdog
	ErrBlocklisted  = errors.New("this client has been blocklisted")        // ESHUTDOWN
	ErrLocked       = errors.New("image is locked")                         // EROFS; see LockedError
	ErrNotPrimary   = errors.New("image is a non-primary mirror")           // nothing can be changed in it
	ErrMigrating    = errors.New("image is being migrated")                 // librbd's diff would crash
	ErrNotMigrating = errors.New("image is not being migrated")             // nor imported
	ErrUnsupported  = errors.New("not supported")                           // format 1 images
	ErrAbandoned    = errors.New("call abandoned, it may still be running") // see the package documentation
	ErrClosed       = errors.New("already closed")                          // use after Close
	errCallback     = errors.New("callback failed")                         // fn of Diff panicked
	errWatchdog     = fmt.Errorf("%w (watchdog)", ErrTimeout)               // cause of a watchdog's context
)

// Error tells which operation failed on which object. It prints as
// "open image rbd/vm1: not found".
type Error struct {
	Op     string // "open image"
	Object string // "rbd/vm1"; may be empty
	Err    error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Object == "" {
		return e.Op + ": " + e.Err.Error()
	}
	return e.Op + " " + e.Object + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// fail names operation and object in err, which may be nil.
func fail(op, object string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Object: object, Err: translate(err)}
}

// codeError is a code of librados or librbd, and what it means.
type codeError struct {
	kind  error // a sentinel or nil
	errno syscall.Errno
}

func (e *codeError) Error() string {
	if e.kind == nil {
		return e.errno.Error()
	}
	return e.kind.Error()
}

func (e *codeError) Unwrap() []error {
	if e.kind == nil {
		return []error{e.errno}
	}
	return []error{e.kind, e.errno}
}

// explained is an error whose text says more than that of its cause.
type explained struct {
	text string
	err  error
}

func (e *explained) Error() string { return e.text }
func (e *explained) Unwrap() error { return e.err }

// codeErr makes an error of a return code, whatever its sign; nil for zero.
func codeErr(code int) error {
	if code == 0 {
		return nil
	}
	errno := syscall.Errno(max(code, -code))
	return &codeError{kind: meaning(errno), errno: errno}
}

func meaning(errno syscall.Errno) error {
	switch errno {
	case syscall.ENOENT:
		return ErrNotFound
	case syscall.EPERM, syscall.EACCES:
		return ErrPermission
	case syscall.EEXIST:
		return ErrExists
	case syscall.EBUSY:
		return ErrBusy
	case syscall.ENOTEMPTY:
		return ErrNotEmpty
	case syscall.EDQUOT, syscall.ENOSPC:
		return ErrQuota
	case syscall.ETIMEDOUT:
		return ErrTimeout
	case syscall.ESHUTDOWN:
		return ErrBlocklisted
	case syscall.EROFS:
		return ErrLocked
	}
	return nil
}

// translate turns go-ceph's errors, which carry a code of either sign, into ours.
func translate(err error) error {
	var coded interface{ ErrorCode() int }
	if errors.As(err, &coded) {
		return codeErr(coded.ErrorCode())
	}
	return err
}

// abandoned is the error of a call that ctx did not let finish.
func abandoned(ctx context.Context) error {
	return fmt.Errorf("%w: %w", context.Cause(ctx), ErrAbandoned)
}
