// Command year simulates a year of daily backups that are pruned as they come, and measures whether what that costs stays flat: the
// length of the chain, the bytes that folds write, the time of a restore, the room on disk. It needs no cluster: points are made
// of a disk that exists as numbers only. Beside it goes the same chain without pruning. Its reading is in docs/performance.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/compress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/retention"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// options are what the command line asks for.
type options struct {
	days, sample    int
	size            int64 // of the disk, bytes
	seed            uint64
	compression     string
	codec           qcow2.Codec
	target, results string
}

// policy is what the year is pruned by.
func policy() retention.Policy { return retention.Policy{Daily: 7, Weekly: 4, Monthly: 12} }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := execute(ctx, os.Args[1:])
	stop()
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "year:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("year", flag.ContinueOnError)
	f.IntVar(&o.days, "days", 365, "make `N` points, a day apart")
	f.IntVar(&o.sample, "sample", 30, "look closely every `N` days, and at the last one")
	size := f.Int64("size", 1024, "of the disk, in `MiB`; half of it holds data")
	f.Uint64Var(&o.seed, "seed", 1, "of the changes")
	f.StringVar(&o.compression, "compress", "zstd", "zstd[:LEVEL], zlib or none")
	f.StringVar(&o.target, "target", "/dev/shm", "make the repositories below `DIR`, 4 GiB")
	f.StringVar(&o.results, "results", "bench/results", "keep results in a new folder in `DIR`")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.size = *size * mib
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.days < 1 || o.sample < 1:
		return o, errors.New("days and sample must be at least 1")
	case *size < 32 || *size > 1<<20:
		return o, fmt.Errorf("size %d MiB: must be from 32 to %d", *size, 1<<20)
	}
	o.compression, o.codec, err = compress.Parse(o.compression)
	return o, err
}

func execute(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.target, "rbd2qcow2-year-")
	if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	folder := filepath.Join(o.results, time.Now().UTC().Format("20060102T150405Z"))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("make folder of results: %w", err)
	}
	y, err := newYear(o, dir)
	if err != nil {
		return err
	}
	err = y.run(ctx)
	var b strings.Builder
	if err != nil {
		fmt.Fprintf(&b, "INCOMPLETE: %v\n\n", err)
	}
	y.print(&b)
	fmt.Print(b.String())
	if err := errors.Join(err, y.save(folder, b.String())); err != nil {
		return err
	}
	say("results are kept in %s", folder)
	return nil
}

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
