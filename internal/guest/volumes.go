package guest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// volume is a part of a disk that may hold a file system.
type volume struct {
	where          string // for people
	offset, length int64  // bytes; length 0: all of the disk
	kind           string // of what is in it, as blkid names it; "" where nothing known is
	partitionType  string // as the table has it
}

const (
	sectorSize    = 512
	maxPartitions = 256
)

// volumes finds what may hold file systems: the whole disk, or its partitions. file shows the disk.
func volumes(ctx context.Context, file string) ([]volume, error) {
	found, err := probe(ctx, file)
	if err != nil {
		return nil, err
	}
	if found["PTTYPE"] == "" || found["TYPE"] != "" { // the boot sector of FAT looks like a table, too
		return []volume{{where: "whole disk", kind: found["TYPE"]}}, nil
	}
	o, err := run(ctx, "partx", "--show", "--noheadings", "--output", "NR,START,SECTORS,TYPE", file)
	if err != nil {
		return nil, err
	}
	if o.code != 0 {
		return nil, fmt.Errorf("read partition table: %s", o.said())
	}
	var list []volume
	for line := range strings.Lines(o.stdout) {
		v, err := parsePartition(line)
		if err != nil {
			return nil, err
		}
		if len(list) == maxPartitions {
			return nil, fmt.Errorf("more than %d partitions", maxPartitions)
		}
		if v.mayBeFileSystem() {
			list = append(list, v)
		}
	}
	return list, nil
}

// parsePartition reads a line of partx. What the table says is the guest's.
func parsePartition(line string) (v volume, err error) {
	fields := strings.Fields(line)
	if len(fields) < 3 {
		return v, fmt.Errorf("partx has printed %q", strings.TrimSpace(line))
	}
	var numbers [3]int64
	for i := range numbers {
		if numbers[i], err = strconv.ParseInt(fields[i], 10, 53); err != nil {
			return v, fmt.Errorf("partx has printed %q: %w", strings.TrimSpace(line), err)
		}
	}
	v = volume{where: fmt.Sprintf("partition %d", numbers[0]), offset: numbers[1] * sectorSize, length: numbers[2] * sectorSize}
	if len(fields) > 3 {
		v.partitionType = strings.ToLower(fields[3])
	}
	return v, nil
}

// mayBeFileSystem says whether a partition's type is none of those that hold none.
func (v *volume) mayBeFileSystem() bool {
	switch v.partitionType {
	case "0x5", "0xf", "0x85", // extended: holds other partitions
		"0x41", "9e1a2d38-c612-4316-aa26-8b49521e5a8b", // PowerPC PReP boot
		"0x82", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", // Linux swap
		"21686148-6449-6e6f-744e-656564454649", // BIOS boot
		"e3c9e316-0b5c-4db8-817d-f92df00215ae": // Microsoft reserved
		return false
	}
	return v.length > 0
}

// probe looks for what a file has at its beginning: a file system, a part of a volume manager, a table of partitions.
func probe(ctx context.Context, file string) (found map[string]string, err error) {
	o, err := run(ctx, "blkid", "--probe", "--output", "export", file)
	if err != nil {
		return nil, err
	}
	switch o.code {
	case 0, 2: // 2: nothing known
	case 8:
		return nil, errors.New("blkid finds signs of several file systems")
	default:
		return nil, fmt.Errorf("blkid: exit status %d: %s", o.code, o.said())
	}
	found = map[string]string{}
	for line := range strings.Lines(o.stdout) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		found[key] = harmless(value)
	}
	return found, nil
}
