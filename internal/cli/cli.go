// Package cli is the command line: one file per command with its flags, its help and the call that does the work.
// Nothing is decided here but how things are asked for and printed.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
)

// Program is the program as one process runs it.
type Program struct {
	Version        string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Run runs the command line args, without the program's name, and gives the exit status. When ctx ends, the cause
// should be an Interrupted.
func (p *Program) Run(ctx context.Context, args []string) int {
	root := p.root()
	root.SetArgs(args)
	root.SetIn(p.Stdin)
	root.SetOut(p.Stdout)
	root.SetErr(p.Stderr)
	err := root.ExecuteContext(ctx)
	var said exitError
	if err != nil && !errors.As(err, &said) {
		fmt.Fprintf(p.Stderr, "rbd2qcow2: %v\n", err)
		var usage usageError
		if errors.As(err, &usage) {
			fmt.Fprintln(p.Stderr, `"rbd2qcow2 help" lists the commands, "rbd2qcow2 COMMAND --help" their options`)
		}
	}
	return exitStatus(ctx, err)
}

func (p *Program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "rbd2qcow2",
		Short: "Back up Ceph RBD images, incrementally and for ever, into chains of plain qcow2 files",
		Long: `Back up Ceph RBD images, incrementally and for ever, into chains of plain qcow2 files.

Every backup is a standard disk image: QEMU boots from any of them, qemu-img converts any of them,
and none needs this program, a database or a living Ceph cluster to be read.

Exit status: 0 all done; 1 nothing done, or nothing matched; 2 usage; 3 some images failed, the rest
are done; 4 verification found damage; 130 and 143 interrupted.` + buildNote,
		Args:          arguments(0, 0),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(p.initCommand(), p.backupCommand(), p.listCommand(), p.restoreCommand(), p.serveCommand(),
		p.verifyCommand(), p.pruneCommand(), p.pinCommand(), p.unpinCommand(), p.versionCommand())
	return root
}

// arguments checks the number of arguments; most < 0 is any number.
func arguments(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if i := slices.Index(args, ""); i >= 0 {
			return usagef("argument %d is empty: an unset variable?", i+1)
		}
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		if !c.HasParent() {
			return usagef("unknown command %q", args[0])
		}
		return usagef("usage: %s", c.UseLine())
	}
}
