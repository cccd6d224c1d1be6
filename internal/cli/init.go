package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

func (p *Program) initCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init DIR",
		Short: "Make a repository",
		Long: `Make a repository of a new or empty directory.

Its first backup binds it to one pool or namespace of one cluster.`,
		Example: "  rbd2qcow2 init /backup/rbd",
		Args:    arguments(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := repo.Init(args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(p.Stdout, "made repository %s in %s\n", r.ID(), r.Dir)
			return err
		},
	}
}
