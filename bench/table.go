package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// target is a number to reach: at most limit. Without a limit it is only told.
type target struct {
	work, against string
	limit         float64
	format        string // of values and limit
	value         func(runs) spread
	net           func(runs) spread // without fixed costs; nil where there are none
}

const times = "%.3g ×"

func timeTarget(work string, limit float64, k key, contestant, reference string) target {
	return target{
		work: work, against: "time of " + reference, limit: limit, format: times,
		value: func(rs runs) spread { return rs.ratio(k, contestant, reference, seconds) },
		net:   func(rs runs) spread { return rs.net(k, contestant, reference) },
	}
}

func sizeTarget(work string, k key) target {
	return target{
		work: work, against: "size of " + convertZstd, limit: 1.05, format: times,
		value: func(rs runs) spread { return rs.ratio(k, oursZstd, convertZstd, apparent) },
	}
}

// changeTarget is the size of an increment in relation to the bytes written to the image.
func changeTarget(work string, limit float64, k key, value func(run) float64) target {
	return target{work: work, against: "bytes changed", limit: limit, format: times, value: func(rs runs) spread {
		return rs.of(k, oursAuto).spread(func(r run) float64 { return value(r) / float64(r.Changed) })
	}}
}

func (l *lab) targets() []target {
	return slices.Concat(l.backupTargets(), l.restoreTargets(), l.foldTargets(), l.verifyTargets(), l.digestTargets())
}

func (l *lab) backupTargets() []target {
	full, increment, unchanged := key{files, 0}, key{thin, 0}, key{nothing, 0}
	size, larger := sizeText(l.thin), sizeText(l.large)
	return []target{
		timeTarget("full, no compression", 0.7, full, oursNone, convertNone),
		timeTarget("full, zstd", 0.5, full, oursZstd, convertZstd),
		sizeTarget("full, zstd", full),
		sizeTarget("full, zstd, media", key{media, 0}),
		timeTarget(size+" thin image, 100 scattered writes of 4 KiB, diff auto", 0.05, increment, oursAuto, exportDiff),
		timeTarget("the same, diff precise", 1.1, increment, oursPrecise, exportDiff),
		timeTarget("the same, diff precise, operations 2 ms longer", 0.3, key{thin, 2}, oursPrecise, exportDiff),
		changeTarget("that increment, on disk", 4, increment, allocated),
		changeTarget("that increment, apparent", 7, increment, apparent),
		timeTarget(size+", nothing changed, diff auto", 0.05, unchanged, oursAuto, exportDiff),
		{work: larger + ", 100 scattered writes, diff auto", against: "time for " + size, format: times, value: grown(large, thin, oursAuto)},
		{work: larger + ", nothing changed, diff auto", against: "time for " + size, format: times, value: grown(still, nothing, oursAuto)},
		{work: "memory, any run", against: "that of " + info, limit: 256, format: "%.0f MiB more", value: memoryAboveInfo},
	}
}

// grown is how much longer the same takes of more.
func grown(larger, usual, contestant string) func(runs) spread {
	return func(rs runs) spread {
		before := rs.of(key{usual, 0}, contestant).spread(seconds)
		if before.n == 0 {
			return spread{}
		}
		return rs.of(key{larger, 0}, contestant).spread(func(r run) float64 { return r.Seconds / before.median })
	}
}

// sizeText prints GiB as people do.
func sizeText(gibibytes int) string {
	if gibibytes%1024 == 0 {
		return fmt.Sprintf("%d TiB", gibibytes/1024)
	}
	return fmt.Sprintf("%d GiB", gibibytes)
}

// memoryAboveInfo is how much more memory, in MiB, our runs take at their peak than a program that only opens an image by librbd.
func memoryAboveInfo(rs runs) spread {
	least := rs.of(key{tiny, 0}, info).spread(peak)
	var most []float64
	keys, contestants := rs.groups()
	for _, k := range keys {
		if k.latencyMS > 0 {
			continue // the relay's memory counts for that of its children at their start
		}
		for _, c := range contestants[k] {
			if strings.HasPrefix(c, "rbd2qcow2") && least.n > 0 {
				most = append(most, (rs.of(k, c).spread(peak).most-least.median)/mib)
			}
		}
	}
	s := newSpread(most)
	s.median = s.most // the worst counts
	return s
}

