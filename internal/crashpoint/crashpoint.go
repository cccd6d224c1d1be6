// Package crashpoint names the steps of a backup and of a fold at which the crash tests kill the program. Only a program built
// with the tag crashtest contains the killing; in any other, Reach does nothing.
package crashpoint

// The steps, in the order of a backup.
const (
	MarkerWritten   = "marker-written"   // new content of the marker file on disk, under a temporary name
	MarkerBound     = "marker-bound"     // repository bound to its pool
	FolderMade      = "folder-made"      // folder of the image made, its name is not on disk
	Locked          = "locked"           // lock of the folder taken
	ClientRecorded  = "client-recorded"  // the lock says by which client the cluster will be asked for a snapshot
	SnapshotMade    = "snapshot-made"    // the cluster has the new snapshot, the repository knows nothing of it
	Diffed          = "diffed"           // changes known
	FirstData       = "first-data"       // first bytes of the temporary file
	Data            = "data"             // all data written
	Tables          = "tables"           // last L2 table written, nothing else of the tables
	DataSynced      = "data-synced"      // all but the header is on disk
	HeaderWritten   = "header-written"   // header written
	Synced          = "synced"           // file complete and on disk, without a name
	Linked          = "linked"           // file has its name, the directory is not on disk
	DirectorySynced = "directory-synced" // the point exists
	SnapshotRemoved = "snapshot-removed" // the snapshot of the point before is gone
)

// The steps of a fold, in their order.
const (
	FoldBegun    = "fold-begun"    // the file that is to be changed, or its copy, is as it was
	FoldSwitched = "fold-switched" // its header has been written, and is in memory only
	FoldFilled   = "fold-filled"   // it has the data of both points
	FoldNamed    = "fold-named"    // it has the child's name; where the child's own file is changed, it has had it all along
	FoldUnlinked = "fold-unlinked" // the point is gone
	FoldPunched  = "fold-punched"  // the space is given back; the mtime is the time of that
)

// BackupSteps are all steps of a backup.
func BackupSteps() []string {
	return []string{
		MarkerWritten, MarkerBound, FolderMade, Locked, ClientRecorded, SnapshotMade, Diffed, FirstData, Data, Tables,
		DataSynced, HeaderWritten, Synced, Linked, DirectorySynced, SnapshotRemoved,
	}
}

// FoldSteps are all steps of a fold.
func FoldSteps() []string {
	return []string{FoldBegun, FoldSwitched, FoldFilled, FoldNamed, FoldUnlinked, FoldPunched}
}
