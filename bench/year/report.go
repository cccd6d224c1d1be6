package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/rbd2qcow2/rbd2qcow2/internal/prune"
)

func inMiB(n int64) float64 { return float64(n) / mib }

// save keeps everything: a line per day, a line per fold, and the text.
func (y *year) save(folder, text string) error {
	days := [][]string{strings.Fields("day date points removed changed_bytes increment_bytes written_bytes freed_bytes allocated_bytes " +
		"live_bytes prune_seconds prune_cpu_seconds restore_seconds restore_cpu_seconds fresh_allocated_bytes fresh_live_bytes " +
		"control_points control_allocated_bytes control_restore_seconds control_restore_cpu_seconds")}
	for _, r := range y.rows {
		line := texts(r.day, dayTime(r.day).Format("2006-01-02"), r.points, r.removed, r.changed, r.increment, r.written, r.freed,
			r.allocated, r.live, r.prune.elapsed, r.prune.cpu, r.restore.elapsed, r.restore.cpu)
		if s := r.sample; s != nil {
			line = append(line, texts(s.freshAllocated, s.freshLive, s.points, s.allocated, s.restore.elapsed, s.restore.cpu)...)
		}
		days = append(days, append(line, make([]string, len(days[0])-len(line))...))
	}
	folds := [][]string{strings.Fields("day point method written_bytes freed_bytes point_live_bytes child_live_bytes")}
	for _, f := range y.folds {
		folds = append(folds, texts(f.day, f.point, f.method, f.written, f.freed, f.pointLive, f.childLive))
	}
	return errors.Join(saveCSV(filepath.Join(folder, "days.csv"), days), saveCSV(filepath.Join(folder, "folds.csv"), folds),
		os.WriteFile(filepath.Join(folder, "year.md"), []byte(text), 0o644))
}

func texts(values ...any) (all []string) {
	for _, v := range values {
		all = append(all, fmt.Sprint(v))
	}
	return all
}

func saveCSV(name string, lines [][]string) error {
	var b strings.Builder
	if err := csv.NewWriter(&b).WriteAll(lines); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(b.String()), 0o644)
}

// print prints what belongs into the documentation, in Markdown.
func (y *year) print(w io.Writer) {
	fmt.Fprintf(w, "%d days, a disk of %d MiB, seed %d, %s, %d cores, %s\n\n", len(y.rows), y.o.size/mib, y.o.seed, y.o.compression,
		runtime.NumCPU(), runtime.Version())
	y.printTable(w)
	y.printFolds(w)
	weeks := slices.Collect(slices.Chunk(y.rows, 7))
	chart(w, "Points in the chain", "points", weeks, func(week []row) float64 { return float64(week[len(week)-1].points) })
	chart(w, "Written by folds, MiB per day", "MiB", weeks, meanWritten)
	// Not the time that passed, which depends on what else the machine does.
	chart(w, "Restore of the newest point, seconds of processor time", "seconds", weeks, func(week []row) float64 {
		return median(week, func(r row) float64 { return r.restore.cpu })
	})
}

func meanWritten(rows []row) float64 {
	var n int64
	for _, r := range rows {
		n += r.written
	}
	return inMiB(n) / float64(len(rows))
}

// printTable has a line per sample. What varies from day to day is of all days since the sample before.
func (y *year) printTable(w io.Writer) {
	fmt.Fprintln(w, "| day | points | written by folds, per day | prune | on disk | of that data | made afresh | of that data | restore | CPU "+
		"| without: points | on disk | restore | CPU |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
	from := 0
	for i, r := range y.rows {
		s := r.sample
		if s == nil {
			continue
		}
		since := y.rows[from : i+1]
		from = i + 1
		middle := func(value func(row) float64) float64 { return median(since, value) }
		fmt.Fprintf(w, "| %d | %d | %.1f MiB | %.2f s | %.0f MiB | %.0f MiB | %.0f MiB | %.0f MiB | %.2f s | %.2f s | %d | %.0f MiB | %.2f s | %.2f s |\n",
			r.day, r.points, meanWritten(since), middle(func(r row) float64 { return r.prune.elapsed }),
			inMiB(r.allocated), inMiB(r.live), inMiB(s.freshAllocated), inMiB(s.freshLive),
			middle(func(r row) float64 { return r.restore.elapsed }), middle(func(r row) float64 { return r.restore.cpu }),
			s.points, inMiB(s.allocated), s.restore.elapsed, s.restore.cpu)
	}
}

// printFolds tells what folds write, beside the data of the smaller one of the two points.
func (y *year) printFolds(w io.Writer) {
	fmt.Fprintln(w, "\n| folds | number | written | data of the smaller point | ratio, median | greatest |\n|---|---|---|---|---|---|")
	for _, method := range []prune.Method{prune.IntoChild, prune.IntoBacking} {
		var written, increment int64
		var ratios []float64
		for _, f := range y.folds {
			if f.method == method {
				written, increment = written+f.written, increment+f.increment()
				ratios = append(ratios, float64(f.written)/float64(f.increment()))
			}
		}
		if len(ratios) == 0 {
			continue
		}
		slices.Sort(ratios)
		fmt.Fprintf(w, "| %s | %d | %.0f MiB | %.0f MiB | %.2f × | %.2f × |\n", method, len(ratios), inMiB(written), inMiB(increment),
			ratios[len(ratios)/2], ratios[len(ratios)-1])
	}
}

func median(rows []row, value func(row) float64) float64 {
	var values []float64
	for _, r := range rows {
		values = append(values, value(r))
	}
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// chart draws one value per week.
func chart(w io.Writer, title, unit string, weeks [][]row, value func([]row) float64) {
	var line []string
	most := 0.0
	for _, week := range weeks {
		v := value(week)
		most = max(most, v)
		line = append(line, fmt.Sprintf("%.3g", v))
	}
	fmt.Fprintf(w, "\n```mermaid\nxychart-beta\n    title \"%s\"\n    x-axis \"week\" 1 --> %d\n    y-axis \"%s\" 0 --> %.3g\n    line [%s]\n```\n",
		title, len(weeks), unit, most*1.1, strings.Join(line, ", "))
}
