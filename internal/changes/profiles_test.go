package changes_test

import "slices"

// operation is something that happens to an image.
type operation struct {
	name   string
	weight int
	do     func(*history) error
}

// verb gives the arguments of an rbd program that is killed midway, or runs beside another; nil: nothing to be done.
type verb func(*history) []string

// profile is a kind of history.
type profile struct {
	name       string
	clone      bool
	group      bool
	races      int // one of so many snapshots of ours is made while something goes on; 0: of ten
	operations []operation
	meanwhile  []verb // what may go on while our snapshot is made
}

var (
	opWrite     = operation{"write", 10, (*history).write}
	opDiscard   = operation{"discard", 5, (*history).discard}
	opZero      = operation{"zero", 3, (*history).zero}
	opResize    = operation{"resize", 3, (*history).resize}
	opSnapshot  = operation{"snapshot", 3, (*history).snapshot}
	opRemove    = operation{"remove snapshot", 3, (*history).removeSnapshot}
	opRollback  = operation{"roll back", 4, (*history).rollback}
	opFlatten   = operation{"flatten", 2, (*history).flatten}
	opSparsify  = operation{"sparsify", 2, (*history).sparsify}
	opTracking  = operation{"tracking", 4, (*history).tracking}
	opRebuild   = operation{"rebuild", 4, (*history).rebuild}
	opGroup     = operation{"group snapshot", 4, (*history).groupSnapshot}
	opTrash     = operation{"clone of snapshot", 2, (*history).cloneSnapshot}
	opReopen    = operation{"reopen", 1, func(h *history) error { return h.img.Reopen() }}
	opRollback9 = operation{"roll back", 9, (*history).rollback}
	opSnapshot9 = operation{"snapshot", 9, (*history).snapshot}
	opRemove9   = operation{"remove snapshot", 7, (*history).removeSnapshot}
	opResize9   = operation{"resize", 9, (*history).resize}
	opKill      = operation{"kill", 4, (*history).kill}
)

var guest = []operation{opWrite, opDiscard, opZero}

func with(more ...operation) []operation { return slices.Concat(guest, more) }

var profiles = []profile{
	{name: "plain", operations: with(opSparsify, opReopen)},
	{name: "plain", operations: with(opSparsify, opReopen), meanwhile: []verb{verbWrite}},
	{name: "busy", races: 2, operations: guest, meanwhile: []verb{verbWrite}},
	{name: "busy clone", races: 2, clone: true, operations: guest, meanwhile: []verb{verbWrite}},
	{name: "rollbacks", operations: with(opRollback9, opSnapshot, opRemove), meanwhile: []verb{verbRollback, verbRemove}},
	{name: "our rollbacks", operations: with(opRollback9), meanwhile: []verb{verbRollback}},
	{name: "resizes", operations: with(opResize9, opSnapshot, opRemove, opRollback), meanwhile: []verb{verbResize}},
	{name: "snapshots", operations: with(opSnapshot9, opRemove9), meanwhile: []verb{verbSnapshot, verbRemove}},
	{name: "clone", clone: true, operations: with(opFlatten, opResize, opSnapshot, opRemove, opRollback)},
	{name: "clone", clone: true, operations: with(opSparsify, opRollback), meanwhile: []verb{verbFlatten, verbWrite}},
	{name: "features", operations: with(opTracking, opRebuild, opSnapshot, opRemove, opRollback)},
	{name: "groups", group: true, operations: with(opGroup, opTrash, opSnapshot, opRemove)},
	{name: "all", clone: true, group: true, operations: with(opResize, opSnapshot, opRemove, opRollback, opFlatten, opSparsify,
		opTracking, opRebuild, opGroup, opTrash, opReopen), meanwhile: []verb{verbRollback, verbRemove, verbResize,
		verbFlatten, verbSnapshot, verbWrite}},
}

// killProfiles are of what is killed midway; they need a cluster of their own, in which the dead are soon forgotten.
var killProfiles = []profile{
	{name: "killed", operations: with(opKill, opKill, opRollback, opSnapshot, opRemove)},
	{name: "killed, ours only", operations: with(opKill, opKill)},
	{name: "killed clone", clone: true, operations: with(opKill, opSnapshot, opRemove)},
}
