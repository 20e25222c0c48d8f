package e2e

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestKilledInCompaction kills `relayd spool compact` at every kind of call that it makes. What is left is the old store
// or the new one, whole.
func TestKilledInCompaction(t *testing.T) {
	t.Parallel()
	canTrace(t)
	r := newRelay(t, options{mxPort: freePort(t), level: "info"})
	r.stop()
	const queued = 3000
	store := filepath.Join(r.data, "relayd.db")
	conf := filepath.Join(r.dir, "relayd.toml")
	fill(t, store, queued)
	killed, through := 0, 0
	for _, call := range []string{"pwrite64", "fdatasync", "fsync", "ftruncate", "rename", "renameat", "unlinkat"} {
		for _, n := range []int{1, 2, 5, 20} {
			cmd := exec.CommandContext(t.Context(), "strace", "-f", "-qq", "-o", os.DevNull, "-e", "trace="+call, "-e",
				fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", call, n), filepath.Join(binDir, "relayd"), "spool", "compact", "--config", conf)
			if out, err := cmd.CombinedOutput(); err != nil {
				require.NotContains(t, string(out), "goroutine ")
				killed++
			} else {
				through++
			}
			out, stderr, code := r.tool("relayd", "spool", "check", "--config", conf)
			require.Zero(t, code, "after %s %d: %s%s", call, n, out, stderr)
		}
	}
	_, stderr, code := r.tool("relayd", "spool", "compact", "--config", conf)
	require.Zero(t, code, stderr)
	left, err := filepath.Glob(filepath.Join(r.data, ".relayd.db.*"))
	require.NoError(t, err)
	require.Empty(t, left, "the next compaction clears up")
	r.start()
	require.Equal(t, queued, r.stats().Queued)
	t.Logf("%d compactions killed, %d went through", killed, through)
	require.Greater(t, killed, 4)
}

// TestKilledInBackup kills relayd while a backup runs under load: no half backup gets the name, the relay goes on.
// A backup that went through is then restored in place of everything: what was queued is delivered.
func TestKilledInBackup(t *testing.T) {
	t.Parallel()
	b, s, r, l := crashRelay(t, options{
		level: "info", retry: "attempts = 20\nfirst_delay = \"1s\"\nmultiplier = 1.0\nmax_age = \"99h\"",
	})
	r.stop()
	fill(t, filepath.Join(r.data, "relayd.db"), 20_000) // due tomorrow
	r.start()
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	b.submitters(ctx, &load, r, l, 2, math.MaxInt)
	file := filepath.Join(r.dir, "backup.tar")
	whole := 0
	for range repeats(t, "RELAYD_E2E_POINTS", 4) {
		done := make(chan int, 1)
		go func() { _, _, code := r.ctl("backup", file); done <- code }()
		<-time.After(time.Duration(10+rand.IntN(150)) * time.Millisecond) //nolint:gosec // a test
		r.kill()
		if code := <-done; code == 0 {
			whole++
			require.NoError(t, os.Remove(file))
		} else {
			require.NoFileExists(t, file)
		}
		r.start()
	}
	cancel()
	load.Wait()
	left := func() bool { return r.stats().Queued == 20_000 }
	wait(t, "all but what is due tomorrow", 60*time.Second, left)

	var closed atomic.Bool
	closed.Store(true)
	rcpt := s.onRcpt
	s.onRcpt = func(from, to string) error {
		if closed.Load() {
			return reply(451, 4, 2, 0, "Not now")
		}
		return rcpt(from, to)
	}
	for i := range 30 {
		require.Equal(t, accepted, b.one(r, l, 2000+20_000*(i%3), fmt.Sprintf("saved-%d@d%d.example", i, i%5)))
	}
	_, stderr, code := r.ctl("backup", file)
	require.Zero(t, code, stderr)
	r.kill()
	require.NoError(t, os.RemoveAll(r.data))
	_, stderr, code = r.tool("relayd", "restore", "--config", filepath.Join(r.dir, "relayd.toml"), file)
	require.Zero(t, code, stderr)
	closed.Store(false)
	r.start()
	wait(t, "the restored mail", 60*time.Second, left)
	t.Logf("%d backups went through before the kill; %s", whole, b.audit(r))
}
