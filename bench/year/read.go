package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync/atomic"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/restore"
)

// parallel is how many pieces a restore reads at once: what "restore" does by itself.
const parallel = 8

// restoreTo restores a point, each byte compared with its digest as ever.
func (h *history) restoreTo(ctx context.Context, p repo.PointName, to restore.Target) (err error) {
	chain, err := h.OpenProvedChain(ctx, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, chain.Close()) }()
	_, err = restore.Run(ctx, restore.NewSource(chain), to, restore.Options{Parallel: parallel})
	return err
}

// discard is a target for the time that reading takes.
type discard struct{}

func (discard) Layout() restore.Layout                     { return restore.Layout{Blank: true} }
func (discard) Write(context.Context, []byte, int64) error { return nil }
func (discard) Zero(context.Context, int64, int64) error   { return nil }
func (discard) Finish(context.Context) error               { return nil }
func (discard) Abort() error                               { return nil }

// summer is a target that sums up what it gets.
type summer struct {
	discard
	sum atomic.Uint64
}

func (s *summer) Layout() restore.Layout { return restore.Layout{Blank: true, Unit: block} }

func (s *summer) Write(_ context.Context, p []byte, off int64) error {
	for at := 0; at < len(p); at += block {
		s.sum.Add(sumOf(p[at:][:block], off+int64(at)))
	}
	return nil
}

// verify compares all points that there are to be, and are, with what they had when they were made. thorough asks QEMU too.
func (h *history) verify(ctx context.Context, states map[repo.PointName]state, thorough bool) error {
	points, err := h.Points()
	if err != nil {
		return err
	}
	if len(points) != len(states) {
		return fmt.Errorf("verify: %d points in %s, there are to be %d", len(points), h.Dir, len(states))
	}
	for _, p := range points {
		s, there := states[p.Name]
		if !there || p.State != repo.Good {
			return fmt.Errorf("verify: %s is %s: %w", p.Path(), p.State, p.Err)
		}
		var got summer
		if err := h.restoreTo(ctx, p.Name, &got); err != nil {
			return err
		}
		if got.sum.Load() != s.sum {
			return fmt.Errorf("verify: WRONG BYTES in %s", p.Path())
		}
		if !thorough {
			continue
		}
		if err := verifyByQEMU(ctx, p, s.sum); err != nil {
			return err
		}
	}
	return nil
}

// verifyByQEMU has another program read a point, and check the tables of its file.
func verifyByQEMU(ctx context.Context, p *repo.Point, sum uint64) (err error) {
	raw := p.Folder.Dir + ".raw"
	defer func() { err = errors.Join(err, os.Remove(raw)) }()
	for _, argv := range [][]string{
		{"qemu-img", "check", "-q", "-f", "qcow2", p.Path()},
		{"qemu-img", "convert", "-f", "qcow2", "-O", "raw", p.Path(), raw},
	} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil || len(out) > 0 {
			return fmt.Errorf("verify: %q: %w: %s", argv, err, out)
		}
	}
	file, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer file.Close()
	var got summer
	buf := make([]byte, mib)
	for off := int64(0); ; off += mib {
		n, err := io.ReadFull(file, buf)
		if n == 0 && errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := got.Write(ctx, buf, off); err != nil {
			return err
		}
	}
	if got.sum.Load() != sum {
		return fmt.Errorf("verify: QEMU reads WRONG BYTES from %s", p.Path())
	}
	return nil
}
