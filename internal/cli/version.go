package cli

import (
	"cmp"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
)

func (p *Program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version, and that of the Ceph libraries",
		Args:  arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			v := rbd.LibraryVersion()
			_, err := fmt.Fprintf(p.Stdout, "rbd2qcow2 %s (%s %s/%s)\nCeph libraries %s (librbd %s, librados %s)\n",
				p.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH,
				cmp.Or(v.Library, "of an unknown release"), v.Librbd, v.Librados)
			return err
		},
	}
}
