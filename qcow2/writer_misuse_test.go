package qcow2_test

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

func TestNewWriterRefuses(t *testing.T) {
	for name, o := range map[string]qcow2.WriterOptions{
		"negative size":             {Size: -1},
		"largest size":              {Size: math.MaxInt64},
		"size":                      {Size: 1<<61 + 1},
		"size for the cluster size": {Size: 128<<30 + 1, ClusterSize: 512},
		"cluster size":              {Size: 1, ClusterSize: 3 << 10},
		"small clusters":            {Size: 1, ClusterSize: 256},
		"large clusters":            {Size: 1, ClusterSize: 4 << 20},
		"negative clusters":         {Size: 1, ClusterSize: -512},
		"long backing name":         {Size: 1, BackingFile: strings.Repeat("x", 1024)},
		"no room for backing name":  {Size: 1, BackingFile: "x", ClusterSize: 512},
		"long backing format":       {Size: 1, BackingFile: "x", BackingFormat: "0123456789abcdef"},
	} {
		if _, err := qcow2.NewWriter(&countingFile{}, o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, o := range map[string]qcow2.WriterOptions{
		"largest size":                      {Size: 1 << 61},
		"largest size for the cluster size": {Size: 128 << 30, ClusterSize: 512},
		"long backing name":                 {Size: 1, BackingFile: strings.Repeat("x", 1023)},
		"backing name":                      {Size: 1, BackingFile: strings.Repeat("x", 512), ClusterSize: 1 << 10},
	} {
		if _, err := qcow2.NewWriter(&countingFile{}, o); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever is done wrongly gives an error, and no file comes of it afterwards.
func TestWriterMisuse(t *testing.T) {
	const cluster = 4 << 10
	at := func(off int64) func(testing.TB, *qcow2.Writer) error {
		return func(t testing.TB, w *qcow2.Writer) error {
			c := encoded(t, nil, cluster, cluster, 1)
			c.Offset = off
			return w.Append(c)
		}
	}
	for name, misuse := range map[string]func(testing.TB, *qcow2.Writer) error{
		"descending":      at(0),
		"the same":        at(2 * cluster),
		"unaligned":       at(6*cluster + 512),
		"negative":        at(-cluster),
		"beyond the end":  at(256 * cluster),
		"far beyond":      at(math.MaxInt64 / cluster * cluster),
		"zero descending": func(_ testing.TB, w *qcow2.Writer) error { return w.Zero(0, cluster) },
		"zero unaligned":  func(_ testing.TB, w *qcow2.Writer) error { return w.Zero(6*cluster, 512) },
		"zero negative":   func(_ testing.TB, w *qcow2.Writer) error { return w.Zero(6*cluster, -cluster) },
		"zero too long":   func(_ testing.TB, w *qcow2.Writer) error { return w.Zero(6*cluster, math.MaxInt64/cluster*cluster) },
		"not encoded": func(_ testing.TB, w *qcow2.Writer) error {
			return w.Append(&qcow2.Chunk{Offset: 6 * cluster, Data: make([]byte, cluster)})
		},
		"encoded for other clusters": func(t testing.TB, w *qcow2.Writer) error {
			c := encoded(t, nil, 2*cluster, 2*cluster, 1)
			c.Offset = 6 * cluster
			return w.Append(c)
		},
		"encoded when it was shorter": func(t testing.TB, w *qcow2.Writer) error {
			c := encoded(t, nil, cluster, cluster, 1)
			c.Offset, c.Data = 6*cluster, make([]byte, 2*cluster)
			return w.Append(c)
		},
		"encoded with another codec": func(t testing.TB, w *qcow2.Writer) error {
			c := encoded(t, qcow2.ZstdCodec(1), cluster, cluster, 1)
			c.Offset = 6 * cluster
			return w.Append(c)
		},
		"data behind the end": func(t testing.TB, w *qcow2.Writer) error {
			c := encoded(t, nil, cluster, cluster, 1)
			c.Offset = 255 * cluster
			return w.Append(c)
		},
		"after Flush": func(t testing.TB, w *qcow2.Writer) error {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			return at(6*cluster)(t, w)
		},
		"zero after Flush": func(t testing.TB, w *qcow2.Writer) error {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			return w.Zero(6*cluster, cluster)
		},
		"after Close": func(t testing.TB, w *qcow2.Writer) error {
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			return at(6*cluster)(t, w)
		},
		"identity too long": func(_ testing.TB, w *qcow2.Writer) error { return w.Finish(make([]byte, 16<<20+1)) },
	} {
		t.Run(name, func(t *testing.T) {
			f := memoryFile{failAt: -1}
			w, err := qcow2.NewWriter(&f, qcow2.WriterOptions{Size: 256*cluster - 512, ClusterSize: cluster, Codec: qcow2.ZlibCodec()})
			if err != nil {
				t.Fatal(err)
			}
			if err := at(2*cluster)(t, w); err != nil {
				t.Fatal(err)
			}
			wrong := misuse(t, w)
			if wrong == nil {
				t.Fatal("no error")
			}
			if err := w.Finish(nil); !errors.Is(err, wrong) {
				t.Errorf("finish after %q: %v", wrong, err)
			}
			for _, s := range f.steps {
				if s.op == "write" && s.off == 0 {
					t.Error("there is a header")
				}
			}
			if err := w.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
}

func TestWriterAfterFinish(t *testing.T) {
	f := memoryFile{failAt: -1}
	w, err := qcow2.NewWriter(&f, qcow2.WriterOptions{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(nil); err != nil {
		t.Fatal(err)
	}
	n := len(f.steps)
	for name, err := range map[string]error{
		"append": w.Append(encoded(t, nil, w.ClusterSize(), w.ClusterSize(), 1)),
		"zero":   w.Zero(0, w.ClusterSize()),
		"flush":  w.Flush(),
		"finish": w.Finish(nil),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if len(f.steps) != n {
		t.Errorf("%d more steps", len(f.steps)-n)
	}
	if err := w.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// Nothing can be written anywhere up to the end.
func TestWriterNothing(t *testing.T) {
	const cluster = 4 << 10
	w, err := qcow2.NewWriter(&countingFile{}, qcow2.WriterOptions{Size: 3*cluster + 512, ClusterSize: cluster})
	if err != nil {
		t.Fatal(err)
	}
	c := encoded(t, nil, cluster, 0, 1)
	for c.Offset = 0; c.Offset <= 4*cluster; c.Offset += cluster {
		if err := w.Append(c); err != nil {
			t.Error(err)
		}
		if err := w.Zero(c.Offset, 0); err != nil {
			t.Error(err)
		}
	}
	if err := w.Finish(nil); err != nil {
		t.Error(err)
	}
}

// What the backing file holds may fail to be known.
func TestWriterBackingFails(t *testing.T) {
	fails := errors.New("no backing file")
	for _, zero := range []bool{true, false} {
		w, err := qcow2.NewWriter(&countingFile{}, qcow2.WriterOptions{
			Size: 1 << 20, BackingFile: "./below.qcow2",
			BackingMayHoldData: func(int64, int64) (bool, error) { return true, fails },
		})
		if err != nil {
			t.Fatal(err)
		}
		if zero {
			err = w.Zero(0, 1<<20)
		} else {
			e, _ := qcow2.NewChunkEncoder(nil)
			c := qcow2.Chunk{Data: make([]byte, 1<<20)}
			if err := e.Encode(&c, w.ClusterSize()); err != nil {
				t.Fatal(err)
			}
			err = w.Append(&c)
		}
		if !errors.Is(err, fails) {
			t.Errorf("got %v", err)
		}
	}
}

func TestEncodeRefusesGaps(t *testing.T) {
	const cluster, start = 4 << 10, 16 << 10
	e, err := qcow2.NewChunkEncoder(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		gaps []qcow2.Range
		ok   bool
	}{
		"none":           {nil, true},
		"all":            {[]qcow2.Range{{start, 4 * cluster}}, true},
		"adjoining":      {[]qcow2.Range{{start, cluster}, {start + cluster, cluster}}, true},
		"empty":          {[]qcow2.Range{{start + 4*cluster, 0}}, true},
		"before":         {[]qcow2.Range{{start - cluster, 2 * cluster}}, false},
		"behind":         {[]qcow2.Range{{start + 3*cluster, 2 * cluster}}, false},
		"far behind":     {[]qcow2.Range{{start + cluster, math.MaxInt64 / cluster * cluster}}, false},
		"negative":       {[]qcow2.Range{{start + cluster, -cluster}}, false},
		"descending":     {[]qcow2.Range{{start + cluster, cluster}, {start, cluster}}, false},
		"overlapping":    {[]qcow2.Range{{start, 2 * cluster}, {start + cluster, cluster}}, false},
		"part at start":  {[]qcow2.Range{{start + 512, cluster}}, false},
		"part at length": {[]qcow2.Range{{start, 512}}, false},
	} {
		c := qcow2.Chunk{Offset: start, Data: make([]byte, 4*cluster), Gaps: test.gaps}
		if err := e.Encode(&c, cluster); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
