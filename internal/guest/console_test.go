package guest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestConsole(t *testing.T) {
	for _, test := range []struct {
		name, want, printed string
		found               bool
		last                []string
	}{
		{"prompt", "login: ", "Debian 12 vm ttyS0\r\n\r\nvm login: ", true, []string{"Debian 12 vm ttyS0", "vm login:"}},
		{"beginning", "^login: ", "vm login: ", false, []string{"vm login:"}},
		{"whole line", "^up$", "start\nup\nrest", true, []string{"start", "up", "rest"}},
		{"colours", "OK started", "[\x1b[0;32m OK \x1b[0m]\n\x1b[1mOK\x1b[0m started\n", true, []string{"[ OK ]", "OK started"}},
		{"no line break between", "login: ", "log\nin: ", false, []string{"log", "in:"}},
		{"control characters", "no", "\x1b]0;title\x07a\x00b\x9bc\u202ed\n\x1b[2J\x1b[H\n", false, []string{"a?b\ufffdc?d"}},
		{"long line", "no", strings.Repeat("x", maxLine+2) + "\ny", false, []string{strings.Repeat("x", maxLine), "xx", "y"}},
		{"as long as may be", "no", strings.Repeat("x", maxLine) + "\ny", false, []string{strings.Repeat("x", maxLine), "y"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, step := range []int{1, 3, len(test.printed)} {
				c := newConsole(regexp.MustCompile(test.want))
				for part := range slices.Chunk([]byte(test.printed), step) {
					if n, err := c.Write(part); n != len(part) || err != nil {
						t.Fatalf("write: %d, %v", n, err)
					}
				}
				if c.seen != test.found {
					t.Errorf("%d bytes at a time: found %t, want %t", step, c.seen, test.found)
				}
				if last := c.end(); !slices.Equal(last, test.last) {
					t.Errorf("%d bytes at a time: last lines %q, want %q", step, last, test.last)
				}
			}
		})
	}
}

func TestConsoleKeepsTheLastLines(t *testing.T) {
	c := newConsole(regexp.MustCompile("never"))
	for i := range 100 {
		fmt.Fprintf(c, "line %d\n", i)
	}
	if last := c.end(); len(last) != lastLines || last[0] != "line 80" || last[lastLines-1] != "line 99" {
		t.Errorf("last lines: %q", last)
	}
}

func TestParsePartition(t *testing.T) {
	v, err := parsePartition(" 2 2048 8192 0x83\n")
	if err != nil || v.where != "partition 2" || v.offset != 1<<20 || v.length != 4<<20 || !v.mayBeFileSystem() {
		t.Errorf("%+v, %v", v, err)
	}
	if v, err = parsePartition("1 34 10 21686148-6449-6E6F-744E-656564454649"); err != nil || v.mayBeFileSystem() {
		t.Errorf("boot loader's partition: %+v, %v", v, err)
	}
	for _, line := range []string{"", "1 2", "x 1 1 0x83", "1 -5 1 0x83", "1 0 -1 0x83", "1 99999999999999999 1 0x83"} {
		if v, err := parsePartition(line); err == nil && v.offset >= 0 && v.mayBeFileSystem() {
			t.Errorf("%q: %+v", line, v)
		}
	}
}
