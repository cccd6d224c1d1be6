package rbdtest

import librbd "github.com/ceph/go-ceph/rbd"

// Group is a consistency group of one image, with snapshots of its own.
type Group struct {
	pool *Pool
	name string
}

// Group makes a group and puts the image into it.
func (i *Image) Group(name string) (*Group, error) {
	if err := librbd.GroupCreate(i.pool.ioctx, name); err != nil {
		return nil, err
	}
	return &Group{i.pool, name}, librbd.GroupImageAdd(i.pool.ioctx, name, i.pool.ioctx, i.Name)
}

// Snapshot makes a snapshot of the group.
func (g *Group) Snapshot(name string) error {
	return librbd.GroupSnapCreate(g.pool.ioctx, g.name, name)
}

// RemoveSnapshot removes a snapshot of the group.
func (g *Group) RemoveSnapshot(name string) error {
	return librbd.GroupSnapRemove(g.pool.ioctx, g.name, name)
}

// Rollback rolls the group's images back.
func (g *Group) Rollback(name string) error {
	return librbd.GroupSnapRollback(g.pool.ioctx, g.name, name)
}

// Remove removes the group with its snapshots; the image stays.
func (g *Group) Remove() error {
	snaps, err := librbd.GroupSnapList(g.pool.ioctx, g.name)
	if err != nil {
		return err
	}
	for _, s := range snaps {
		if err := g.RemoveSnapshot(s.Name); err != nil {
			return err
		}
	}
	return librbd.GroupRemove(g.pool.ioctx, g.name)
}

// Snapshots returns the names of the group's snapshots.
func (g *Group) Snapshots() ([]string, error) {
	snaps, err := librbd.GroupSnapList(g.pool.ioctx, g.name)
	var names []string
	for _, s := range snaps {
		names = append(names, s.Name)
	}
	return names, err
}
