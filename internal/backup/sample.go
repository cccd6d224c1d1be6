package backup

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sync/errgroup"

	"github.com/rbd2qcow2/rbd2qcow2/internal/extent"
)

// In an object that is new since the base the cluster reports everything before its last write as data, most of which may
// be zeroes. Samples tell: of extents from two windows on, all but the last window, which that write is in.
const (
	sampleWindow = 64 << 10 // bytes of a sample
	sampleCount  = 64       // at most
	sampleUnit   = smallestCluster
	modelWindows = 1 << 18 // at most, when samples are extended to the whole
)

// sample says which units of a window hold other than zeroes, by the bits from the lowest.
type sample uint16

// thinOut gives extents as they are likely to be once zeroes are left out. Each sample stands for the windows around it.
func (s *sizing) thinOut(ctx context.Context, src source, extents []extent.Extent) ([]extent.Extent, error) {
	windows := int64(0)
	for _, e := range extents {
		windows += sampled(e)
	}
	if windows == 0 {
		return extents, nil
	}
	samples, err := s.readSamples(ctx, src, extents, windows)
	if err != nil {
		return nil, fmt.Errorf("sample what has changed: %w", err)
	}
	// On a very large diff a bit stands for more than a unit, so that this takes no longer.
	unit := sampleUnit * (1 + windows/modelWindows)
	list, before := extent.NewList(s.size, s.unit()), int64(0)
	for _, e := range extents {
		n := sampled(e)
		if n == 0 {
			err = list.Add(e)
		} else {
			err = thinOutOne(list, e, unit, func(off int64) sample {
				w := before + min((off-e.Offset)/sampleWindow, n-1)
				return samples[w*int64(len(samples))/windows]
			})
		}
		if err != nil {
			return nil, err
		}
		before += n
	}
	return list.Extents(), nil
}

// thinOutOne adds the units of e that samples have. The last one always is data.
func thinOutOne(list *extent.List, e extent.Extent, unit int64, at func(off int64) sample) error {
	for i, off := 0, e.Offset; off < e.End(); i, off = i+1, off+unit {
		n := min(unit, e.End()-off)
		if off+n < e.End() && at(off)>>(i%16)&1 == 0 {
			continue
		}
		if err := list.Add(extent.Extent{Offset: off, Length: n, Data: true}); err != nil {
			return err
		}
	}
	return nil
}

// sampled is the number of windows of an extent that samples are taken of.
func sampled(e extent.Extent) int64 {
	if !e.Data || e.Length < 2*sampleWindow {
		return 0
	}
	return (e.Length - 1) / sampleWindow
}

// readSamples reads from windows at about equal distances, in ascending order.
func (s *sizing) readSamples(ctx context.Context, src source, extents []extent.Extent, windows int64) ([]sample, error) {
	count := min(windows, sampleCount)
	samples := make([]sample, count)
	random := rand.New(rand.NewPCG(uint64(windows), 0)) // against periods in the data; the same every time
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.parallel)
	first := int64(0) // of extents[0]
	for i := range count {
		from, to := i*windows/count, (i+1)*windows/count
		w := from + random.Int64N(to-from)
		for w-first >= sampled(extents[0]) {
			first += sampled(extents[0])
			extents = extents[1:]
		}
		off := extents[0].Offset + (w-first)*sampleWindow
		g.Go(func() (err error) {
			samples[i], err = readSample(ctx, src, off)
			return err
		})
	}
	return samples, g.Wait()
}

func readSample(ctx context.Context, src source, off int64) (found sample, err error) {
	buf := make([]byte, sampleWindow) // of its own: an abandoned read goes on writing to it
	if err := src.Read(ctx, buf, off); err != nil {
		return 0, err
	}
	zeros := make([]byte, sampleUnit)
	for i := range sampleWindow / sampleUnit {
		if !bytes.Equal(buf[i*sampleUnit:][:sampleUnit], zeros) {
			found |= 1 << i
		}
	}
	return found, nil
}
