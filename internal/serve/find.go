package serve

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// notFoundError says why there is nothing at a path.
type notFoundError struct{ error }

func notFoundf(format string, args ...any) error { return notFoundError{fmt.Errorf(format, args...)} }

const (
	extension = ".raw"
	latest    = "latest"
)

// diskName is the name of a point's file, with another ending.
func diskName(f *repo.Folder, p repo.PointName) string { return f.Name + "@" + string(p) + extension }

// diskPath is the path of a disk below the root, escaped for a URL. Names of folders are unambiguous, those of images
// need not be, and no client takes them for ".." or the like.
func diskPath(f *repo.Folder, p repo.PointName) string {
	return url.PathEscape(f.Name) + "/" + url.PathEscape(diskName(f, p))
}

// find gives the disk of a path. newest says that it asks for the newest one, whichever that is.
func (s *Server) find(image, file string) (d *disk, newest bool, err error) {
	if only := s.only; only != nil {
		if image != only.folder.Name || file != diskName(only.folder, only.name) {
			return nil, false, notFoundf("only one disk is served, not this one")
		}
		return s.disks.share(only), false, nil
	}
	base, ok := strings.CutSuffix(file, extension)
	if !ok {
		return nil, false, notFoundf("the name of a disk ends in %s", extension)
	}
	var folder *repo.Folder
	if point, ok := strings.CutPrefix(base, image+"@"); ok {
		base = point
		folder, err = s.names.folder(image)
	} else {
		folder, err = s.names.image(image)
	}
	if err != nil {
		return nil, false, err
	}
	name, err := pointName(folder, base)
	if err != nil {
		return nil, false, err
	}
	d, err = s.disks.acquire(folder, name)
	return d, base == latest, err
}

func pointName(f *repo.Folder, s string) (repo.PointName, error) {
	if s != latest {
		name, err := repo.ParsePointName(s)
		if err != nil {
			return "", notFoundError{err}
		}
		return name, nil
	}
	point, err := f.Newest()
	if err != nil {
		return "", err
	}
	if point == nil {
		return "", notFoundf("image folder %q has no points", f.Name)
	}
	return point.Name, nil
}

// namesTime is for how long the names of images are believed: to look them up a point of each folder is read.
const namesTime = 5 * time.Second

// names finds folders by their own names and by those of their images.
type names struct {
	repo *repo.Repository

	mu     sync.Mutex
	images map[string][]*repo.Folder
	until  time.Time
}

// folder gives the folder of that name.
func (n *names) folder(name string) (*repo.Folder, error) {
	folders, err := n.repo.Folders()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(folders, func(f *repo.Folder) bool { return f.Name == name })
	if i < 0 {
		return nil, notFoundf("there is no image %q", name)
	}
	return folders[i], nil
}

// image gives the folder of the image of that name, or, where no image has it, the folder of that name.
func (n *names) image(name string) (*repo.Folder, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if time.Now().After(n.until) {
		if err := n.read(); err != nil {
			return nil, err
		}
	}
	switch folders := n.images[name]; len(folders) {
	case 0:
		return n.folder(name)
	case 1:
		return folders[0], nil
	default:
		var said []string
		for _, f := range folders {
			said = append(said, "/"+url.PathEscape(f.Name)+"/"+url.PathEscape(f.Name)+"@…")
		}
		return nil, notFoundf("%d images have the name %q: ask for one by its folder: %s", len(folders), name, strings.Join(said, " "))
	}
}

func (n *names) read() error {
	folders, err := n.repo.Folders()
	if err != nil {
		return err
	}
	n.images = map[string][]*repo.Folder{}
	for _, f := range folders {
		if newest, err := f.Newest(); err == nil && newest == nil {
			continue
		}
		name := n.repo.ImageName(f)
		n.images[name] = append(n.images[name], f)
	}
	n.until = time.Now().Add(namesTime)
	return nil
}