// publish prints the tables and keeps them beside the raw results.
func (l *lab) publish() error {
	var b strings.Builder
	f := &l.facts
	fmt.Fprintf(&b, "%s; %s; %s\n\n%s, %d cores, %d MiB, kernel %s, %s; cluster on %s, target on %s; load before: %s\n",
		f.Program, f.Ceph, f.QEMU, f.CPU, f.Cores, f.MemoryMiB, f.Kernel, f.System, f.Disk, f.Target, f.LoadBefore)
	if l.quick {
		b.WriteString("\nQUICK: few rounds, small images. Not to be published.\n")
	}
	b.WriteString("\n")
	l.printTargets(&b)
	l.printAll(&b)
	if len(f.Latency) > 0 {
		b.WriteString("\n| a single read of 4 KiB | takes |\n|---|---|\n")
		for _, p := range f.Latency {
			fmt.Fprintf(&b, "| %s | %.2f ms |\n", p.Way, p.Milliseconds)
		}
	}
	if len(l.notes) > 0 {
		b.WriteString("\n")
		for _, note := range l.notes {
			fmt.Fprintf(&b, "* %s\n", note)
		}
	}
	fmt.Print(b.String())
	if err := os.WriteFile(filepath.Join(l.folder, "table.md"), []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("keep table: %w", err)
	}
	l.say("results are kept in %s", l.folder)
	return f.save(l.folder)
}

func (l *lab) printTargets(w io.Writer) {
	fmt.Fprintln(w, "| work | against | target | measured | least to most | without fixed costs | |\n|---|---|---|---|---|---|---|")
	for _, t := range l.targets() {
		limit, measured, between, net, verdict := "–", "–", "–", "–", "not measured"
		if t.limit > 0 {
			limit = fmt.Sprintf(t.format, t.limit)
		}
		if s := t.value(l.runs); s.n > 0 {
			measured, between = fmt.Sprintf(t.format, s.median), fmt.Sprintf(t.format+" to "+t.format, s.least, s.most)
			verdict = t.verdict(s)
		}
		if t.net != nil {
			if s := t.net(l.runs); s.n > 0 {
				net = fmt.Sprintf(t.format+", %s", s.median, t.verdict(s))
			}
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s |\n", t.work, t.against, limit, measured, between, net, verdict)
	}
}

func (t *target) verdict(s spread) string {
	switch {
	case t.limit == 0:
		return ""
	case s.median <= t.limit:
		return "pass"
	}
	return "**gap**"
}

// peers says whom a contestant is compared with.
func peers() map[string]string {
	return map[string]string{oursNone: convertNone, oursZstd: convertZstd, oursAuto: exportDiff, oursPrecise: exportDiff,
		oursRestore: convertBack}
}

func (l *lab) printAll(w io.Writer) {
	fmt.Fprintln(w, "\n| workload | latency | contestant | runs | time | CPU | ratio to peer | memory | size | on disk | method |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|---|---|---|")
	keys, contestants := l.runs.groups()
	for _, k := range keys {
		for _, c := range contestants[k] {
			rs := l.runs.of(k, c)
			median := func(value func(run) float64) float64 { return rs.spread(value).median }
			ratio := ""
			if s := l.runs.ratio(k, c, peers()[c], seconds); s.n > 0 {
				ratio = fmt.Sprintf("%.3f", s.median)
			}
			memory := "" // see memoryAboveInfo
			if k.latencyMS == 0 {
				memory = bytesText(median(peak))
			}
			fmt.Fprintf(w, "| %s | %d ms | %s | %d | %.2f s | %.2f s | %s | %s | %s | %s | %s |\n", k.workload, k.latencyMS, c, len(rs),
				median(seconds), median(cpu), ratio, memory, bytesText(median(apparent)), bytesText(median(allocated)), methods(rs))
		}
	}
}

// methods are how the changes were found, in order of appearance.
func methods(rs runs) string {
	var all []string
	for _, r := range rs {
		if r.Report != nil && (len(all) == 0 || all[len(all)-1] != r.Report.Method) {
			all = append(all, r.Report.Method)
		}
	}
	return strings.Join(all, ", ")
}

func bytesText(n float64) string {
	switch {
	case n == 0:
		return ""
	case n < mib:
		return fmt.Sprintf("%.0f KiB", n/kib)
	}
	return fmt.Sprintf("%.1f MiB", n/mib)
}
