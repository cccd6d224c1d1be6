package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// The exit statuses, which scripts rely on.
const (
	exitDone    = 0
	exitNothing = 1 // nothing was done, or nothing matched
	exitUsage   = 2
	exitPartly  = 3 // some images failed, the rest are done
	exitDamage  = 4 // verification found damage
)

// usageError is a mistake on the command line.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// exitError ends the program with a status, where all that there is to say has been said.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Interrupted is the cause of a context that a signal has ended.
type Interrupted struct{ Signal os.Signal }

func (e Interrupted) Error() string { return "interrupted (" + e.Signal.String() + ")" }

// exitStatus is the one place where errors become exit statuses.
func exitStatus(ctx context.Context, err error) int {
	var (
		interrupted Interrupted
		usage       usageError
		exit        exitError
	)
	if errors.As(context.Cause(ctx), &interrupted) {
		if number, ok := interrupted.Signal.(syscall.Signal); ok {
			return 128 + int(number)
		}
	}
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &exit):
		return int(exit)
	}
	return exitNothing
}
