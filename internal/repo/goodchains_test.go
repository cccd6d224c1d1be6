package repo

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// TestGoodChains makes random chains, some on points of the Python tool, and removes points. Nothing is found to be wrong with any
// file. RBD2QCOW2_SEEDS says how many.
func TestGoodChains(t *testing.T) {
	seeds := 24
	if s := os.Getenv("RBD2QCOW2_SEEDS"); s != "" {
		var err error
		if seeds, err = strconv.Atoi(s); err != nil {
			t.Fatalf("RBD2QCOW2_SEEDS: %v", err)
		}
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			var s *scene
			if seed%12 == 0 { // not beside others: a process that is being started has their files open for a moment
				s = foreignScene(t)
			} else {
				t.Parallel()
				s = newScene(t, 0)
			}
			s.rng = rand.New(rand.NewPCG(uint64(seed), 7))
			s.codec, s.compression = nil, "none"
			if s.rng.IntN(2) == 0 {
				s.codec, s.compression = qcow2.ZstdCodec(1), "zstd:1"
			}
			for range 2 + s.rng.IntN(8) {
				s.writes = 1 + s.rng.IntN(20)
				if n := len(s.points); n > 1 && s.rng.IntN(3) == 0 {
					s.fold(s.rng.IntN(n - 1))
				} else {
					s.add()
				}
				s.wantGood()
			}
			s.checkReads()
		})
	}
}

// wantGood fails the test where anything is wrong with a file, or with what it lies on.
func (s *scene) wantGood() {
	s.t.Helper()
	for _, name := range s.points {
		chain, err := s.OpenAlone(s.t.Context(), name)
		if err != nil {
			s.t.Fatal(err)
		}
		report := func(f qcow2.Finding) { s.t.Errorf("point %s: %s", name, f) }
		_, err = chain.Check(s.t.Context(), qcow2.CheckOptions{Data: true, Report: report})
		if err != nil || chain.Points[0].CheckParent() != nil {
			s.t.Errorf("point %s: %v, %v", name, err, chain.Points[0].CheckParent())
		}
		_ = chain.Close()
	}
}
