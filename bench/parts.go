package main

import (
	"context"
	"crypto/rand"
	"io"
	"strconv"
)

// The names of workloads, as in the raw results.
const (
	tiny     = "tiny"      // an empty image of 4 MiB: what is left are the fixed costs
	files    = "files"     // real files
	media    = "media"     // data that can't be compressed
	zeroes   = "zeroes"    // holes, written zeroes and some data
	thin     = "thin"      // 100 scattered writes of 4 KiB
	nothing  = "nothing"   // the same image, nothing written
	large    = "large"     // as thin, on a larger image
	still    = "still"     // the larger image, nothing written
	database = "database"  // many small writes in hot regions
	farFiles = "files-far" // as files and thin, but smaller, to be measured with latency
	farThin  = "thin-far"
)

func (l *lab) fixed(ctx context.Context) error { return l.tinyImage(ctx, l.rounds) }

func (l *lab) tinyImage(ctx context.Context, rounds int) error {
	s, err := l.once(ctx, tiny, 4*mib, nil, oursPrecise, exportDiff)
	if err != nil {
		return err
	}
	again := l.increment(s, oursPrecise)
	again.name = oursAgain
	image := rbdImage(s.image(exportDiff))
	snapshot := simple(snapCreate, "rbd", "snap", "create", "--no-progress", image+"@s")
	snapshot.after = func(ctx context.Context) error { return l.do(ctx, "rbd", "snap", "rm", "--no-progress", image+"@s") }
	return l.compare(ctx, tiny, rounds, nil, l.ourFull(oursFirst, s.image(exportDiff), "none"), again, snapshot,
		simple(info, "rbd", "info", image), simple(convertInfo, "qemu-img", "info", "rbd:"+image))
}

// once is newSeries, but for several parts.
func (l *lab) once(ctx context.Context, name string, size int64, content []write, contestants ...string) (*series, error) {
	if s := l.series[name]; s != nil {
		return s, nil
	}
	s, err := l.newSeries(ctx, name, size, content, contestants...)
	if err != nil {
		return nil, err
	}
	l.series[name] = s
	return s, nil
}

func (l *lab) full(ctx context.Context) error {
	if err := l.importFiles(ctx, files, l.filesMiB); err != nil {
		return err
	}
	return l.compare(ctx, files, l.rounds, nil,
		l.ourFull(oursNone, files, "none"), l.convert(files), l.ourFull(oursZstd, files, "zstd"), l.convertZstd(files),
		l.floor(files, l.filesMiB), l.exportNull(files), l.exportFile(files))
}

// importFiles makes an image of real files and reads it once, so that the first round is like the others.
func (l *lab) importFiles(ctx context.Context, image string, size int) error {
	l.say("import %d MiB of real files", size)
	err := l.importData(ctx, image, func(w io.Writer) error { return realFiles(w, int64(size)*mib) })
	if err != nil {
		return err
	}
	return l.do(ctx, l.floor(image, size).command()...)
}

func (l *lab) media(ctx context.Context) error {
	err := l.importData(ctx, media, func(w io.Writer) error {
		_, err := io.CopyN(w, rand.Reader, int64(l.mediaMiB)*mib)
		return err
	})
	if err != nil {
		return err
	}
	return l.compare(ctx, media, l.rounds, nil, l.ourFull(oursZstd, media, "zstd"), l.convertZstd(media))
}

// zeroes is of an image of holes whose first eighth is written, half of it with zeroes.
func (l *lab) zeroes(ctx context.Context) error {
	size := int64(l.mediaMiB) * mib
	if err := l.create(ctx, zeroes, 8*size); err != nil {
		return err
	}
	written := append(sequential(0, size/2, true), sequential(size/2, size, false)...)
	if err := l.write(ctx, zeroes, written); err != nil {
		return err
	}
	return l.compare(ctx, zeroes, l.rounds, nil, l.ourFull(oursNone, zeroes, "none"), l.convert(zeroes))
}

func (l *lab) increments(ctx context.Context) error {
	s, err := l.thinSeries(ctx, l.thin)
	if err != nil {
		return err
	}
	if err := l.follow(ctx, thin, s, l.rounds, s.scattered); err != nil {
		return err
	}
	return l.follow(ctx, nothing, s, l.rounds, nil)
}

func (l *lab) thinSeries(ctx context.Context, size int) (*series, error) {
	return l.once(ctx, thin+strconv.Itoa(size), int64(size)*gib, nil, oursAuto, oursPrecise, exportDiff)
}

// larger has no peer, whose time grows with the size of the image.
func (l *lab) larger(ctx context.Context) error {
	s, err := l.newSeries(ctx, large, int64(l.large)*gib, nil, oursAuto)
	if err != nil {
		return err
	}
	if err := l.follow(ctx, large, s, l.rounds, s.scattered); err != nil {
		return err
	}
	return l.follow(ctx, still, s, l.rounds, nil)
}

func (l *lab) database(ctx context.Context) error {
	s, err := l.newSeries(ctx, database, databaseSize, databaseContent(), oursAuto, exportDiff)
	if err != nil {
		return err
	}
	return l.follow(ctx, database, s, l.rounds, func() []write { return databaseWork(s.random) })
}

// latency repeats the most telling work with each operation taking longer. The usual thin image has one round, with 2 ms only: it
// takes the peer minutes.
func (l *lab) latency(ctx context.Context) error {
	if err := l.goFar(ctx); err != nil {
		l.note("NO LATENCY WAS MEASURED: %v", err)
		return nil
	}
	if err := l.prove(ctx); err != nil {
		return err
	}
	if err := l.importFiles(ctx, farFiles, l.farMiB); err != nil {
		return err
	}
	defer l.setLatency(0)
	for _, ms := range []int{0, 2, 10} {
		l.setLatency(ms)
		if err := l.tinyImage(ctx, l.farRounds); err != nil {
			return err
		}
		err := l.compare(ctx, farFiles, l.farRounds, nil,
			l.ourFull(oursNone, farFiles, "none"), l.convert(farFiles), l.ourFull(oursZstd, farFiles, "zstd"), l.convertZstd(farFiles),
			l.floor(farFiles, l.farMiB))
		if err != nil {
			return err
		}
		s, err := l.thinSeries(ctx, l.far)
		if err != nil {
			return err
		}
		if err := l.follow(ctx, farThin, s, l.farRounds, s.scattered); err != nil {
			return err
		}
	}
	l.setLatency(2)
	s, err := l.thinSeries(ctx, l.thin)
	if err != nil {
		return err
	}
	return l.follow(ctx, thin, s, 1, s.scattered)
}
