package repo

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const pointLayout = "20060102T150405Z"

// lastYear leaves names behind every name that is one.
const lastYear = 9998

// PointName is the part of a point's file name between "@" and ".qcow2": YYYYMMDDTHHMMSSZ for points of ours, seconds
// since 1970 for those of the Python tool that this program succeeds.
type PointName string

// NextPointName names a point made now, behind newest ("" for none): later than it even where the clock is not.
func NextPointName(now time.Time, newest PointName) PointName {
	t := now.UTC().Truncate(time.Second)
	if newest != "" {
		if after := newest.Time().Add(time.Second); t.Before(after) {
			t = after
		}
	}
	return PointName(t.Format(pointLayout))
}

// ParsePointName checks a name.
func ParsePointName(s string) (PointName, error) {
	p := PointName(s)
	if p.Time().IsZero() {
		return "", fmt.Errorf("point %q: neither YYYYMMDDTHHMMSSZ nor seconds since 1970", s)
	}
	return p, nil
}

// Time is the time in the name, which orders points; zero for what is no point name. When the point was really
// made is in its identity.
func (p PointName) Time() time.Time {
	if p.Foreign() {
		seconds, err := strconv.ParseInt(string(p), 10, 64)
		if err != nil {
			return time.Time{}
		}
		return time.Unix(seconds, 0).UTC()
	}
	t, err := time.Parse(pointLayout, string(p))
	if err != nil || t.Year() > lastYear {
		return time.Time{}
	}
	return t
}

// Foreign says that the Python tool gave the name.
func (p PointName) Foreign() bool { return allDigits(string(p)) }

// allDigits tells names that the Python tool gives to points and to snapshots; eleven digits last until the year 5138.
func allDigits(s string) bool {
	return len(s) > 0 && len(s) <= 11 && strings.Trim(s, "0123456789") == ""
}

// IsForeignSnapshot says that a snapshot's name is one that the Python tool gives.
func IsForeignSnapshot(name string) bool { return allDigits(name) }

var pointFile = regexp.MustCompile(`^(.+)@([0-9TZ]+)\.qcow2$`)

// parseFileName splits the name of a point's file in the folder of that name.
func parseFileName(folder, file string) (PointName, bool) {
	m := pointFile.FindStringSubmatch(file)
	if m == nil || m[1] != folder {
		return "", false
	}
	p, err := ParsePointName(m[2])
	return p, err == nil
}
