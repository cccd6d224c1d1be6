package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// facts are of the machine and its programs. They are kept beside the raw results.
type facts struct {
	Time       time.Time `json:"time"`
	CPU        string    `json:"cpu"`
	Cores      int       `json:"cores"`
	MemoryMiB  int64     `json:"memory_mib"`
	Kernel     string    `json:"kernel"`
	System     string    `json:"system"`
	Disk       string    `json:"disk"`   // file system of the cluster's disk
	Target     string    `json:"target"` // file system written to
	Ceph       string    `json:"ceph"`
	QEMU       string    `json:"qemu"`
	Program    string    `json:"program"`
	LoadBefore string    `json:"load_before"` // averages over 1, 5 and 15 minutes: others disturb
	Quick      bool      `json:"quick"`
	Latency    []proof   `json:"latency,omitempty"`
}

func (l *lab) gather(ctx context.Context) (f facts, err error) {
	var name unix.Utsname
	var info unix.Sysinfo_t
	if err := unix.Uname(&name); err != nil {
		return f, fmt.Errorf("uname: %w", err)
	}
	if err := unix.Sysinfo(&info); err != nil {
		return f, fmt.Errorf("sysinfo: %w", err)
	}
	f = facts{
		Time:       time.Now().UTC(),
		CPU:        field("/proc/cpuinfo", "model name"),
		Cores:      runtime.NumCPU(),
		MemoryMiB:  int64(info.Totalram) * int64(info.Unit) / mib,
		Kernel:     unix.ByteSliceToString(name.Release[:]),
		System:     strings.Trim(field("/etc/os-release", "PRETTY_NAME"), `"`),
		Disk:       fileSystem(l.disk),
		Target:     fileSystem(l.target),
		LoadBefore: firstLine("/proc/loadavg"),
		Quick:      l.quick,
	}
	for _, p := range []struct {
		version *string
		argv    []string
	}{
		{&f.Ceph, []string{"ceph", "--version"}},
		{&f.QEMU, []string{"qemu-img", "--version"}},
		{&f.Program, []string{l.program, "version"}},
	} {
		out, err := l.output(ctx, p.argv...)
		if err != nil {
			return f, err
		}
		line, _, _ := bytes.Cut(out, []byte("\n"))
		*p.version = string(line)
	}
	return f, nil
}

func (f *facts) save(folder string) error {
	text, err := json.MarshalIndent(f, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, "facts.json"), append(text, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("keep facts: %w", err)
	}
	return nil
}

// field returns the value of the first line "key: value" or "key=value" of a file, or nothing.
func field(name, key string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if i := strings.IndexAny(lines.Text(), ":="); i >= 0 && strings.TrimSpace(lines.Text()[:i]) == key {
			return strings.TrimSpace(lines.Text()[i+1:])
		}
	}
	return ""
}

func firstLine(name string) string {
	text, _ := os.ReadFile(name)
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

// fileSystem returns the type of a file system by name, or its number.
func fileSystem(path string) string {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return err.Error()
	}
	names := map[int64]string{unix.TMPFS_MAGIC: "tmpfs", unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs"}
	if name := names[int64(s.Type)]; name != "" {
		return name
	}
	return fmt.Sprintf("%#x", s.Type)
}
