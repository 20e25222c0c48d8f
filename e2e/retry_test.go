package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/testutil"
)

// stats is what `queue stats` promises to scripts.
type stats struct {
	Queued, Ready, Deferred, Held, Leased, Accepted int

	InDoubt  int `json:"in_doubt"`
	Outcomes map[string]int
}

func (r *relay) stats() stats {
	r.t.Helper()
	var s stats
	r.json(&s, "queue", "stats")
	return s
}

// settled waits until nothing is queued.
func (r *relay) settled(most time.Duration) stats {
	r.t.Helper()
	var s stats
	wait(r.t, "an empty queue", most, func() bool { s = r.stats(); return s.Queued == 0 })
	return s
}

func TestTemporaryRefusalThenSecondAttempt(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	var mu sync.Mutex
	tries := 0
	s.onRcpt = func(string, string) error {
		mu.Lock()
		defer mu.Unlock()
		if tries++; tries == 1 {
			return reply(451, 4, 2, 0, "Mailbox busy")
		}
		return nil
	}
	r := newRelay(t, options{mxPort: s.port})
	r.mx("dest.example")
	r.submit(r.domain("shop.example"), "news@shop.example", []string{"ann@dest.example"}, plain("news@shop.example", "ann@dest.example", "again"))
	wait(t, "the second attempt", 20*time.Second, func() bool { return s.count() == 1 })
	require.Equal(t, 1, r.settled(10 * time.Second).Outcomes["delivered"])
	require.Equal(t, 2, s.rcpts())
}

func TestPermanentRefusalGivesDSNAndNoRetry(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	s.onRcpt = func(_, to string) error {
		if strings.HasPrefix(to, "gone@") {
			return reply(550, 5, 1, 1, "No such user here")
		}
		return nil
	}
	r := newRelay(t, options{mxPort: s.port})
	r.mx("dest.example", "shop.example")
	l := r.domain("shop.example")
	r.submit(l, "news@shop.example", []string{"ann@dest.example", "gone@dest.example"}, plain("news@shop.example", "ann@dest.example", "one of two"))
	wait(t, "the message and its DSN", 20*time.Second, func() bool { return s.count() == 2 })
	out := r.settled(10 * time.Second).Outcomes
	require.Equal(t, 2, out["delivered"], "the other recipient and the DSN")
	require.Equal(t, 1, out["bounced"])
	require.Equal(t, 3, s.rcpts(), "no second try")

	var dsn delivery
	for _, d := range s.all() {
		if d.To == "news@shop.example" {
			dsn = d
		}
	}
	text := string(dsn.Data)
	require.Empty(t, dsn.From, "the null reverse-path")
	require.Contains(t, text, "multipart/report")
	require.Contains(t, text, "Final-Recipient: rfc822;")
	require.Contains(t, text, "gone@dest.example")
	require.Contains(t, text, "Status: 5.1.1")
	require.Contains(t, text, "No such user here")
	require.Contains(t, text, "Auto-Submitted: auto-replied")
	require.Contains(t, text, "one of two", "the header of the original")

	t.Run("the_address_is_suppressed", func(t *testing.T) {
		out, _, _ := r.ctl("suppression", "check", "gone@dest.example")
		require.Contains(t, out, "hard_bounce")
		before := s.rcpts()
		r.submit(l, "news@shop.example", []string{"gone@dest.example"}, plain("news@shop.example", "gone@dest.example", "again"))
		require.Equal(t, 1, r.settled(10 * time.Second).Outcomes["suppressed"])
		require.Equal(t, before, s.rcpts())
	})
}

func TestDSNThatBouncesIsNotAnswered(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	s.onRcpt = func(string, string) error { return reply(550, 5, 1, 1, "No such user here") }
	r := newRelay(t, options{mxPort: s.port})
	r.mx("dest.example", "shop.example")
	r.submit(r.domain("shop.example"), "news@shop.example", []string{"gone@dest.example"}, plain("news@shop.example", "gone@dest.example", "x"))
	wait(t, "both bounces", 20*time.Second, func() bool { return r.stats().Outcomes["bounced"] == 2 })
	require.Zero(t, r.settled(10*time.Second).Queued)
	require.Zero(t, s.count())
	require.Equal(t, 2, s.rcpts(), "no DSN for the DSN")
}

// TestNamedPolicies: how often a message is tried is said by the policy of its stream's name, then by that of its class, then by
// the default; the outcome tells the number of attempts and the last reply.
func TestNamedPolicies(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
		if s.Verb == "RCPT" {
			return testutil.Act{Reply: fmt.Sprintf("451 4.2.0 busy, said %d", s.Seen)}
		}
		return testutil.Act{}
	}}).Start(t)
	r := newRelay(t, options{
		mxPort: mx.PortNumber(), domains: []string{"dest.example"}, retry: "attempts = 3\nfirst_delay = \"100ms\"\nmultiplier = 1.0\nmax_age = \"5m\"",
		extra: "[retry.codes]\nattempts = 2\nfirst_delay = \"100ms\"\nmultiplier = 1.0\nmax_age = \"5m\"\n" +
			"[retry.transactional]\nattempts = 4\nfirst_delay = \"100ms\"\nmultiplier = 1.0\nmax_age = \"5m\"\n",
	})
	r.domain("shop.example")
	r.until(r.handInTo("codes", "stream@dest.example"), "expired")
	r.until(r.handInTo("receipts", "class@dest.example"), "expired")
	c := r.campaign(short(true, "default@dest.example"))
	wait(t, "the end of the campaign", 30*time.Second, func() bool { return r.progress(c).Counts["expired"] == 1 })

	said, last := map[string]int{}, map[string]string{}
	n := 0
	for _, command := range mx.Commands() {
		if to, ok := strings.CutPrefix(command, "RCPT TO:<"); ok {
			to, _, _ = strings.Cut(to, ">")
			said[to]++
			last[to] = fmt.Sprintf("451 4.2.0 busy, said %d", n)
			n++
		}
	}
	require.Equal(t, map[string]int{"stream@dest.example": 2, "class@dest.example": 4, "default@dest.example": 3}, said)
	for to, attempts := range said {
		var page api.Page[api.QueueItem]
		r.json(&page, "queue", "history", "to="+to)
		require.Len(t, page.Data, 1)
		require.Equal(t, "expired", page.Data[0].State)
		require.Equal(t, "attempts_exhausted", page.Data[0].Reason)
		require.Equal(t, attempts, page.Data[0].Attempts)
		require.Equal(t, last[to], page.Data[0].LastReply.String())
		out, _, code := r.ctl("queue", "history", "to="+to)
		require.Zero(t, code)
		require.Contains(t, out, last[to])
	}
}

