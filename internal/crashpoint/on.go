//go:build crashtest

package crashpoint

import (
	"os"
	"syscall"
)

// Reach kills the process where the environment's RBD2QCOW2_CRASH_AT names the step: at once, with no clean-up.
func Reach(step string) {
	if os.Getenv("RBD2QCOW2_CRASH_AT") == step {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until the signal arrives
	}
}
