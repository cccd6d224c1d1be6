package guest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A point is what a power cut would have left: a file system that was mounted has a log that wants to be replayed, which is no
// damage. So checkers first put in order, in the overlay, what a mount would; what is wrong then is damage.

// check is the check of one file system. Its methods give nil if it is good, damage, unsupported, or why it could not be done.
type check struct {
	file  string // which shows it, and can be written to
	dir   string // for what else is needed
	mount bool   // the kernel of this host may do so
}

// method gives the method that checks a kind of file system, and the program that it needs; nil where there is none.
func (c *check) method(kind string) (method func(context.Context) error, program string) {
	switch kind {
	case "ext2", "ext3", "ext4":
		return c.ext, "e2fsck"
	case "xfs":
		return c.xfs, "xfs_repair"
	case "vfat":
		return c.fat, "fsck.fat"
	case "btrfs":
		return c.btrfs, "btrfs"
	}
	return nil, ""
}

// ext replays the journal and clears what was deleted while open ("-p", which does no more where the file system has a journal
// and no note of an error), then looks at everything.
func (c *check) ext(ctx context.Context) error {
	const corrected = 1 | 2 // exit status, see e2fsck(8)
	for _, step := range []struct {
		option string
		good   int
	}{{"-p", corrected}, {"-fn", 0}} {
		o, err := run(ctx, "e2fsck", step.option, c.file)
		if err != nil {
			return err
		}
		if o.code&^step.good != 0 {
			return damage(fmt.Sprintf("e2fsck %s: exit status %d: %s", step.option, o.code, o.finding("e2fsck ", "Pass ")))
		}
	}
	return nil
}

// xfs uses what is documented of xfs_repair's exit status: with -n 1 where something is wrong, be it for a log that was not
// replayed; without it 2 if so.
func (c *check) xfs(ctx context.Context) error {
	o, err := run(ctx, "xfs_repair", "-n", c.file)
	if err != nil || o.code == 0 {
		return err
	}
	if tried, err := run(ctx, "xfs_repair", c.file); err != nil {
		return err
	} else if tried.code != 2 {
		return xfsDamage(o)
	}
	if !c.mount {
		return unsupported("its log has to be replayed, which only a kernel can: --fsck-mount lets that of this host do it")
	}
	if err := c.mountOnce(ctx, "xfs", "nouuid"); err != nil {
		return err
	}
	if o, err = run(ctx, "xfs_repair", "-n", c.file); err != nil || o.code == 0 {
		return err
	}
	return xfsDamage(o)
}

func xfsDamage(o outcome) error {
	finding := o.finding("Phase ", "        - ", "No modify flag", "Cannot get host", "Repair may fail", "the image and the host")
	return damage(fmt.Sprintf("xfs_repair -n: exit status %d: %s", o.code, finding))
}

// mountOnce has the kernel mount and unmount a file system, in the overlay, which replays its log.
func (c *check) mountOnce(ctx context.Context, kind, option string) error {
	if os.Geteuid() != 0 {
		return unsupported("its log has to be replayed, for which only root can mount it")
	}
	at := filepath.Join(c.dir, "mounted")
	if err := os.Mkdir(at, 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	o, err := run(ctx, "mount", "-t", kind, "-o", "loop,nosuid,nodev,noexec,"+option, c.file, at)
	defer unmount(ctx, at) // also where mount was cut off in the middle
	if err == nil && o.code != 0 {
		err = damage("can't be mounted: " + o.said())
	}
	return err
}

// unmount unmounts what is mounted there, if anything is, also after ctx has ended.
func unmount(ctx context.Context, at string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	_, _ = run(ctx, "umount", at) // what is not unmounted fails the check that follows
}

// fat checks a file system without a journal: if it was mounted, what is wrong is what a power cut leaves, unless it can't be put
// in order.
func (c *check) fat(ctx context.Context) error {
	o, err := run(ctx, "fsck.fat", "-n", c.file)
	if err != nil || o.code == 0 {
		return err
	}
	if strings.Contains(o.stdout, "Dirty bit is set") {
		if _, err := run(ctx, "fsck.fat", "-a", c.file); err != nil {
			return err
		}
		if o, err = run(ctx, "fsck.fat", "-n", c.file); err != nil || o.code == 0 {
			return err
		}
	}
	return damage(fmt.Sprintf("fsck.fat -n: exit status %d: %s", o.code, o.finding("fsck.fat ")))
}

// btrfs looks at the trees that were committed last, which are whole at any time. The log of later writes is not replayed.
func (c *check) btrfs(ctx context.Context) error {
	o, err := run(ctx, "btrfs", "check", "--readonly", c.file)
	if err != nil || o.code == 0 {
		return err
	}
	if strings.Contains(o.stderr+o.stdout, "is missing") {
		return unsupported("a part of it is on another disk")
	}
	finding := o.finding("Opening filesystem", "Checking filesystem", "UUID: ", "[")
	return damage(fmt.Sprintf("btrfs check: exit status %d: %s", o.code, finding))
}
