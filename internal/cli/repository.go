package cli

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/rbd2qcow2/rbd2qcow2/internal/repo"
	"github.com/rbd2qcow2/rbd2qcow2/qcow2"
)

// digestKeyVariable names the key's file for commands that are not told.
const digestKeyVariable = "RBD2QCOW2_DIGEST_KEY_FILE"

// repositoryFlags are the options of all commands that read or write what points hold.
type repositoryFlags struct {
	keyFile string
}

func (f *repositoryFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.keyFile, "digest-key-file", os.Getenv(digestKeyVariable),
		"`FILE` with the secret key of the digests, 64 hex digits; otherwise named by "+digestKeyVariable)
}

// open opens a repository by repo.Open or repo.OpenOrAdopt.
func (f *repositoryFlags) open(dir string, open func(string) (*repo.Repository, error)) (*repo.Repository, error) {
	key, err := f.key()
	if err != nil {
		return nil, err
	}
	r, err := open(dir)
	if err != nil {
		return nil, err
	}
	r.DigestKey = key
	return r, nil
}

// key reads the key, nil where there is none.
func (f *repositoryFlags) key() (*qcow2.DigestKey, error) {
	if f.keyFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(f.keyFile)
	if err != nil {
		return nil, fmt.Errorf("read key of digests: %w", err)
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(raw) != qcow2.DigestKeySize {
		return nil, fmt.Errorf("read key of digests: %s must hold %d hex digits, as \"openssl rand -hex %d\" makes them",
			f.keyFile, 2*qcow2.DigestKeySize, qcow2.DigestKeySize)
	}
	return qcow2.NewDigestKey(raw)
}

// missing says what a point lacks that is not proved.
func (f *repositoryFlags) missing() string {
	if f.keyFile != "" {
		return "no digests made with the key given, so that nothing proves it (--digest=false restores it all the same)"
	}
	return "no digests, and --digest was given"
}
