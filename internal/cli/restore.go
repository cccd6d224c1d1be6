package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbd2qcow2/rbd2qcow2/internal/compress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/restore"
)

// restoreFlags are the options of the command.
type restoreFlags struct {
	format      string
	compression string
	overwrite   bool
	digest      bool
	force       bool
	mustProve   bool // digest, or a key, was given
	parallel    int
	rbd         rbdRestoreFlags
	repository  repositoryFlags
	output      outputFlags
}

// restoreReport is what the command prints as JSON.
type restoreReport struct {
	Image       string         `json:"image"`
	Point       repo.PointName `json:"point"`
	Target      string         `json:"target"`
	VirtualSize int64          `json:"virtual_size"` // bytes, as all sizes
	Proved      bool           `json:"proved"`       // by digests, all that was read of the chain
	Method      string         `json:"method,omitempty"`
	Reason      string         `json:"reason,omitempty"`
	Snapshot    string         `json:"safety_snapshot,omitempty"`
	Read        int64          `json:"read_bytes"`
	Written     int64          `json:"written_bytes"`
	Zeroed      int64          `json:"zeroed_bytes"`
	Seconds     float64        `json:"seconds"`
	// UsableSeconds is after how many of them a live restore's image could be used.
	UsableSeconds float64 `json:"usable_seconds,omitempty"`
}

const restoreLong = `Restore a point of the repository DIR: the disk as it was. IMAGE alone is its newest point.

TARGET is one of
  rbd:POOL/[NAMESPACE/]IMAGE  an RBD image, new unless --overwrite, --in-place or --resume is given; made with the layout,
                              features and metadata that the image had
  FILE.qcow2                  a qcow2 file that needs no other one
  FILE                        any other file: raw, sparse
  DEVICE                      a block device
  -                           standard output

What is stored as zeroes, or not at all, is not written; in an image or on a device that held other data it is
zeroed. What is read is compared with the digests that were stored with it. A file has its name only when it is whole;
an image is marked as unfinished until then, and a device begins with zeroes.

Exit status: 1 not restored; 2 usage; 130 and 143 interrupted.`

