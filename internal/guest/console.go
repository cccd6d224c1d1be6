package guest

import (
	"bytes"
	"regexp"
	"strings"
	"unicode"
)

// What is kept of a console, however much the guest prints.
const (
	maxLine   = 4096 // bytes
	lastLines = 20
)

// console reads a serial console, line by line, until a pattern appears on one. It is written to by one goroutine.
type console struct {
	want  *regexp.Regexp
	found chan struct{} // closed when the pattern has appeared
	seen  bool
	line  []byte // what there is of the current line
	last  []string
}

func newConsole(want *regexp.Regexp) *console {
	return &console{want: want, found: make(chan struct{})}
}

// Write takes what the guest has printed. A line need not have ended to match: a prompt never does.
func (c *console) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexAny(p, "\r\n")
		ended := end >= 0
		if !ended {
			end = len(p)
		}
		part := p[:min(end, maxLine-len(c.line))]
		c.line = append(c.line, part...)
		c.match()
		if p = p[len(part):]; len(part) == end && ended {
			p = p[1:]
		} else if len(c.line) < maxLine {
			break // more of it is to come
		}
		c.endLine()
	}
	return n, nil
}

func (c *console) match() {
	if !c.seen && c.want.MatchString(harmless(string(c.line))) {
		c.seen = true
		close(c.found)
	}
}

// endLine keeps the line, if anything is on it.
func (c *console) endLine() {
	if line := strings.TrimSpace(harmless(string(c.line))); line != "" {
		if len(c.last) == lastLines {
			c.last = append(c.last[:0], c.last[1:]...)
		}
		c.last = append(c.last, line)
	}
	c.line = c.line[:0]
}

// end gives the last lines. It is the last call.
func (c *console) end() []string {
	c.endLine()
	return c.last
}

// escapes are the sequences that terminals obey: colours, cursor movements, titles, and single ones.
var escapes = regexp.MustCompile(`\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])`)

// harmless makes text of a guest fit for a terminal: without escape sequences, other control characters as question marks.
func harmless(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, escapes.ReplaceAllString(text, ""))
}
