// Package rbd reads and writes Ceph RBD images, creates, removes and imports
// them, and manages their snapshots. It is the only package that talks to
// librados and librbd (through go-ceph), and it knows nothing of qcow2 files,
// repositories or the command line.
//
// A [Cluster] holds the connections, a [Pool] is one pool or one namespace of
// it, an [Image] is one open image, read at its head or at a snapshot, and a
// [Writer] is one open for writing.
//
// # Nothing blocks for ever
//
// Calls into librbd block in C and cannot be cancelled. Each of them therefore
// runs on a goroutine of its own, and the Go side stops waiting when its
// context ends or when a watchdog fires. Such a call is abandoned: the error
// matches [ErrAbandoned], the C call goes on behind the scenes, and whatever it
// uses (image, pool, connection, the buffer of a read or a write) is kept until
// it ends. Close never frees an object under a running call and waits for a
// bounded time only.
//
// What takes longer the larger an image is, such as its removal, has no
// watchdog: there it is the single operations that time out, or, for a
// migration, another connection that watches whether the cluster answers.
//
// # Two connections
//
// Reading uses a connection whose operations time out ([Config.Timeout]), so
// that a cluster that is down ends in an error. Snapshots use a second one,
// made when first needed, whose writes to the cluster never time out on the
// client's side: librbd takes the image's exclusive lock for a snapshot of an
// image that nobody has open, and a client that gives up a write while holding
// that lock may leave the object map wrong.
//
// Migrations use the second one, too, as others use the image meanwhile. A
// [Writer] uses the first: an image that is being restored has no other user,
// and where a write times out librbd marks its object map as invalid.
//
// # Full pools
//
// By default a write to a full pool, or to one that has reached its quota,
// waits until someone makes room. Ours are sent with RADOS's flag FULL_TRY and
// fail at once with [ErrQuota]; those that take no more space than before, and
// those that free some, are done.
//
// # Snapshots that vanish
//
// When the snapshot that an image is open at is removed by someone else, librbd
// goes on without an error and reads zeros. See [Pool.SnapshotID] for the check.
//
// # Options inside images
//
// Image metadata of the form conf_<option> overrides librbd's options for every
// client that opens the image. Time-outs are safe from it: rados_* and client_*
// options belong to the connection, and librbd refuses such a key for anything
// but the options of its own image layer. Dead locks are broken by a plain lock
// operation and not through librbd (see [Pool.BreakDeadLock]), so that no
// metadata can turn that into a blocklisting.
package rbd
