// Package compress gives the program its codecs by the names that --compress has for them. For zstd it uses libzstd,
// which compresses clusters half as fast again as the pure Go codec of package qcow2, at a better ratio. A build without
// cgo uses that one.
package compress

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// DefaultLevel is the zstd level where none is given.
const DefaultLevel = 1

// Parse gives the codec for "none" (nil), "zlib" or "zstd[:LEVEL]", and the full name of it.
func Parse(s string) (name string, codec qcow2.Codec, err error) {
	kind, levelText, hasLevel := strings.Cut(s, ":")
	level := DefaultLevel
	if hasLevel {
		if level, err = strconv.Atoi(levelText); err != nil {
			return "", nil, fmt.Errorf("compression %q: the level is not a number", s)
		}
	}
	switch kind {
	case "none":
		if hasLevel {
			return "", nil, fmt.Errorf("compression %q: none has no level", s)
		}
		return kind, nil, nil
	case "zlib":
		if hasLevel {
			return "", nil, fmt.Errorf("compression %q: zlib has no level (the format fixes its window)", s)
		}
		return kind, qcow2.ZlibCodec(), nil
	case "zstd":
		if level < 1 || level > 19 {
			return "", nil, fmt.Errorf("compression %q: zstd levels are 1 to 19", s)
		}
		return fmt.Sprintf("zstd:%d", level), zstdCodec(level), nil
	}
	return "", nil, fmt.Errorf("compression %q: must be zstd, zlib or none", s)
}
