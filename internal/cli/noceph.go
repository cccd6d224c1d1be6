//go:build noceph

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/restore"
	"github.com/rbd2qcow2/rbd2qcow2/internal/verify"
)

// This file stands for all that needs Ceph where the program is built without it.

// buildNote is what the help says of a build that lacks something.
const buildNote = `

This program was built without Ceph: it makes no backups, restores to files, devices and streams, not to rbd:, and verifies by
what is in the files.`

func libraries() string { return "built without Ceph" }

// errNoCeph is what comes of an attempt to do something that this build can't.
func errNoCeph(what string) error {
	return fmt.Errorf("this program was built without Ceph: it can't %s", what)
}

func (p *Program) backupCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "backup POOL[/NAMESPACE] DIR [IMAGE...]",
		Short:              "Back up images (not in this build, which is without Ceph)",
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true},
		RunE:               func(*cobra.Command, []string) error { return errNoCeph("back up") },
	}
}

// rbdRestoreFlags notes down the options that only RBD images have as targets.
type rbdRestoreFlags struct{ given string }

// add takes them, hidden: who uses one shall be told what is missing, and not that nobody knows it.
func (f *rbdRestoreFlags) add(flags *pflag.FlagSet) {
	note := func(name string) func(string) error {
		return func(string) error {
			f.given = " (--" + name + ")"
			return nil
		}
	}
	names := []string{"in-place", "no-safety-snapshot", "resume", "live", "abort"}
	for _, name := range names {
		flags.BoolFunc(name, "", note(name))
	}
	for name, letter := range map[string]string{
		"listen": "", "advertise": "", "image-feature": "", "object-size": "", "data-pool": "", "stripe-unit": "", "stripe-count": "",
		"conf": "c", "cluster": "", "id": "", "rados-id": "", "name": "n", "keyring": "k", "mon-host": "m", "timeout": "",
	} {
		flags.FuncP(name, letter, "", note(name))
		names = append(names, name)
	}
	for _, name := range names {
		_ = flags.MarkHidden(name) // which is there
	}
}

func (f *rbdRestoreFlags) validate(target string, _ bool) error {
	if isRBD(target) {
		return errNoCeph("restore to " + target)
	}
	if f.given != "" {
		return errNoCeph("restore to RBD images" + f.given)
	}
	return nil
}

// sourceFlags notes down that --source was given.
type sourceFlags struct{ given string }

func (f *sourceFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.given, "source", "", "")
	_ = flags.MarkHidden("source") // which is there
}

func (f *sourceFlags) validate() error {
	if f.given != "" {
		return errNoCeph("compare with a source")
	}
	return nil
}

func (f *sourceFlags) connect(context.Context, *verify.Options) (func(), error) {
	return func() {}, nil
}

func (f *rbdRestoreFlags) aborts() bool { return false }

func (p *Program) abortLive(context.Context, *repo.Repository, string, string, *restoreFlags) error {
	return errNoCeph("abort a live restore")
}

func (j *restoreJob) toRBD(context.Context) (restore.Stats, error) {
	return restore.Stats{}, errNoCeph("restore to " + j.target)
}
