package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repair"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// checkRepair refuses what makes no sense beside --repair.
func (f *verifyFlags) checkRepair(targets []string) error {
	if f.newerThan != "" || f.maxTime != 0 || strings.TrimSuffix(f.sample, "%") != "100" || f.guest.given() {
		return usagef("--repair is of whole chains: no --newer-than, --sample, --max-time, --boot or --fsck")
	}
	for _, target := range targets {
		if _, point := repo.SplitTarget(target); point != "" {
			return usagef("%s: --repair mends the chain of an image's newest point, not single points", target)
		}
	}
	return nil
}

// repair mends what verify finds.
func (p *Program) repair(ctx context.Context, r *repo.Repository, targets []string, f *verifyFlags) error {
	if err := f.checkRepair(targets); err != nil {
		return err
	}
	report, err := p.runRepair(ctx, r, targets, f)
	if report == nil {
		report = &repair.Report{Images: []repair.ImageReport{}}
	}
	if f.output.json {
		if err != nil {
			report.Error = err.Error()
		}
		err = errors.Join(err, printJSON(p.Stdout, report))
	} else {
		err = errors.Join(err, printRepaired(p.Stdout, report))
	}
	if err != nil {
		return err
	}
	return repairStatus(report)
}

func (p *Program) runRepair(ctx context.Context, r *repo.Repository, targets []string, f *verifyFlags) (*repair.Report, error) {
	reporter, log, end := f.output.progress(p.Stderr)
	defer end()
	source := verify.Options{Logger: log}
	disconnect, err := f.source.connect(ctx, &source)
	if err != nil {
		return nil, err
	}
	defer disconnect()
	o := repair.Options{Images: targets, Parallel: f.parallel, Source: source.Source, Logger: log, Progress: reporter}
	report, err := repair.Run(ctx, r, o)
	if report == nil {
		return nil, err
	}
	damages, left, failed := 0, 0, 0
	for i := range report.Images {
		image := &report.Images[i]
		damages, left = damages+len(image.Damages), left+image.Left()
		if image.Error != "" {
			failed++
			log.Error("image can't be repaired", "image", image.Name, "error", image.Error)
		}
	}
	log.Info("finished", "damages", damages, "mended", damages-left, "left", left, "failed", failed)
	return report, err
}

// printRepaired prints a line for each damage.
func printRepaired(w io.Writer, r *repair.Report) error {
	for _, image := range r.Images {
		for i := range image.Damages {
			d := &image.Damages[i]
			if _, err := fmt.Fprintf(w, "%s@%s: %s\n", printable(image.Name), d.Point, d); err != nil {
				return err
			}
		}
	}
	return nil
}

// repairStatus is the exit status that a report asks for.
func repairStatus(r *repair.Report) error {
	left, failed := 0, 0
	for i := range r.Images {
		left += r.Images[i].Left()
		if r.Images[i].Error != "" {
			failed++
		}
	}
	switch {
	case left > 0:
		return exitError(exitDamage)
	case failed == 0:
		return nil
	case failed == len(r.Images):
		return exitError(exitNothing)
	}
	return exitError(exitPartly)
}
