// Command bench measures backups beside the programs that others use for the same work, on a throw-away Ceph cluster of its own,
// and prints a table of targets with pass or gap. Its reading is in docs/performance.md. Run it by "make bench".
//
// Terms: a part is a chapter of the measurement and can be chosen by name. A workload is what happened to an image. Contestants
// are commands that do the same work; a round runs each of them once, in turn, so that all meet the same machine. What is
// compared is the ratio within a round; what is published is the median over all rounds.
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
)

// options are what the command line asks for.
type options struct {
	quick                         bool
	rounds                        int
	parts                         []string
	program, dir, target, results string
}

// scale is how much is measured.
type scale struct {
	rounds, farRounds int // of all parts, at most of the parts with latency
	filesMiB          int // real files of a full backup
	mediaMiB          int // incompressible
	farMiB            int // real files, with latency
	restoreMiB        int // real files that are restored
	foldMiB           int // real files of a full point that is folded away
	thin, far, large  int // GiB, virtual sizes of thin images: usual, with the longest latency, and for growth
}

func usual() scale {
	return scale{rounds: 5, farRounds: 2, filesMiB: 4096, mediaMiB: 1024, farMiB: 1024, restoreMiB: 4096, foldMiB: 2048, thin: 1024, far: 128, large: 10240}
}

func quick() scale {
	return scale{rounds: 2, farRounds: 1, filesMiB: 768, mediaMiB: 256, farMiB: 256, restoreMiB: 512, foldMiB: 512, thin: 128, far: 16, large: 1024}
}

// part is a chapter of the measurement.
type part struct {
	name, about string
	run         func(*lab, context.Context) error
}

func parts() []part {
	return []part{
		{"fixed", "what connecting and a snapshot cost", (*lab).fixed},
		{"full", "full backups of real files", (*lab).full},
		{"media", "full backups of data that can't be compressed", (*lab).media},
		{"zeroes", "full backups of holes, written zeroes and some data", (*lab).zeroes},
		{"increment", "increments of a thin image: scattered writes, then nothing", (*lab).increments},
		{"large", "the same of a thin image of ten times the size", (*lab).larger},
		{"database", "increments of many small writes in hot regions", (*lab).database},
		{"restore", "restores of compressed chains of 1, 10 and 100 points", (*lab).restore},
		{"fold", "removals of the oldest point, beside flattening and rebasing", (*lab).fold},
		{"verify", "a point proved, beside sha256sum and qemu-img check and compare", (*lab).verify},
		{"digests", "full backups whose digests are made with a key", (*lab).digests},
		{"latency", "full and incremental, each operation 2 and 10 ms longer", (*lab).latency},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := execute(ctx, os.Args[1:])
	stop()
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	var chosen string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.BoolVar(&o.quick, "quick", false, "less of everything: to see that it works, not to publish")
	f.IntVar(&o.rounds, "rounds", 0, "run each contestant `N` times (default 5; 2 if quick)")
	f.StringVar(&chosen, "parts", "", "measure only these, separated by commas (default all)")
	f.StringVar(&o.program, "program", "bin/rbd2qcow2", "what is measured")
	f.StringVar(&o.dir, "dir", "/var/tmp", "the cluster's disk is a file below `DIR`: 12 GiB, not in memory")
	f.StringVar(&o.target, "target", "/dev/shm", "all contestants write below `DIR`, 6 GiB")
	f.StringVar(&o.results, "results", "bench/results", "keep raw results in a new folder in `DIR`")
	f.Usage = func() {
		fmt.Fprintln(f.Output(), "usage: bench [OPTION...]     in the top folder of the source\n\noptions:")
		f.PrintDefaults()
		fmt.Fprintln(f.Output(), "\nparts:")
		for _, p := range parts() {
			fmt.Fprintf(f.Output(), "  %-10s %s\n", p.name, p.about)
		}
	}
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if chosen != "" {
		o.parts = strings.Split(chosen, ",")
	}
	return o, nil
}

// choose returns the parts of these names, in their usual order.
func choose(names []string) ([]part, error) {
	all := parts()
	if names == nil {
		return all, nil
	}
	wanted := map[string]bool{}
	for _, name := range names {
		wanted[name] = true
	}
	var chosen []part
	for _, p := range all {
		if wanted[p.name] {
			chosen = append(chosen, p)
			delete(wanted, p.name)
		}
	}
	for name := range wanted {
		return nil, fmt.Errorf("no part is named %q", name)
	}
	return chosen, nil
}

func execute(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	chosen, err := choose(o.parts)
	if err != nil {
		return err
	}
	folder := filepath.Join(o.results, time.Now().UTC().Format("20060102T150405Z"))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("make folder of results: %w", err)
	}
	l, err := newLab(ctx, o, folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	for _, p := range chosen {
		l.say("== %s: %s", p.name, p.about)
		if err := p.run(l, ctx); err != nil {
			l.note("INCOMPLETE: part %s: %v", p.name, err)
			return errors.Join(fmt.Errorf("%s: %w", p.name, err), l.publish())
		}
	}
	return l.publish()
}
