package backup

import (
	"fmt"
	"log/slog"
	"runtime"
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/changes"
	"github.com/rbd2qcow2/rbd2qcow2/internal/glob"
	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/retention"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// Options says what to back up, and how.
type Options struct {
	Images  []string // names or shell patterns; none: all images
	Exclude []string // the same
	Full    bool     // full points, whatever there is
	DryRun  bool     // say what would be done
	// RemoveOldSnapshots also removes the snapshots that the Python tool left, those named by digits alone,
	// where a chain of its is continued.
	RemoveOldSnapshots bool

	Diff            changes.Mode // how changes are found; empty: changes.Auto
	VerifyUnchanged float64      // percent of what is found unchanged to be compared with the chain

	Jobs        int   // images at once; 0: 4
	Parallel    int   // reads in flight, for all images together; 0: 8
	ClusterSize int64 // in bytes, a power of two; 0: for full points 64 KiB or what the disk needs, for others by their changes
	Compression Compression

	// Policy says which points of an image stay when it has a new one; empty: all.
	Policy retention.Policy

	Program  string // name and version, for the identity
	Logger   *slog.Logger
	Progress progress.Reporter
}

// Compression is a codec and the name it has in identities and on the command line.
type Compression struct {
	Name  string      // "none", "zlib", "zstd:1"
	Codec qcow2.Codec // nil: none
}

// Limits of the options.
const (
	maxJobs     = 64
	maxParallel = 256
	// minClusterSize, in bytes, leaves room in the first cluster for the name of a backing file.
	minClusterSize = 1 << 10
)

// withDefaults checks the options and fills in what is left open.
func (o Options) withDefaults() (Options, error) {
	if o.Jobs == 0 {
		o.Jobs = 4
	}
	if o.Parallel == 0 {
		o.Parallel = 8
	}
	if o.Jobs < 1 || o.Jobs > maxJobs {
		return o, fmt.Errorf("jobs %d: must be from 1 to %d", o.Jobs, maxJobs)
	}
	if o.Parallel < 1 || o.Parallel > maxParallel {
		return o, fmt.Errorf("parallel %d: must be from 1 to %d", o.Parallel, maxParallel)
	}
	switch o.Diff {
	case "":
		o.Diff = changes.Auto
	case changes.Auto, changes.Precise:
	default:
		return o, fmt.Errorf("diff %q: must be %s or %s", o.Diff, changes.Auto, changes.Precise)
	}
	if !(o.VerifyUnchanged >= 0 && o.VerifyUnchanged <= 100) {
		return o, fmt.Errorf("verify-unchanged %v: must be from 0 to 100 percent", o.VerifyUnchanged)
	}
	if n := o.ClusterSize; n != 0 && (n < minClusterSize || n > qcow2.MaxClusterSize || n&(n-1) != 0) {
		return o, fmt.Errorf("cluster size %d: must be a power of two from %d to %d", n, minClusterSize, qcow2.MaxClusterSize)
	}
	if err := o.Policy.Validate(); err != nil {
		return o, err
	}
	return o, glob.Check(slices.Concat(o.Images, o.Exclude)...)
}

// Validate reports the first option that is out of its range.
func (o Options) Validate() error {
	_, err := o.withDefaults()
	return err
}

// encoders is the number of goroutines that compress.
func (o Options) encoders() int { return runtime.GOMAXPROCS(0) }

// Env is what a run works on. All of it stays the caller's.
type Env struct {
	Cluster *rbd.Cluster
	Pool    *rbd.Pool
	Repo    *repo.Repository
}
