package backup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rbd2qcow2/rbd2qcow2/internal/changes"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// run is one call of Run.
type run struct {
	Env
	Options
	source repo.Source
	engine *engine // nil in a dry run
	// distrustMaps is why object maps must not be believed; "" if they may be.
	distrustMaps string
}

// Run makes a point of every image that the options name. An image that fails does not stop the others: its error is
// in the report. The error returned is for what concerns them all: nothing matched, no access, or ctx has ended.
func Run(ctx context.Context, env Env, o Options) (*Report, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	r := &run{Env: env, Options: o, source: repo.Source{
		FSID: env.Cluster.FSID(), PoolID: env.Pool.ID(), Pool: env.Pool.Name(), Namespace: env.Pool.Namespace(),
	}}
	if err := env.Repo.CheckSource(r.source); err != nil {
		return nil, err
	}
	all, err := env.Pool.ListImages(ctx)
	if err != nil {
		return nil, err
	}
	picked, err := selectImages(all, &o)
	if err != nil {
		return nil, fmt.Errorf("back up %s: %w", env.Pool, err)
	}
	homes, err := scanFolders(env.Repo, all)
	if err != nil {
		return nil, err
	}
	if !o.DryRun {
		if err := env.Repo.Bind(ctx, r.source); err != nil {
			return nil, err
		}
		if r.engine, err = newEngine(&o, env.Repo.DigestKey); err != nil {
			return nil, err
		}
		defer r.engine.close()
	}
	if err := r.checkReleases(ctx); err != nil {
		return nil, err
	}
	report := r.images(ctx, picked, homes)
	if !o.DryRun {
		r.noteGone(all, homes)
	}
	if ctx.Err() != nil {
		return report, context.Cause(ctx)
	}
	return report, nil
}

// checkReleases names what the Ceph releases here are known to tell wrongly about changes, as far as this program is
// exposed to it, and keeps from using what is known to be wrong.
func (r *run) checkReleases(ctx context.Context) error {
	v, err := r.Cluster.Version(ctx)
	if err != nil {
		return err
	}
	if v.Library == "" {
		r.distrustMaps = "the release of the Ceph libraries can't be determined, nor what they are known to tell wrongly about changes"
	}
	for _, d := range changes.Defects(v.Library, v.OSDs) {
		if !d.Exposed {
			continue
		}
		if d.Part != changes.Writer {
			r.Logger.Info("known defect", "defect", d.String())
			continue
		}
		r.distrustMaps = "of this release of Ceph " + d.String()
		if r.Diff == changes.Auto {
			r.Logger.Warn("every object is asked about", "reason", r.distrustMaps)
		}
	}
	return nil
}

// images backs up the images, some at a time, and reports on them in their order.
func (r *run) images(ctx context.Context, picked []rbd.ImageRef, homes *folders) *Report {
	report := &Report{Images: make([]ImageReport, len(picked))}
	r.Progress.Images(len(picked))
	var g errgroup.Group
	g.SetLimit(r.Jobs)
	for i, ref := range picked {
		folder := homes.folder(ref)
		g.Go(func() error {
			report.Images[i] = r.image(ctx, ref, folder)
			return nil
		})
	}
	_ = g.Wait() // the functions return no errors
	return report
}

// image backs up one image, and reports whatever happens.
func (r *run) image(ctx context.Context, ref rbd.ImageRef, folder *repo.Folder) ImageReport {
	start := time.Now()
	j := &job{
		run:    r,
		ref:    ref,
		folder: folder,
		task:   r.Progress.Start(ref.Name),
		log:    r.Logger.With("image", ref.Name),
		report: ImageReport{Name: ref.Name, Status: Failed},
	}
	if err := j.do(ctx); err != nil {
		if ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		j.report.Status, j.report.Err, j.report.Error = Failed, err, err.Error()
	}
	j.report.Seconds = time.Since(start).Seconds()
	j.task.End()
	j.report.log(j.log)
	return j.report
}

// withGrace gives a context that outlives ctx by at most d, for calls that are better finished than cut off.
func withGrace(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	extended, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	var once sync.Once
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(d, func() { cancel(context.Cause(ctx)) })
		context.AfterFunc(extended, func() { timer.Stop() })
	})
	return extended, func() {
		once.Do(func() { stop(); cancel(context.Canceled) })
	}
}
