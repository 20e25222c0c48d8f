package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/testutil"
)

// This file shows the ways on which mail leaves (docs/configuration.md, "Which way mail goes").

// eximAuth are authenticators of Exim. LOGIN has the prompts of Exim's manual; a server may prompt as it likes.
var eximAuth = map[string]string{
	"LOGIN": "driver = plaintext\nserver_prompts = User Name : Password\n" +
		"server_condition = ${if and{{eq{$auth1}{relay}}{eq{$auth2}{s3cret}}}}",
	"CRAM-MD5": "driver = cram_md5\nserver_secret = ${if eq{$auth1}{relay}{s3cret}fail}",
}

// TestSmarthostWithAuthOfExim logs in at an Exim that offers one mechanism, and that under TLS only: first with a wrong password,
// which stops the route and bounces nothing, then with the right one.
func TestSmarthostWithAuthOfExim(t *testing.T) {
	t.Parallel()
	for mechanism, lines := range eximAuth {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			needsRoot(t, "Exim")
			dir := openDir(t)
			cert := (&relay{t: t, dir: dir}).certificate()
			certFile, keyFile := split(t, dir, cert)
			runProgram(t, "chown", "Debian-exim", certFile, keyFile)
			final := newSink(t, "", nil)
			port := exim{
				name: "up.example", main: "tls_advertise_hosts = *\ntls_certificate = " + certFile + "\ntls_privatekey = " + keyFile,
				rcpt: "accept authenticated = *\n  deny message = 5.7.1 Who are you", to: final.port,
				transport: "\nbegin authenticators\nonly:\n" + lines + "\npublic_name = " + mechanism +
					"\nserver_set_id = $auth1\nserver_advertise_condition = ${if def:tls_in_cipher}",
			}.start(t, dir)
			listens(t, "Exim", port)
			said := func() string {
				text, _ := os.ReadFile(filepath.Join(dir, "log", "mainlog"))
				return string(text)
			}

			pw := filepath.Join(t.TempDir(), "pw")
			writeFile(t, pw, "wrong\n")
			r := newRelay(t, options{mxPort: 25, deliv: `route = "up"`, env: []string{"SSL_CERT_FILE=" + cert}, extra: fmt.Sprintf(
				"[[delivery.smarthost]]\nname = \"up\"\naddress = \"localhost:%d\"\nusername = \"relay\"\npassword_file = %q\n", port, pw)})
			r.domain("shop.example")
			first := r.handIn("ann@a.example")
			alarm := r.record("route.auth_refused", "site", "up")
			require.Equal(t, "ERROR", alarm["level"])
			require.InDelta(t, 535, alarm["code"], 0)
			second := r.handIn("bob@b.example")
			e := r.deferred(t, first, 0)
			require.Equal(t, 535, e.LastReply.Code)
			require.Zero(t, e.Attempts)
			st := r.stats()
			require.Equal(t, 2, st.Queued)
			require.Empty(t, positive(st.Outcomes))
			require.Zero(t, final.count())
			wait(t, "Exim's word on the refusal", 20*time.Second, func() bool { return strings.Contains(said(), "535 Incorrect authentication data") })
			require.NotContains(t, said(), " <= ")

			writeFile(t, pw, "s3cret\n")
			require.NoError(t, r.cmd.Process.Signal(syscall.SIGHUP))
			r.record("configuration.loaded")
			for _, id := range []string{first, second} {
				e := r.until(id, "delivered")
				require.Equal(t, 1, e.Attempts)
				require.Equal(t, "TLS1.3", e.TLS)
			}
			wait(t, "both letters", 20*time.Second, func() bool { return final.count() == 2 })
			for line := range strings.Lines(said()) {
				if strings.Contains(line, " <= ") {
					require.Contains(t, line, " A=only:relay ", "it came with the password")
					require.Contains(t, line, " X=TLS1.3:", "and under TLS")
				}
			}
			require.NotContains(t, r.logText(), "s3cret")
		})
	}
}

// handInTo hands one message of a stream in over HTTP and returns its queue ID.
func (r *relay) handInTo(stream, to string) string {
	r.t.Helper()
	m, err := r.client().SendMessage(r.t.Context(), api.SendMessage{
		Stream: stream, From: api.Mailbox{Email: "news@shop.example"}, To: api.Mailboxes{{Email: to}}, Subject: "way", Text: "Hello.\n",
	}, "")
	require.NoError(r.t, err)
	return m.ID
}

