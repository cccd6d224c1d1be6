package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

func (p *Program) pinCommand() *cobra.Command {
	var comment string
	c := &cobra.Command{
		Use:   "pin DIR IMAGE[@POINT]...",
		Short: "Keep points from being removed",
		Long: `Keep points from being removed by any rule, until they are unpinned. IMAGE alone is its newest point.

"rbd2qcow2 list" shows what is pinned. To pin a point again changes the comment.`,
		Example: `  rbd2qcow2 pin --comment 'before the upgrade' /backup/rbd vm1@20261122T065012Z`,
		Args:    arguments(2, -1),
		RunE: func(c *cobra.Command, args []string) error {
			return p.eachPoint(args, func(f *repo.Folder, point repo.PointName) error {
				return p.pin(c.Context(), f, point, comment)
			})
		},
	}
	c.Flags().StringVar(&comment, "comment", "", "why, for people: a `TEXT`")
	return c
}

func (p *Program) unpinCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "unpin DIR IMAGE@POINT...",
		Short:   "Leave pinned points to the rules again",
		Long:    `Leave pinned points to the rules of "rbd2qcow2 prune" again.`,
		Example: `  rbd2qcow2 unpin /backup/rbd vm1@20261122T065012Z`,
		Args:    arguments(2, -1),
		RunE: func(c *cobra.Command, args []string) error {
			return p.eachPoint(args, func(f *repo.Folder, point repo.PointName) error {
				was, err := f.Unpin(c.Context(), point)
				if err == nil && !was {
					err = fmt.Errorf("unpin %s: it is not pinned", f.FileName(point))
				}
				if err == nil {
					_, err = fmt.Fprintf(p.Stdout, "unpinned %s\n", f.FileName(point))
				}
				return err
			})
		},
	}
}

// pin pins a point, and makes sure that it stays: a run that is removing it now may have looked at the pins before.
func (p *Program) pin(ctx context.Context, f *repo.Folder, point repo.PointName, comment string) error {
	if err := f.Pin(ctx, point, comment); err != nil {
		return err
	}
	if err := awaitFold(ctx, f, point); err != nil {
		_, unpinErr := f.Unpin(ctx, point)
		return errors.Join(fmt.Errorf("pin %s: it is being removed: %w", f.FileName(point), err), unpinErr)
	}
	_, err := fmt.Fprintf(p.Stdout, "pinned %s\n", f.FileName(point))
	return err
}

// awaitFold returns when nobody is removing a point, as far as it is still there.
func awaitFold(ctx context.Context, f *repo.Folder, point repo.PointName) error {
	chain, err := f.OpenChain(ctx, point)
	if err == nil {
		return chain.Close()
	}
	// It is damaged, or somebody is busy with another point of its chain.
	if lock, lockErr := f.LockPoints(point); lockErr == nil && f.Point(point).State != repo.Removing {
		return lock.Close()
	}
	return err
}

// eachPoint does something to each of the points that args name, behind the repository: all that can be found, or none.
func (p *Program) eachPoint(args []string, do func(*repo.Folder, repo.PointName) error) error {
	r, err := repo.Open(args[0])
	if err != nil {
		return err
	}
	type found struct {
		folder *repo.Folder
		point  repo.PointName
	}
	var all []found
	var errs []error
	for _, spec := range args[1:] {
		f, point, err := r.FindPoint(spec)
		all, errs = append(all, found{f, point}), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, one := range all {
		if err := do(one.folder, one.point); err != nil {
			return err
		}
	}
	return nil
}
