//go:build !noceph

package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbdtarget"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/restore"
)

// rbdRestoreFlags are the options for RBD images as targets.
type rbdRestoreFlags struct {
	inPlace  bool
	resume   bool
	noSafety bool
	live     liveFlags
	layout   layoutFlags
	ceph     rbd.Config
}

func (f *rbdRestoreFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.inPlace, "in-place", false, "of an existing image write only what differs, after making a snapshot of it")
	flags.BoolVar(&f.noSafety, "no-safety-snapshot", false, "with --in-place: make no snapshot of the image as it is")
	flags.BoolVar(&f.resume, "resume", false, "finish the restore of an image that is marked as unfinished: write what differs")
	f.live.add(flags)
	f.layout.add(flags)
	cephFlags(flags, &f.ceph)
}

func (f *rbdRestoreFlags) validate(target string, overwrite bool) error {
	modes := 0
	for _, set := range []bool{f.inPlace, f.resume, overwrite} {
		if set {
			modes++
		}
	}
	switch {
	case !isRBD(target) && (f.inPlace || f.resume):
		return usagef("--in-place and --resume are for RBD images (rbd:POOL/IMAGE)")
	case modes > 1:
		return usagef("--overwrite, --in-place and --resume exclude each other")
	case modes > 0 && f.layout.given():
		return usagef("--image-feature, --object-size, --data-pool and --stripe-* are for new images")
	case f.noSafety && !f.inPlace:
		return usagef("--no-safety-snapshot goes with --in-place")
	}
	if err := f.live.validate(target, overwrite || f.inPlace, f.resume); err != nil {
		return err
	}
	if isRBD(target) {
		if _, _, err := splitImage(target); err != nil {
			return err
		}
	}
	return errors.Join(checkCeph(&f.ceph), f.layout.validate(target))
}

// splitImage splits rbd:POOL/[NAMESPACE/]IMAGE.
func splitImage(target string) (pool, image string, err error) {
	spec := strings.TrimPrefix(target, "rbd:")
	i := strings.LastIndexByte(spec, '/')
	if i < 0 || i == len(spec)-1 {
		return "", "", usagef("target %q: must be rbd:POOL/[NAMESPACE/]IMAGE", target)
	}
	if strings.ContainsAny(spec[i+1:], "@:") {
		return "", "", usagef("target %q: the name of an image to restore to can't contain @ or :", target)
	}
	_, _, err = splitPool(spec[:i])
	return spec[:i], spec[i+1:], err
}

// withPool connects, and calls f with the pool and the name of the target.
func (j *restoreJob) withPool(ctx context.Context, f func(cluster *rbd.Cluster, pool *rbd.Pool, image string) error) error {
	spec, image, err := splitImage(j.target)
	if err != nil {
		return err
	}
	name, namespace, err := splitPool(spec)
	if err != nil {
		return err
	}
	config := j.rbd.ceph
	config.Logger = j.log
	cluster, err := rbd.Connect(ctx, config)
	if err != nil {
		return err
	}
	defer func() {
		if err := cluster.Close(); err != nil {
			j.log.Debug("disconnect", "error", err)
		}
	}()
	pool, err := cluster.Pool(ctx, name, namespace)
	if err != nil {
		return err
	}
	return f(cluster, pool, image)
}

// toRBD restores to an RBD image.
func (j *restoreJob) toRBD(ctx context.Context) (stats restore.Stats, err error) {
	err = j.withPool(ctx, func(cluster *rbd.Cluster, pool *rbd.Pool, image string) (err error) {
		switch {
		case j.rbd.live.on:
			stats, err = j.live(ctx, cluster, pool, image)
			return err
		case j.rbd.inPlace || j.rbd.resume:
			stats, err = j.inPlace(ctx, cluster, pool, image)
		default:
			stats, err = j.whole(ctx, pool, image)
		}
		return j.explainUnfinished(pool, image, err)
	})
	return stats, err
}

