package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"

	"github.com/spf13/pflag"

	"github.com/rbd2qcow2/rbd2qcow2/internal/guest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// guestLong is the part of the command's help on guests.
const guestLong = `With --boot and --fsck points are tried instead, as their guests would use them: the newest point of each image,
or those named, and not what lies below. Both work on an overlay in a temporary directory (TMPDIR).

--boot starts QEMU, without a network, and waits for a pattern on the serial console, which the guest must use. It needs
qemu-img, and QEMU.

--fsck checks the file systems of the disk or of its partitions, once a mount after a power cut would have put them in
order. It needs qemu-img, qemu-storage-daemon with FUSE, blkid and partx; e2fsck for ext2 to ext4, xfs_repair for XFS,
fsck.fat for FAT, btrfs for btrfs. What can't be checked, such as LVM, is named, and makes the exit status 3.`

// guestFlags say how points are tried.
type guestFlags struct {
	boot        bool
	qemu        string
	qemuArgs    []string
	memory      string
	expect      string
	bootTimeout time.Duration
	fsck        bool
	fsckMount   bool
	fsckTimeout time.Duration
	flags       *pflag.FlagSet
}

func (f *guestFlags) add(flags *pflag.FlagSet) {
	f.flags = flags
	flags.BoolVar(&f.boot, "boot", false, "boot a virtual machine from each point instead of comparing its data with digests")
	flags.StringVar(&f.expect, "boot-expect", "login: ",
		"a line of its serial console has to match the regular expression `REGEXP`")
	flags.DurationVar(&f.bootTimeout, "boot-timeout", 5*time.Minute, "within this `TIME`; without KVM more may be needed")
	flags.StringVar(&f.memory, "boot-memory", "512M", "memory of the virtual machine, as `SIZE`")
	flags.StringVar(&f.qemu, "qemu", "qemu-system-x86_64", "`PROGRAM` that runs it")
	flags.StringArrayVar(&f.qemuArgs, "qemu-arg", nil,
		"one more `ARGUMENT` for it, may be repeated: a firmware, a kernel, a device other than virtio-blk-pci,drive=disk")
	flags.BoolVar(&f.fsck, "fsck", false, "check the file systems inside each point instead of comparing its data with digests")
	flags.BoolVar(&f.fsckMount, "fsck-mount", false,
		"let the kernel of this host mount XFS whose log has to be replayed: as root, for guests that are trusted")
	flags.DurationVar(&f.fsckTimeout, "fsck-timeout", time.Hour, "allow this `TIME` for the file systems of a point")
}

func (f *guestFlags) given() bool { return f.boot || f.fsck }

// validate checks the options, among them those that would be of no effect.
func (f *guestFlags) validate() error {
	given := func(reason string, names ...string) (errs error) {
		for _, name := range names {
			if f.flags.Changed(name) {
				errs = errors.Join(errs, fmt.Errorf("--%s: %s", name, reason))
			}
		}
		return errs
	}
	var errs []error
	if f.given() {
		errs = append(errs, given("not with --boot or --fsck, which try points one after the other, as they are",
			"source", "newer-than", "sample", "max-time", "parallel"))
		_, err := f.options(nil)
		errs = append(errs, err)
	}
	if !f.boot {
		errs = append(errs, given("is for --boot", "boot-expect", "boot-timeout", "boot-memory", "qemu", "qemu-arg"))
	}
	if !f.fsck {
		errs = append(errs, given("is for --fsck", "fsck-mount", "fsck-timeout"))
	}
	return errors.Join(errs...)
}

// options gives the options of package guest.
func (f *guestFlags) options(targets []string) (o guest.Options, err error) {
	o.Targets = targets
	if f.boot {
		o.Boot = &guest.Boot{QEMU: f.qemu, Args: f.qemuArgs, Memory: f.memory, Timeout: f.bootTimeout}
		if o.Boot.Expect, err = regexp.Compile(f.expect); err != nil {
			return o, fmt.Errorf("expected pattern: %w", err)
		}
	}
	if f.fsck {
		o.Fsck = &guest.Fsck{Mount: f.fsckMount, Timeout: f.fsckTimeout}
	}
	return o, o.Validate()
}

// tryGuests is verify for --boot and --fsck.
func (p *Program) tryGuests(ctx context.Context, r *repo.Repository, targets []string, f *verifyFlags) error {
	o, err := f.guest.options(targets)
	if err != nil {
		return usageError{err}
	}
	reporter, log, end := f.output.progress(p.Stderr)
	o.Logger, o.Progress = log, reporter
	report, err := guest.Run(ctx, r, o)
	end()
	if report == nil {
		report = &verify.Report{Images: []verify.ImageReport{}}
	}
	for _, image := range report.Images {
		for _, point := range image.Points {
			if point.Error != "" {
				log.Error("point can't be tried", "image", image.Name, "point", point.Point, "error", point.Error)
			}
		}
	}
	if f.output.json {
		if err != nil {
			report.Error = err.Error()
		}
		err = errors.Join(err, printJSON(p.Stdout, report))
	} else {
		err = errors.Join(err, printTrials(p.Stdout, report))
	}
	if err != nil {
		return err
	}
	return trialStatus(report)
}

// printTrials prints a line for each failure, and for what could not be tried. The end of a console follows, indented.
func printTrials(w io.Writer, r *verify.Report) (err error) {
	for _, image := range r.Images {
		for _, point := range image.Points {
			line := func(format string, args ...any) {
				if err == nil {
					_, err = fmt.Fprintf(w, "%s@%s: %s\n", printable(image.Name), point.Point, fmt.Sprintf(format, args...))
				}
			}
			if t := point.Boot; t != nil && t.Status != verify.TrialPassed {
				line("does not boot: %s", t.Message)
				for _, said := range t.Console {
					fmt.Fprintf(w, "    %s\n", said)
				}
			}
			t := point.Fsck
			if t == nil {
				continue
			}
			if len(t.FileSystems) == 0 {
				line("file systems: %s", t.Message)
			}
			for _, fs := range t.FileSystems {
				switch fs.Status {
				case verify.TrialFailed:
					line("file system of %s", &fs)
				case verify.TrialUnsupported:
					line("not checked: %s", &fs)
				}
			}
		}
	}
	return err
}

// trialStatus is the exit status that a report asks for.
func trialStatus(r *verify.Report) error {
	count := func(s verify.TrialStatus) int {
		return r.Count(func(p *verify.PointReport) bool {
			return p.Boot != nil && p.Boot.Status == s || p.Fsck != nil && p.Fsck.Status == s
		})
	}
	all := r.Count(func(*verify.PointReport) bool { return true })
	left := r.Count(func(p *verify.PointReport) bool { return p.Status != verify.Tried })
	switch {
	case count(verify.TrialFailed) > 0:
		return exitError(exitDamage)
	case left == all:
		return exitError(exitNothing)
	case left > 0 || count(verify.TrialUnsupported) > 0:
		return exitError(exitPartly)
	}
	return nil
}
