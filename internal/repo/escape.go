package repo

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// maxFolderName leaves room in a file name of 255 bytes for "@YYYYMMDDTHHMMSSZ.qcow2", and for "~" and an image id
// where two images want one folder.
const maxFolderName = 200

// Escape turns an image name, which may hold any byte, into the name of a folder: every byte that is not a letter,
// a digit or one of "._-" becomes %XX, so does a leading "." or "-". A name too long for a file is cut and ends in
// "~" and 16 hex digits of its SHA-256. Of an image named like the marker file the first letter is encoded. The real
// name stands in the identity of every point.
func Escape(name string) string {
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		plain := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
			c == '_' || i > 0 && (c == '.' || c == '-')
		if plain {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	escaped := b.String()
	if escaped == markerName {
		return "%72" + escaped[1:]
	}
	if len(escaped) <= maxFolderName {
		return escaped
	}
	tail := fmt.Sprintf("~%x", sha256.Sum256([]byte(name)))[:17]
	return escaped[:maxFolderName-len(tail)] + tail
}
