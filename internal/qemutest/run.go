// Package qemutest runs QEMU's tools for tests: they are the judges of what a qcow2 file is and says.
//
// Every helper that takes a [testing.TB] ends the test on failure and shows what the tool printed. A file whose name ends in ".qcow2"
// is opened as qcow2, any other as raw: nothing is probed, so that a damaged header can't pass for a raw disk.
// The package is imported by tests only.
package qemutest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// commandTimeout bounds every command: a dead cluster blocks its clients for ever.
const commandTimeout = 2 * time.Minute

// Require ends the test as [Missing] does unless all the programs are in PATH.
func Require(t testing.TB, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			Missing(t, "%s is not installed (scripts/install-deps test)", program)
		}
	}
}

// Missing skips the test because a part of the machine that it needs is not there. With RBD2QCOW2_TEST_REQUIRE=1, as "make test"
// sets it, the test fails instead.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("RBD2QCOW2_TEST_REQUIRE") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// Run runs a program to its end, at most two minutes, and returns its standard output.
func Run(t testing.TB, program string, args ...string) []byte {
	t.Helper()
	out, err := Try(program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Try is [Run] for commands that may fail. The error wraps the [exec.ExitError] and carries the command line and standard
// error, the standard output too where that is empty.
func Try(program string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	said := stderr.String()
	if said == "" {
		said = stdout.String()
	}
	return stdout.Bytes(), fmt.Errorf("run %s %s: %w\n%s", program, strings.Join(args, " "), err, said)
}
