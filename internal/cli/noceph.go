//go:build noceph

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rbd2qcow2/rbd2qcow2/internal/restore"
)

// This file stands for all that needs Ceph where the program is built without it.

// buildNote is what the help says of a build that lacks something.
const buildNote = `

This program was built without Ceph: it makes no backups, and restores to files, devices and streams, not to rbd:.`

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

// rbdRestoreFlags are the options for RBD images as targets: none.
type rbdRestoreFlags struct{}

func (f *rbdRestoreFlags) add(*pflag.FlagSet) {}

func (f *rbdRestoreFlags) validate(string, bool) error { return nil }

func (j *restoreJob) toRBD(context.Context) (restore.Stats, error) {
	return restore.Stats{}, errNoCeph("restore to " + j.target)
}
