// Package e2e runs the program as its users do, against a real Ceph cluster, and lets QEMU's tools judge what it has made.
package e2e

import (
	"os"
	"testing"

	"github.com/rbd2qcow2/rbd2qcow2/internal/programtest"
)

// program is the built program; TestMain sets it.
var program programtest.Program

func TestMain(m *testing.M) { os.Exit(programtest.Main(m, &program)) }
