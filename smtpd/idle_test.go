package smtpd

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const idleChild = "RELAYD_SMTPD_IDLE_CHILD"

// TestIdleChild is the server of TestB8_5000IdleConnections, in a process of its own. It answers each line of its input
// with its resident memory in KiB.
func TestIdleChild(t *testing.T) {
	if os.Getenv(idleChild) == "" {
		t.Skip("runs as a child")
	}
	f := start(t, func(c *Config) { c.MaxConnections, c.MaxConnectionsPerIP, c.StressPercent = 10_000, 10_000, 100 })
	fmt.Println("addr", f.Addr(plain))
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		status, err := os.ReadFile("/proc/self/status")
		require.NoError(t, err)
		for line := range strings.SplitSeq(string(status), "\n") {
			if rss, found := strings.CutPrefix(line, "VmRSS:"); found {
				fmt.Println("rss", strings.Fields(rss)[0])
			}
		}
	}
}

// TestB8_5000IdleConnections cost less than 150 MB in all, and do not keep a client from being served.
func TestB8_5000IdleConnections(t *testing.T) {
	const sessions = 5000
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil || files.Cur < sessions+500 || testing.Short() {
		t.Skip("needs 5,500 open files")
	}
	if _, err := os.Stat("/proc/self/status"); err != nil || raceDetector {
		t.Skip("needs /proc, and the program as it is")
	}
	child := exec.Command(os.Args[0], "-test.run=^TestIdleChild$", "-test.timeout=10m") //nolint:gosec,noctx // itself
	child.Env = append(os.Environ(), idleChild+"=1")
	in, err := child.StdinPipe()
	require.NoError(t, err)
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = child.Wait()
	})
	answers := bufio.NewScanner(out)
	word := func(name string) string {
		for answers.Scan() {
			if s, found := strings.CutPrefix(answers.Text(), name+" "); found {
				return s
			}
		}
		t.Fatal("child ended")
		return ""
	}
	addr := word("addr")
	rss := func() int {
		_, err := in.Write([]byte("rss\n"))
		require.NoError(t, err)
		n, err := strconv.Atoi(word("rss"))
		require.NoError(t, err)
		return n
	}
	banner := make([]byte, 128)
	for range sessions {
		conn, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
		_, err = conn.Read(banner)
		require.NoError(t, err)
	}
	used := rss()
	t.Logf("%d idle sessions: %d KiB resident", sessions, used)
	require.Less(t, used, 150<<10)

	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	c := &client{t: t, Conn: conn, r: bufio.NewReader(conn)}
	c.readyPiped()
	c.transaction()
	c.cmd("x\r\n.", "250")
}
