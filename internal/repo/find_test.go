package repo

import (
	"strings"
	"testing"

	"github.com/google/uuid"
)

// TestFindImage finds images that were renamed, removed and made anew.
func TestFindImage(t *testing.T) {
	r, err := Init(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	add := func(folder, image string) {
		f := r.Folder(folder)
		if err := f.Create(); err != nil {
			t.Fatal(err)
		}
		id := &Identity{Repository: r.ID(), Point: "20260102T030405Z", PointID: uuid.NewString(), Folder: folder, ClusterSize: sceneCluster}
		id.Image.SetName(image)
		id.Image.Size = sceneSize
		b, err := id.Encode()
		if err != nil {
			t.Fatal(err)
		}
		writeIdentity(t, f, id.Point, "", b)
	}
	add("was", "renamed")
	add("a", "twice") // renamed to the name of one that was removed
	add("twice", "twice")
	add("c", "both")
	add("d", "both")
	add("both", "another")
	for spec, want := range map[string]string{"renamed@20260102T030405Z": "was", "both@20260102T030405Z": "both", "a@20260102T030405Z": "a"} {
		if f, _, err := r.FindPoint(spec); err != nil || f.Name != want {
			t.Errorf("%q: %v, %v, want %q", spec, f, err, want)
		}
	}
	for name, want := range map[string]string{
		"renamed": "was", "was": "was", "twice": "twice", "a": "a", "another": "both",
		"both": "folders had this name", "none": "has no points",
	} {
		f, err := r.FindImage(name)
		if err != nil && !strings.Contains(err.Error(), want) || err == nil && f.Name != want {
			t.Errorf("%q: %v, %v, want %q", name, f, err, want)
		}
	}
}
