package live

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestJournal reads journals as a killed process leaves them.
func TestJournal(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), ".state", "live.json")
	if _, err := openJournal(path); err == nil {
		t.Error("a journal that is not there")
	}
	j, err := createJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readJournal(path); err == nil {
		t.Error("an empty journal")
	}
	first := entry{Target: target{Image: "vm"}, Point: "vm@1", Listen: "127.0.0.1:80", Token: "secret"}
	if err := j.write(first); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournal(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("locked: %v", err)
	}
	if _, err := j.file.WriteString(`{"image_id": "17`); err != nil { // killed here
		t.Fatal(err)
	}
	if err := j.close(); err != nil {
		t.Error(err)
	}
	if j, err = openJournal(path); err != nil {
		t.Fatal(err)
	}
	if j.entry != first {
		t.Errorf("entry %+v, want %+v", j.entry, first)
	}
	if err := j.write(entry{ImageID: "1734"}); err != nil {
		t.Error(err)
	}
	want := first
	want.ImageID = "1734"
	if e, err := readJournal(path); e != want || err != nil {
		t.Errorf("entry %+v, %v, want %+v", e, err, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v: the token is for the owner", info.Mode(), err)
	}
	if err := j.remove(); err != nil {
		t.Error(err)
	}
	if err := j.close(); err != nil {
		t.Error(err)
	}
}
