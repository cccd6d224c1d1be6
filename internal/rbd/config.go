package rbd

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"
)

// DefaultTimeout bounds one operation on the cluster unless Config.Timeout is set.
const DefaultTimeout = 30 * time.Second

// DefaultSnapshotTimeout bounds one snapshot call unless Config.SnapshotTimeout
// is set. librbd waits 30 seconds for a lock owner that does not answer, and
// the monitors for as long as Config.Timeout.
const DefaultSnapshotTimeout = 2 * time.Minute

// Config says how to reach a cluster. The options mean what they mean to the
// rbd tool; the zero value is Ceph's own defaults. CEPH_CONF, CEPH_KEYRING and
// CEPH_ARGS are honoured; a field set here wins over CEPH_ARGS, which wins over
// the configuration file.
type Config struct {
	ConfFile string // -c, --conf
	Cluster  string // --cluster
	ID       string // --id: the user's name without "client."
	Name     string // -n, --name: TYPE.ID; wins over ID
	Keyring  string // -k, --keyring
	MonHost  string // -m

	Timeout         time.Duration // of one operation; 0 means DefaultTimeout
	SnapshotTimeout time.Duration // of one snapshot call; 0 means DefaultSnapshotTimeout

	WillSnapshot bool // connect for snapshots at once, not when the first is made

	Logger *slog.Logger // gets debug messages only; nil means none
}

// withDefaults returns a copy with everything filled in, the environment included.
func (c Config) withDefaults() (Config, error) {
	env := parseEarly(os.Getenv("CEPH_ARGS"))
	if c.Name == "" && c.ID != "" {
		c.Name = "client." + c.ID
	}
	c.ConfFile = first(c.ConfFile, env.ConfFile, os.Getenv("CEPH_CONF"))
	c.Cluster = first(c.Cluster, env.Cluster, "ceph")
	c.Name = first(c.Name, env.Name, "client.admin")
	if kind, id, ok := strings.Cut(c.Name, "."); !ok || kind == "" || id == "" {
		return c, fmt.Errorf("user name %q: not of the form TYPE.ID, such as client.admin", c.Name)
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.SnapshotTimeout <= 0 {
		c.SnapshotTimeout = DefaultSnapshotTimeout
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for _, s := range []string{c.ConfFile, c.Cluster, c.Name, c.Keyring, c.MonHost} {
		if err := checkName(s); err != nil {
			return c, err
		}
	}
	return c, nil
}

// parseEarly finds in CEPH_ARGS the options that librados needs before it can
// parse the rest by itself (Ceph calls them early arguments); the last one wins.
func parseEarly(args string) Config {
	var c Config
	words := strings.Fields(args)
	for i := 0; i < len(words) && words[i] != "--"; i++ {
		option, value, joined := strings.Cut(words[i], "=")
		if !joined && i+1 < len(words) {
			value = words[i+1]
		}
		switch option {
		case "-c", "--conf":
			c.ConfFile = value
		case "--cluster":
			c.Cluster = value
		case "-n", "--name":
			c.Name = value
		case "--id", "--user":
			c.Name = "client." + value
		default:
			continue
		}
		if !joined {
			i++
		}
	}
	return c
}

// first returns the first of its arguments that is not empty.
func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// checkName refuses what C would read as a shorter name.
func checkName(name string) error {
	if strings.ContainsRune(name, 0) {
		return fmt.Errorf("name %q: contains a NUL byte", name)
	}
	return nil
}
