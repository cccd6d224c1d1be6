package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
)

// oursKeyed is a backup whose digests are made with a key, as in the raw results.
const oursKeyed = "rbd2qcow2 none, keyed"

// digests has an image of real files backed up with digests that need no key, and with such that do. Nothing is compressed, so that
// digests are as large a part of the work as they can be.
func (l *lab) digests(ctx context.Context) error {
	const image = "digests"
	if err := l.importFiles(ctx, image, l.foldMiB); err != nil {
		return err
	}
	key := filepath.Join(l.disk, "digest-key")
	if err := os.WriteFile(key, []byte(strings.Repeat("5a", 32)), 0o600); err != nil {
		return err
	}
	return l.compare(ctx, image, l.rounds, nil,
		l.ourFull(oursNone, image, "none"), l.ourFull(oursKeyed, image, "none", "--digest-key-file", key))
}

func (l *lab) digestTargets() []target {
	work, k := "full, no compression, digests with a key", key{"digests", 0}
	return []target{
		{work: work, against: "time of digests without", format: times, value: func(rs runs) spread { return rs.ratio(k, oursKeyed, oursNone, seconds) }},
		{work: work, against: "processor time of digests without", format: times, value: func(rs runs) spread { return rs.ratio(k, oursKeyed, oursNone, cpu) }},
	}
}
