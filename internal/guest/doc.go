// Package guest tries points as their guests would use them: it boots a virtual machine from a point, or checks the file systems
// inside.
//
// Each trial has an overlay of its own on top of the point, in a temporary directory, which takes what the guest or the checker
// writes, and goes with the trial. While a trial is on, the points below are open as for any reader, so that no fold touches
// them. QEMU and the checkers are programs of the host; the package runs them and says what came of it, in the report of package
// verify.
package guest