func (p *Program) restoreCommand() *cobra.Command {
	var f restoreFlags
	c := &cobra.Command{
		Use:   "restore DIR IMAGE[@POINT] TARGET",
		Short: "Restore a point to an RBD image, a file, a device or a stream",
		Long:  restoreLong + buildNote,
		Example: `  rbd2qcow2 restore /backup/rbd vm1 rbd:rbd/vm1-restored
  rbd2qcow2 restore /backup/rbd vm1@20261122T065012Z vm1.qcow2
  rbd2qcow2 restore --in-place /backup/rbd vm1@20261122T065012Z rbd:rbd/vm1
  rbd2qcow2 restore /backup/rbd vm1 - | ssh host 'dd of=/dev/vg0/vm1 bs=4M'`,
		Args: arguments(3, 3),
		RunE: func(c *cobra.Command, args []string) error {
			f.mustProve = f.digest && (c.Flags().Changed("digest") || f.repository.keyFile != "")
			return p.restore(c.Context(), args[0], args[1], args[2], &f)
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.BoolVar(&f.overwrite, "overwrite", false, "replace what an existing file, device or image holds")
	f.rbd.add(flags)
	flags.StringVarP(&f.format, "format", "O", "", "format of a file: `raw|qcow2`; by default its name tells")
	flags.StringVar(&f.compression, "compress", "none", "of a qcow2 file: `zstd[:LEVEL]|zlib|none`")
	flags.BoolVar(&f.force, "force", false, "although a verification has found the point, or one below it, damaged")
	flags.BoolVar(&f.digest, "digest", true,
		"compare all that is read with its digests; given explicitly, refuse points of the Python tool, which have none")
	flags.IntVar(&f.parallel, "parallel", 8, "keep `N` reads and writes in flight")
	f.repository.add(flags)
	f.output.add(flags)
	return c
}

func (p *Program) restore(ctx context.Context, dir, spec, target string, f *restoreFlags) error {
	if err := errors.Join(f.output.validate(), f.validate(target)); err != nil {
		return err
	}
	r, err := f.repository.open(dir, repo.Open)
	if err != nil {
		return err
	}
	if f.rbd.aborts() {
		return p.abortLive(ctx, r, spec, target, f)
	}
	folder, point, err := r.FindPoint(spec)
	if err != nil {
		return err
	}
	reporter, log, end := f.output.progress(p.Stderr)
	defer end()
	chain, err := openChain(ctx, folder, point, f)
	if err != nil {
		return err
	}
	defer chain.Close()
	unproved := chain.Unproved()
	if f.digest && len(unproved) > 0 {
		log.Warn("points without digests: what they hold can't be proved", "points", len(unproved), "first", unproved[0].Name)
	}
	reporter.Images(1)
	task := reporter.Start(r.ImageName(folder))
	defer task.End()
	job := restoreJob{
		restoreFlags: f, program: p, repo: r, folder: folder, source: restore.NewSource(chain), target: target, task: task, log: log,
		report: restoreReport{Image: r.ImageName(folder), Point: point, Target: target, Proved: len(unproved) == 0},
	}
	job.report.VirtualSize = job.source.Size
	start := time.Now()
	stats, err := job.run(ctx)
	if err != nil {
		return err
	}
	job.report.Read, job.report.Written, job.report.Zeroed = stats.Read, stats.Written, stats.Zeroed
	job.report.Seconds = time.Since(start).Seconds()
	log.Info("restored", "image", job.report.Image, "point", point, "target", target, "size", progress.Bytes(job.report.VirtualSize),
		"written", progress.Bytes(stats.Written), "proved", job.report.proved(), "seconds", fmt.Sprintf("%.1f", job.report.Seconds))
	if f.output.json && target != "-" {
		return printJSON(p.Stdout, &job.report)
	}
	return nil
}

// proved is Proved for people: by method diff, what has not changed was not read.
func (r *restoreReport) proved() any {
	if r.Proved && r.Method == "diff" {
		return "what was compared"
	}
	return r.Proved
}

func openChain(ctx context.Context, folder *repo.Folder, point repo.PointName, f *restoreFlags) (*repo.Chain, error) {
	open := folder.OpenProvedChain
	if !f.digest {
		open = folder.OpenChain
	}
	chain, err := open(ctx, point)
	if err != nil {
		return nil, err
	}
	if err := chain.Refuse(); err != nil && !f.force {
		return nil, errors.Join(fmt.Errorf("restore: %w: --force restores it all the same", err), chain.Close())
	}
	if unproved := chain.Unproved(); f.mustProve && len(unproved) > 0 {
		err := fmt.Errorf("restore %s: it has %s", unproved[0].Path(), f.repository.missing())
		return nil, errors.Join(err, chain.Close())
	}
	return chain, nil
}

// isRBD says whether a target is an RBD image.
func isRBD(target string) bool { return strings.HasPrefix(target, "rbd:") }

func (f *restoreFlags) validate(target string) error {
	switch {
	case f.parallel < 1:
		return usagef("--parallel %d: must be at least 1", f.parallel)
	case f.format != "" && f.format != "raw" && f.format != "qcow2":
		return usagef("format %q: must be raw or qcow2", f.format)
	case f.format != "" && (isRBD(target) || target == "-"):
		return usagef("--format is for files")
	case f.compression != "none" && !f.isQCOW2(target):
		return usagef("--compress is for qcow2 files")
	case f.output.json && target == "-":
		return usagef("--json and - as target: both want the standard output")
	}
	if err := f.rbd.validate(target, f.overwrite); err != nil {
		return err
	}
	if _, _, err := compress.Parse(f.compression); err != nil {
		return usageError{err}
	}
	return nil
}

// isQCOW2 says whether a file becomes one.
func (f *restoreFlags) isQCOW2(target string) bool {
	return !isRBD(target) && (f.format == "qcow2" || f.format == "" && strings.HasSuffix(target, ".qcow2"))
}

// openTarget opens a target that is no RBD image.
func (j *restoreJob) openTarget() (restore.Target, error) {
	size := j.source.Size
	if j.target == "-" {
		if isTerminal(j.program.Stdout) {
			return nil, errors.New("restore to standard output: it is a terminal")
		}
		return restore.NewStream(j.program.Stdout, size), nil
	}
	info, err := os.Stat(j.target)
	switch {
	case err == nil && info.IsDir():
		return nil, fmt.Errorf("restore to %s: it is a directory", j.target)
	case err == nil && info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0:
		if !j.overwrite {
			return nil, fmt.Errorf("restore to %s: what the device holds would be lost (--overwrite does it)", j.target)
		}
		if j.isQCOW2(j.target) {
			return nil, usagef("restore to %s: a device holds the raw disk, no qcow2 file", j.target)
		}
		return restore.OpenDevice(j.target, size)
	}
	point, err := j.repo.IsPoint(behindLinks(j.target))
	if err == nil && point {
		err = fmt.Errorf("restore to %s: that is a point of the repository", j.target)
	}
	if err != nil {
		return nil, err
	}
	if j.isQCOW2(j.target) {
		_, codec, err := compress.Parse(j.compression)
		if err != nil {
			return nil, err
		}
		return restore.CreateQCOW2(j.target, size, codec, j.overwrite)
	}
	return restore.CreateRaw(j.target, size, j.overwrite)
}

// behindLinks is the path of the file that a path stands for; the path itself where there is none.
func behindLinks(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}
