package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// canTrace skips a test where strace is missing or may not trace.
func canTrace(t *testing.T) {
	t.Helper()
	needs(t, "strace")
	if out, err := exec.CommandContext(t.Context(), "strace", "-qq", "-o", os.DevNull, "true").CombinedOutput(); err != nil {
		if os.Getenv("RELAYD_E2E") == "full" {
			t.Fatalf("strace cannot trace, and RELAYD_E2E=full asks for it: %s", out)
		}
		t.Skipf("strace cannot trace here: %s", out)
	}
}

// inject attaches strace to the running daemon; rules are its -e arguments. stop detaches it and returns what it saw.
func (r *relay) inject(rules ...string) (stop func() string) {
	r.t.Helper()
	file := filepath.Join(r.t.TempDir(), "strace")
	args := []string{"-f", "-s", "256", "-o", file, "-p", itoa(r.cmd.Process.Pid)}
	for _, rule := range rules {
		args = append(args, "-e", rule)
	}
	cmd := exec.Command("strace", args...)
	var mu sync.Mutex
	said := &bytes.Buffer{}
	cmd.Stderr = lockedWriter{&mu, said}
	require.NoError(r.t, cmd.Start())
	end := make(chan struct{})
	go func() { _ = cmd.Wait(); close(end) }()
	wait(r.t, "strace to attach", 20*time.Second, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.Contains(said.String(), " attached")
	})
	var once sync.Once
	stop = func() string {
		once.Do(func() {
			_ = cmd.Process.Signal(syscall.SIGINT)
			<-end
		})
		text, err := os.ReadFile(file)
		require.NoError(r.t, err)
		return string(text)
	}
	r.t.Cleanup(func() { stop() })
	return stop
}

// traced is a wrapper that starts the daemon under strace, which writes to file. The daemon stays the child.
func traced(file string, rules ...string) []string {
	args := []string{"strace", "-D", "-f", "-q", "-s", "256", "-o", file}
	for _, rule := range rules {
		args = append(args, "-e", rule)
	}
	return args
}

// injected counts the faults in the output of strace.
func injected(text string) int { return strings.Count(text, "(INJECTED)") }

// receivedReply is the reply that names a queue ID.
var receivedReply = regexp.MustCompile(`write\(\d+(?:<[^>]*>)?, "250 2\.0\.0 .*\b[0-9a-z]{20}\b`)

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(text)
}
