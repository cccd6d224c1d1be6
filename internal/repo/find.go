package repo

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ImageName is the name that the image had at its newest point of the repository, or the folder's where none tells.
func (r *Repository) ImageName(f *Folder) string {
	if id, err := f.Identity(r.ID()); err == nil && id != nil {
		return id.Image.RealName()
	}
	return f.Name
}

// FindImage finds the folder of an image by its name, or, where no image has it, or more than one, by the folder's.
func (r *Repository) FindImage(name string) (*Folder, error) {
	folders, err := r.Folders()
	if err != nil {
		return nil, err
	}
	var named, images []*Folder
	for _, f := range folders {
		if f.Name == name {
			named = append(named, f)
		}
		if points, err := f.pointNames(); err == nil && len(points) > 0 && r.ImageName(f) == name {
			images = append(images, f)
		}
	}
	switch {
	case len(images) == 1:
		return images[0], nil
	case len(named) == 1 && slices.Contains(images, named[0]): // nothing else names this one
		return named[0], nil
	case len(images) > 1:
		var said []string
		for _, f := range images {
			said = append(said, f.Name)
		}
		return nil, fmt.Errorf("find image %q in %s: the images of %d folders had this name: name one of the folders: %s",
			name, r.Dir, len(images), strings.Join(said, ", "))
	case len(named) == 1:
		return named[0], nil
	}
	return nil, fmt.Errorf("find image %q in %s: it has no points (\"rbd2qcow2 list %s\" shows what there is)", name, r.Dir, r.Dir)
}

// SplitTarget splits IMAGE@POINT; point is "" where there is none. The image may be a pattern.
func SplitTarget(target string) (image string, point PointName) {
	if i := strings.LastIndexByte(target, '@'); i >= 0 {
		if p, err := ParsePointName(target[i+1:]); err == nil {
			return target[:i], p
		}
	}
	return target, ""
}

// FindPoint finds IMAGE@POINT, or the newest point of IMAGE. What FindImage takes for the image comes first, the folder of that name
// second.
func (r *Repository) FindPoint(spec string) (*Folder, PointName, error) {
	image, point := SplitTarget(spec)
	f, err := r.FindImage(image)
	if point != "" && (err != nil || !f.has(point)) {
		if named := r.folderNamed(image); named != nil && named.has(point) {
			return named, point, nil // of an image that has another name by now
		}
	}
	if err != nil {
		return nil, "", err
	}
	if point != "" {
		if !f.has(point) {
			return nil, "", fmt.Errorf("find point %s of image %q in %s: there is no %s", point, image, r.Dir, f.FileName(point))
		}
		return f, point, nil
	}
	newest, err := f.Newest()
	if err == nil && newest == nil {
		err = fmt.Errorf("find point of image %q in %s: it has none", spec, r.Dir)
	}
	if err != nil {
		return nil, "", err
	}
	return f, newest.Name, nil
}

// folderNamed is the folder of that name, nil where there is none.
func (r *Repository) folderNamed(name string) *Folder {
	folders, err := r.Folders()
	if i := slices.IndexFunc(folders, func(f *Folder) bool { return f.Name == name }); err == nil && i >= 0 {
		return folders[i]
	}
	return nil
}

// IsPoint says whether a path would be that of a point of the repository, whether there is one or not.
func (r *Repository) IsPoint(path string) (bool, error) {
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return false, nil // nothing is there
	}
	folders, err := r.Folders()
	if err != nil {
		return false, err
	}
	for _, f := range folders {
		if _, ok := parseFileName(f.Name, filepath.Base(path)); !ok {
			continue
		}
		if own, err := os.Stat(f.Dir); err == nil && os.SameFile(own, dir) {
			return true, nil
		}
	}
	return false, nil
}

// has says whether there is a point of that name.
func (f *Folder) has(p PointName) bool {
	names, err := f.pointNames()
	for _, n := range names {
		if n == p {
			return err == nil
		}
	}
	return false
}
