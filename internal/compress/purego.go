//go:build !cgo

package compress

import "github.com/rbd2qcow2/rbd2qcow2/qcow2"

func zstdCodec(level int) qcow2.Codec { return qcow2.ZstdCodec(level) }
