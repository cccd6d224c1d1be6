package progress

import (
	"fmt"
	"io"
	"math"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// Bars reports on a terminal: a bar for each image that is under way, and one for all. What is logged meanwhile has
// to be written to the Bars, which puts it above them.
type Bars struct {
	*mpb.Progress
	all    *mpb.Bar
	total  atomic.Int64 // bytes of all images that have begun to be copied
	ended  atomic.Int64 // images
	images int
}

// NewBars starts drawing on a terminal. Close ends it.
func NewBars(terminal io.Writer) *Bars {
	return &Bars{Progress: mpb.New(mpb.WithOutput(terminal), mpb.WithAutoRefresh())}
}

// Close takes the bars away and waits for the last output.
func (b *Bars) Close() {
	if b.all != nil {
		b.all.Abort(true)
	}
	b.Wait()
}

// Images starts the bar for all.
func (b *Bars) Images(n int) {
	b.images = n
	b.all = b.bar("total", math.MaxInt, decor.Any(func(decor.Statistics) string {
		return fmt.Sprintf("  %d/%d images", b.ended.Load(), b.images)
	}))
}

// Start begins an image.
func (b *Bars) Start(image string) Task {
	t := &barTask{bars: b}
	t.phase.Store(&phase{})
	t.bar = b.bar(image, int(b.ended.Load()), decor.Any(func(decor.Statistics) string {
		return fmt.Sprintf("  %s", t.phase.Load())
	}))
	return t
}

// bar adds a bar of bytes; those of low priority are drawn first.
func (b *Bars) bar(name string, priority int, last decor.Decorator) *mpb.Bar {
	return b.AddBar(0,
		mpb.BarRemoveOnComplete(),
		mpb.BarPriority(priority),
		mpb.PrependDecorators(
			decor.Name(name, decor.WC{W: 16, C: decor.DindentRight}),
			decor.CountersKibiByte("% .1f / % .1f", decor.WC{W: 22}),
		),
		mpb.AppendDecorators(
			decor.AverageSpeed(decor.SizeB1024(0), "% .1f", decor.WC{W: 13}),
			decor.Name("  ETA "),
			decor.AverageETA(decor.ET_STYLE_GO),
			last,
		),
	)
}

type barTask struct {
	bars  *Bars
	bar   *mpb.Bar
	phase atomic.Pointer[phase]
}

func (t *barTask) Phase(what string)         { t.phase.Store(&phase{name: what}) }
func (t *barTask) Advance(done, total int64) { t.phase.Store(t.phase.Load().advance(done, total)) }

func (t *barTask) Total(bytes int64) {
	t.bar.SetTotal(bytes, false)
	t.bars.all.SetTotal(t.bars.total.Add(bytes), false)
}

func (t *barTask) Add(bytes int64) {
	t.bar.IncrInt64(bytes)
	t.bars.all.IncrInt64(bytes)
}

func (t *barTask) End() {
	t.bars.ended.Add(1)
	t.bar.Abort(true)
}
