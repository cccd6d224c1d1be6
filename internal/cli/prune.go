package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/prune"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// pruneFlags are the options of the command.
type pruneFlags struct {
	keep       keepFlags
	gone       bool
	dryRun     bool
	repository repositoryFlags
	output     outputFlags
}

const pruneLong = `Remove the points of the repository DIR that no rule keeps, of all images or of those named. IMAGE may be
a shell pattern.

A point that others lie on is folded into the next one: what that one needs moves, and nothing else, so that the
cost is that of an increment and not of the disk. Every point that stays reads as before, at every instant, also
after a crash. The newest point of an image never goes, nor do those that are pinned (rbd2qcow2 pin).

A point stays if any rule keeps it. Hours, days, weeks, months and years are those of the local clock, and only
those count that have a point. With --max-chain alone all points stay that fit into it.

A point that is being read, by this program or by QEMU, stays for this time.

Exit status: 0 all done; 1 nothing done, or nothing matched; 2 usage; 3 some points could not be removed, the rest
are; 130 and 143 interrupted.`

func (p *Program) pruneCommand() *cobra.Command {
	var f pruneFlags
	c := &cobra.Command{
		Use:   "prune DIR [IMAGE...]",
		Short: "Remove the points that no rule keeps",
		Long:  pruneLong,
		Example: `  rbd2qcow2 prune --keep-daily 7 --keep-weekly 4 --keep-monthly 12 /backup/rbd
  rbd2qcow2 prune --keep-within 30d --max-chain 60 --dry-run /backup/rbd 'db-*'`,
		Args: arguments(1, -1),
		RunE: func(c *cobra.Command, args []string) error { return p.prune(c.Context(), args[0], args[1:], &f) },
	}
	flags := c.Flags()
	flags.SortFlags = false
	f.keep.add(flags)
	flags.BoolVar(&f.gone, "gone", false, "also of images that are gone from their pool, which otherwise keep all their points")
	flags.BoolVar(&f.dryRun, "dry-run", false,
		"say what would be kept and removed, why, and about how much would be written and freed; change nothing")
	f.repository.add(flags)
	f.output.add(flags)
	return c
}

func (p *Program) prune(ctx context.Context, dir string, images []string, f *pruneFlags) error {
	o := prune.Options{
		Images: images, Policy: f.keep.policy, Gone: f.gone, DryRun: f.dryRun, Program: "rbd2qcow2 " + p.Version, Now: time.Now(),
	}
	if o.Policy.Empty() {
		return usagef("prune: say what to keep: at least one of the options --keep-… and --max-chain")
	}
	if err := errors.Join(f.output.validate(), o.Validate()); err != nil {
		return usageError{err}
	}
	r, err := f.repository.open(dir, repo.Open)
	if err != nil {
		return err
	}
	report, err := p.runPrune(ctx, r, o, f)
	if report == nil {
		report = &prune.Report{Images: []prune.ImageReport{}}
	}
	switch {
	case f.output.json:
		if err != nil {
			report.Error = err.Error()
		}
		err = errors.Join(err, printJSON(p.Stdout, report))
	case f.dryRun:
		err = errors.Join(err, printPlan(p.Stdout, report))
	}
	if err != nil {
		return err
	}
	return pruneStatus(report)
}

func (p *Program) runPrune(ctx context.Context, r *repo.Repository, o prune.Options, f *pruneFlags) (*prune.Report, error) {
	reporter, log, end := f.output.progress(p.Stderr)
	defer end()
	o.Logger, o.Progress = log, reporter
	report, err := prune.Run(ctx, r, o)
	if report != nil && !f.dryRun {
		log.Info("finished", "removed", report.Removed(), "done", report.Count(prune.Done), "partly", report.Count(prune.Partly),
			"skipped", report.Count(prune.Skipped), "failed", report.Count(prune.Failed))
	}
	return report, err
}

// pruneStatus is the exit status that a report asks for. What failed has been logged.
func pruneStatus(r *prune.Report) error {
	failed := r.Count(prune.Failed) + r.Count(prune.Partly)
	switch {
	case failed == 0:
		return nil
	case r.Removed() == 0 && failed+r.Count(prune.Skipped) == len(r.Images):
		return exitError(exitNothing)
	}
	return exitError(exitPartly)
}

// printPlan prints what would become of each point.
func printPlan(w io.Writer, r *prune.Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tPOINT\tTIME\tACTION\tWRITES\tFREES\tREASON")
	for _, image := range r.Images {
		for _, p := range image.Points {
			writes, frees := "-", "-"
			if p.Action == prune.Remove && p.Error == "" {
				writes, frees = progress.Bytes(p.Written), progress.Bytes(p.Freed)
			}
			why := strings.Join(p.Reasons, ", ")
			if p.Error != "" {
				why += "; stays: " + p.Error
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", printable(image.Name), p.Point, p.Time.Local().Format(time.DateTime),
				p.Action, writes, frees, why)
		}
	}
	return t.Flush()
}
