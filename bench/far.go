package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// goFar makes the far network of the cluster's daemons: of all addresses that the cluster's maps tell clients, and some more.
func (l *lab) goFar(ctx context.Context) error {
	var found []string
	for _, daemon := range []string{"mon", "mgr", "osd"} {
		dump, err := l.output(ctx, "ceph", daemon, "dump", "--format", "json")
		if err != nil {
			return err
		}
		for _, match := range regexp.MustCompile(`"addr":"(127[.0-9]+:[0-9]+)"`).FindAllSubmatch(dump, -1) {
			found = append(found, string(match[1]))
		}
	}
	slices.Sort(found)
	network, err := newFarNetwork(ctx, slices.Compact(found))
	if err != nil {
		return err
	}
	l.network = network
	return nil
}

// setLatency makes each operation of the runs from now on take that much longer; 0 is without the relay.
func (l *lab) setLatency(ms int) {
	l.inside, l.latencyMS = ms > 0, ms
	l.network.setDelay(time.Duration(ms) * time.Millisecond)
}

// proof is what single reads of 4 KiB take, one after the other.
type proof struct {
	Way          string  `json:"way"`
	Milliseconds float64 `json:"milliseconds"` // on average
}

// prove measures what is injected, by Ceph's own means.
func (l *lab) prove(ctx context.Context) error {
	if err := l.do(ctx, "rados", "bench", "--pool", "rbd", "--run-name", "proof", "2", "write", "-t", "1", "-b", "4096", "--no-cleanup"); err != nil {
		return err
	}
	for _, ms := range []int{-1, 0, 2, 10} {
		way := "direct"
		l.inside = ms >= 0
		if l.inside {
			way = "relay, " + strconv.Itoa(ms) + " ms"
			l.network.setDelay(time.Duration(ms) * time.Millisecond)
		}
		took, err := l.singleReads(ctx)
		if err != nil {
			return err
		}
		l.say("a single read, %s: %.2f ms", way, took)
		l.facts.Latency = append(l.facts.Latency, proof{way, took})
	}
	l.setLatency(0)
	return l.do(ctx, "rados", "--pool", "rbd", "cleanup", "--run-name", "proof")
}

func (l *lab) singleReads(ctx context.Context) (milliseconds float64, err error) {
	var out bytes.Buffer
	c := l.command(ctx, "rados", "bench", "--pool", "rbd", "--run-name", "proof", "3", "rand", "-t", "1", "--format", "json")
	c.Stdout = &out
	if err = l.start(c.Start); err == nil {
		err = c.Wait()
	}
	if err != nil {
		return 0, fmt.Errorf("rados bench: %w", err)
	}
	var result struct {
		Average float64 `json:"average_latency,string"` // seconds
	}
	// Before the JSON there is a line of another kind.
	text := out.Bytes()[max(0, bytes.IndexByte(out.Bytes(), '{')):]
	if err := json.Unmarshal(text, &result); err != nil {
		return 0, fmt.Errorf("rados bench: %w", err)
	}
	return result.Average * 1000, nil
}
