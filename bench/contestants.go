package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// The names of contestants, as in the raw results.
const (
	oursFirst   = "rbd2qcow2, first" // of an empty image: the fixed costs of full backups
	oursAgain   = "rbd2qcow2, again" // the fixed costs of increments
	oursNone    = "rbd2qcow2 none"
	oursZstd    = "rbd2qcow2 zstd"
	oursAuto    = "rbd2qcow2 auto"
	oursPrecise = "rbd2qcow2 precise"
	snapCreate  = "rbd snap create"
	info        = "rbd info"
	convertInfo = "qemu-img info"
	convertNone = "qemu-img convert"
	convertZstd = "qemu-img convert zstd"
	floor       = "rbd bench read"
	exportNull  = "rbd export to null"
	exportFile  = "rbd export to file"
	exportDiff  = "rbd export-diff"
)

func rbdImage(name string) string { return "rbd/" + name }

func (l *lab) backupCommand(repository, image string, options ...string) []string {
	argv := append([]string{l.program, "backup", "--quiet", "--json"}, options...)
	return append(argv, "rbd", repository, image)
}

// ourFull backs up an image into a new repository.
func (l *lab) ourFull(name, image, compression string, more ...string) contestant {
	repository := filepath.Join(l.target, "full")
	remove := func(context.Context) error { return os.RemoveAll(repository) }
	return contestant{
		name: name,
		before: func(ctx context.Context) error {
			// The snapshot belongs to the repository of the run before.
			return errors.Join(l.do(ctx, "rbd", "snap", "purge", "--no-progress", rbdImage(image)), l.do(ctx, l.program, "init", repository))
		},
		command: func() []string { return l.backupCommand(repository, image, append(more, "--compress", compression)...) },
		file:    func() (string, error) { return newest(repository, image) },
		after:   remove,
	}
}

// writer is a contestant whose last argument is the file that it writes.
func (l *lab) writer(name string, argv ...string) contestant {
	file := filepath.Join(l.target, "theirs")
	return contestant{
		name:    name,
		command: func() []string { return append(argv[:len(argv):len(argv)], file) },
		file:    func() (string, error) { return file, nil },
		after:   func(context.Context) error { return os.Remove(file) },
	}
}

func (l *lab) convert(image string) contestant {
	return l.writer(convertNone, "qemu-img", "convert", "-m", "16", "-W", "-f", "raw", "-O", "qcow2", "rbd:"+rbdImage(image))
}

func (l *lab) convertZstd(image string) contestant {
	return l.writer(convertZstd, "qemu-img", "convert", "-c", "-o", "compression_type=zstd", "-m", "16", "-W",
		"-f", "raw", "-O", "qcow2", "rbd:"+rbdImage(image))
}

func (l *lab) exportFile(image string) contestant {
	return l.writer(exportFile, "rbd", "export", "--no-progress", rbdImage(image))
}

// exportNull exports to standard output, which is /dev/null: a file must not exist.
func (l *lab) exportNull(image string) contestant {
	return simple(exportNull, "rbd", "export", "--no-progress", rbdImage(image), "-")
}

// floor only reads, with nothing in between.
func (l *lab) floor(image string, size int) contestant {
	return simple(floor, "rbd", "bench", "--io-type", "read", "--io-size", "4M", "--io-threads", "16",
		"--io-total", strconv.Itoa(size)+"M", "--rbd-cache=false", rbdImage(image))
}

// simple is a contestant that writes nothing.
func simple(name string, argv ...string) contestant {
	return contestant{name: name, command: func() []string { return argv }}
}

// series are images with the same content and the same changes, one for each contestant, because snapshots of the others would
// count for change tracking.
type series struct {
	name         string
	size         int64
	contestants  []string
	random       *rand.Rand // the same in each run of the bench
	peerSnapshot int        // the number of the newest
}

// newSeries makes images with that content and the first backup of each, on which increments will lie.
func (l *lab) newSeries(ctx context.Context, name string, size int64, content []write, contestants ...string) (*series, error) {
	s := &series{name: name, size: size, contestants: contestants, random: newRandom()}
	for _, c := range contestants {
		image := s.image(c)
		l.say("prepare rbd/%s", image)
		if err := l.create(ctx, image, size); err != nil {
			return nil, err
		}
		if err := l.write(ctx, image, content); err != nil {
			return nil, err
		}
		first := []string{"rbd", "snap", "create", "--no-progress", rbdImage(image) + "@" + s.snapshot()}
		if c != exportDiff {
			if err := l.do(ctx, l.program, "init", l.repository(image)); err != nil {
				return nil, err
			}
			first = l.increment(s, c).command()
		}
		if err := l.do(ctx, first...); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func newRandom() *rand.Rand { return rand.New(rand.NewPCG(3, 14)) }

func (s *series) image(contestant string) string {
	return s.name + "-" + map[string]string{oursAuto: "auto", oursPrecise: "precise", exportDiff: "peer"}[contestant]
}

func (s *series) snapshot() string { return fmt.Sprintf("s%d", s.peerSnapshot) }

func (l *lab) repository(image string) string { return filepath.Join(l.target, "repository-"+image) }

// scattered are 100 writes in places that, most likely, were never written to.
func (s *series) scattered() []write { return scattered(s.random, s.size, 100) }

// follow has the contestants of a series save the same change, for some rounds.
func (l *lab) follow(ctx context.Context, workload string, s *series, rounds int, change func() []write) error {
	apply := func(ctx context.Context) (int64, error) {
		if change == nil {
			return 0, nil
		}
		writes := change()
		for _, c := range s.contestants {
			if err := l.write(ctx, s.image(c), writes); err != nil {
				return 0, err
			}
		}
		return bytesOf(writes), nil
	}
	var all []contestant
	for _, name := range s.contestants {
		if name == exportDiff {
			all = append(all, l.exportDiff(s))
		} else {
			all = append(all, l.increment(s, name))
		}
	}
	return l.compare(ctx, workload, rounds, apply, all...)
}

// increment is ours, and all of it: connecting, the snapshot, the diff, the file, removing the old snapshot.
func (l *lab) increment(s *series, name string) contestant {
	image := s.image(name)
	diff := "--diff=" + strings.TrimPrefix(name, "rbd2qcow2 ")
	return contestant{
		name:    name,
		command: func() []string { return l.backupCommand(l.repository(image), image, diff) },
		file:    func() (string, error) { return newest(l.repository(image), image) },
	}
}

// exportDiff is only the diff: the peer finds its snapshot made, and its old one is removed after the measurement.
func (l *lab) exportDiff(s *series) contestant {
	image := rbdImage(s.image(exportDiff))
	file := filepath.Join(l.target, "theirs")
	var from string
	return contestant{
		name: exportDiff,
		before: func(ctx context.Context) error {
			from = s.snapshot()
			s.peerSnapshot++
			return l.do(ctx, "rbd", "snap", "create", "--no-progress", image+"@"+s.snapshot())
		},
		command: func() []string {
			return []string{"rbd", "export-diff", "--no-progress", "--from-snap", from, image + "@" + s.snapshot(), file}
		},
		file: func() (string, error) { return file, nil },
		after: func(ctx context.Context) error {
			return errors.Join(os.Remove(file), l.do(ctx, "rbd", "snap", "rm", "--no-progress", image+"@"+from))
		},
	}
}
