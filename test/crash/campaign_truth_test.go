package crash

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// content is what a guest would find on a disk.
type content struct {
	size   int64 // bytes
	sha256 [sha256.Size]byte
}

func (c content) String() string { return fmt.Sprintf("%d bytes %x", c.size, c.sha256[:6]) }

// output hashes what a program writes to its standard output.
func output(program string, args ...string) (content, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	hash, said := sha256.New(), &strings.Builder{}
	counter := &countingWriter{w: hash}
	cmd.Stdout, cmd.Stderr = counter, said
	if err := cmd.Run(); err != nil {
		return content{}, fmt.Errorf("%v: %w\n%s", cmd.Args, err, said)
	}
	return content{counter.n, [sha256.Size]byte(hash.Sum(nil))}, nil
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// export is what an image, or a snapshot "image@snap", holds.
func (l *life) export(t *testing.T, image string) content {
	t.Helper()
	c, err := output("rbd", "--conf", l.pool.Conf, "export", "--no-progress", l.pool.Spec(image), "-")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// observe notes what the images hold and which snapshots they have before a round.
func (l *life) observe(t *testing.T) {
	l.heads, l.foreign = map[string]content{}, map[string]bool{}
	prefix := l.repository(t).SnapshotPrefix()
	for _, i := range l.images {
		i.id = l.pool.Info(t, i.name).ID
		l.heads[i.id] = l.export(t, i.name)
		i.size = l.heads[i.id].size
		for _, s := range l.pool.Snapshots(t, i.name) {
			if s.Namespace.Type == "user" && !strings.HasPrefix(s.Name, prefix) { // in the trash are those half removed
				l.foreign[fmt.Sprintf("%s/%d", i.id, s.ID)] = true
			}
		}
	}
}

func (l *life) repository(t *testing.T) *repo.Repository {
	t.Helper()
	r, err := repo.Open(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// truthOf is what a new point has to read as.
func (l *life) truthOf(t *testing.T, folder, point string) content {
	t.Helper()
	p := l.repository(t).Folder(folder).Point(repo.PointName(point))
	if p.Identity == nil {
		t.Fatalf("%s@%s is new and has no identity: %v", folder, point, p.Err)
	}
	id := p.Identity.Image.ID
	if head, ok := l.heads[id]; ok && !l.modified[id] {
		return head
	}
	for _, i := range l.images {
		if i.id == id {
			return l.export(t, i.name+"@"+p.Identity.Snapshot.Name)
		}
	}
	t.Fatalf("%s@%s was made from image %s, which there is not", folder, point, id)
	return content{}
}
