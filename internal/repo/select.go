package repo

import (
	"errors"
	"fmt"

	"github.com/rbd2qcow2/rbd2qcow2/internal/glob"
)

// ErrNothingMatched says that no image of the repository was asked for.
var ErrNothingMatched = errors.New("no image matches")

// ImageFolder is a folder that has points, and the name of its image.
type ImageFolder struct {
	Image string
	*Folder
}

// Select picks the images that have points and were asked for, by shell patterns of their names or the names of their folders, in
// the order of the folders; all where there are no patterns. It gives the patterns that match nothing, too. If none matches at all
// the error is ErrNothingMatched.
func (r *Repository) Select(patterns []string) (picked []ImageFolder, unmatched []string, err error) {
	folders, err := r.Folders()
	if err != nil {
		return nil, nil, err
	}
	found := map[string]bool{}
	for _, f := range folders {
		if names, err := f.pointNames(); err != nil {
			return nil, nil, err
		} else if len(names) == 0 {
			continue
		}
		i := ImageFolder{r.ImageName(f), f}
		wanted := len(patterns) == 0
		for _, p := range patterns {
			if glob.Match(p, i.Image) || p == f.Name {
				wanted, found[p] = true, true
			}
		}
		if wanted {
			picked = append(picked, i)
		}
	}
	for _, p := range patterns {
		if !found[p] {
			found[p] = true // names it once
			unmatched = append(unmatched, p)
		}
	}
	if len(picked) == 0 && len(patterns) > 0 {
		return nil, nil, fmt.Errorf("%s: %w %q", r.Dir, ErrNothingMatched, patterns)
	}
	return picked, unmatched, nil
}
