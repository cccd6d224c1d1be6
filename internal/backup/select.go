package backup

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/rbd2qcow2/rbd2qcow2/internal/glob"
	"github.com/rbd2qcow2/rbd2qcow2/internal/rbd"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// ErrNothingMatched says that no image of the pool was asked for.
var ErrNothingMatched = errors.New("no image matches")

// selectImages picks the images to back up, in the order of their names. A name that is not there, or a pattern
// that matches nothing, is picked too, without an id: it fails for itself, not the run.
func selectImages(all []rbd.ImageRef, o *Options) ([]rbd.ImageRef, error) {
	var picked []rbd.ImageRef
	matched := false
	found := make(map[string]bool)
	for _, image := range all {
		wanted := len(o.Images) == 0
		for _, pattern := range o.Images {
			if glob.Match(pattern, image.Name) {
				wanted, matched, found[pattern] = true, true, true
			}
		}
		if wanted && !slices.ContainsFunc(o.Exclude, func(p string) bool { return glob.Match(p, image.Name) }) {
			picked = append(picked, image)
		}
	}
	for _, pattern := range o.Images {
		if found[pattern] {
			continue
		}
		if glob.IsPattern(pattern) && !matched && len(o.Images) == 1 {
			return nil, fmt.Errorf("%w %q", ErrNothingMatched, pattern)
		}
		found[pattern] = true
		picked = append(picked, rbd.ImageRef{Name: pattern})
	}
	if len(picked) == 0 {
		return nil, ErrNothingMatched
	}
	slices.SortFunc(picked, func(a, b rbd.ImageRef) int { return cmp.Compare(a.Name, b.Name) })
	return picked, nil
}

// folders assigns images to the folders of a repository.
type folders struct {
	repo  *repo.Repository
	owner map[string]string       // folder name: id of the image of its newest readable point, "" for none
	home  map[string]*repo.Folder // image id: its folder
	live  map[string]bool         // ids of the images that the pool has now
}

func scanFolders(r *repo.Repository, images []rbd.ImageRef) (*folders, error) {
	f := &folders{repo: r, owner: map[string]string{}, home: map[string]*repo.Folder{}, live: map[string]bool{}}
	for _, image := range images {
		f.live[image.ID] = true
	}
	all, err := r.Folders()
	if err != nil {
		return nil, err
	}
	newest := map[string]repo.PointName{}
	for _, folder := range all {
		id, err := folder.Identity(r.ID())
		if err != nil {
			return nil, err
		}
		if id == nil {
			f.owner[folder.Name] = ""
			continue
		}
		f.owner[folder.Name] = id.Image.ID
		if other, ok := newest[id.Image.ID]; !ok || other.Time().Before(id.Point.Time()) {
			newest[id.Image.ID] = id.Point
			f.home[id.Image.ID] = folder
		}
	}
	return f, nil
}

// folder gives the folder of an image: the one that holds its points, under whatever name; otherwise the one that is
// named after it, unless that belongs to an image that lives on under another name.
func (f *folders) folder(image rbd.ImageRef) *repo.Folder {
	if home := f.home[image.ID]; home != nil {
		return home
	}
	name := repo.Escape(image.Name)
	// The Python tool did not escape names.
	if owner, ok := f.owner[image.Name]; ok && owner == "" && f.repo.Folder(image.Name).HasForeignPoints() {
		name = image.Name
	}
	if owner := f.owner[name]; owner != "" && owner != image.ID && f.live[owner] {
		name += "~" + image.ID
	}
	f.owner[name] = image.ID // no other image of this run
	return f.repo.Folder(name)
}
