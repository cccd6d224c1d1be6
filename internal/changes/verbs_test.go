package changes_test

import (
	"fmt"
	"time"
)

// kill does something that is killed midway.
func (h *history) kill() error {
	verb := pick(h.rng, verbRollback, verbRollback, verbRollback, verbRemove, verbResize, verbFlatten, verbWrite)(h)
	if verb == nil {
		return nil
	}
	var killed bool
	var err error
	if percent := h.rng.IntN(100); verb[0] == "snap" && verb[1] == "rollback" {
		h.note("kill at %d%%: %v", percent, verb)
		killed, err = h.img.KillAt(percent, verb...)
	} else {
		after := time.Duration(20+h.rng.IntN(80)) * time.Millisecond
		h.note("kill after %v: %v", after, verb)
		killed, err = h.img.KillAfter(after, verb...)
	}
	h.note("  killed: %t", killed)
	return err
}

func (h *history) spec(snapshot string) string {
	if snapshot == "" {
		return h.admin.Spec(h.img.Name)
	}
	return h.admin.Spec(h.img.Name + "@" + snapshot)
}

func verbWrite(h *history) []string {
	size := fmt.Sprint(h.layout.Size)
	return []string{"bench", "--io-type", "write", "--io-pattern", "rand", "--io-size", "4K", "--io-total", size, h.spec("")}
}

func verbRollback(h *history) []string {
	names := h.others(true)
	if len(names) == 0 {
		return nil
	}
	name := pick(h.rng, names...)
	return []string{"snap", "rollback", h.spec(name)}
}

func verbRemove(h *history) []string {
	names := h.others(false)
	if len(names) == 0 {
		return nil
	}
	return []string{"snap", "rm", h.spec(pick(h.rng, names...))}
}

func verbSnapshot(h *history) []string {
	return []string{"snap", "create", h.spec(h.name("admin"))}
}

func verbResize(h *history) []string {
	size := 1 + h.rng.Int64N(2*h.layout.Size)
	return []string{"resize", "--allow-shrink", "--size", fmt.Sprintf("%dB", size), h.spec("")}
}

func verbFlatten(h *history) []string { return []string{"flatten", h.spec("")} }
