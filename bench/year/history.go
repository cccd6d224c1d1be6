package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/rbd2qcow2/rbd2qcow2/internal/progress"
	"github.com/rbd2qcow2/rbd2qcow2/internal/prune"
	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// image is the name of the one image.
const image = "vm"

// The cluster sizes that "backup" would choose for such a disk.
const (
	fullCluster      = 64 * kib
	incrementCluster = block
)

// dayTime is when the point of a day is made.
func dayTime(day version) time.Time { return time.Date(2023, 1, int(day), 2, 0, 0, 0, time.UTC) }

// pointOf is the name of a day's point.
func pointOf(day version) repo.PointName { return repo.NextPointName(dayTime(day), "") }

// history is a repository that gets a point a day.
type history struct {
	*repo.Folder
	repository *repo.Repository
	o          options
}

func newHistory(dir string, o options) (*history, error) {
	r, err := repo.Init(dir)
	if err != nil {
		return nil, err
	}
	h := &history{Folder: r.Folder(image), repository: r, o: o}
	return h, h.Create()
}

// add makes the point of a day on the newest one, whose day is the one before: a full one where that is 0.
func (h *history) add(versions []version, day, before version) error {
	id := &repo.Identity{
		Program: "year", Repository: h.repository.ID(), Chain: uuid.NewString(), PointID: uuid.NewString(), Point: pointOf(day),
		Created: dayTime(day), Compression: h.o.compression, ClusterSize: fullCluster, Changes: repo.Changes{Method: "full"},
	}
	id.Image.SetName(image)
	id.Image.Size = int64(len(versions)) * block
	options := qcow2.WriterOptions{Size: id.Image.Size, ClusterSize: fullCluster, Codec: h.o.codec, Scratch: h.Scratch}
	if before > 0 {
		parent := h.Point(pointOf(before))
		if parent.State != repo.Good {
			return fmt.Errorf("point %s is %s: %w", parent.Path(), parent.State, parent.Err)
		}
		id.Parent, id.Chain, id.Generation = parent.AsParent(), parent.Identity.Chain, parent.Identity.Generation+1
		id.ClusterSize, id.Changes.Method = incrementCluster, "precise"
		options.ClusterSize, options.BackingFile = incrementCluster, h.BackingName(parent.Name)
	}
	file, err := h.CreatePending()
	if err != nil {
		return err
	}
	defer file.Discard()
	w, err := qcow2.NewWriter(file, options)
	if err != nil {
		return err
	}
	if err := errors.Join(write(w, h.o.codec, versions, before), finish(w, id), w.Close()); err != nil {
		return err
	}
	return file.Commit(h.FileName(id.Point), id.Created)
}

// write appends the clusters with blocks that were written after a day.
func write(w *qcow2.Writer, codec qcow2.Codec, versions []version, since version) error {
	encoder, err := qcow2.NewChunkEncoder(codec)
	if err != nil {
		return err
	}
	size := w.ClusterSize()
	chunk := &qcow2.Chunk{Data: make([]byte, size)}
	for cluster := range slices.Chunk(versions, int(size/block)) {
		if slices.Max(cluster) > since {
			for i, v := range cluster {
				at := int64(i) * block
				content(chunk.Data[at:][:block], chunk.Offset+at, v)
			}
			if err := errors.Join(encoder.Encode(chunk, size), w.Append(chunk)); err != nil {
				return err
			}
		}
		chunk.Offset += size
	}
	return nil
}

func finish(w *qcow2.Writer, id *repo.Identity) error {
	id.Changes.StoredBytes = w.Stats().StoredBytes
	identity, err := id.Encode()
	if err != nil {
		return err
	}
	return w.Finish(identity)
}

// prune prunes as "prune" would an hour after the point of a day was made.
func (h *history) prune(ctx context.Context, day version) (*prune.ImageReport, error) {
	log := slog.New(slog.DiscardHandler)
	report, err := prune.Run(ctx, h.repository, prune.Options{
		Policy: policy(), Program: "year", Now: dayTime(day).Add(time.Hour), Logger: log, Progress: progress.Log{Logger: log},
	})
	if err != nil {
		return nil, err
	}
	r := &report.Images[0]
	if r.Status != prune.Done {
		return nil, fmt.Errorf("prune: %s: %s", r.Status, r.Error)
	}
	return r, nil
}

// allocated is what the points take on disk, in bytes.
func (h *history) allocated() (n int64, err error) {
	points, err := h.Points()
	for _, p := range points {
		n += p.DiskSize
	}
	return n, err
}

// live is how much data the points hold, each its own.
func (h *history) live() (n int64, err error) {
	points, err := h.Points()
	for _, p := range points {
		data, e := liveData(p)
		n, err = n+data, errors.Join(err, e)
	}
	return n, err
}

// afresh gives a repository with the same points, made as if there had never been others.
func (h *history) afresh(dir string, states map[repo.PointName]state) (fresh *history, err error) {
	if fresh, err = newHistory(filepath.Join(dir, "fresh"), h.o); err != nil {
		return nil, err
	}
	points, err := h.Points()
	if err != nil {
		return nil, err
	}
	before := version(0)
	for _, p := range points {
		s := states[p.Name]
		if err := fresh.add(s.versions, s.day, before); err != nil {
			return nil, err
		}
		before = s.day
	}
	return fresh, nil
}
