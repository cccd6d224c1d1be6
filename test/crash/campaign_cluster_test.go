package crash

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rbd2qcow2/rbd2qcow2/internal/cephtest"
	"github.com/rbd2qcow2/rbd2qcow2/internal/qemutest"
)

// campaignCluster is a cluster whose daemons may be killed: its OSD keeps its data on disk.
type campaignCluster struct {
	*cephtest.Cluster
	dir string
}

func startCampaignCluster(t *testing.T) *campaignCluster {
	cephtest.Require(t) // as other tests: only where there is to be a cluster
	c := &campaignCluster{dir: filepath.Join(t.TempDir(), "ceph")}
	script := filepath.Join("..", "..", "test", "cluster", "ceph-cluster")
	t.Cleanup(func() { qemutest.Run(t, script, "stop", c.dir) })
	qemutest.Run(t, script, "--store", "bluestore", "--size", "8G", "--fast", "start", c.dir)
	c.Cluster = &cephtest.Cluster{Conf: filepath.Join(c.dir, "ceph.conf")}
	c.FSID = strings.TrimSpace(string(c.Ceph(t, "fsid")))
	// The locks of killed clients go after five seconds instead of half a minute.
	c.Ceph(t, "config", "set", "osd", "osd_client_watch_timeout", "5")
	return c
}

func (c *campaignCluster) pidFile(daemon string) string {
	return filepath.Join(c.dir, "run", daemon+".pid")
}

// kill sends a signal to a daemon.
func (c *campaignCluster) kill(t *testing.T, daemon string, s syscall.Signal) {
	t.Helper()
	text, err := os.ReadFile(c.pidFile(daemon))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatalf("%s: %v", daemon, err)
	}
}

// restartOSD starts the OSD that was killed, and waits until it serves.
func (c *campaignCluster) restartOSD(t *testing.T) {
	t.Helper()
	c.Ceph(t, "osd", "down", "0", "--definitely-dead")
	log, err := os.OpenFile(filepath.Join(c.dir, "log", "osd.0.out"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("ceph-osd", "-i", "0", "-f", "-c", c.Conf)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }()
	if err := os.WriteFile(c.pidFile("osd.0"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.RBD(t, "ls") // answered by the OSD
}

// setQuota makes a pool full, or gives it room again, and waits until all know.
func (c *campaignCluster) setQuota(t *testing.T, pool string, full bool) {
	t.Helper()
	limit := "0"
	if full {
		limit = "1"
	}
	c.Ceph(t, "osd", "pool", "set-quota", pool, "max_bytes", limit)
	for end := time.Now().Add(time.Minute); ; {
		var pools []struct {
			Name  string `json:"pool_name"`
			Flags string `json:"flags_names"`
		}
		if err := json.Unmarshal(c.Ceph(t, "osd", "pool", "ls", "detail", "--format", "json"), &pools); err != nil {
			t.Fatal(err)
		}
		for _, p := range pools {
			if p.Name == pool && strings.Contains(p.Flags, "full_quota") == full {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("pool %s: full is not %v within a minute", pool, full)
		}
	}
}

// addressOf finds the address of a client that is connected.
func (c *campaignCluster) addressOf(user string) (string, error) {
	out, err := qemutest.Try("ceph", "--conf", c.Conf, "tell", "mon.a", "sessions")
	if err != nil {
		return "", err
	}
	var sessions []struct {
		Name       string `json:"entity_name"`
		SocketAddr struct {
			Addr  string `json:"addr"`
			Nonce uint64 `json:"nonce"`
		} `json:"socket_addr"`
		Addrs struct {
			Vector []struct {
				Addr  string `json:"addr"`
				Nonce uint64 `json:"nonce"`
			} `json:"addrvec"`
		} `json:"addrs"`
	}
	if err := json.Unmarshal(out, &sessions); err != nil {
		return "", err
	}
	for _, s := range sessions {
		if s.Name == "client."+user && len(s.Addrs.Vector) > 0 {
			host, _, _ := strings.Cut(s.Addrs.Vector[0].Addr, ":")
			return fmt.Sprintf("%s:0/%d", host, s.Addrs.Vector[0].Nonce), nil
		}
	}
	return "", nil
}
