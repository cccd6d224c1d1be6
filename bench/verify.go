package main

import (
	"context"
	"path/filepath"
)

// The names of what verifies a point, as in the raw results.
const (
	oursVerify   = "rbd2qcow2 verify"
	sha256sum    = "sha256sum"
	checkCompare = "qemu-img check, compare"
)

// The workloads: a full point of real files, stored as they are and compressed.
const (
	verifyNone = "verify-none"
	verifyZstd = "verify-zstd"
)

// verify has a point of real files verified. What others do about it is to hash the file, or to compare it with a second copy.
func (l *lab) verify(ctx context.Context) error {
	for _, w := range []struct{ name, compression string }{{verifyNone, "none"}, {verifyZstd, "zstd"}} {
		if err := l.importFiles(ctx, w.name, l.foldMiB); err != nil {
			return err
		}
		repository := l.repository(w.name)
		if err := l.do(ctx, l.program, "init", repository); err != nil {
			return err
		}
		if err := l.do(ctx, l.backupCommand(repository, w.name, "--compress", w.compression)...); err != nil {
			return err
		}
		file, err := newest(repository, w.name)
		if err != nil {
			return err
		}
		raw := filepath.Join(l.target, w.name+".raw")
		if err := l.do(ctx, "qemu-img", "convert", "-O", "raw", file, raw); err != nil {
			return err
		}
		command := func(args ...string) func() []string { return func() []string { return args } }
		err = l.compare(ctx, w.name, l.rounds, nil,
			contestant{name: oursVerify, command: command(l.program, "verify", "--quiet", repository)},
			contestant{name: sha256sum, command: command("sha256sum", file)},
			contestant{name: checkCompare, command: command("sh", "-c", `qemu-img check -q "$1" && qemu-img compare "$1" "$2"`, "sh", file, raw)})
		if err != nil {
			return err
		}
		if err := l.do(ctx, "rm", "-r", raw, repository); err != nil {
			return err
		}
	}
	return nil
}

// verifyTargets are the lines of the table.
func (l *lab) verifyTargets() (targets []target) {
	for _, v := range []struct{ work, workload string }{{"verify of a full point, not compressed", verifyNone}, {"the same, zstd", verifyZstd}} {
		for _, peer := range []string{sha256sum, checkCompare} {
			targets = append(targets, target{
				work: v.work, against: "time of " + peer, format: times,
				value: func(rs runs) spread { return rs.ratio(key{v.workload, 0}, oursVerify, peer, seconds) },
			})
		}
	}
	return targets
}