// whole restores all of the disk.
func (j *restoreJob) whole(ctx context.Context, pool *rbd.Pool, image string) (stats restore.Stats, err error) {
	r := rbdtarget.Request{Pool: pool, Name: image, Source: j.source, Overwrite: j.overwrite, Metadata: j.metadata(),
		Logger: j.log}
	if r.Create, err = j.rbd.layout.create(j.source, pool.Name(), j.log); err != nil {
		return stats, err
	}
	t, err := rbdtarget.Open(ctx, r)
	if err != nil {
		return stats, err
	}
	return restore.Run(ctx, j.source, t, j.options())
}

// metadata are those that the image had, for a new one.
func (j *restoreJob) metadata() map[string]string {
	metadata := map[string]string{}
	if id := j.source.Chain.Points[0].Identity; id != nil {
		for key, value := range id.Image.Metadata {
			if key != repo.UnfinishedKey {
				metadata[key] = value
			}
		}
	}
	return metadata
}

// inPlace writes what differs.
func (j *restoreJob) inPlace(ctx context.Context, cluster *rbd.Cluster, pool *rbd.Pool, image string) (stats restore.Stats, err error) {
	newest, why, err := j.newestChain(ctx)
	if err != nil {
		return stats, err
	}
	if newest != nil {
		defer newest.Close()
	}
	r := rbdtarget.InPlaceRequest{
		Pool: pool, Name: image, Source: j.source, FSID: cluster.FSID(), Newest: newest, NoNewest: why, Resume: j.rbd.resume,
		Metadata: j.metadata(), Parallel: j.parallel, Progress: j.task.Advance, Logger: j.log,
	}
	if !j.rbd.noSafety && !j.rbd.resume {
		r.SafetySnapshot = rbdtarget.SafetySnapshotName()
	}
	j.task.Phase("diff")
	t, err := rbdtarget.OpenInPlace(ctx, r)
	if err != nil {
		return stats, err
	}
	if r.SafetySnapshot != "" {
		j.report.Snapshot = pool.Spec(image) + "@" + r.SafetySnapshot
	}
	j.report.Method, j.report.Reason = t.Method, t.Reason
	j.log.Info("writing what differs", "method", t.Method, "reason", t.Reason)
	return restore.Delta(ctx, j.source, t, t.Extents, j.options())
}

// newestChain opens the newest point of all where the one that is restored is in its chain. Otherwise it says why not.
func (j *restoreJob) newestChain(ctx context.Context) (_ *repo.Chain, why string, _ error) {
	newest, err := j.folder.Newest()
	switch {
	case err != nil:
		return nil, "", err
	case newest == nil:
		return nil, "there are no points any more", nil
	case newest.State == repo.Damaged:
		return nil, fmt.Sprintf("the newest point, %s, is damaged: %v", newest.Name, newest.Err), nil
	}
	chain, err := openChain(ctx, j.folder, newest.Name, j.restoreFlags)
	if err != nil {
		return nil, fmt.Sprintf("the chain of the newest point can't be used: %v", err), nil
	}
	for _, p := range chain.Points {
		if p.Name == j.report.Point {
			return chain, "", nil
		}
	}
	return nil, "the point is not in the newest point's chain", chain.Close()
}

// explainUnfinished says in what state a failed restore leaves the image.
func (j *restoreJob) explainUnfinished(pool *rbd.Pool, image string, err error) error {
	if err == nil || errors.As(err, new(*rbdtarget.RefusedError)) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), unfinishedGrace)
	defer cancel()
	ref, findErr := pool.FindImage(ctx, image)
	if findErr != nil {
		return err
	}
	if m, markErr := rbdtarget.Unfinished(ctx, pool, ref.ID); markErr != nil || m == nil {
		return err
	}
	return fmt.Errorf("%w; %s is marked as unfinished: --resume goes on, --overwrite starts over", err, pool.Spec(image))
}
