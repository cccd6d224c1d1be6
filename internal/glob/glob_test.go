package glob

import "testing"

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"vm1", "vm1", true},
		{"vm1", "vm10", false},
		{"vm*", "vm10", true},
		{"*", "dir/name", true}, // a slash is a byte like any other
		{"dir/*", "dir/name", true},
		{"vm?", "vm", false},
		{"[ab]", "a", true},
		{"[a]", "[a]", true}, // a name is itself, whatever it looks like
		{"[", "x", false},
	} {
		if got := Match(c.pattern, c.name); got != c.want {
			t.Errorf("%q, %q: %v", c.pattern, c.name, got)
		}
	}
	if IsPattern("vm1") || !IsPattern("vm[12]") || Check("vm*", "a/b") != nil || Check("[") == nil {
		t.Error("what is a pattern")
	}
}
