package qcow2

import (
	"errors"
	"fmt"
)

// ErrNotQcow2 says that a file does not start with the qcow2 magic number.
var ErrNotQcow2 = errors.New("not a qcow2 file")

// CorruptError says that a structure of a file contradicts the specification, another structure or its digest.
type CorruptError struct {
	Structure string // what is wrong: "header", "L1 table", "L2 entry", "compressed cluster", …
	Offset    int64  // where it lies in the file, in bytes; for clusters, the guest offset
	Reason    string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("corrupt %s at offset %d: %s", e.Structure, e.Offset, e.Reason)
}

// UnsupportedError names a feature of the qcow2 format that a file needs and this package does not implement.
type UnsupportedError struct{ Feature string }

func (e *UnsupportedError) Error() string { return "unsupported qcow2 feature: " + e.Feature }

func corrupt(structure string, offset int64, format string, args ...any) error {
	return &CorruptError{structure, offset, fmt.Sprintf(format, args...)}
}
