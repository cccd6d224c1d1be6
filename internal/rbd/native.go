package rbd

/*
#cgo LDFLAGS: -lrbd -lrados
#include <errno.h>
#include <stdlib.h>
#include <rados/librados.h>
#include <rbd/librbd.h>
*/
import "C"

import (
	"bytes"
	"errors"
	"fmt"
	"unsafe"

	"github.com/ceph/go-ceph/rados"
)

// This file holds the librbd calls that go-ceph lacks. They need an image
// handle of their own, because go-ceph does not show its own.

const (
	maxImages   = 1 << 20 // names that a pool may list
	maxMetadata = 64 << 20
)

// librbdVersion implements: void rbd_version(int *major, int *minor, int *extra).
func librbdVersion() string {
	var major, minor, extra C.int
	C.rbd_version(&major, &minor, &extra)
	return fmt.Sprintf("%d.%d.%d", major, minor, extra)
}

// listImages implements: int rbd_list2(rados_ioctx_t io, rbd_image_spec_t *images, size_t *max_images).
func listImages(ioctx *rados.IOContext) ([]ImageRef, error) {
	for size := C.size_t(1024); size <= maxImages; {
		specs := make([]C.rbd_image_spec_t, size)
		n := size
		ret := C.rbd_list2(C.rados_ioctx_t(ioctx.Pointer()), &specs[0], &n)
		if ret == -C.ERANGE {
			size = max(2*size, n) // images may appear meanwhile
			continue
		}
		if ret < 0 {
			return nil, codeErr(int(ret))
		}
		defer C.rbd_image_spec_list_cleanup(&specs[0], n)
		refs := make([]ImageRef, n)
		for i, spec := range specs[:n] {
			refs[i] = ImageRef{Name: C.GoString(spec.name), ID: C.GoString(spec.id)}
		}
		return refs, nil
	}
	return nil, fmt.Errorf("more than %d images", maxImages)
}

// native is an image opened read-only beside go-ceph's handle.
type native struct{ image C.rbd_image_t }

// openNative implements: int rbd_open_by_id_read_only(rados_ioctx_t io,
// const char *id, rbd_image_t *image, const char *snap_name). To a snapshot it
// goes by way of the head, as openByID does.
func openNative(ioctx *rados.IOContext, id, snapshot string) (native, error) {
	cid := C.CString(id)
	defer C.free(unsafe.Pointer(cid))
	var n native
	err := codeErr(int(C.rbd_open_by_id_read_only(C.rados_ioctx_t(ioctx.Pointer()), cid, &n.image, nil)))
	if err != nil || snapshot == "" {
		return n, err
	}
	if err := n.setSnapshotName(snapshot); err != nil {
		return native{}, errors.Join(err, n.close())
	}
	return n, nil
}

// withNative runs f with an image open for it alone.
func withNative(ioctx *rados.IOContext, id, snapshot string, f func(native) error) error {
	n, err := openNative(ioctx, id, snapshot)
	if err != nil {
		return err
	}
	return errors.Join(f(n), n.close())
}

// close implements: int rbd_close(rbd_image_t image).
func (n native) close() error { return codeErr(int(C.rbd_close(n.image))) }

// setSnapshot implements: int rbd_snap_set_by_id(rbd_image_t image, uint64_t snap_id).
func (n native) setSnapshot(id uint64) error {
	return codeErr(int(C.rbd_snap_set_by_id(n.image, C.uint64_t(id))))
}

// setSnapshotName goes to a snapshot of the user namespace, or with an empty name
// to the head. It implements: int rbd_snap_set(rbd_image_t image, const char *snapname).
func (n native) setSnapshotName(name string) error {
	var cname *C.char
	if name != "" {
		cname = C.CString(name)
		defer C.free(unsafe.Pointer(cname))
	}
	return codeErr(int(C.rbd_snap_set(n.image, cname)))
}

// snapshotID finds a snapshot of the user namespace. It implements: int
// rbd_snap_get_id(rbd_image_t image, const char *snapname, uint64_t *snap_id).
func (n native) snapshotID(name string) (uint64, error) {
	cname := C.CString(name)
	defer C.free(unsafe.Pointer(cname))
	var id C.uint64_t
	err := codeErr(int(C.rbd_snap_get_id(n.image, cname, &id)))
	return uint64(id), err
}

// flags implements: int rbd_get_flags(rbd_image_t image, uint64_t *flags).
func (n native) flags() (Flags, error) {
	var flags C.uint64_t
	err := codeErr(int(C.rbd_get_flags(n.image, &flags)))
	return Flags(flags), err
}

// name implements: int rbd_get_name(rbd_image_t image, char *name, size_t *name_len).
func (n native) name() (string, error) {
	buf := make([]byte, 4096)
	size := C.size_t(len(buf))
	if ret := C.rbd_get_name(n.image, (*C.char)(unsafe.Pointer(&buf[0])), &size); ret < 0 {
		return "", codeErr(int(ret))
	}
	return C.GoString((*C.char)(unsafe.Pointer(&buf[0]))), nil
}

// metadata returns all pairs, page by page. It implements: int
// rbd_metadata_list(rbd_image_t image, const char *start, uint64_t max,
// char *keys, size_t *key_len, char *values, size_t *vals_len).
func (n native) metadata() (map[string]string, error) {
	const page = 64
	pairs := make(map[string]string)
	for start := ""; ; {
		keys, values, err := n.metadataPage(start, page)
		if err != nil {
			return nil, err
		}
		for i, key := range keys {
			pairs[key] = values[i]
			start = key
		}
		if len(keys) < page {
			return pairs, nil
		}
	}
}

func (n native) metadataPage(start string, count int) (keys, values []string, err error) {
	cstart := C.CString(start)
	defer C.free(unsafe.Pointer(cstart))
	kbuf, vbuf := make([]byte, 4096), make([]byte, 64<<10)
	for {
		klen, vlen := C.size_t(len(kbuf)), C.size_t(len(vbuf))
		ret := C.rbd_metadata_list(n.image, cstart, C.uint64_t(count),
			(*C.char)(unsafe.Pointer(&kbuf[0])), &klen, (*C.char)(unsafe.Pointer(&vbuf[0])), &vlen)
		switch {
		case ret == -C.ERANGE && klen <= maxMetadata && vlen <= maxMetadata:
			kbuf, vbuf = make([]byte, max(int(klen), len(kbuf))), make([]byte, max(int(vlen), len(vbuf)))
			continue
		case ret < 0:
			return nil, nil, codeErr(int(ret))
		}
		keys, values = splitNUL(kbuf[:klen]), splitNUL(vbuf[:vlen])
		if len(keys) != len(values) {
			return nil, nil, fmt.Errorf("image metadata: %d keys but %d values", len(keys), len(values))
		}
		return keys, values, nil
	}
}

// splitNUL cuts a sequence of NUL-terminated strings.
func splitNUL(buf []byte) []string {
	var words []string
	for len(buf) > 0 {
		word, rest, _ := bytes.Cut(buf, []byte{0})
		words = append(words, string(word))
		buf = rest
	}
	return words
}
