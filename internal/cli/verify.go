package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/retention"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// verifyFlags are the options of the command.
type verifyFlags struct {
	newerThan  string
	sample     string
	maxTime    time.Duration
	parallel   int
	repair     bool
	source     sourceFlags
	guest      guestFlags
	repository repositoryFlags
	output     outputFlags
}

const verifyLong = `Prove that points of the repository DIR can be restored, from what is in their files alone: all of them, those of
the images named (IMAGE may be a shell pattern), or single ones, with all that lies below them.

Of each file it checks the structure (headers, tables, refcounts: what "qemu-img check" finds), the identity, that
it lies on the point that it was made on, and all data by their digests. Nothing is changed; backups, restores
and other runs may go on meanwhile. What was found is noted: "list" shows it, "restore" refuses damaged points,
"backup" begins a new chain behind them.

The points that have waited longest come first. So a run every night with --max-time gets round to all, in the
end also to the largest ones: it goes on where the last one has stopped.

With --source POOL the newest points are compared with the snapshots in the cluster that they were made from instead.

With --repair the points of the newest points' chains are mended: what is damaged is read from those snapshots where it
is what was stored, and written to new files with all that is undamaged. Of the newest point all can be mended.

` + guestLong + `

It prints a line for each damage: the point, the bytes of its disk, and the later points that show them.
A point is "damaged" where its file is not what was stored, "changed" where another program has written to it
besides, by its mtime.

Exit status: 0 all good; 1 nothing done, or nothing matched; 2 usage; 3 some points could not be verified;
4 there is damage; 130 and 143 interrupted.`

func (p *Program) verifyCommand() *cobra.Command {
	var f verifyFlags
	c := &cobra.Command{
		Use:   "verify DIR [IMAGE[@POINT]...]",
		Short: "Prove that points can be restored",
		Long:  verifyLong,
		Example: `  rbd2qcow2 verify /backup/rbd
  rbd2qcow2 verify --max-time 2h /backup/rbd          # every night
  rbd2qcow2 verify --newer-than 1d /backup/rbd 'db-*'
  rbd2qcow2 verify /backup/rbd vm1@20261122T065012Z
  rbd2qcow2 verify --source rbd /backup/rbd           # the newest points, with the images in pool "rbd"
  rbd2qcow2 verify --boot --fsck /backup/rbd vm1      # the newest point of vm1, as its guest would use it`,
		Args: arguments(1, -1),
		RunE: func(c *cobra.Command, args []string) error { return p.verify(c.Context(), args[0], args[1:], &f) },
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.newerThan, "newer-than", "",
		"only points made after a `TIME`: a date (2026-11-22), or so long ago (30d, 12h, as --keep-within)")
	flags.StringVar(&f.sample, "sample", "100", "compare only so many `PERCENT` of each point's data, chosen at random")
	flags.DurationVar(&f.maxTime, "max-time", 0, "end after about that `TIME` (90m, 2h)")
	flags.IntVar(&f.parallel, "parallel", runtime.GOMAXPROCS(0), "read and hash with `N` goroutines")
	flags.BoolVar(&f.repair, "repair", false, "mend what is damaged, as far as the snapshots of --source have it, in new files")
	f.source.add(flags)
	f.guest.add(flags)
	f.repository.add(flags)
	f.output.add(flags)
	return c
}

func (p *Program) verify(ctx context.Context, dir string, targets []string, f *verifyFlags) error {
	o := verify.Options{Targets: targets, MaxTime: f.maxTime, Parallel: f.parallel}
	var err error
	if o.Sample, err = strconv.ParseFloat(strings.TrimSuffix(f.sample, "%"), 64); err != nil {
		return usagef("sample %q: must be a number of percent", f.sample)
	}
	if o.NewerThan, err = parseSince(f.newerThan, time.Now()); err != nil {
		return usageError{err}
	}
	if err := errors.Join(f.output.validate(), f.source.validate(), f.guest.validate(), o.Validate()); err != nil {
		return usageError{err}
	}
	r, err := f.repository.open(dir, repo.Open)
	if err != nil {
		return err
	}
	if f.repair {
		return p.repair(ctx, r, targets, f)
	}
	if f.guest.given() {
		return p.tryGuests(ctx, r, targets, f)
	}
	report, err := p.runVerify(ctx, r, o, f)
	if report == nil {
		report = &verify.Report{Images: []verify.ImageReport{}}
	}
	if f.output.json {
		if err != nil {
			report.Error = err.Error()
		}
		err = errors.Join(err, printJSON(p.Stdout, report))
	} else {
		err = errors.Join(err, printDamages(p.Stdout, report))
	}
	if err != nil {
		return err
	}
	return verifyStatus(report)
}

// parseSince reads a time, or how long before now that was; zero is none.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	d, err := retention.ParseDuration(s)
	if err != nil {
		return time.Time{}, fmt.Errorf("time %q: must be a date, or a duration such as 30d or 12h", s)
	}
	return d.Before(now), nil
}

func (p *Program) runVerify(ctx context.Context, r *repo.Repository, o verify.Options, f *verifyFlags) (*verify.Report, error) {
	reporter, log, end := f.output.progress(p.Stderr)
	defer end()
	o.Logger, o.Progress = log, reporter
	disconnect, err := f.source.connect(ctx, &o)
	if err != nil {
		return nil, err
	}
	defer disconnect()
	report, err := verify.Run(ctx, r, o)
	if report == nil {
		return nil, err
	}
	var data int64
	for _, image := range report.Images {
		for _, point := range image.Points {
			data += point.Verified
			if point.Error != "" {
				log.Error("point can't be verified", "image", image.Name, "point", point.Point, "error", point.Error)
			}
		}
	}
	count := func(v repo.Verdict) int {
		return report.Count(func(p *verify.PointReport) bool { return p.Verdict == v })
	}
	status := func(s verify.Status) int {
		return report.Count(func(p *verify.PointReport) bool { return p.Status == s })
	}
	log.Info("finished", "good", count(repo.Proved), "unproved", count(repo.Unproved), "damaged", count(repo.FoundDamaged),
		"changed", count(repo.FoundChanged), "failed", status(verify.Failed), "left", status(verify.Pending)+status(verify.Partly),
		"verified", progress.Bytes(data))
	return report, err
}

// printDamages prints a line for each damage.
func printDamages(w io.Writer, r *verify.Report) error {
	for _, image := range r.Images {
		for _, p := range image.Points {
			for _, d := range p.Damages {
				reaches := "no later point shows it"
				if len(d.Reaches) > 0 {
					names := make([]string, len(d.Reaches))
					for i, name := range d.Reaches {
						names[i] = string(name)
					}
					reaches = "reaches " + strings.Join(names, ", ")
				}
				if _, err := fmt.Fprintf(w, "%s@%s: %s: %s; %s\n", printable(image.Name), p.Point, p.Verdict, &d, reaches); err != nil {
					return err
				}
			}
			if p.More > 0 {
				if _, err := fmt.Fprintf(w, "%s@%s: %s: %d damages more\n", printable(image.Name), p.Point, p.Verdict, p.More); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// verifyStatus is the exit status that a report asks for.
func verifyStatus(r *verify.Report) error {
	all := r.Count(func(*verify.PointReport) bool { return true })
	failed := r.Count(func(p *verify.PointReport) bool { return p.Status == verify.Failed })
	switch {
	case r.Count(func(p *verify.PointReport) bool { return p.Verdict.Bad() }) > 0:
		return exitError(exitDamage)
	case failed == 0:
		return nil
	case failed == all:
		return exitError(exitNothing)
	}
	return exitError(exitPartly)
}
