package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// limited is a wrapper that runs the daemon in a control group with at most limit bytes of memory, page cache included;
// nil where control groups cannot be made.
func limited(t *testing.T, limit int) []string {
	t.Helper()
	for _, c := range []struct{ root, file string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"},
	} {
		dir := filepath.Join(c.root, "relayd-e2e-"+itoa(os.Getpid()))
		if os.Mkdir(dir, 0o700) != nil {
			continue
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		if os.WriteFile(filepath.Join(dir, c.file), []byte(itoa(limit)), 0o600) == nil {
			return []string{"sh", "-c", `echo $$ > ` + dir + `/cgroup.procs && exec "$@"`, "sh"}
		}
	}
	t.Log("no control group can be made: the limit is not set, only measured")
	return nil
}

// TestMemoryOfABacklog starts relayd in 256 MB of memory on a store with many queued envelopes.
func TestMemoryOfABacklog(t *testing.T) {
	t.Parallel()
	queued := repeats(t, "RELAYD_E2E_BACKLOG", 50_000)
	b := newLedger(t)
	r := newRelay(t, options{domains: ledgerDomains, mxPort: b.sink().port, level: "info"})
	l := r.domain("shop.example")
	r.stop()
	fill(t, filepath.Join(r.data, "relayd.db"), queued)
	r.wrap = limited(t, 256<<20)
	r.launch()
	r.ready()
	require.Equal(t, accepted, b.one(r, l, 3000, "first@d0.example"))
	first := cpu(t, r)
	r.timed(t, 2*time.Second, "queue", "stats")
	r.timed(t, 2*time.Second, "queue", "list", "domain=far7.example")
	wait(t, "the new message, in front of the backlog", 30*time.Second, func() bool { return b.deliveries() == 1 })
	require.Equal(t, queued, r.stats().Queued)
	status := readFile(t, fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	anon := regexp.MustCompile(`RssAnon:\s+(\d+) kB`).FindStringSubmatch(status)
	require.Len(t, anon, 2)
	kb, err := strconv.Atoi(anon[1])
	require.NoError(t, err)
	info, err := os.Stat(filepath.Join(r.data, "relayd.db"))
	require.NoError(t, err)
	t.Logf("%d queued: file %d MB, first accept after %v of processor time, RssAnon %d MB", queued, info.Size()>>20, first, kb>>10)
	r.stop() // before its control group goes
	require.Less(t, first, 10*time.Second)
	require.Less(t, kb, 200<<10)
}

// timed runs relayctl, which must succeed and cost the daemon at most that much processor time.
func (r *relay) timed(t *testing.T, most time.Duration, args ...string) {
	t.Helper()
	began := cpu(t, r)
	r.json(nil, args...)
	took := cpu(t, r) - began
	t.Logf("relayctl %s: %v", strings.Join(args, " "), took)
	require.Less(t, took, most)
}

// fill puts envelopes that are due tomorrow into the store, a thousand a message.
func fill(t *testing.T, file string, count int) {
	t.Helper()
	db, err := kv.OpenBolt(file, kv.BoltOptions{})
	require.NoError(t, err)
	events, err := event.Open(db, nil)
	require.NoError(t, err)
	store, err := spool.Open(t.Context(), db, events, spool.DefaultConfig())
	require.NoError(t, err)
	body := []byte(strings.Repeat("x\r\n", 500))
	for left := count; left > 0; left -= 1000 {
		now := time.Now()
		m := &spool.Message{
			ID: mail.NewQueueID(now), Account: "default", Stream: "news", Class: spool.Bulk, AcceptedAt: now, ExpiresAt: now.Add(72 * time.Hour),
			ReversePath: mail.MustParsePath("news@shop.example"), Header: []byte("From: news@shop.example\r\n"), Size: int64(len(body)),
		}
		envs := make([]*spool.Envelope, min(left, 1000))
		for i := range envs {
			domain := fmt.Sprintf("far%d.example", i%50)
			envs[i] = &spool.Envelope{
				ID: mail.EnvelopeID{Message: m.ID, N: uint64(i)}, Class: spool.Bulk, NextAttempt: now.Add(24 * time.Hour), //nolint:gosec // small
				Queue: spool.Queue{Account: "default", Stream: "news", Domain: domain}, To: mail.MustParsePath(fmt.Sprintf("user%d@%s", left-i, domain)),
			}
		}
		require.NoError(t, db.Update(t.Context(), func(tx kv.Tx) error { return store.PutTx(tx, m, body, envs, nil) }))
	}
	require.NoError(t, db.Close())
}

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
	d := newDisk(t, 256<<20)
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
		retry: "attempts = 1000\nfirst_delay = \"2s\"\nmultiplier = 1.0\nmax_age = \"99h\"",
	})
	l := r.domain("shop.example")
	ballast := filepath.Join(d.mnt, "ballast")
	require.NoError(t, os.WriteFile(ballast, make([]byte, 160<<20), 0o600))
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
	require.Equal(t, 5, refusals["452"])
	require.Equal(t, 503, httpStatus(t, r, "/readyz"))
	require.Contains(t, []int{503, 507}, b.post(r, "http@d0.example"))

	busy.Store(false)
	wait(t, "deliveries on a full disk", 60*time.Second, func() bool { return b.deliveries() > 0 })
	r.settled(120 * time.Second)
	require.Equal(t, taken, b.deliveries())
	require.NotContains(t, r.logText(), `"settle.failed"`, "deliveries never met the full disk")
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
