package restore

import "context"

// Target is where a disk goes. Until Finish it can't be mistaken for a whole one.
type Target interface {
	Layout() Layout
	// Write writes p, which stays the caller's, at off. Unless Layout.Ordered it is called by several goroutines at once,
	// and in any order.
	Write(ctx context.Context, p []byte, off int64) error
	// Zero makes a range read as zeroes. It is called as Write is, and only where Layout.Blank is not set.
	Zero(ctx context.Context, off, length int64) error
	// Finish returns when everything is on stable storage and the target complete.
	Finish(ctx context.Context) error
	// Abort gives the target up: nothing is left of it, or something that is marked as unfinished. It is called
	// after an error, also one of Finish, and not after a Finish without one.
	Abort() error
}

// Layout says how a target wants its data.
type Layout struct {
	Blank   bool  // it reads as zeroes where nothing is written
	Ordered bool  // it takes data in guest order only; then it is a preparer too, if data has to be worked on before
	Unit    int64 // data comes in whole, aligned units of so many bytes, but for the end of the disk; a power of two
	Hole    int64 // from so many zero bytes on data is left out, or is a matter for Zero; 0: never
	Object  int64 // a blank target takes no zeroes at the ends of aligned units of so many bytes either; 0: of what is written at once
}

// preparer is an ordered target that does most of the work on a piece before its turn comes.
type preparer interface {
	Target
	// Prepare is called by several goroutines at once. What it returns is called in guest order, one at a time. p, whose
	// capacity is a multiple of Layout.Unit, is the target's until that has returned.
	Prepare(p []byte, off int64) (write func(context.Context) error, err error)
}
