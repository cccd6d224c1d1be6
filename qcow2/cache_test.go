package qcow2

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func TestCacheBudget(t *testing.T) {
	c := cache[int, int]{budget: 100}
	loads := 0
	get := func(key int, cost int64) {
		t.Helper()
		v, err := c.get(key, cost, func() (int, error) { loads++; return key * 10, nil })
		if v != key*10 || err != nil {
			t.Fatalf("get %d: %d, %v", key, v, err)
		}
		if c.recent.Len() > 1 && c.used > c.budget {
			t.Fatalf("%d bytes used", c.used)
		}
	}
	for _, step := range []struct {
		key   int
		cost  int64
		loads int
	}{
		{1, 40, 1}, {2, 40, 2}, {1, 40, 2}, // all there
		{3, 40, 3}, {1, 40, 3}, {2, 40, 4}, // 3 displaced 2, not 1
		{4, 1000, 5}, {4, 1000, 5}, {1, 40, 6}, // larger than the budget: alone
	} {
		if get(step.key, step.cost); loads != step.loads {
			t.Fatalf("get %d: %d loads, want %d", step.key, loads, step.loads)
		}
	}
}

func TestCacheLoadsOnce(t *testing.T) {
	c := cache[int, int]{budget: 100}
	var loads atomic.Int32
	begin := make(chan struct{})
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			<-begin
			v, err := c.get(1, 1, func() (int, error) { loads.Add(1); return 7, nil })
			if v != 7 || err != nil {
				t.Errorf("get: %d, %v", v, err)
			}
		})
	}
	close(begin)
	group.Wait()
	if loads.Load() != 1 {
		t.Errorf("%d loads", loads.Load())
	}
}

func TestCacheKeepsNoError(t *testing.T) {
	c := cache[int, int]{budget: 100}
	fail := errors.New("fail")
	if _, err := c.get(1, 1, func() (int, error) { return 0, fail }); !errors.Is(err, fail) {
		t.Fatal(err)
	}
	if v, err := c.get(1, 1, func() (int, error) { return 5, nil }); v != 5 || err != nil {
		t.Fatalf("second load: %d, %v", v, err)
	}
	if c.used != 1 {
		t.Errorf("%d bytes used", c.used)
	}
}
