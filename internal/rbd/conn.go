package rbd

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/ceph/go-ceph/rados"
)

// conn is one connection with a reference count.
type conn struct {
	*handle
	rados *rados.Conn
}

// client returns the name by which OSDs know the connection.
func (c *conn) client() string {
	return "client." + strconv.FormatUint(c.rados.GetInstanceID(), 10)
}

// connect makes one connection with cfg, which must have its defaults filled in.
func connect(ctx context.Context, cfg Config, watchdog time.Duration, options map[string]string) (*conn, error) {
	var r *rados.Conn
	unconnected, err := newHandle(nil, 2*cfg.Timeout, func() error { return nil })
	if err != nil {
		return nil, err
	}
	r, err = call(ctx, unconnected, func() (*rados.Conn, error) {
		r, err := configure(cfg, options)
		if err != nil {
			return nil, err
		}
		return r, explainConnect(cfg, r, r.Connect())
	}, (*rados.Conn).Shutdown)
	if err != nil {
		return nil, fail("connect to cluster", "", err)
	}
	h, err := newHandle(nil, watchdog, func() error { r.Shutdown(); return nil })
	if err != nil {
		return nil, err
	}
	return &conn{handle: h, rados: r}, nil
}

func configure(cfg Config, options map[string]string) (*rados.Conn, error) {
	r, err := rados.NewConnWithClusterAndUser(cfg.Cluster, cfg.Name)
	if err != nil {
		return nil, fail("set up librados for", cfg.Name, err)
	}
	if cfg.ConfFile != "" {
		err = fail("read configuration file", cfg.ConfFile, explainConfigFile(cfg.ConfFile, r.ReadConfigFile(cfg.ConfFile)))
	} else if err = r.ReadDefaultConfigFile(); errors.Is(translate(err), ErrNotFound) {
		err = nil // as the rbd tool: everything may come from options
	}
	if err != nil {
		return nil, err
	}
	if err := r.ParseDefaultConfigEnv(); err != nil {
		return nil, fail("parse", "CEPH_ARGS", err)
	}
	set := map[string]string{
		"client_mount_timeout": seconds(cfg.Timeout), // alone bounds connecting
		"rados_mon_op_timeout": seconds(cfg.Timeout),
		"admin_socket":         "",
	}
	// librados would mix lines of its own with the program's messages. Whoever
	// asks for logging in CEPH_ARGS shall have it.
	if !strings.Contains(strings.ReplaceAll(os.Getenv("CEPH_ARGS"), "-", "_"), "log_") {
		for _, option := range []string{"log_to_stderr", "err_to_stderr", "log_to_syslog"} {
			set[option] = "false"
		}
		set["log_file"] = ""
	}
	if cfg.Keyring != "" {
		set["keyring"] = cfg.Keyring
	}
	if cfg.MonHost != "" {
		set["mon_host"] = cfg.MonHost
	}
	for _, options := range []map[string]string{set, options} {
		for option, value := range options {
			if err := r.SetConfigOption(option, value); err != nil {
				return nil, fail("set option", option, err)
			}
		}
	}
	return r, nil
}

func option(r *rados.Conn, name string) string {
	value, _ := r.GetConfigOption(name) // for a message only
	return value
}

// seconds formats a time-out as Ceph's options want it, never as 0 (none).
func seconds(d time.Duration) string {
	return strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10)
}
