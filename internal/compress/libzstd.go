//go:build cgo

package compress

import (
	"github.com/DataDog/zstd"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

func zstdCodec(level int) qcow2.Codec { return libzstd{qcow2.ZstdCodec(level), level} }

// libzstd compresses with libzstd and decompresses as package qcow2 does.
type libzstd struct {
	qcow2.Codec
	level int
}

func (c libzstd) NewEncoder() (qcow2.Encoder, error) {
	return &encoder{ctx: zstd.NewCtx(), level: c.level}, nil
}

// encoder keeps one context of libzstd, which costs far more to make than to use.
type encoder struct {
	ctx     zstd.Ctx
	level   int
	scratch []byte // libzstd wants room for the worst case
}

func (e *encoder) Encode(dst, src []byte) (int, error) {
	if bound := zstd.CompressBound(len(src)); len(e.scratch) < bound {
		e.scratch = make([]byte, bound)
	}
	out, err := e.ctx.CompressLevel(e.scratch, src, e.level)
	if err != nil {
		return 0, err
	}
	if len(out) > len(dst) {
		return 0, nil
	}
	return copy(dst, out), nil
}
