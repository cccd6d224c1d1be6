package rbd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"
)

// explainConfigFile says what the codes of rados_conf_read_file mean.
func explainConfigFile(file string, err error) error {
	switch err = translate(err); {
	case errors.Is(err, syscall.EINVAL):
		return &explained{"it is not in the format of Ceph's configuration", err}
	case errors.Is(err, syscall.ENOENT):
		// librados says so of whatever it can't open or read.
		_, readErr := readStart(file, 1)
		var path *fs.PathError
		if errors.As(readErr, &path) && !errors.Is(readErr, fs.ErrNotExist) {
			return path.Err
		}
	}
	return err
}

// explainConnect says what the codes of rados_connect mean.
func explainConnect(cfg Config, r *rados.Conn, err error) error {
	err = translate(err)
	text := ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ETIMEDOUT):
		text = fmt.Sprintf("monitors did not answer within %v", cfg.Timeout)
	case errors.Is(err, syscall.ENOENT) && option(r, "mon_host") == "":
		text = "no monitors known: no configuration file, or no mon_host in it"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.ENOENT):
		return explainRefusal(cfg.Name, r, err)
	case errors.Is(err, syscall.EIO):
		text = fmt.Sprintf("keyring can't be read (%s)", option(r, "keyring"))
	case errors.Is(err, syscall.EINVAL):
		text = fmt.Sprintf("address of monitors can't be used (%s)", option(r, "mon_host"))
	default:
		return err
	}
	return &explained{text, err}
}

// maxKeyring is more than any keyring has, in bytes.
const maxKeyring = 1 << 20

// explainRefusal looks whether the user has a key at all: without one librados, by Ceph's defaults, offers to do without
// and is refused.
func explainRefusal(user string, r *rados.Conn, err error) error {
	refused := &explained{fmt.Sprintf("the cluster refused %s: user unknown, or wrong key", user), err}
	if option(r, "key") != "" || option(r, "keyfile") != "" {
		return refused
	}
	files := strings.FieldsFunc(option(r, "keyring"), func(c rune) bool { return strings.ContainsRune(";,= \t", c) })
	for _, file := range files {
		content, readErr := readStart(file, maxKeyring)
		switch {
		case errors.Is(readErr, fs.ErrNotExist):
			continue // librados takes the first that it can read
		case readErr != nil:
			return fmt.Errorf("read keyring for %s: %w", user, readErr)
		case !bytes.Contains(content, []byte("["+user+"]")):
			return &explained{fmt.Sprintf("no key for %s in keyring %s", user, file), err}
		}
		return refused
	}
	return &explained{fmt.Sprintf("no keyring for %s (looked for %s)", user, strings.Join(files, ", ")), codeErr(int(syscall.ENOENT))}
}

// explainFull says what the codes of a write to a full pool mean.
func explainFull(err error) error {
	switch err = translate(err); {
	case errors.Is(err, syscall.EDQUOT):
		return &explained{"the quota of the pool is reached", err}
	case errors.Is(err, syscall.ENOSPC):
		return &explained{"the pool or the cluster is full", err}
	}
	return err
}

// readStart reads a file, at most limit bytes of it.
func readStart(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}