func TestGreylistingPasses(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	open := time.Now().Add(1500 * time.Millisecond)
	s.onRcpt = func(string, string) error {
		if time.Now().Before(open) {
			return reply(450, 4, 2, 0, "Greylisted, try again in 1 second")
		}
		return nil
	}
	r := newRelay(t, options{mxPort: s.port, retry: "attempts = 3\nfirst_delay = \"1s\"\nmultiplier = 2.0\nmax_age = \"5m\""})
	r.mx("dest.example")
	r.submit(r.domain("shop.example"), "news@shop.example", []string{"ann@dest.example"}, plain("news@shop.example", "ann@dest.example", "grey"))
	wait(t, "the mail behind the greylist", 30*time.Second, func() bool { return s.count() == 1 })
}

func TestDeadHostCostsNoAttempt(t *testing.T) {
	t.Parallel()
	port := freePort(t) // nobody listens
	r := newRelay(t, options{mxPort: port, retry: "attempts = 1\nfirst_delay = \"1s\"\nmultiplier = 1.0\nmax_age = \"5m\"", deliv: "connect_tries = 1"})
	r.mx("dest.example")
	r.submit(r.domain("shop.example"), "news@shop.example", []string{"ann@dest.example"}, plain("news@shop.example", "ann@dest.example", "dead"))
	wait(t, "several suspensions", 20*time.Second, func() bool { return strings.Count(r.logText(), `"site.suspended"`) >= 2 })
	st := r.stats()
	require.Equal(t, 1, st.Queued, "one attempt is allowed, and none was spent")
}

func TestSmarthostWithAuth(t *testing.T) {
	t.Parallel()
	ca := &relay{t: t, dir: t.TempDir()}
	cert := ca.certificate()
	s := newSink(t, cert, map[string]string{"relay": "s3cret"})
	pw := t.TempDir() + "/pw"
	writeFile(t, pw, "s3cret\n")
	r := newRelay(t, options{deliv: `route = "upstream"`, mxPort: 25, env: []string{"SSL_CERT_FILE=" + cert}, extra: "[[delivery.smarthost]]\nname = \"upstream\"\naddress = \"localhost:" +
		itoa(s.port) + "\"\nusername = \"relay\"\npassword_file = \"" + pw + "\"\n"})
	r.submit(r.domain("shop.example"), "news@shop.example", []string{"ann@a.example", "bob@b.example"}, plain("news@shop.example", "ann@a.example", "up"))
	wait(t, "both copies", 20*time.Second, func() bool { return s.count() == 2 })
	for _, d := range s.all() {
		require.True(t, d.TLS)
		require.Equal(t, "relay", d.User)
		require.Equal(t, 2, r.verify(d.Data))
	}
}

func TestSmarthostRefusingPasswordBouncesNothing(t *testing.T) {
	t.Parallel()
	ca := &relay{t: t, dir: t.TempDir()}
	cert := ca.certificate()
	s := newSink(t, cert, map[string]string{"relay": "another"})
	pw := t.TempDir() + "/pw"
	writeFile(t, pw, "wrong\n")
	r := newRelay(t, options{deliv: `route = "upstream"`, mxPort: 25, env: []string{"SSL_CERT_FILE=" + cert}, extra: "[[delivery.smarthost]]\nname = \"upstream\"\naddress = \"localhost:" +
		itoa(s.port) + "\"\nusername = \"relay\"\npassword_file = \"" + pw + "\"\n"})
	r.submit(r.domain("shop.example"), "news@shop.example", []string{"ann@a.example"}, plain("news@shop.example", "ann@a.example", "up"))
	wait(t, "the alarm", 20*time.Second, func() bool { return strings.Contains(r.logText(), `"level":"ERROR"`) })
	require.Equal(t, 1, r.stats().Queued)
	require.Zero(t, s.count())
}

func TestUntrustedSmarthostGetsNoPassword(t *testing.T) {
	t.Parallel()
	ca := &relay{t: t, dir: t.TempDir()}
	s := newSink(t, ca.certificate(), map[string]string{"relay": "s3cret"})
	pw := t.TempDir() + "/pw"
	writeFile(t, pw, "s3cret\n")
	r := newRelay(t, options{deliv: `route = "upstream"`, mxPort: 25, extra: "[[delivery.smarthost]]\nname = \"upstream\"\naddress = \"localhost:" +
		itoa(s.port) + "\"\nusername = \"relay\"\npassword_file = \"" + pw + "\"\n"})
	r.submit(r.domain("shop.example"), "news@shop.example", []string{"ann@a.example"}, plain("news@shop.example", "ann@a.example", "up"))
	wait(t, "the suspension", 20*time.Second, func() bool { return strings.Contains(r.logText(), `"site.suspended"`) })
	require.Equal(t, 1, r.stats().Queued)
	require.Zero(t, s.count())
}
