package crash

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const campaignSize = 16 << 20 // bytes of an image at most

// liveImage is an image in the middle of its life.
type liveImage struct {
	name, id  string
	size      int64 // bytes
	snapshots []string
	parent    bool // of a clone
	clone     bool
}

// create makes an image, of nothing.
func (l *life) create(t *testing.T, name string) {
	i := &liveImage{name: name, size: l.randomSize()}
	options := []string{"--object-size", strconv.Itoa(pick(l, 64<<10, 1<<20, 4<<20))}
	if l.chance(3) {
		options = append(options, "--image-feature="+pick(l, "layering", "layering,exclusive-lock"))
	}
	l.say("create %s of %d bytes, %v", name, i.size, options)
	l.pool.CreateImage(t, name, i.size, options...)
	i.id = l.pool.Info(t, name).ID
	l.images = append(l.images, i)
	l.write(t, i)
}

func pick[T any](l *life, choices ...T) T { return choices[l.rng.IntN(len(choices))] }

func (l *life) randomSize() int64 {
	align := pick[int64](l, 1, 512, 64<<10, 1<<20)
	return (1<<20+l.rng.Int64N(campaignSize-1<<20))/align*align + align
}

// change does to the images what guests and administrators do between two backups.
func (l *life) change(t *testing.T) {
	for _, i := range slices.Clone(l.images) {
		if !l.chance(6) {
			l.write(t, i)
		}
		if l.chance(2) {
			l.maintain(t, i)
		}
	}
}

// write has the guest write.
func (l *life) write(t *testing.T, i *liveImage) {
	if commands := l.commands(i); len(commands) > 0 {
		l.say("%s: %q", i.name, commands)
		l.pool.IO(t, i.name, commands...)
		i.size = l.pool.Info(t, i.name).Size // QEMU grows it to whole sectors
	}
}

// commands are some for qemu-io.
func (l *life) commands(i *liveImage) (commands []string) {
	if i.size < 128<<10 {
		return nil
	}
	for range 1 + l.rng.IntN(6) {
		align := pick[int64](l, 512, 4096, 64<<10, 1<<20)
		off := l.rng.Int64N(i.size) / align * align
		n := min(align*(1+l.rng.Int64N(8)), randomFileSize, (i.size-off)/512*512)
		if n <= 0 {
			continue
		}
		commands = append(commands, fmt.Sprintf("%s %d %d", pick(l, "write -q -s "+l.noise, "write -q -s "+l.noise,
			"write -q -P "+strconv.Itoa(1+l.rng.IntN(255)), "write -q -z", "discard -q"), off, n))
	}
	return commands
}

// maintain does what an administrator does.
func (l *life) maintain(t *testing.T, i *liveImage) {
	switch l.rng.IntN(12) {
	case 0, 1:
		l.resize(t, i)
		l.write(t, i)
	case 2, 3:
		name := l.newName("s")
		l.say("%s: snapshot %s", i.name, name)
		l.pool.CreateSnapshot(t, i.name+"@"+name)
		i.snapshots = append(i.snapshots, name)
		l.write(t, i)
	case 4:
		if len(i.snapshots) > 0 && !i.parent {
			l.say("%s: remove snapshot %s", i.name, i.snapshots[0])
			l.pool.RemoveSnapshot(t, i.name+"@"+i.snapshots[0])
			i.snapshots = i.snapshots[1:]
		}
	case 5, 6:
		l.rollBack(t, i)
	case 7:
		l.rename(t, i)
	case 8:
		if !i.parent && !i.clone {
			l.recreate(t, i)
		}
	case 9, 10:
		l.cloneOrFlatten(t, i)
	case 11:
		if len(l.images) > 2 && !i.parent {
			l.remove(t, i)
		}
	}
}

func (l *life) resize(t *testing.T, i *liveImage) {
	size := l.randomSize()
	if size != i.size {
		l.say("%s: resize %d to %d", i.name, i.size, size)
		l.asOwner(t, "resize", "--no-progress", "--allow-shrink", "--size", fmt.Sprintf("%dB", size), l.pool.Spec(i.name))
		i.size = size
	}
}

func (l *life) rename(t *testing.T, i *liveImage) {
	name := l.newName("vm")
	l.say("rename %s to %s", i.name, name)
	l.asOwner(t, "rename", l.pool.Spec(i.name), l.pool.Spec(name))
	i.name = name
}

// asOwner has rbd change an image. While the program makes or removes a snapshot it holds the image's lock, and librbd passes on to it
// what others want to do, most of which its user has no right to: they have to try again.
func (l *life) asOwner(t *testing.T, args ...string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		_, err := l.pool.TryRBD(args...)
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "Operation not permitted") || time.Now().After(deadline) {
			t.Fatal(err)
		}
		l.say("%v", err)
	}
}

// rollBack goes back to any snapshot, ours too.
func (l *life) rollBack(t *testing.T, i *liveImage) {
	if all := l.pool.Snapshots(t, i.name); len(all) > 0 {
		name := pick(l, all...).Name
		l.say("%s: roll back to %s", i.name, name)
		l.pool.Rollback(t, i.name+"@"+name)
		i.size = l.pool.Info(t, i.name).Size
	}
}

// recreate replaces an image by a new one of the same name.
func (l *life) recreate(t *testing.T, i *liveImage) {
	l.remove(t, i)
	l.create(t, i.name)
}

func (l *life) remove(t *testing.T, i *liveImage) {
	l.say("remove %s", i.name)
	l.pool.RBD(t, "snap", "purge", "--no-progress", l.pool.Spec(i.name))
	l.pool.Remove(t, i.name)
	l.images = slices.DeleteFunc(l.images, func(other *liveImage) bool { return other == i })
	if i.clone {
		for _, parent := range l.images {
			l.orphan(t, parent)
		}
	}
}

// cloneOrFlatten makes a clone of an image, or makes a clone an image like others.
func (l *life) cloneOrFlatten(t *testing.T, i *liveImage) {
	switch {
	case i.clone:
		l.say("%s: flatten", i.name)
		l.pool.Flatten(t, i.name)
		i.clone = false
		for _, parent := range l.images {
			l.orphan(t, parent)
		}
	case len(l.images) < 4 && !i.parent && i.size > 0:
		snapshot, name := l.newName("s"), l.newName("vm")
		l.say("%s: clone %s as %s", i.name, snapshot, name)
		l.pool.CreateSnapshot(t, i.name+"@"+snapshot)
		i.snapshots, i.parent = append(i.snapshots, snapshot), true
		l.pool.Clone(t, i.name+"@"+snapshot, name)
		info := l.pool.Info(t, name)
		c := &liveImage{name: name, id: info.ID, size: info.Size, clone: true}
		l.images = append(l.images, c)
		l.write(t, c)
	}
}

// orphan notes that an image has no clones any more, where that is so.
func (l *life) orphan(t *testing.T, i *liveImage) {
	if !i.parent || len(strings.TrimSpace(string(l.pool.RBD(t, "children", "--all", l.pool.Spec(i.name))))) > 0 {
		return
	}
	i.parent = false
	for _, s := range l.pool.Snapshots(t, i.name) {
		if s.Protected {
			l.pool.RBD(t, "snap", "unprotect", l.pool.Spec(i.name+"@"+s.Name))
		}
	}
}
