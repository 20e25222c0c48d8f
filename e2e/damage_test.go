package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
)

var trace = regexp.MustCompile(`(?m)^(panic: |fatal error: |goroutine \d+ \[|unexpected fault address|SIG(SEGV|BUS))`)

// unopened is the named error: that of whoever reads the damaged record first.
var unopened = regexp.MustCompile(`(?m)^(open (spool|event log|accounts|contacts|quotas|campaigns)|set up delivery|open admin API: open secret of cursors): `)

// TestDamagedFile starts relayd on damaged stores. It ends with exit code 1 and a named error, or it runs and serves
// what can be read; it never shows a stack and never takes a damaged store for an empty queue.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	b := newLedger(t)
	s := b.sink()
	rcpt := s.onRcpt
	closed := true
	s.onRcpt = func(from, to string) error {
		if closed {
			return reply(451, 4, 2, 0, "Not now")
		}
		return rcpt(from, to)
	}
	r := newRelay(t, options{
		domains: ledgerDomains, mxPort: s.port, level: "info", deliv: "connect_tries = 1",
		retry: "attempts = 9\nfirst_delay = \"1h\"\nmultiplier = 1.0\nmax_age = \"99h\"",
	})
	l := r.domain("shop.example")
	const queued = 60
	for i := range queued {
		require.Equal(t, accepted, b.one(r, l, 3000+2000*(i%7), fmt.Sprintf("keep-%d@d%d.example", i, i%5)))
	}
	wait(t, "the deferrals", 30*time.Second, func() bool { return r.stats().Deferred == queued })
	r.stop()
	file := filepath.Join(r.data, "relayd.db")
	whole, err := os.ReadFile(file)
	require.NoError(t, err)
	size := len(whole)

	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 2)) //nolint:gosec // a test
	damages := map[string]func() []byte{
		"empty":   func() []byte { return nil },
		"text":    func() []byte { return []byte(strings.Repeat("this is no store\n", 9999)) },
		"zeros":   func() []byte { return make([]byte, size) },
		"no_meta": func() []byte { return append(make([]byte, 8192), whole[8192:]...) },
	}
	cut := func(n int) { damages[fmt.Sprintf("cut_to_%d", n)] = func() []byte { return whole[:n] } }
	for _, n := range []int{1, 4096, 8192, 8193, 16384, size / 2, size - 4096} {
		cut(n)
	}
	for i := range repeats(t, "RELAYD_E2E_FAULTS", 3) * 5 {
		damages[fmt.Sprintf("flipped_page_%d", i)] = func() []byte {
			c := append([]byte(nil), whole...)
			page := rnd.IntN(size / 4096)
			for j := range 4096 {
				c[page*4096+j] ^= 0xff
			}
			return c
		}
		damages[fmt.Sprintf("random_bytes_%d", i)] = func() []byte {
			c := append([]byte(nil), whole...)
			for range 1 + rnd.IntN(200) {
				c[rnd.IntN(size)] = byte(rnd.IntN(256))
			}
			return c
		}
	}
	refusedStart, ran := 0, 0
	for name, damage := range damages {
		require.NoError(t, os.WriteFile(file, damage(), 0o600))
		r.launch()
		running := r.runs(t, name)
		if running {
			ran++
			out, stderr, code := r.ctl("-o", "json", "queue", "stats")
			ready := httpStatus(t, r, "/readyz")
			if code == 0 && strings.Contains(out, `"queued":0,`) && ready == 200 {
				keepFailure(t, file, name)
				t.Errorf("%s: an empty queue, and ready: %s", name, out)
			}
			_, _, _ = r.ctl("-o", "json", "queue", "list")
			_ = r.trySubmit(l, "new@d0.example")
			_ = stderr
			r.stop()
		} else {
			refusedStart++
			if text := r.logText(); r.cmd.ProcessState.ExitCode() != 1 || !unopened.MatchString(text) ||
				strings.Contains(text, "runtime error") {
				t.Errorf("%s: exit code %d: %s", name, r.cmd.ProcessState.ExitCode(), text)
			}
		}
		if trace.MatchString(r.logText()) {
			keepFailure(t, file, name)
			t.Errorf("%s: a stack is shown:\n%s", name, tail(r.logText(), 3000))
		}
		require.NoError(t, os.RemoveAll(filepath.Join(r.data, "admin.sock")))
	}
	require.NoError(t, os.WriteFile(file, whole, 0o600))
	r.start()
	require.Equal(t, queued, r.stats().Queued, "the whole file is what it was")
	t.Logf("%d damaged files: %d refused at start, %d served", len(damages), refusedStart, ran)
}

// TestLostJournal takes away the journal of a relayd that was killed, or damages it: it must not start with less than it
// has acknowledged.
func TestLostJournal(t *testing.T) {
	t.Parallel()
	b := newLedger(t)
	r := newRelay(t, options{domains: ledgerDomains, mxPort: freePort(t), level: "info", deliv: "connect_tries = 1"})
	r.mx(ledgerDomains...)
	l := r.domain("shop.example")
	const queued = 20
	for i := range queued {
		require.Equal(t, accepted, b.one(r, l, 3000, fmt.Sprintf("keep-%d@d0.example", i)))
	}
	r.kill()
	names := kv.JournalNames(filepath.Join(r.data, "relayd.db"))
	refused := func(what string) {
		t.Helper()
		r.launch()
		require.False(t, r.runs(t, what), what)
		require.Equal(t, 1, r.cmd.ProcessState.ExitCode())
		require.Contains(t, r.logText(), "journal")
	}
	for _, name := range names {
		require.NoError(t, os.Rename(name, name+"~"))
		refused("a journal that is gone")
		require.NoError(t, os.Rename(name+"~", name))
	}
	require.NoError(t, os.Rename(filepath.Join(r.data, "relayd.db"), filepath.Join(r.data, "away")))
	refused("a journal without its store")
	require.NoError(t, os.Rename(filepath.Join(r.data, "away"), filepath.Join(r.data, "relayd.db")))
	r.start()
	require.Equal(t, queued, r.stats().Queued)
}

// runs waits until relayd serves, or has ended.
func (r *relay) runs(t *testing.T, what string) bool {
	t.Helper()
	running := false
	wait(t, "relayd to run or to end on "+what, 30*time.Second, func() bool {
		if r.ended() {
			return true
		}
		_, err := r.client().Version(t.Context())
		running = err == nil
		return running
	})
	return running
}

func keepFailure(t *testing.T, file, name string) {
	if dir := os.Getenv("RELAYD_E2E_KEEP"); dir != "" {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
}
