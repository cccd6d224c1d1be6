package main

import (
	"context"
	"fmt"
	"strconv"
)

// The names of what restores, as in the raw results.
const (
	oursRestore = "rbd2qcow2 restore"
	convertBack = "qemu-img convert to rbd"
)

// restoredPoints are the lengths of the chains that are restored from.
func restoredPoints() []int { return []int{1, 10, 100} }

func restoreOf(points int) string { return "restore-" + strconv.Itoa(points) }

// restore has the newest point of an ever longer, compressed chain restored to a new image.
func (l *lab) restore(ctx context.Context) error {
	const image = "chain"
	if err := l.importFiles(ctx, image, l.restoreMiB); err != nil {
		return err
	}
	repository := l.repository(image)
	if err := l.do(ctx, l.program, "init", repository); err != nil {
		return err
	}
	s := &series{name: image, size: int64(l.restoreMiB) * mib, random: newRandom()}
	made := 0
	for _, points := range restoredPoints() {
		l.say("a chain of %d points", points)
		for ; made < points; made++ {
			if made > 0 {
				if err := l.write(ctx, image, s.scattered()); err != nil {
					return err
				}
			}
			if err := l.do(ctx, l.backupCommand(repository, image)...); err != nil {
				return err
			}
		}
		if err := l.compare(ctx, restoreOf(points), l.rounds, nil, l.ourRestore(repository, image), l.convertBack(repository, image, s.size)); err != nil {
			return err
		}
	}
	return nil
}

// removeRestored removes the image that the run before has made.
func (l *lab) removeRestored(ctx context.Context) error {
	return l.do(ctx, "rbd", "rm", "--no-progress", rbdImage("restored"))
}

// ourRestore makes the image itself.
func (l *lab) ourRestore(repository, image string) contestant {
	return contestant{
		name: oursRestore,
		command: func() []string {
			return []string{l.program, "restore", "--quiet", repository, image, "rbd:" + rbdImage("restored")}
		},
		after: l.removeRestored,
	}
}

// convertBack finds the image made. The options are those that write to an image that is there, out of order.
func (l *lab) convertBack(repository, image string, size int64) contestant {
	return contestant{
		name:   convertBack,
		before: func(ctx context.Context) error { return l.create(ctx, "restored", size) },
		command: func() []string {
			file, err := newest(repository, image)
			if err != nil {
				file = err.Error() // which the command will complain about
			}
			return []string{"qemu-img", "convert", "-n", "-m", "16", "-W", "-f", "qcow2", "-O", "raw", file, "rbd:" + rbdImage("restored")}
		},
		after: l.removeRestored,
	}
}

// restoreTargets are the lines of the table.
func (l *lab) restoreTargets() []target {
	ten := restoreOf(10)
	targets := []target{{
		work: "restore of a chain of 10 points to RBD", against: "time of " + convertBack, limit: 0.7, format: times,
		value: func(rs runs) spread { return rs.ratio(key{ten, 0}, oursRestore, convertBack, seconds) },
	}}
	for _, points := range restoredPoints()[1:] {
		targets = append(targets, target{
			work: fmt.Sprintf("the same of %d points", points), against: "our time of 1 point", format: times,
			value: grown(restoreOf(points), restoreOf(1), oursRestore),
		})
	}
	return targets
}
