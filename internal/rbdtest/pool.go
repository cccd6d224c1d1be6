// Package rbdtest works on images inside the test's process, as a virtual machine and an administrator would, fast enough for
// thousands of random histories: an open handle instead of a program started for each change. What go-ceph lacks, and what
// is to be killed midway, is done by the rbd program.
//
// Functions return errors instead of ending the test, so that many goroutines can use them. The package is imported by
// tests only.
package rbdtest

import (
	"testing"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// Pool is a pool, used as its administrator over one shared connection.
type Pool struct {
	*cephtest.Pool
	ioctx *rados.IOContext
}

// Connect connects to the pool's cluster until the test ends. Images that are open then must be closed before.
func Connect(t testing.TB, pool *cephtest.Pool) *Pool {
	t.Helper()
	conn, err := rados.NewConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.ReadConfigFile(pool.Conf); err != nil {
		t.Fatal(err)
	}
	for option, value := range map[string]string{
		"rbd_cache":     "false",
		"log_to_stderr": "false", // librbd would tell of every abuse that a test is about
		"err_to_stderr": "false",
	} {
		if err := conn.SetConfigOption(option, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.Connect(); err != nil {
		t.Fatal(err)
	}
	ioctx, err := conn.OpenIOContext(pool.Name)
	if err != nil {
		t.Fatal(err)
	}
	ioctx.SetNamespace(pool.Namespace)
	t.Cleanup(func() {
		ioctx.Destroy()
		conn.Shutdown()
	})
	return &Pool{Pool: pool, ioctx: ioctx}
}

// Features of images. Tracking is what tells which objects a snapshot has and what was written since the one before.
const (
	Tracking     = librbd.FeatureObjectMap | librbd.FeatureFastDiff
	AllFeatures  = librbd.FeatureLayering | librbd.FeatureExclusiveLock | librbd.FeatureDeepFlatten | Tracking
	DeepFlatten  = librbd.FeatureDeepFlatten
	StripingV2   = librbd.FeatureStripingV2
	WithDataPool = librbd.FeatureDataPool
)

// Layout says how an image is laid out; zero values are librbd's defaults.
type Layout struct {
	Size                    int64             // bytes
	Order                   int               // objects of 1<<Order bytes
	StripeUnit, StripeCount int64             // bytes, objects
	DataPool                string            // name
	Features                uint64            // AllFeatures and the like
	Config                  map[string]string // options of librbd, kept in the image's metadata
}

func (l Layout) options() (*librbd.ImageOptions, error) {
	o := librbd.NewRbdImageOptions()
	set := func(option librbd.ImageOption, value uint64) (err error) {
		if value != 0 {
			err = o.SetUint64(option, value)
		}
		return err
	}
	for option, value := range map[librbd.ImageOption]uint64{
		librbd.ImageOptionOrder:       uint64(l.Order),
		librbd.ImageOptionStripeUnit:  uint64(l.StripeUnit),
		librbd.ImageOptionStripeCount: uint64(l.StripeCount),
		librbd.ImageOptionFeatures:    l.Features,
	} {
		if err := set(option, value); err != nil {
			o.Destroy()
			return nil, err
		}
	}
	if l.DataPool != "" {
		if err := o.SetString(librbd.ImageOptionDataPool, l.DataPool); err != nil {
			o.Destroy()
			return nil, err
		}
	}
	return o, nil
}

// Create creates an image and opens it.
func (p *Pool) Create(name string, l Layout) (*Image, error) {
	o, err := l.options()
	if err != nil {
		return nil, err
	}
	defer o.Destroy()
	if err := librbd.CreateImage(p.ioctx, name, uint64(l.Size), o); err != nil {
		return nil, err
	}
	return p.openNew(name, l)
}

// Clone clones a snapshot of an image, which needs no protection for that, and opens the clone. Its size is the snapshot's.
func (p *Pool) Clone(parent, snapshot, name string, l Layout) (*Image, error) {
	o, err := l.options()
	if err != nil {
		return nil, err
	}
	defer o.Destroy()
	if err := o.SetUint64(librbd.ImageOptionCloneFormat, 2); err != nil {
		return nil, err
	}
	if err := librbd.CloneImage(p.ioctx, parent, snapshot, p.ioctx, name, o); err != nil {
		return nil, err
	}
	return p.openNew(name, l)
}

func (p *Pool) openNew(name string, l Layout) (*Image, error) {
	img := &Image{pool: p, Name: name}
	if err := img.Open(); err != nil {
		return nil, err
	}
	var err error
	if img.ID, err = img.GetId(); err != nil {
		return nil, err
	}
	for option, value := range l.Config {
		if err := img.SetMetadata("conf_"+option, value); err != nil {
			return nil, err
		}
	}
	if len(l.Config) > 0 {
		err = img.Reopen() // options are read at opening
	}
	return img, err
}

// Remove removes an image that has no snapshots.
func (p *Pool) Remove(name string) error { return librbd.RemoveImage(p.ioctx, name) }

// ReadObject reads a RADOS object of at most 1 MiB.
func (p *Pool) ReadObject(name string) ([]byte, error) {
	buf := make([]byte, 1<<20)
	n, err := p.ioctx.Read(name, buf, 0)
	return buf[:max(n, 0)], err
}

// WriteObject replaces a RADOS object.
func (p *Pool) WriteObject(name string, data []byte) error {
	if len(data) == 0 {
		return p.ioctx.Truncate(name, 0)
	}
	return p.ioctx.WriteFull(name, data)
}

// RemoveObject removes a RADOS object.
func (p *Pool) RemoveObject(name string) error { return p.ioctx.Delete(name) }
