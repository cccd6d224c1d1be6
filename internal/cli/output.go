package cli

import (
	"encoding/json"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
)

// outputFlags say what is printed besides the result.
type outputFlags struct {
	json      bool
	quiet     bool
	verbose   bool
	logFormat string
}

func (o *outputFlags) add(f *pflag.FlagSet) {
	f.BoolVar(&o.json, "json", false, "print one JSON document on standard output")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print nothing but errors")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log each step")
	f.StringVar(&o.logFormat, "log-format", "text", "format of the log on standard error: `text|json`")
}

func (o *outputFlags) validate() error {
	if o.logFormat != "text" && o.logFormat != "json" {
		return usagef("log format %q: must be text or json", o.logFormat)
	}
	return nil
}

// logger makes the logger of a command. Who looks at a terminal needs no time, nor to be told that a message is one.
func (o *outputFlags) logger(w io.Writer, terminal bool) *slog.Logger {
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	if terminal {
		options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey && a.Value.Any() == slog.LevelInfo {
				return slog.Attr{}
			}
			return a
		}
	}
	switch {
	case o.quiet:
		options.Level = slog.LevelError
	case o.verbose:
		options.Level = slog.LevelDebug
	}
	if o.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// progress gives bars on a terminal and log lines elsewhere, and the function that ends them.
func (o *outputFlags) progress(w io.Writer) (progress.Reporter, *slog.Logger, func()) {
	file, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(file.Fd())) || o.quiet || o.logFormat == "json" {
		log := o.logger(w, false)
		return progress.Log{Logger: log}, log, func() {}
	}
	bars := progress.NewBars(file)
	return bars, o.logger(bars, true), bars.Close
}

// printJSON prints a command's result.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
