package rbd

/*
#cgo linux LDFLAGS: -ldl
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

// libceph-common exports this one for C++ alone, and its header is not installed.
static const char *library_release(void) {
	const char *(*release)(void) = (const char *(*)(void))dlsym(RTLD_DEFAULT, "_Z19ceph_version_to_strv");
	return release == NULL ? NULL : release();
}
*/
import "C"

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ceph/go-ceph/rados"
)

// Version names the software on both sides.
type Version struct {
	Librados string // the library's API version, "3.0.0"
	Librbd   string // the library's API version, "1.17.0"
	Library  string // the Ceph release that the loaded libraries are of, "16.2.15"; empty if they do not tell
	Cluster  string // as the monitors say it, "ceph version 16.2.15 (…) pacific (stable)"; empty if this user may not ask

	// The releases of the daemons that run, "16.2.15", each once and in order; empty if this user may not ask.
	Monitors, OSDs []string
}

// LibraryVersion tells what can be told without a cluster: the fields Librados, Librbd and Library.
func LibraryVersion() Version {
	major, minor, patch := rados.Version()
	return Version{
		Librados: fmt.Sprintf("%d.%d.%d", major, minor, patch),
		Librbd:   librbdVersion(),
		Library:  C.GoString(C.library_release()), // "" for NULL
	}
}

// Version asks the libraries and, by the commands "version" and "versions", the monitors.
func (c *Cluster) Version(ctx context.Context) (Version, error) {
	v := LibraryVersion()
	var reply struct{ Version string }
	if err := c.askMonitors(ctx, "version", &reply); err != nil {
		return v, err
	}
	v.Cluster = reply.Version
	// How many daemons run each version, such as {"osd":{"ceph version 16.2.15 (…) pacific (stable)":3}}.
	var daemons struct{ Mon, OSD map[string]int }
	if err := c.askMonitors(ctx, "versions", &daemons); err != nil {
		return v, err
	}
	v.Monitors, v.OSDs = releases(daemons.Mon), releases(daemons.OSD)
	return v, nil
}

// askMonitors decodes the answer to a command without arguments. Where the user may not ask, the reply is left as it is.
func (c *Cluster) askMonitors(ctx context.Context, command string, reply any) error {
	request, err := json.Marshal(map[string]string{"prefix": command, "format": "json"})
	if err != nil {
		return err
	}
	answer, err := call(ctx, c.reader.handle, func() ([]byte, error) {
		answer, _, err := c.reader.rados.MonCommand(request)
		return answer, err
	}, nil)
	if err = translate(err); errors.Is(err, ErrPermission) {
		return nil
	} else if err != nil {
		return fail("ask the monitors for", command, err)
	}
	if err := json.Unmarshal(answer, reply); err != nil {
		return fmt.Errorf("parse the monitors' answer to %q: %w", command, err)
	}
	return nil
}

// releases gives the releases of versions as daemons tell them, each once, the oldest first.
func releases(versions map[string]int) []string {
	var found []string
	for version := range versions {
		if fields := strings.Fields(version); len(fields) >= 3 && strings.HasPrefix(version, "ceph version ") {
			found = append(found, fields[2])
		}
	}
	slices.SortFunc(found, compareReleases)
	return slices.Compact(found)
}

// compareReleases orders "9.2.1" before "16.2.15".
func compareReleases(a, b string) int {
	return cmp.Or(slices.Compare(numbers(a), numbers(b)), cmp.Compare(a, b))
}

func numbers(release string) []int {
	parts := strings.Split(release, ".")
	values := make([]int, len(parts))
	for i, part := range parts {
		values[i], _ = strconv.Atoi(part) // 0 for what is no number: any order will do for it
	}
	return values
}
