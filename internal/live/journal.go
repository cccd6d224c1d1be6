package live

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// maxJournal is more than any journal has, in bytes.
const maxJournal = 64 << 10

var errNoJournal = errors.New("there is no unfinished live restore to it from these points")

// target names an image in the world.
type target struct {
	FSID      string `json:"fsid"`
	PoolID    int64  `json:"pool_id"`
	Namespace string `json:"namespace,omitempty"`
	Image     string `json:"image"`
}

// entry is one line of a journal, as JSON: all but the image's id first, the id when the image has been made.
type entry struct {
	Target  target    `json:"target,omitzero"`
	Point   string    `json:"point,omitempty"` // FOLDER@POINT
	PointID string    `json:"point_id,omitempty"`
	Started time.Time `json:"started,omitzero"`
	Listen  string    `json:"listen,omitempty"` // ADDRESS:PORT
	Token   string    `json:"token,omitempty"`
	ImageID string    `json:"image_id,omitempty"`
}

// journal is the file, locked: one process at a time carries a restore on.
type journal struct {
	file  *os.File
	entry entry // all that was written
}

// journalPath is one for each image and folder of points.
func (r *Request) journalPath() string {
	t, _ := json.Marshal(r.target()) // strings and a number: that can't fail
	sum := sha256.Sum256(t)
	return r.Folder.StatePath(fmt.Sprintf("live-%x.json", sum[:8]))
}

// createJournal makes an empty journal; whatever an old one said, there is no image to it. It is for the owner only, since
// the token is in it.
func createJournal(path string) (*journal, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("keep what a resume needs: %w", err)
	}
	j, err := lockJournal(path, os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("keep what a resume needs: %w", err)
	}
	if err := errors.Join(j.file.Truncate(0), repo.SyncDir(filepath.Dir(path))); err != nil {
		return nil, errors.Join(fmt.Errorf("keep what a resume needs: %w", err), j.close())
	}
	return j, nil
}

// openJournal opens the journal of a restore that was interrupted.
func openJournal(path string) (*journal, error) {
	j, err := lockJournal(path, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoJournal
	}
	if err != nil {
		return nil, err
	}
	if j.entry, err = readEntry(j.file); err != nil {
		return nil, errors.Join(err, j.close())
	}
	return j, nil
}

func lockJournal(path string, flags int) (*journal, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errors.New("another process is at it, and has to end first")
		}
		return nil, err
	}
	return &journal{file: file}, nil
}

// readJournal reads a journal that another process may have locked.
func readJournal(path string) (entry, error) {
	file, err := os.Open(path)
	if err != nil {
		return entry{}, err
	}
	defer file.Close()
	return readEntry(file)
}

// readEntry puts the lines of a journal together. Where a process was killed there may be a part of one.
func readEntry(file *os.File) (e entry, err error) {
	content, err := io.ReadAll(io.NewSectionReader(file, 0, maxJournal))
	if err != nil {
		return e, err
	}
	for line := range bytes.Lines(content) {
		more := e
		if json.Unmarshal(line, &more) == nil {
			e = more
		}
	}
	if e.Point == "" {
		return e, errNoJournal
	}
	return e, nil
}

// write appends what e has, on disk when it returns.
func (j *journal) write(e entry) error {
	b, err := json.Marshal(&e)
	if err == nil {
		_, err = j.file.WriteString("\n" + string(b) + "\n") // what is there may end in the middle of a line
	}
	if err == nil {
		err = j.file.Sync()
	}
	if err == nil {
		j.entry, err = readEntry(j.file)
	}
	if err != nil {
		return fmt.Errorf("keep what a resume needs: %w", err)
	}
	return nil
}

// remove removes the file, which stays locked.
func (j *journal) remove() error {
	if err := os.Remove(j.file.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (j *journal) close() error { return j.file.Close() }
