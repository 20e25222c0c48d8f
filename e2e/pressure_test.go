package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func removeAll(dir string) error { return os.RemoveAll(dir) }

// cpu is the processor time that the daemon has used.
func cpu(t *testing.T, r *relay) time.Duration {
	t.Helper()
	text := readFile(t, fmt.Sprintf("/proc/%d/stat", r.cmd.Process.Pid))
	fields := strings.Fields(text[strings.LastIndex(text, ")")+1:])
	sum := 0
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		require.NoError(t, err)
		sum += n
	}
	return time.Duration(sum) * 10 * time.Millisecond
}

// TestDiskFull fills a small disk. Submissions are refused for now, with the right codes; deliveries and removals go on;
// and mail is accepted again when there is space, without a restart.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	d := newDisk(t, 96<<20)
	b := newLedger(t)
	s := b.sink()
	var busy atomic.Bool
	busy.Store(true)
	rcpt := s.onRcpt
	s.onRcpt = func(from, to string) error {
		if busy.Load() {
			return reply(451, 4, 2, 0, "Not now")
		}
		return rcpt(from, to)
	}
	r := newRelay(t, options{
		domains: ledgerDomains, mxPort: s.port, data: filepath.Join(d.mnt, "data"), level: "info", deliv: "connect_tries = 1",
		retry: "attempts = 9\nfirst_delay = \"2s\"\nmultiplier = 1.0\nmax_age = \"99h\"",
	})
	l := r.domain("shop.example")
	ballast := filepath.Join(d.mnt, "ballast")
	require.NoError(t, os.WriteFile(ballast, make([]byte, 40<<20), 0o600))
	refusals := map[string]int{}
	taken := 0
	for i := 0; len(refusals) == 0 || refusals[""] < 5; i++ {
		require.Less(t, i, 500, "the disk never filled")
		le, text := b.draft([]string{fmt.Sprintf("full-%d@d%d.example", i, i%5)}, 200_000)
		c, err := r.open(l)
		require.NoError(t, err)
		if f := b.finish(c, le, text); f != accepted {
			require.Equal(t, refused, f)
			refusals[strings.TrimSpace(le.reply[max(0, strings.Index(le.reply, "4")):][:3])]++
			refusals[""]++
		} else {
			taken++
		}
		c.close()
	}
	t.Logf("%d letters of 200 KB until full, then %v", taken, refusals)
	require.Contains(t, []int{503, 507}, b.post(r, "http@d0.example"))

	busy.Store(false)
	wait(t, "deliveries on a full disk", 60*time.Second, func() bool { return b.deliveries() > 0 })
	r.settled(120 * time.Second)
	require.Equal(t, taken, b.deliveries())
	require.NoError(t, os.Remove(ballast))
	wait(t, "mail to be accepted again", 30*time.Second, func() bool {
		le, text := b.draft([]string{fmt.Sprintf("again-%d@d0.example", time.Now().UnixNano())}, 200_000)
		c, err := r.open(l)
		if err != nil {
			return false
		}
		defer c.close()
		return b.finish(c, le, text) == accepted
	})
	wait(t, "readiness", 15*time.Second, func() bool { return httpStatus(t, r, "/readyz") == 200 })
	r.settled(60 * time.Second)
	t.Logf("%s", b.audit(r))
}
