//go:build !noceph

package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbd2qcow2/rbd2qcow2/internal/backup"
	"github.com/rbd2qcow2/rbd2qcow2/internal/changes"
	"github.com/rbd2qcow2/rbd2qcow2/internal/compress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// backupFlags are the options of the command.
type backupFlags struct {
	options     backup.Options
	ceph        rbd.Config
	repository  repositoryFlags
	output      outputFlags
	compression string
	diff        string
	clusterSize string
	keep        keepFlags
}

func (p *Program) backupCommand() *cobra.Command {
	var f backupFlags
	c := &cobra.Command{
		Use:   "backup POOL[/NAMESPACE] DIR [IMAGE...]",
		Short: "Back up images: snapshot, find the changes, write a new point",
		Long: `Back up all images of a pool or a namespace, or those named. IMAGE may be a shell pattern.

Each image gets one new point in the repository DIR: an increment on its newest point where that and its
snapshot can be trusted, otherwise a full point, and the reason is printed. One snapshot per image is kept
for the next run. An image whose metadata has the key "backup-skip" is skipped.

With --keep-* or --max-chain each image is pruned when it has its new point, as by "rbd2qcow2 prune".

Memory is bounded, at about 200 MiB besides what librbd needs, whatever the size of the images and --parallel.

Exit status: 0 all done; 1 nothing done, or nothing matched; 2 usage; 3 some images failed, or could not be
pruned, the rest are done; 130 and 143 interrupted.`,
		Example: `  rbd2qcow2 backup rbd /backup/rbd
  rbd2qcow2 backup --id backup --compress none rbd/customer7 /backup/customer7 'db-*' web1`,
		Args: arguments(2, -1),
		RunE: func(c *cobra.Command, args []string) error {
			f.options.Images = args[2:]
			return p.backup(c.Context(), args[0], args[1], &f)
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringArrayVar(&f.options.Exclude, "exclude", nil, "leave out images that match the shell `PATTERN`; may be repeated")
	flags.BoolVar(&f.options.Full, "full", false, "make full points")
	flags.BoolVar(&f.options.DryRun, "dry-run", false, "say what would be done, and change nothing")
	flags.StringVar(&f.compression, "compress", "zstd", "compression of the data: `zstd|zlib|none[:LEVEL]`")
	flags.StringVar(&f.clusterSize, "cluster-size", "",
		"clusters of `SIZE` bytes (suffix K or M), but never larger than the chain's full point has; default: 64K for full points, what makes the file smallest for increments")
	flags.StringVar(&f.diff, "diff", string(changes.Auto),
		"how changes are found: `auto|precise`: auto asks the cluster only about objects that their maps name, where that is proved safe; precise about every object")
	flags.Float64Var(&f.options.VerifyUnchanged, "verify-unchanged", 0,
		"read `PERCENT` of what is found unchanged and compare it with the chain; where it differs make a full point")
	flags.IntVar(&f.options.Parallel, "parallel", 8, "keep `N` reads in flight, for all images together; and as many calls that look for changes, for each image")
	flags.IntVar(&f.options.Jobs, "jobs", 4, "back up `N` images at once")
	flags.BoolVar(&f.options.RemoveOldSnapshots, "remove-old-snapshots", false,
		"also remove the snapshots, named by digits alone, that the Python tool left")
	f.keep.add(flags)
	f.repository.add(flags)
	f.output.add(flags)
	cephFlags(flags, &f.ceph)
	return c
}

// lockTimeout is how long librbd waits, besides, for a client that has an image's lock and does not answer.
const lockTimeout = 30 * time.Second

func (p *Program) backup(ctx context.Context, spec, dir string, f *backupFlags) error {
	pool, namespace, err := splitPool(spec)
	if err != nil {
		return err
	}
	o := &f.options
	o.Policy = f.keep.policy
	if o.Compression.Name, o.Compression.Codec, err = compress.Parse(f.compression); err != nil {
		return usageError{err}
	}
	o.Diff = changes.Mode(f.diff)
	if o.ClusterSize, err = parseSize(f.clusterSize); err != nil {
		return usageError{fmt.Errorf("--cluster-size: %w", err)}
	}
	if err := errors.Join(f.output.validate(), checkCeph(&f.ceph), o.Validate()); err != nil {
		return usageError{err}
	}
	r, err := f.repository.open(dir, repo.OpenOrAdopt)
	if err != nil {
		return err
	}
	report, err := p.backupPool(ctx, r, pool, namespace, f)
	if f.output.json {
		if report == nil {
			report = &backup.Report{Images: []backup.ImageReport{}}
		}
		if err != nil {
			report.Error = err.Error()
		}
		err = errors.Join(err, printJSON(p.Stdout, report))
	}
	if err != nil {
		return err
	}
	return backupStatus(report)
}

// backupPool connects, and runs the backup with whatever shows its progress.
func (p *Program) backupPool(ctx context.Context, r *repo.Repository, pool, namespace string, f *backupFlags,
) (*backup.Report, error) {
	progress, log, end := f.output.progress(p.Stderr)
	defer end()
	f.ceph.Logger = log
	f.ceph.WillSnapshot = !f.options.DryRun
	f.ceph.SnapshotTimeout = f.ceph.Timeout + lockTimeout
	cluster, err := rbd.Connect(ctx, f.ceph)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := cluster.Close(); err != nil {
			log.Debug("disconnect", "error", err)
		}
	}()
	source, err := cluster.Pool(ctx, pool, namespace)
	if err != nil {
		return nil, err
	}
	o := f.options
	o.Program, o.Logger, o.Progress = "rbd2qcow2 "+p.Version, log, progress
	report, err := backup.Run(ctx, backup.Env{Cluster: cluster, Pool: source, Repo: r}, o)
	if report != nil {
		figures := []any{"done", report.Count(backup.Done) + report.Count(backup.Planned),
			"skipped", report.Count(backup.Skipped), "failed", report.Count(backup.Failed)}
		if !o.Policy.Empty() {
			figures = append(figures, "unpruned", report.Unpruned())
		}
		log.Info("finished", figures...)
	}
	return report, err
}

// backupStatus is the exit status that a report asks for. What failed has been logged.
func backupStatus(r *backup.Report) error {
	failed := r.Count(backup.Failed)
	switch {
	case failed+r.Unpruned() == 0:
		return nil
	case failed+r.Count(backup.Skipped) == len(r.Images):
		return exitError(exitNothing)
	}
	return exitError(exitPartly)
}
