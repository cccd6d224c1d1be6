package rbd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
)

func TestConnectErrors(t *testing.T) {
	tp := cephtest.Require(t).Pool(t)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key := "\tkey = AQBmX3FnAAAAABAAfbJx5Dvw3sLbdTqUJbJpBw==\n"
	for name, test := range map[string]struct {
		change func(*Config)
		want   error
		text   string
	}{
		"no configuration file": {func(c *Config) { c.ConfFile = "/nonexistent/ceph.conf" }, ErrNotFound, "configuration file /nonexistent/ceph.conf: not found"},
		"garbage for one":       {func(c *Config) { c.ConfFile = file("garbage", "hello world\n[x") }, syscall.EINVAL, "garbage: it is not in the format"},
		"a directory for one":   {func(c *Config) { c.ConfFile = dir }, syscall.EISDIR, "configuration file " + dir + ": is a directory"},
		"an empty one":          {func(c *Config) { c.ConfFile = file("empty", "") }, ErrNotFound, "no monitors known"},
		"no keyring":            {func(c *Config) { c.Keyring = "/nonexistent/keyring" }, ErrNotFound, "no keyring for client." + tp.User + " (looked for /nonexistent/keyring)"},
		"garbage for a keyring": {func(c *Config) { c.Keyring = file("garbage", "hello world\n[x") }, syscall.EIO, "keyring can't be read"},
		"another's keyring":     {func(c *Config) { c.Keyring = file("other", "[client.other]\n"+key) }, ErrPermission, "no key for client." + tp.User + " in keyring " + dir + "/other"},
		"wrong key":             {func(c *Config) { c.Keyring = file("wrong", "[client."+tp.User+"]\n"+key) }, ErrPermission, "refused client." + tp.User},
		"unknown user":          {func(c *Config) { c.ID, c.Keyring = "other", file("other", "[client.other]\n"+key) }, ErrPermission, "refused client.other"},
		"dead monitor":          {func(c *Config) { c.MonHost = "127.0.0.1:1" }, ErrTimeout, "monitors did not answer within 2s"},
		"unknown host":          {func(c *Config) { c.MonHost = "host.invalid" }, syscall.EINVAL, "host.invalid"},
		"name without type":     {func(c *Config) { c.Name = "backup" }, nil, "TYPE.ID"},
		"NUL":                   {func(c *Config) { c.Keyring = "a\x00b" }, nil, "NUL"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(tp)
			cfg.Timeout = 2 * time.Second
			test.change(&cfg)
			start := time.Now()
			c, err := Connect(t.Context(), cfg)
			if err == nil {
				t.Fatal("connected", c.Close())
			}
			if test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("error %v, want one of %v", err, test.want)
			}
			if !strings.HasPrefix(err.Error(), "connect to cluster: ") || !strings.Contains(err.Error(), test.text) {
				t.Errorf("message %q lacks %q", err, test.text)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestConfigSources(t *testing.T) {
	tp := cephtest.Require(t).Pool(t)
	connects := func(t *testing.T, cfg Config) {
		t.Helper()
		cfg.Timeout = 5 * time.Second
		c, err := Connect(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if c.FSID() != tp.FSID {
			t.Errorf("connected to %s, want %s", c.FSID(), tp.FSID)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Run("CEPH_CONF", func(t *testing.T) {
		t.Setenv("CEPH_CONF", tp.Conf)
		connects(t, Config{ID: tp.User, Keyring: tp.Keyring})
	})
	t.Run("CEPH_KEYRING", func(t *testing.T) {
		t.Setenv("CEPH_KEYRING", tp.Keyring)
		connects(t, Config{ConfFile: tp.Conf, Name: "client." + tp.User})
	})
	t.Run("CEPH_ARGS", func(t *testing.T) {
		t.Setenv("CEPH_CONF", "/nonexistent")
		t.Setenv("CEPH_ARGS", "--conf="+tp.Conf+" --id "+tp.User+" --keyring "+tp.Keyring)
		connects(t, Config{})
	})
	t.Run("flag over CEPH_ARGS", func(t *testing.T) {
		t.Setenv("CEPH_ARGS", "-c /nonexistent -n client.nobody -k /nonexistent -m 127.0.0.1:1")
		connects(t, Config{ConfFile: tp.Conf, ID: tp.User, Keyring: tp.Keyring, MonHost: monHost(t, tp.Conf)})
	})
}

func monHost(t *testing.T, conf string) string {
	t.Helper()
	content, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if name, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(name) == "mon host" {
			return strings.TrimSpace(value)
		}
	}
	t.Fatal("no mon host in ", conf)
	return ""
}

func TestParseEarly(t *testing.T) {
	for args, want := range map[string]Config{
		"":                                 {},
		"--id a --id=b":                    {Name: "client.b"},
		"-n client.x --cluster c":          {Name: "client.x", Cluster: "c"},
		"--debug-rbd 20 -c /f --user u":    {ConfFile: "/f", Name: "client.u"},
		"--conf":                           {},
		"-k keyring -- --id a":             {},
		"--keyring=--id --name=client.y -": {Name: "client.y"},
	} {
		if got := parseEarly(args); got != want {
			t.Errorf("%q: %+v, want %+v", args, got, want)
		}
	}
}
