package cli

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/internal/status"
)

func (p *Program) listCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list DIR [IMAGE...]",
		Short:   "List chains and points",
		Long:    "List the points of a repository, or of the images named, the oldest first. No cluster is asked.",
		Example: "  rbd2qcow2 list /backup/rbd\n  rbd2qcow2 list --json /backup/rbd vm1",
		Args:    arguments(1, -1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := repo.Open(args[0])
			if err != nil {
				return err
			}
			images, missing := status.Read(r, args[1:])
			if asJSON {
				err = printJSON(p.Stdout, map[string]any{"images": images})
			} else {
				err = printTable(p.Stdout, images)
			}
			if missing != nil {
				return missing
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	return c
}

func printTable(w io.Writer, images []status.Image) error {
	if len(images) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tPOINT\tTIME\tKIND\tSIZE\tON DISK\tCHANGED\tPARENT\tSTATE\tVERIFIED\tSNAPSHOT")
	for _, image := range images {
		for i, p := range image.Points {
			parent, snapshot := "-", "-"
			if i == len(image.Points)-1 {
				snapshot = p.Snapshot // those of older points are gone
				if image.GoneSince != nil {
					snapshot = "image gone since " + image.GoneSince.Local().Format(time.DateOnly)
				}
			}
			if p.Parent != nil {
				parent = string(*p.Parent)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", printable(image.Name), p.Point,
				p.Time.Local().Format(time.DateTime), p.Kind, progress.Bytes(p.VirtualSize), progress.Bytes(p.DiskSize),
				progress.Bytes(p.ChangedBytes), parent, state(&p), verified(&p), snapshot)
		}
	}
	return t.Flush()
}

// state is all that there is to say of a point in one word.
func state(p *status.Point) string {
	if p.Pinned {
		return string(p.State) + ",pinned"
	}
	return string(p.State)
}

// verified is when a point was verified, and what was found unless that was good.
func verified(p *status.Point) string {
	switch {
	case p.VerifiedAt == nil:
		return "never"
	case p.Verdict == repo.Proved:
		return p.VerifiedAt.Local().Format(time.DateOnly)
	}
	return p.VerifiedAt.Local().Format(time.DateOnly) + " " + string(p.Verdict)
}

// printable keeps names with line breaks and the like from breaking the table.
func printable(name string) string {
	quoted := fmt.Sprintf("%+q", name)
	if quoted == `"`+name+`"` {
		return name
	}
	return quoted
}
