package rbd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestAbandonedCall follows a call that outlives its caller, its handle's owner
// and the owner of the parent.
func TestAbandonedCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var freed []string
		free := func(name string) func() error {
			return func() error {
				freed = append(freed, name)
				return nil
			}
		}
		parent, err := newHandle(nil, time.Hour, free("parent"))
		if err != nil {
			t.Fatal(err)
		}
		child, err := newHandle(parent, time.Minute, free("child"))
		if err != nil {
			t.Fatal(err)
		}
		end, late := make(chan struct{}), ""
		start := time.Now()
		_, err = call(t.Context(), child, func() (string, error) {
			<-end
			return "late", nil
		}, func(s string) { late = s })
		if took := time.Since(start); took != time.Minute || !errors.Is(err, ErrAbandoned) || !errors.Is(err, ErrTimeout) {
			t.Errorf("%v after %v", err, took)
		}
		if err := closeAll(child, parent); !errors.Is(err, ErrAbandoned) || time.Since(start) != time.Minute+closeGrace {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if err := closeAll(child, parent); err != nil {
			t.Errorf("second close: %v", err)
		}
		synctest.Wait()
		if len(freed) != 0 {
			t.Errorf("freed %q under a running call", freed)
		}
		if err := do(t.Context(), child, func() error { return nil }); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if _, err := newHandle(parent, time.Minute, nil); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		close(end)
		synctest.Wait()
		if len(freed) != 2 || freed[0] != "child" || freed[1] != "parent" || late != "late" {
			t.Errorf("freed %q, late result %q", freed, late)
		}
	})
}

func TestCallEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, err := newHandle(nil, time.Hour, func() error { return errors.New("free failed") })
		if err != nil {
			t.Fatal(err)
		}
		mine := errors.New("mine")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(mine) })
		end := make(chan struct{})
		err = do(ctx, h, func() error { <-end; return nil })
		if !errors.Is(err, ErrAbandoned) || !errors.Is(err, mine) {
			t.Error(err)
		}
		err = do(ctx, h, func() error { t.Error("called"); return nil })
		if errors.Is(err, ErrAbandoned) || !errors.Is(err, mine) {
			t.Error(err)
		}
		close(end)
		if err := closeAll(h); err == nil || err.Error() != "free failed" {
			t.Error(err)
		}
	})
}
