package verify

import (
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
)

// Report is the outcome of a run. Its JSON form is documented in docs/json.md.
type Report struct {
	Images []ImageReport `json:"images"`
	Error  string        `json:"error,omitempty"` // of the run as a whole
}

// ImageReport is the outcome of one image.
type ImageReport struct {
	Name   string        `json:"name"`
	Folder string        `json:"folder"`
	Points []PointReport `json:"points"`          // those that were to be verified, the oldest first
	Error  string        `json:"error,omitempty"` // why none could be
}

// PointReport is what was found of a point.
type PointReport struct {
	Point    repo.PointName `json:"point"`
	Status   Status         `json:"status"`
	Verdict  repo.Verdict   `json:"verdict,omitempty"`
	Damages  []Damage       `json:"damages,omitempty"`
	More     int            `json:"more_damages,omitempty"` // that are not listed
	Leaks    int            `json:"leaks,omitempty"`        // places in the file that are lost for use, and harm nothing
	Verified int64          `json:"verified_bytes"`         // of the guest's data, compared with digests
	Data     int64          `json:"data_bytes"`             // of the guest's data in the file
	Seconds  float64        `json:"seconds"`
	Error    string         `json:"error,omitempty"` // why it could not be verified

	Boot *Trial `json:"boot,omitempty"` // of a virtual machine, with the status Tried
	Fsck *Trial `json:"fsck,omitempty"` // of the file systems inside, with the status Tried

	next int64 // Partly: the guest offset to go on from
}

// Status says how far the verification of a point has come.
type Status string

// The statuses.
const (
	Whole   Status = "whole"   // all of it was looked at
	Sampled Status = "sampled" // a part of its data was
	Partly  Status = "partly"  // time was up: the next run goes on from there
	Pending Status = "pending" // time was up before
	Failed  Status = "failed"
	Tried   Status = "tried" // as its guest would use it; nothing else was looked at
)

// Trial is what came of trying a point as its guest would use it.
type Trial struct {
	Status  TrialStatus `json:"status"`
	Seconds float64     `json:"seconds"`
	Message string      `json:"message,omitempty"` // why it has not passed

	Console     []string     `json:"console,omitempty"`      // of a boot that has failed: its last lines
	FileSystems []FileSystem `json:"file_systems,omitempty"` // those that were found
}

// FileSystem is what came of the check of a file system.
type FileSystem struct {
	Where   string      `json:"where"`          // "whole disk", or "partition N"
	Type    string      `json:"type,omitempty"` // as blkid names it; "" where nothing known is there
	Status  TrialStatus `json:"status"`
	Message string      `json:"message,omitempty"` // why it has not passed
}

// String names the file system for people, and why it has not passed.
func (f *FileSystem) String() string {
	where := f.Where
	if f.Type != "" {
		where += " (" + f.Type + ")"
	}
	return where + ": " + f.Message
}

// TrialStatus says how a trial has ended.
type TrialStatus string

// The ways.
const (
	TrialPassed      TrialStatus = "passed"
	TrialFailed      TrialStatus = "failed"
	TrialUnsupported TrialStatus = "unsupported" // there is something that can't be tried here
)

// Damage is one thing that is not as it was stored.
type Damage struct {
	What   string `json:"what"`             // the structure: "cluster", "L2 table", "identity", "parent", …
	Offset int64  `json:"offset,omitempty"` // of the structure in the file, bytes; 0 for clusters
	// The bytes of the disk that can't be relied on; Length is 0 where that can't be told: all of them.
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
	// Reaches are the later points that show these bytes.
	Reaches []repo.PointName `json:"reaches,omitempty"`
	Message string           `json:"message"`
}

// maxDamages bounds the damages of a point that are listed.
const maxDamages = 1000

func (r *PointReport) add(d Damage) {
	if len(r.Damages) == maxDamages {
		r.More++
		return
	}
	r.Damages = append(r.Damages, d)
}

// Count counts the points of which is is true.
func (r *Report) Count(is func(*PointReport) bool) int {
	n := 0
	for i := range r.Images {
		for j := range r.Images[i].Points {
			if is(&r.Images[i].Points[j]) {
				n++
			}
		}
	}
	return n
}
