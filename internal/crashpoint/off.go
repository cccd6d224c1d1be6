//go:build !crashtest

package crashpoint

// Reach says that a step is done.
func Reach(string) {}
