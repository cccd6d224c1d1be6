// Package glob matches names of images with the shell patterns of the command line.
package glob

import (
	"fmt"
	"path"
	"strings"
)

// Match says whether a pattern is the name, or matches it.
func Match(pattern, name string) bool {
	if pattern == name {
		return true
	}
	// A slash is a byte like any other in an image's name.
	slash := strings.NewReplacer("/", "\x00")
	ok, err := path.Match(slash.Replace(pattern), slash.Replace(name))
	return err == nil && ok
}

// IsPattern says whether a string can match other names than itself.
func IsPattern(s string) bool { return strings.ContainsAny(s, "*?[") }

// Check reports the first pattern that is none.
func Check(patterns ...string) error {
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("pattern %q: %w", p, err)
		}
	}
	return nil
}
