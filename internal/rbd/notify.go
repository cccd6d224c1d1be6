package rbd

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// refreshTimeout bounds the wait for clients that are frozen. A healthy one
// answers within milliseconds.
const refreshTimeout = 2 * time.Second

// Refresh makes all clients that have the image open look at its header again
// before they write the next time, as librbd does itself after it has made a
// snapshot (ImageWatcher::notify_header_update). A client that was opening the
// image in that moment may have read the header before, and registered for
// notifications after: until it hears of the snapshot, what it writes goes into
// the snapshot, too.
//
// An error, which matches ErrTimeout where a client did not answer in time,
// says that not all may have done so.
func (p *Pool) Refresh(ctx context.Context, imageID string) error {
	// A NotifyMessage: version 7, compatible with 1, 4 bytes: HEADER_UPDATE.
	message := []byte{7, 1, 4, 0, 0, 0, 3, 0, 0, 0}
	err := do(ctx, p.handle, func() error {
		_, _, err := p.ioctx.NotifyWithTimeout(headerObject(imageID), message, refreshTimeout)
		return err
	})
	return fail("notify clients of", p.idSpec(imageID, ""), err)
}

// Watchers is [Image.Watchers] of the image with that id.
func (p *Pool) Watchers(ctx context.Context, imageID string) ([]string, error) {
	img, err := p.OpenAt(ctx, imageID, "")
	if err != nil {
		return nil, err
	}
	names, err := img.Watchers(ctx)
	return names, errors.Join(err, img.Close())
}

// Watchers names those who have the image open for writing now, this process included: each time that it was opened gives
// another name (rbd_watchers_list). A client among them may have crashed less than half a minute ago.
func (i *Image) Watchers(ctx context.Context) ([]string, error) {
	watchers, err := call(ctx, i.handle, i.image.ListWatchers, nil)
	var names []string
	for _, w := range watchers {
		names = append(names, fmt.Sprintf("client.%d %s %d", w.Id, w.Addr, w.Cookie))
	}
	return names, fail("list watchers of", i.spec, err)
}
