//go:build !noceph

package cli

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// parseSize reads a size as qemu-img takes it: bytes, or with a suffix K, M, G or T powers of 1024. "" is 0.
func parseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	unit := uint64(1)
	digits := s
	if i := strings.IndexByte("KMGT", strings.ToUpper(s)[len(s)-1]); i >= 0 {
		unit, digits = 1<<(10*(i+1)), s[:len(s)-1]
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if hi, lo := bits.Mul64(n, unit); err != nil || n == 0 || hi != 0 || lo > 1<<62 {
		return 0, fmt.Errorf("%q is no size, such as 65536 or 64K", s)
	}
	return int64(n * unit), nil
}
