package qcow2

// SmallLimits has a fold hold next to nothing in memory, so that small files find out what happens to large ones.
func SmallLimits(o *FoldOptions) {
	o.limits = foldLimits{refcounts: 1, window: 100, batch: 10 << 10, queue: 2 << 10}
}

// CheckWindow has a check count the references to n host clusters at a time.
func CheckWindow(o *CheckOptions, n int64) { o.window = n }
