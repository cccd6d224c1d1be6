package rbd

import (
	"context"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

// connectAs connects as the pool's backup user until the test ends.
func connectAs(t *testing.T, tp *cephtest.Pool) (context.Context, *Pool) {
	t.Helper()
	return connectWith(t, tp, config(tp))
}

// connectToRestore connects as a user who may do everything in the pool.
func connectToRestore(t *testing.T, tp *cephtest.Pool) (context.Context, *Pool) {
	t.Helper()
	cfg := config(tp)
	cfg.ID, cfg.Keyring = tp.RestoreUser(t)
	return connectWith(t, tp, cfg)
}

func connectWith(t *testing.T, tp *cephtest.Pool, cfg Config) (context.Context, *Pool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	c, err := Connect(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	p, err := c.Pool(ctx, tp.Name, tp.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	return ctx, p
}

func config(tp *cephtest.Pool) Config {
	return Config{ConfFile: tp.Conf, ID: tp.User, Keyring: tp.Keyring, Timeout: 10 * time.Second}
}

// openAt opens an image until the test ends.
func openAt(ctx context.Context, t *testing.T, p *Pool, id, snapshot string) *Image {
	t.Helper()
	img, err := p.OpenAt(ctx, id, snapshot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	})
	return img
}

// adminContext returns an I/O context of the administrator for what the rbd
// program can't do, or does slowly.
func adminContext(ctx context.Context, t *testing.T, tp *cephtest.Pool) *rados.IOContext {
	t.Helper()
	c, err := Connect(ctx, Config{ConfFile: tp.Conf})
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Pool(ctx, tp.Name, tp.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return p.ioctx
}
