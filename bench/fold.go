package main

import (
	"context"
	"os"
	"path/filepath"
)

// The names of what removes a point, as in the raw results.
const (
	oursFold    = "rbd2qcow2 prune"
	convertFlat = "qemu-img convert, flat"
	rebaseFlat  = "qemu-img rebase, flat"
)

// The workloads: an increment on a full point of real files, stored as they are and compressed, and one on a thin image.
const (
	foldNone = "fold-none"
	foldZstd = "fold-zstd"
	foldThin = "fold-thin"
)

// folded is how much an increment changes, in writes of 64 KiB.
const folded = 50 * mib

// fold has the oldest of two points removed. What others do about it is to write all of the newest one anew.
func (l *lab) fold(ctx context.Context) error {
	size := int64(l.foldMiB) * mib
	for workload, compression := range map[string]string{foldNone: "none", foldZstd: "zstd"} {
		if err := l.importFiles(ctx, workload, l.foldMiB); err != nil {
			return err
		}
		if err := l.foldChain(ctx, workload, compression, scatteredBy(newRandom(), size, folded/(64*kib), 64*kib)); err != nil {
			return err
		}
	}
	thinSize := int64(l.thin) * gib
	if err := l.create(ctx, foldThin, thinSize); err != nil {
		return err
	}
	random := newRandom()
	if err := l.write(ctx, foldThin, scatteredBy(random, thinSize, 4096, 64*kib)); err != nil {
		return err
	}
	return l.foldChain(ctx, foldThin, "zstd", scattered(random, thinSize, 100))
}

// foldChain makes the two points, and has copies of them folded.
func (l *lab) foldChain(ctx context.Context, image, compression string, change []write) error {
	repository := l.repository(image)
	if err := l.do(ctx, l.program, "init", repository); err != nil {
		return err
	}
	for _, writes := range [][]write{nil, change} {
		if len(writes) > 0 {
			if err := l.write(ctx, image, writes); err != nil {
				return err
			}
		}
		if err := l.do(ctx, l.backupCommand(repository, image, "--compress", compression)...); err != nil {
			return err
		}
	}
	changed := func(context.Context) (int64, error) { return bytesOf(change), nil }
	return l.compare(ctx, image, l.rounds, changed,
		l.onCopy(oursFold, repository, image, func(dir string) []string {
			return []string{l.program, "prune", "--quiet", "--json", "--keep-last", "1", dir}
		}),
		l.onCopy(convertFlat, repository, image, func(dir string) []string {
			options := []string{"qemu-img", "convert", "-m", "16", "-W", "-O", "qcow2"}
			if compression == "zstd" {
				options = append(options, "-c", "-o", "compression_type=zstd")
			}
			return append(options, mustNewest(dir, image), filepath.Join(dir, "flat"))
		}),
		l.onCopy(rebaseFlat, repository, image, func(dir string) []string {
			return []string{"qemu-img", "rebase", "-b", "", mustNewest(dir, image)}
		}))
}

// onCopy is a contestant that may change a copy of a repository.
func (l *lab) onCopy(name, repository, image string, command func(dir string) []string) contestant {
	dir := filepath.Join(l.target, "copy")
	return contestant{
		name: name,
		before: func(ctx context.Context) error {
			if err := l.do(ctx, "cp", "-a", "--sparse=always", "--reflink=never", repository, dir); err != nil {
				return err
			}
			return l.do(ctx, "sync", "-f", dir) // so that nobody waits for what the copy has left in memory
		},
		command: func() []string { return command(dir) },
		file:    func() (string, error) { return newest(dir, image) },
		after:   func(context.Context) error { return os.RemoveAll(dir) },
	}
}

// mustNewest is newest for a command, which will complain about what is wrong.
func mustNewest(repository, image string) string {
	file, err := newest(repository, image)
	if err != nil {
		return err.Error()
	}
	return file
}

// foldTargets are the lines of the table.
func (l *lab) foldTargets() (targets []target) {
	for _, f := range []struct {
		work, workload string
		limit          float64
	}{
		{"the oldest point, not compressed, folded away: written", foldNone, 1.2},
		{"the same, zstd", foldZstd, 1.2},
		{"the same of a thin image of " + sizeText(l.thin) + ", 100 writes of 4 KiB", foldThin, 0},
	} {
		k := key{f.workload, 0}
		targets = append(targets,
			target{work: f.work, against: "bytes changed", limit: f.limit, format: times, value: func(rs runs) spread {
				return rs.of(k, oursFold).spread(func(r run) float64 { return float64(r.Report.Written) / float64(r.Changed) })
			}},
			target{work: "its time", against: "time of " + convertFlat, format: times,
				value: func(rs runs) spread { return rs.ratio(k, oursFold, convertFlat, seconds) }},
			target{work: "its time", against: "time of " + rebaseFlat, format: times,
				value: func(rs runs) spread { return rs.ratio(k, oursFold, rebaseFlat, seconds) }})
	}
	return targets
}
