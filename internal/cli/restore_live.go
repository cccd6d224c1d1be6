//go:build !noceph

package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/rbd2qcow2/rbd2qcow2/internal/live"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/restore"
)

// liveFlags are the options of a live restore.
type liveFlags struct {
	on        bool
	abort     bool
	listen    string
	advertise string
}

func (f *liveFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.on, "live", false,
		"make a new image that can be used at once, while its data are copied; with --resume: go on with it")
	flags.BoolVar(&f.abort, "abort", false, "with --live: remove the image of a live restore that was interrupted")
	flags.StringVar(&f.listen, "listen", "", "with --live: `ADDRESS:PORT` where all hosts that open the image can reach this one; "+
		"by default the address of this host that leads to the monitors, and a free port")
	flags.StringVar(&f.advertise, "advertise", "", "with --live: `HOST[:PORT]` by which they reach it, if it is another one")
}

func (f *liveFlags) validate(target string, others bool, resume bool) error {
	switch {
	case !f.on && (f.abort || f.listen != "" || f.advertise != ""):
		return usagef("--abort, --listen and --advertise go with --live")
	case !f.on:
		return nil
	case !isRBD(target):
		return usagef("--live is for RBD images (rbd:POOL/IMAGE)")
	case others:
		return usagef("--live makes a new image: it goes with neither --overwrite nor --in-place")
	case f.abort && resume:
		return usagef("--resume and --abort exclude each other")
	case (f.abort || resume) && f.listen+f.advertise != "":
		return usagef("--listen and --advertise can't be changed any more: they stand in the image")
	}
	if f.listen != "" {
		if _, _, err := net.SplitHostPort(f.listen); err != nil {
			return usagef("--listen: %w", err)
		}
	}
	if strings.Contains(f.advertise, "/") || strings.Count(f.advertise, ":") > 1 {
		return usagef("--advertise %s: must be HOST or HOST:PORT, HOST a name or an IPv4 address", f.advertise)
	}
	return nil
}

// live restores to an image that is in use meanwhile.
func (j *restoreJob) live(ctx context.Context, cluster *rbd.Cluster, pool *rbd.Pool, image string) (restore.Stats, error) {
	r := live.Request{
		Repo: j.repo, Folder: j.folder, Point: j.report.Point, FSID: cluster.FSID(), Pool: pool, Image: image,
		Progress: j.task, Logger: j.log,
	}
	err := j.carryOn(ctx, cluster, r)
	var unfinished *live.UnfinishedError
	if errors.As(err, &unfinished) {
		return restore.Stats{}, fmt.Errorf("%w\n%s can be used only while this goes on: %s\nor, to remove it: %s", err,
			pool.Spec(image), j.liveCommand("--resume"), j.liveCommand("--abort"))
	}
	// librbd copies all of the disk, but counts nothing.
	return restore.Stats{Written: j.source.Size}, err
}

func (j *restoreJob) carryOn(ctx context.Context, cluster *rbd.Cluster, r live.Request) (err error) {
	start := time.Now()
	var l *live.Restore
	if j.rbd.resume {
		l, err = live.Resume(ctx, r)
	} else {
		l, err = j.beginLive(ctx, cluster, r)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	j.report.Method, j.report.UsableSeconds = "live", time.Since(start).Seconds()
	j.log.Info("the image can be used now", "image", r.Pool.Spec(r.Image), "seconds", fmt.Sprintf("%.1f", j.report.UsableSeconds))
	return l.Run(ctx, j.metadata())
}

func (j *restoreJob) beginLive(ctx context.Context, cluster *rbd.Cluster, r live.Request) (*live.Restore, error) {
	o := live.Options{Listen: j.rbd.live.listen, Advertise: j.rbd.live.advertise}
	var err error
	if o.Create, err = j.rbd.layout.create(j.source, r.Pool.Name(), j.log); err != nil {
		return nil, err
	}
	own, err := cluster.Address(ctx)
	if err != nil {
		return nil, err
	}
	if o.Listen == "" {
		o.Listen = net.JoinHostPort(own.String(), "0")
	}
	host, _, _ := net.SplitHostPort(o.Listen) // checked before
	if ip, err := netip.ParseAddr(host); o.Advertise == "" && (host == "" || err == nil && ip.IsUnspecified()) {
		if o.Advertise = own.String(); own.Is6() {
			return nil, usagef("--listen %s: needs --advertise, as librbd can't read the IPv6 address %s in a URL", o.Listen, own)
		}
	}
	return live.Begin(ctx, r, o)
}

// aborts says whether nothing is to be restored.
func (f *rbdRestoreFlags) aborts() bool { return f.live.abort }

// abortLive removes the image of a live restore. It needs no point: the chain may be damaged, or gone.
func (p *Program) abortLive(ctx context.Context, r *repo.Repository, spec, target string, f *restoreFlags) error {
	folder, err := r.FindImage(withoutPoint(spec))
	if err != nil {
		return err
	}
	reporter, log, end := f.output.progress(p.Stderr)
	defer end()
	reporter.Images(1)
	task := reporter.Start(r.ImageName(folder))
	defer task.End()
	j := restoreJob{restoreFlags: f, program: p, repo: r, folder: folder, target: target, task: task, log: log}
	return j.withPool(ctx, func(cluster *rbd.Cluster, pool *rbd.Pool, image string) error {
		err := live.Abort(ctx, live.Request{Folder: folder, FSID: cluster.FSID(), Pool: pool, Image: image, Progress: task, Logger: log})
		if err == nil {
			log.Info("the live restore is aborted, and the image removed", "image", pool.Spec(image))
		}
		return err
	})
}

// withoutPoint gives the IMAGE of IMAGE or IMAGE@POINT.
func withoutPoint(spec string) string {
	if i := strings.LastIndexByte(spec, '@'); i >= 0 {
		if _, err := repo.ParsePointName(spec[i+1:]); err == nil {
			return spec[:i]
		}
	}
	return spec
}

// liveCommand is the command that goes on with a live restore, or aborts it.
func (j *restoreJob) liveCommand(option string) string {
	words := []string{"rbd2qcow2", "restore", "--live", option}
	c := &j.rbd.ceph
	for _, o := range []struct{ name, value string }{
		{"--conf", c.ConfFile}, {"--cluster", c.Cluster}, {"--id", c.ID}, {"--name", c.Name}, {"--keyring", c.Keyring},
		{"--mon-host", c.MonHost},
	} {
		if o.value != "" {
			words = append(words, o.name, o.value)
		}
	}
	words = append(words, j.repo.Dir, j.folder.Name+"@"+string(j.report.Point), j.target)
	for i, w := range words {
		words[i] = shellQuote(w)
	}
	return strings.Join(words, " ")
}

// shellQuote quotes a word of a command that a message proposes.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._/:@%=,+-", r)
	}
	if s != "" && strings.TrimFunc(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
