// Package status is the read model of a repository: what list and backup print of images and points, as JSON or as a
// table, so that they cannot disagree. docs/json.md is the contract of the JSON form.
package status

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// Image is one folder with its points, the oldest first.
type Image struct {
	Name   string  `json:"name"`
	Folder string  `json:"folder"`
	Points []Point `json:"points"`
	// GoneSince is when a backup first found that the pool has no such image any more; nil if that is not known.
	GoneSince *time.Time `json:"gone_since,omitempty"`
}

// Point is one restore point.
type Point struct {
	Point        repo.PointName  `json:"point"`
	Time         time.Time       `json:"time"`
	File         string          `json:"file"` // relative to the repository
	Kind         string          `json:"kind"` // full, incremental, unknown
	Parent       *repo.PointName `json:"parent"`
	VirtualSize  int64           `json:"virtual_size"`  // bytes
	FileSize     int64           `json:"file_size"`     // bytes, apparent
	DiskSize     int64           `json:"disk_size"`     // bytes, allocated
	ChangedBytes int64           `json:"changed_bytes"` // as the cluster reported them
	Snapshot     string          `json:"snapshot"`      // that the point was read from
	State        repo.State      `json:"state"`
	Error        string          `json:"error,omitempty"`
	Method       string          `json:"method,omitempty"`
	Reason       string          `json:"reason,omitempty"`
	Compression  string          `json:"compression,omitempty"`
	ClusterSize  int64           `json:"cluster_size,omitempty"`
	Pinned       bool            `json:"pinned,omitempty"`
	PinComment   string          `json:"pin_comment,omitempty"`
	// VerifiedAt is when the point was last verified as a whole, nil if it never was; Verdict is what was found.
	VerifiedAt *time.Time   `json:"verified,omitempty"`
	Verdict    repo.Verdict `json:"verdict,omitempty"`
}

// Describe gives the read model of one point.
func Describe(p *repo.Point) Point {
	s := Point{
		Point:    p.Name,
		Time:     p.Created().UTC(),
		File:     p.Folder.Name + "/" + p.Folder.FileName(p.Name),
		Kind:     p.Kind(),
		FileSize: p.FileSize,
		DiskSize: p.DiskSize,
		State:    p.State,
	}
	if parent := p.Parent(); parent != "" {
		s.Parent = &parent
	}
	if p.Err != nil {
		s.Error = p.Err.Error()
	}
	if p.Header != nil {
		s.VirtualSize, s.ClusterSize = p.Header.Size, p.Header.ClusterSize()
	}
	if id := p.Identity; id != nil && p.State != repo.Removing {
		s.VirtualSize = id.Image.Size
		s.ChangedBytes = id.Changes.DiffBytes
		s.Snapshot = id.Snapshot.Name
		s.Method, s.Reason, s.Compression = id.Changes.Method, id.Changes.Reason, id.Compression
	} else if p.Name.Foreign() {
		s.Snapshot = string(p.Name)
	}
	return s
}

// Read describes the folders of a repository that hold points, or those of the images named.
func Read(r *repo.Repository, names []string) ([]Image, error) {
	folders, err := r.Folders()
	if err != nil {
		return nil, err
	}
	images := []Image{}
	for _, f := range folders {
		points, err := f.Points()
		if err != nil {
			return nil, err
		}
		if len(points) == 0 {
			continue
		}
		image := Image{Name: r.ImageName(f), Folder: f.Name, Points: []Point{}}
		for _, p := range points {
			image.Points = append(image.Points, Describe(p))
		}
		if err := image.addNotes(f, points); err != nil {
			return nil, err
		}
		images = append(images, image)
	}
	if len(names) == 0 {
		return images, nil
	}
	images, err = pick(images, names)
	if err != nil {
		err = fmt.Errorf("list %s: %w", r.Dir, err)
	}
	return images, err
}

// addNotes adds what is noted beside the points.
func (i *Image) addNotes(f *repo.Folder, points []*repo.Point) error {
	since, gone, err := f.Gone()
	if err != nil {
		return err
	}
	if gone {
		i.GoneSince = &since
	}
	for name, v := range f.Verified(points) {
		p := &i.Points[slices.IndexFunc(i.Points, func(p Point) bool { return p.Point == name })]
		if p.Verdict = v.Verdict; !v.Time.IsZero() {
			p.VerifiedAt = &v.Time
		}
	}
	pins, err := f.Pins()
	if err != nil {
		return err
	}
	for _, pin := range pins {
		for n := range i.Points {
			if p := &i.Points[n]; p.Point == pin.Point {
				p.Pinned, p.PinComment = true, pin.Comment
			}
		}
	}
	return nil
}

// pick gives the images of these names. A name that no image has may be that of a folder.
func pick(images []Image, names []string) ([]Image, error) {
	wanted := make(map[string]bool) // folders
	var missing []error
	for _, n := range names {
		isImage := slices.ContainsFunc(images, func(i Image) bool { return i.Name == n })
		found := false
		for _, i := range images {
			if i.Name == n || !isImage && i.Folder == n {
				wanted[i.Folder], found = true, true
			}
		}
		if !found {
			missing = append(missing, fmt.Errorf("image %q has no points", n))
		}
	}
	images = slices.DeleteFunc(images, func(i Image) bool { return !wanted[i.Folder] })
	return images, errors.Join(missing...)
}
