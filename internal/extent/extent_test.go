package extent

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestWiden(t *testing.T) {
	const unit = 16
	tests := map[string]struct {
		size int64
		in   []Extent
		want []Extent
	}{
		"nothing":                        {100, nil, nil},
		"data is widened":                {100, []Extent{{17, 2, true}}, []Extent{{16, 16, true}}},
		"data at the end of the disk":    {100, []Extent{{99, 1, true}}, []Extent{{96, 4, true}}},
		"whole units of zeroes":          {100, []Extent{{16, 32, false}}, []Extent{{16, 32, false}}},
		"zeroes in part have to be read": {100, []Extent{{17, 8, false}}, []Extent{{16, 16, true}}},
		"zeroes with ragged ends":        {100, []Extent{{15, 34, false}}, []Extent{{0, 16, true}, {16, 32, false}, {48, 16, true}}},
		"zeroes to the end of the disk":  {100, []Extent{{80, 20, false}}, []Extent{{80, 20, false}}},
		"neighbours complete a unit":     {100, []Extent{{16, 8, false}, {24, 8, false}}, []Extent{{16, 16, false}}},
		"data and zeroes in one unit":    {100, []Extent{{16, 8, true}, {24, 24, false}}, []Extent{{16, 16, true}, {32, 16, false}}},
		"zeroes and data in one unit":    {100, []Extent{{16, 24, false}, {40, 8, true}}, []Extent{{16, 16, false}, {32, 16, true}}},
		"two in one unit":                {100, []Extent{{16, 1, true}, {20, 1, true}}, []Extent{{16, 16, true}}},
		"neighbouring units":             {100, []Extent{{16, 1, true}, {33, 1, true}}, []Extent{{16, 32, true}}},
		"beyond the disk":                {100, []Extent{{90, 50, true}, {140, 3, true}}, []Extent{{80, 20, true}}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := NewList(test.size, unit)
			for _, e := range test.in {
				if err := l.Add(e); err != nil {
					t.Fatal(err)
				}
			}
			if got := l.Extents(); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestAddOutOfOrder(t *testing.T) {
	l := NewList(100, 16)
	if err := l.Add(Extent{32, 8, true}); err != nil {
		t.Fatal(err)
	}
	if err := l.Add(Extent{39, 1, true}); err == nil {
		t.Error("an overlapping extent was accepted")
	}
}

// TestModel compares with a map of bytes, also where the list has to become coarser.
func TestModel(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		size, unit := int64(1+rnd.IntN(3000)), int64(1)<<rnd.IntN(6)
		l := NewList(size, unit)
		l.limit = 1 + rnd.IntN(40)
		touched := make([]byte, size) // 0 untouched, 'd' data, 'z' zeroes
		for off := int64(rnd.IntN(50)); off < size; {
			e := Extent{off, int64(1 + rnd.IntN(90)), rnd.IntN(2) == 0}
			if err := l.Add(e); err != nil {
				t.Fatal(err)
			}
			paint(touched, e)
			off = e.End() + int64(rnd.IntN(3)*rnd.IntN(90))
		}
		checkAgainst(t, seed, l.Extents(), touched, unit)
	}
}

// TestWidenModel compares extents that are widened once they are complete, perhaps in several steps, with a list that
// had the larger unit from the beginning, and with a map of bytes.
func TestWidenModel(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		size, unit := int64(1+rnd.IntN(3000)), int64(1)<<rnd.IntN(4)
		wide := unit << rnd.IntN(5)
		fine, coarse := NewList(size, unit), NewList(size, wide)
		touched := make([]byte, size)
		for off := int64(rnd.IntN(50)); off < size; {
			e := Extent{off, int64(1 + rnd.IntN(90)), rnd.IntN(2) == 0}
			for _, l := range []*List{fine, coarse} {
				if err := l.Add(e); err != nil {
					t.Fatal(err)
				}
			}
			paint(touched, e)
			off = e.End() + int64(rnd.IntN(3)*rnd.IntN(90))
		}
		extents := fine.Extents()
		checkAgainst(t, seed, extents, touched, unit)
		for step := unit; step < wide; step *= 2 {
			if rnd.IntN(2) == 0 {
				extents = slices.Collect(Widen(extents, size, step))
			}
		}
		got := slices.Collect(Widen(extents, size, wide))
		if want := coarse.Extents(); !slices.Equal(got, want) {
			t.Fatalf("seed %d: widened from %d to %d:\n got %v\nwant %v", seed, unit, wide, got, want)
		}
		checkAgainst(t, seed, got, touched, wide)
		if same := slices.Collect(Widen(got, size, unit)); !slices.Equal(same, got) {
			t.Fatalf("seed %d: a smaller unit changed %v to %v", seed, got, same)
		}
	}
}

func TestWidenStops(t *testing.T) {
	for range Widen([]Extent{{0, 1, true}, {20, 50, false}, {90, 1, true}}, 100, 10) {
		break
	}
}

// paint marks an extent in a map of bytes.
func paint(touched []byte, e Extent) {
	for i := e.Offset; i < min(e.End(), int64(len(touched))); i++ {
		touched[i] = 'z'
		if e.Data {
			touched[i] = 'd'
		}
	}
}

func checkAgainst(t *testing.T, seed uint64, got []Extent, touched []byte, unit int64) {
	t.Helper()
	size := int64(len(touched))
	end := int64(0)
	result := make([]byte, size)
	for _, e := range got {
		if e.Offset < end || e.Length <= 0 || e.Offset%unit != 0 || (e.End()%unit != 0 && e.End() != size) {
			t.Fatalf("seed %d: extent %v behind %d, unit %d", seed, e, end, unit)
		}
		end = e.End()
		paint(result, e)
	}
	for i, want := range touched {
		if want == 'd' && result[i] != 'd' || want == 'z' && result[i] == 0 || want != 'z' && result[i] == 'z' {
			t.Fatalf("seed %d: byte %d is %q, by the list %q", seed, i, want, result[i])
		}
	}
}
