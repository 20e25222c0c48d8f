package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

// httpStatus asks the admin listener.
func httpStatus(t *testing.T, r *relay, path string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+itoa(r.http)+path, http.NoBody)
	require.NoError(t, err)
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return 0
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// post submits a letter by HTTP and returns the status.
func (b *ledger) post(r *relay, to string) int {
	le, text := b.draft([]string{to}, 2000)
	c := r.client()
	defer c.Close()
	out, err := c.SendMessage(b.t.Context(), api.SendMessage{From: api.Mailbox{Email: "news@shop.example"}, To: api.Mailboxes{{Email: to}}, Raw: text}, "")
	if err == nil {
		b.booked(le, accepted, "", out.ID)
		return http.StatusAccepted
	}
	b.booked(le, refused, err.Error(), "")
	if p, ok := err.(*api.Problem); ok { //nolint:errorlint // it is what it is
		return p.Status
	}
	return 0
}

// openAgain makes what was refused unknown: a commit whose sync failed may be on disk all the same.
func (b *ledger) openAgain() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, le := range b.letters {
		if le.fate == refused {
			le.fate = unknown
		}
	}
}

// TestFaultOfSync lets fdatasync fail with EIO, the Nth after a moment. relayd must not say yes any more, to nobody, and
// must say that it does not.
func TestFaultOfSync(t *testing.T) {
	t.Parallel()
	canTrace(t)
	b, _, r, l := crashRelay(t, options{level: "info"})
	faults := 0
	for n := 1; n <= repeats(t, "RELAYD_E2E_FAULTS", 4); n++ {
		stop := r.inject("trace=fdatasync", fmt.Sprintf("inject=fdatasync:error=EIO:when=%d", n))
		failed := false
		for i := 0; i < 60 && !failed; i++ {
			failed = b.one(r, l, 2000, fmt.Sprintf("sync-%d-%d@d0.example", n, i), fmt.Sprintf("gone-%d-%d@d0.example", n, i)) != accepted
		}
		require.True(t, failed, "no fault was met")
		faults += injected(stop())
		require.NotEqual(t, accepted, b.one(r, l, 2000, fmt.Sprintf("after-%d@d0.example", n)), "it carries on as if the data were safe")
		require.Equal(t, http.StatusServiceUnavailable, b.post(r, fmt.Sprintf("http-%d@d0.example", n)))
		require.Equal(t, http.StatusServiceUnavailable, httpStatus(t, r, "/readyz"))
		wait(t, "the error in the log", 5*time.Second, func() bool {
			return strings.Contains(r.logText(), `"level":"ERROR","msg":"storage.failed"`)
		})
		for _, le := range b.letters {
			require.True(t, le.fate != refused || strings.HasPrefix(le.reply, "4") || strings.Contains(le.reply, "unexpected reply 4") || strings.HasPrefix(le.reply, "storage_unavailable"), le.reply)
		}
		b.openAgain()
		r.stop()
		require.True(t, r.ended())
		r.start()
		require.Equal(t, http.StatusOK, httpStatus(t, r, "/readyz"))
	}
	r.settled(60 * time.Second)
	t.Logf("%d faults of fdatasync: %s", faults, b.audit(r))
}

// temporary is what a client may be told while the disk is full.
var temporary = regexp.MustCompile(`^45[12] |unexpected reply 45[12] |^storage_unavailable`)

