package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func (p *Program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version, and that of the Ceph libraries",
		Args:  arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(p.Stdout, "rbd2qcow2 %s (%s %s/%s)\n%s\n",
				p.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH, libraries())
			return err
		},
	}
}
