package guest

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
)

// Options say what is tried, and how.
type Options struct {
	// Targets are IMAGE, or a shell pattern of images, for the newest point; IMAGE@POINT for that one. None: the newest of all
	// images.
	Targets  []string
	Boot     *Boot // nil: not done
	Fsck     *Fsck // nil: not done
	Logger   *slog.Logger
	Progress progress.Reporter
}

// Boot says how a virtual machine is started, and what it has to do.
type Boot struct {
	QEMU    string         // the program
	Args    []string       // further arguments; they replace what is usual of accelerator, processor, memory and disk device
	Memory  string         // as -m of QEMU takes it
	Expect  *regexp.Regexp // matches a line of the serial console, or the beginning of one, when the guest has come up
	Timeout time.Duration  // for that
}

// Fsck says how file systems are checked.
type Fsck struct {
	Mount   bool          // let the kernel of this host mount what only a mount can replay the log of
	Timeout time.Duration // for all file systems of a point
}

// Validate reports the first option that makes no sense.
func (o *Options) Validate() error {
	switch {
	case o.Boot == nil && o.Fsck == nil:
		return errors.New("nothing to try")
	case o.Boot != nil && o.Boot.Timeout <= 0:
		return fmt.Errorf("boot timeout of %s: must be positive", o.Boot.Timeout)
	case o.Boot != nil && o.Boot.Expect.MatchString(""):
		return fmt.Errorf("expected pattern %q: matches an empty line, too", o.Boot.Expect)
	case o.Fsck != nil && o.Fsck.Timeout <= 0:
		return fmt.Errorf("fsck timeout of %s: must be positive", o.Fsck.Timeout)
	}
	return nil
}

// programs are those that every trial needs.
func (o *Options) programs() []string {
	names := []string{"qemu-img"}
	if o.Boot != nil {
		names = append(names, o.Boot.QEMU)
	}
	if o.Fsck != nil {
		names = append(names, storageDaemon, "blkid", "partx")
	}
	return names
}