// TestFaultOfWrite lets writes to the journal and to the store file, and the growth of that, fail for want of space. Once
// may be mended unseen: the journal has another file, and the store file is written later. (strace counts by thread, so that
// a second one may follow at once.) Several times, the client gets a temporary refusal, nothing of its message is ever seen,
// and the next message is accepted without a restart.
func TestFaultOfWrite(t *testing.T) {
	t.Parallel()
	canTrace(t)
	b, _, r, l := crashRelay(t, options{level: "info"})
	faults, refusals := 0, 0
	for _, fault := range []struct{ call, until string }{{"pwritev", ""}, {"pwritev", "..%d"}, {"pwrite64", ""}, {"ftruncate", ""}} {
		call := fault.call
		for n := 1; n <= repeats(t, "RELAYD_E2E_FAULTS", 4); n++ {
			if call == "ftruncate" && n > 2 {
				break
			}
			size := 2000
			if call == "ftruncate" {
				size = 1_500_000
			}
			when := itoa(n)
			if fault.until != "" {
				when += fmt.Sprintf(fault.until, n+9)
			}
			before := len(r.logText())
			stop := r.inject("trace="+call, fmt.Sprintf("inject=%s:error=ENOSPC:when=%s", call, when))
			when = strings.ReplaceAll(when, "..", "-to-") // it goes into addresses
			for i := range 6 {
				f := b.one(r, l, size, fmt.Sprintf("%s-%s-%d@d0.example", call, when, i), fmt.Sprintf("gone-%s-%s-%d@d0.example", call, when, i))
				if f != accepted {
					refusals++
				}
				require.NotEqual(t, unknown, f)
			}
			faults += injected(stop())
			tries, left := 0, false
			wait(t, "mail to be accepted again", 60*time.Second, func() bool {
				if !left && strings.Contains(r.logText()[before:], syscall.ENOSYS.Error()) { // strace left between a call and its fault
					left = true
					r.stop()
					r.start()
				}
				tries++
				return b.one(r, l, 2000, fmt.Sprintf("then-%s-%s-%d@d0.example", call, when, tries)) == accepted
			})
			require.Equal(t, http.StatusAccepted, b.post(r, fmt.Sprintf("http-%s-%s@d0.example", call, when)))
		}
	}
	wait(t, "readiness", 15*time.Second, func() bool { return httpStatus(t, r, "/readyz") == http.StatusOK })
	r.settled(60 * time.Second)
	r.kill()
	r.start()
	require.Zero(t, r.settled(60*time.Second).Queued)
	for _, le := range b.letters {
		require.True(t, le.fate != refused || temporary.MatchString(le.reply), le.reply)
	}
	c := b.audit(r)
	t.Logf("%d faults of writing, %d refusals: %s", faults, refusals, c)
	require.Positive(t, refusals)
	require.Zero(t, c.duplicates)
}

// TestFaultAtStart lets the storage fail while a new spool is made and opened.
func TestFaultAtStart(t *testing.T) {
	t.Parallel()
	canTrace(t)
	r := newRelay(t, options{mxPort: freePort(t), level: "info"})
	r.stop()
	refusedStart := 0
	for _, fault := range []string{"fdatasync:error=EIO", "fsync:error=EIO", "pwrite64:error=ENOSPC", "pwrite64:error=EIO", "pwritev:error=ENOSPC", "pwritev:error=EIO", "ftruncate:error=ENOSPC", "link:error=ENOSPC", "linkat:error=ENOSPC"} {
		for n := 1; n <= 3; n++ {
			call, _, _ := strings.Cut(fault, ":")
			require.NoError(t, removeAll(r.data))
			r.wrap = traced(filepath.Join(t.TempDir(), "strace"), "trace="+call, fmt.Sprintf("inject=%s:when=%d", fault, n))
			r.launch()
			if r.runs(t, fault) {
				r.stop()
			} else {
				refusedStart++
				require.Equal(t, 1, r.cmd.ProcessState.ExitCode(), "%s: %s", fault, r.logText())
			}
			require.NotRegexp(t, trace, r.logText())
			r.wrap = nil
			r.start() // what the fault has left behind is no obstacle
			r.stop()
		}
	}
	t.Logf("%d starts refused", refusedStart)
	require.Positive(t, refusedStart)
}

// TestFaultOfDescriptors: no free file descriptor is left. Accepting does not spin, and goes on when there are some.
func TestFaultOfDescriptors(t *testing.T) {
	t.Parallel()
	needs(t, "prlimit")
	b, _, r, l := crashRelay(t, options{level: "info", wrap: []string{"prlimit", "--nofile=64:64"}})
	require.Equal(t, accepted, b.one(r, l, 2000, "before@d0.example"))
	r.settled(30 * time.Second)
	var conns []net.Conn
	for range 120 {
		if c, err := net.DialTimeout("tcp", "127.0.0.1:"+itoa(r.plain), time.Second); err == nil {
			conns = append(conns, c)
		}
	}
	<-time.After(500 * time.Millisecond)
	before, began := cpu(t, r), time.Now()
	<-time.After(2 * time.Second)
	used, took := cpu(t, r)-before, time.Since(began)
	require.Less(t, used, took/5, "of %v", took)
	for _, c := range conns {
		_ = c.Close()
	}
	wait(t, "the next message", 30*time.Second, func() bool { return r.trySubmit(l, "after@d0.example") == nil })
	r.settled(30 * time.Second)
	t.Logf("%v CPU in %v without descriptors", used, took)
}
