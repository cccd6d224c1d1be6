// Command rbd2qcow2 backs up Ceph RBD images into chains of plain qcow2 files.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cli"
)

// version is set by the linker.
var version = "devel"

func main() { os.Exit(run()) }

func run() int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		s := <-signals
		cancel(cli.Interrupted{Signal: s})
		signal.Stop(signals) // the next one kills
	}()
	p := cli.Program{Version: version, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	return p.Run(ctx, os.Args[1:])
}
