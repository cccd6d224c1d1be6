package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// write is a write to an image: of random data, or of zeroes.
type write struct {
	offset, length int64
	zero           bool
}

func bytesOf(writes []write) (n int64) {
	for _, w := range writes {
		n += w.length
	}
	return n
}

// create makes an empty image.
func (l *lab) create(ctx context.Context, image string, size int64) error {
	return l.do(ctx, "rbd", "create", "--size", strconv.FormatInt(size, 10)+"B", "rbd/"+image)
}

// write writes to an image, by one process. No two calls write the same data.
func (l *lab) write(ctx context.Context, image string, writes []write) error {
	const pattern = "random"
	name := filepath.Join(l.disk, pattern)
	data := make([]byte, mib)
	_, _ = rand.Read(data) // never fails
	if err := os.WriteFile(name, data, 0o600); err != nil {
		return fmt.Errorf("keep random data: %w", err)
	}
	var commands bytes.Buffer
	for _, w := range writes {
		how := "-s " + name
		if w.zero {
			how = "-P 0" // "-z" would make a hole
		}
		fmt.Fprintf(&commands, "write -q %s %d %d\n", how, w.offset, w.length)
	}
	commands.WriteString("flush\n")
	return l.feed(ctx, &commands, "qemu-io", "-f", "raw", "rbd:rbd/"+image)
}

// importData makes an image of what fill writes.
func (l *lab) importData(ctx context.Context, image string, fill func(io.Writer) error) error {
	r, w := io.Pipe()
	filled := make(chan error, 1)
	go func() {
		err := fill(w)
		filled <- err
		_ = w.CloseWithError(err)
	}()
	err := l.feed(ctx, r, "rbd", "import", "--no-progress", "-", "rbd/"+image)
	_ = r.CloseWithError(errors.New("import has ended"))
	return errors.Join(err, <-filled)
}

// sequential are writes one behind the other.
func sequential(from, to int64, zero bool) (writes []write) {
	const length = mib
	for ; from < to; from += length {
		writes = append(writes, write{from, length, zero})
	}
	return writes
}

// scattered are n writes of 4 KiB anywhere in an image of that size.
func scattered(random *mathrand.Rand, size int64, n int) []write {
	return scatteredBy(random, size, n, 4*kib)
}

// scatteredBy is scattered for writes of another length, each at a multiple of it.
func scatteredBy(random *mathrand.Rand, size int64, n int, length int64) (writes []write) {
	for range n {
		writes = append(writes, write{offset: random.Int64N(size/length) * length, length: length})
	}
	return writes
}

// What the database of the benchmark is like: its tables are files of 64 MiB here and there on the disk.
const (
	databaseSize   = 16 * gib
	databaseTables = 8
	tableSize      = 64 * mib
)

func tableAt(i int) int64 { return int64(i) * databaseSize / databaseTables }

func databaseContent() (writes []write) {
	for i := range databaseTables {
		writes = append(writes, sequential(tableAt(i), tableAt(i)+tableSize, false)...)
	}
	return writes
}

// databaseWork are 2000 writes of one or two pages of 8 KiB, most of them near the ends of the tables.
func databaseWork(random *mathrand.Rand) (writes []write) {
	const pages = tableSize / (8 * kib)
	for range 2000 {
		page := int64(float64(pages-2) * (1 - random.Float64()*random.Float64()*random.Float64()))
		writes = append(writes, write{
			offset: tableAt(random.IntN(databaseTables)) + page*8*kib,
			length: 8 * kib * (1 + random.Int64N(2)),
		})
	}
	return writes
}

// errEnough ends the walk over files.
var errEnough = errors.New("enough")

// realFiles writes n bytes: the files below /usr one behind the other, each from a block of its own, as a file system has them;
// again from the first where there are too few.
func realFiles(to io.Writer, n int64) error {
	for n > 0 {
		before := n
		err := filepath.WalkDir("/usr", func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil //nolint:nilerr // what can't be read is left out
			}
			k, err := copyFile(to, name, n)
			if n -= k; err == nil && n == 0 {
				err = errEnough
			}
			return err
		})
		if err != nil && !errors.Is(err, errEnough) {
			return fmt.Errorf("copy real files: %w", err)
		}
		if n == before {
			return errors.New("copy real files: none in /usr")
		}
	}
	return nil
}

// copyFile copies a file and fills its last block with zeroes, but writes no more than limit.
func copyFile(to io.Writer, name string, limit int64) (int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, nil //nolint:nilerr // as above
	}
	defer f.Close()
	n, err := io.Copy(to, io.LimitReader(f, limit))
	if err != nil {
		return n, err
	}
	k, err := to.Write(make([]byte, min(-n&(4*kib-1), limit-n)))
	return n + int64(k), err
}