// TestDiscardIsToldAndNothingIsSent: what a rule discards, by domain or by stream, is told as such, and no host and no name server
// hears of it.
func TestDiscardIsToldAndNothingIsSent(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{}).Start(t)
	r := newRelay(t, options{mxPort: mx.PortNumber(), domains: []string{"dest.example", "lab.example"}, extra: "[[delivery.rule]]\n" +
		"recipient_domains = [\"lab.example\"]\nroute = \"discard\"\n[[delivery.rule]]\nstreams = [\"drill\"]\nroute = \"discard\"\n"})
	r.domain("shop.example")
	for _, id := range []string{r.handInTo("codes", "ann@lab.example"), r.handInTo("drill", "ann@dest.example")} {
		e := r.until(id, "delivered")
		require.Equal(t, "discarded", e.Reason)
		require.Equal(t, "250 2.0.0 Discarded by a rule of this relay", e.LastReply.String())
		require.Zero(t, e.Attempts)
		require.Empty(t, e.LastHost)
		for _, args := range [][]string{{"queue", "show", id}, {"queue", "history", id}} {
			out, stderr, code := r.ctl(args...)
			require.Zero(t, code, stderr)
			require.Contains(t, out, "Discarded by a rule of this relay", "%v", args)
		}
		require.Equal(t, "discarded", r.record("attempt.delivered", "envelope", id)["reason"])
	}
	sent := r.handInTo("codes", "ann@dest.example") // were the others still to come they would come first
	require.Empty(t, r.until(sent, "delivered").Reason)
	all, _ := mx.Sessions()
	require.Equal(t, 1, all)
	require.Len(t, mx.Mails(), 1)
	require.Equal(t, map[string]int{"delivered": 3}, positive(r.stats().Outcomes))
}

// TestFallbackStandsInForASuspendedRoute: while the first route is suspended, by an operator or because its host is away, mail goes
// by the second one, and when that is over by the first one again.
func TestFallbackStandsInForASuspendedRoute(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	up := (&testutil.MX{Port: port}).Start(t)
	mx := (&testutil.MX{}).Start(t)
	r := newRelay(t, options{
		mxPort: mx.PortNumber(), domains: []string{"dest.example"}, deliv: "connect_tries = 1\nroute = \"up\"\nfallback = \"mx\"",
		extra: fmt.Sprintf("[[delivery.smarthost]]\nname = \"up\"\naddress = \"127.0.0.1:%d\"\ntls = \"none\"\n", port),
	})
	r.domain("shop.example")
	const first, second = "127.0.0.1[127.0.0.1]", "mx.dest.example[127.0.0.1]"
	way := func() string {
		t.Helper()
		e := r.until(r.handIn("ann@dest.example"), "delivered")
		require.Equal(t, 1, e.Attempts)
		return e.LastHost
	}
	require.Equal(t, first, way())

	r.json(nil, "site", "suspend", "up", "--reason", "moves house")
	require.Equal(t, second, way())
	require.Equal(t, second, way())
	r.json(nil, "site", "resume", "up")
	require.Equal(t, first, way())

	up.Close()
	require.Equal(t, second, way(), "the attempt that found the host away cost none")
	require.Equal(t, "unreachable", r.record("site.suspended", "site", "up")["reason"])
	(&testutil.MX{Port: port}).Start(t)
	wait(t, "the first route again", 30*time.Second, func() bool { return way() == first })
	r.record("site.resumed", "site", "up")
	require.Equal(t, first, way())
	require.Equal(t, []string{"delivered"}, slices.Collect(maps.Keys(positive(r.stats().Outcomes))))
}

// TestSourceIsWhatTheRuleChose: a host sees the address and the name of the source that a rule chose, by stream or for campaigns,
// and those of the system for the rest.
func TestSourceIsWhatTheRuleChose(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var peers []string                  // by session
	greetings := map[int]string{}       // by session
	seen := map[string]map[string]int{} // addresses and names by recipient
	mx := (&testutil.MX{
		Peer: func(c netip.AddrPort) {
			mu.Lock()
			defer mu.Unlock()
			peers = append(peers, c.Addr().String())
		},
		Rule: func(s testutil.Step) testutil.Act {
			mu.Lock()
			defer mu.Unlock()
			switch s.Verb {
			case "EHLO":
				greetings[s.Session] = s.Arg
			case "RCPT":
				if seen[s.To] == nil {
					seen[s.To] = map[string]int{}
				}
				seen[s.To][peers[s.Session-1]+" "+greetings[s.Session]]++
			}
			return testutil.Act{}
		},
	}).Start(t)
	r := newRelay(t, options{
		mxPort: mx.PortNumber(), domains: []string{"dest.example"}, extra: `[[delivery.source]]
name = "codes"
addresses = ["127.0.0.2"]
ehlo = "codes.relay.example"
[[delivery.source]]
name = "bulk"
addresses = ["127.0.0.3"]
ehlo = "bulk.relay.example"
[[delivery.rule]]
streams = ["codes"]
source = "codes"
[[delivery.rule]]
campaigns = ["*"]
source = "bulk"
`,
	})
	r.domain("shop.example")
	c := r.campaign(short(true, "campaign@dest.example"))
	var ids []string
	for range 2 {
		for _, stream := range []string{"codes", "other"} {
			ids = append(ids, r.handInTo(stream, stream+"@dest.example"))
		}
	}
	for _, id := range ids {
		r.until(id, "delivered")
	}
	wait(t, "the campaign", 30*time.Second, func() bool { return r.progress(c).Counts["delivered"] == 1 })
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, map[string]map[string]int{
		"codes@dest.example":    {"127.0.0.2 codes.relay.example": 2},
		"campaign@dest.example": {"127.0.0.3 bulk.relay.example": 1},
		"other@dest.example":    {"127.0.0.1 relay.example": 2},
	}, seen)
}
