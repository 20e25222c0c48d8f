package e2e

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
)

// The rows D7, D8, D10 and D11 of the threat model, on the real relayd; D9, D12 and D13 are in drows_hostile_test.go. docs/security.md
// names all tests of each row.

// TestD7_GreylistingAndOutagesAreOutwaited uses seconds for what takes hours: TestD7OneHourGreylistingDelivers and
// TestD7FourHourOutageDelivers of delivery go through the hours with the default schedule, under a clock of their own.
func TestD7_GreylistingAndOutagesAreOutwaited(t *testing.T) {
	t.Parallel()
	t.Run("greylisting_sees_the_same_envelope_and_source", func(t *testing.T) {
		t.Parallel()
		type triplet struct {
			ip       netip.Addr
			from, to string
		}
		var mu sync.Mutex
		var peers []netip.Addr
		asked, commands := map[triplet]int{}, map[string]int{}
		mx := (&testutil.MX{
			Peer: func(c netip.AddrPort) {
				mu.Lock()
				defer mu.Unlock()
				peers = append(peers, c.Addr())
			},
			Rule: func(s testutil.Step) testutil.Act {
				mu.Lock()
				defer mu.Unlock()
				if s.Verb != "RCPT" {
					return testutil.Act{}
				}
				commands[s.From+" "+s.Arg]++
				k := triplet{peers[s.Session-1], s.From, s.To}
				if asked[k]++; asked[k] < 3 {
					return testutil.Act{Reply: "451 4.7.1 Greylisted"}
				}
				return testutil.Act{}
			},
		}).Start(t)
		r := newRelay(t, options{
			mxPort: mx.PortNumber(), deliv: "max_messages_per_connection = 1",
			retry: "attempts = 6\nfirst_delay = \"500ms\"\nmultiplier = 1.0\nmax_age = \"5m\"",
			extra: "[[delivery.source]]\nname = \"pool\"\naddresses = [\"127.0.0.11\", \"127.0.0.12\", \"127.0.0.13\", \"127.0.0.14\"]\n" +
				"[[delivery.rule]]\nsource = \"pool\"\n",
		})
		for _, host := range []string{"mx1", "mx2", "mx3"} { // each would choose an address of its own
			require.NoError(t, r.dns.Add("grey.example. 60 IN MX 10 "+host+".grey.example."))
			require.NoError(t, r.dns.Add(host+".grey.example. 60 IN A 127.0.0.1"))
		}
		r.domain("shop.example")
		var ids []string
		for i := range 4 {
			ids = append(ids, r.handIn(fmt.Sprintf("ann%d@grey.example", i)))
		}
		for _, id := range ids {
			require.Equal(t, 3, r.until(id, "delivered").Attempts)
		}
		mu.Lock()
		defer mu.Unlock()
		require.Len(t, asked, 4, "each came from one address")
		require.Len(t, commands, 4, "and in the same words: %v", commands)
		require.Len(t, mx.Mails(), 4, "once")
	})
	t.Run("an_outage_costs_no_attempt", func(t *testing.T) {
		t.Parallel()
		port := freePort(t)
		r := newRelay(t, options{
			mxPort: port, deliv: "connect_tries = 1", retry: "attempts = 1\nfirst_delay = \"1s\"\nmultiplier = 1.0\nmax_age = \"5m\"",
		})
		r.mx("dest.example")
		r.domain("shop.example")
		id := r.handIn("ann@dest.example")
		wait(t, "three failures", 20*time.Second, func() bool { return len(r.records("site.suspended")) >= 3 })
		mx := (&testutil.MX{Port: port, Rule: func(s testutil.Step) testutil.Act {
			if s.Verb == "CONNECT" && s.Seen == 0 { // up, and not yet well
				return testutil.Act{Reply: "421 4.3.2 starting", Drop: true}
			}
			return testutil.Act{}
		}}).Start(t)
		require.Equal(t, 1, r.until(id, "delivered").Attempts)
		require.Len(t, mx.Wait(t, 1), 1)
	})
	t.Run("a_short_schedule_is_what_loses_mail_and_the_docs_say_so", func(t *testing.T) {
		t.Parallel()
		mx := (&testutil.MX{Rule: at("RCPT", testutil.Act{Reply: "451 4.7.1 Greylisted"})}).Start(t)
		r := newRelay(t, options{mxPort: mx.PortNumber(), retry: "attempts = 2\nfirst_delay = \"100ms\"\nmultiplier = 1.0\nmax_age = \"5m\""})
		r.mx("dest.example")
		r.domain("shop.example")
		e := r.until(r.handIn("ann@dest.example"), "expired")
		require.Equal(t, "attempts_exhausted", e.Reason)
		require.Equal(t, 2, e.Attempts)
		page, err := os.ReadFile("../docs/configuration.md")
		require.NoError(t, err)
		require.Contains(t, string(page), "## What a short schedule loses")
	})
}

// TestD8_TLSIsTakenWhereItIsAndNeverGivenUpWhereItMustBe has one relayd and a host for each way in which TLS goes wrong.
func TestD8_TLSIsTakenWhereItIsAndNeverGivenUpWhereItMustBe(t *testing.T) {
	t.Parallel()
	ca, stranger := testutil.NewCA(t), testutil.NewCA(t)
	old := stranger.Server(t, "mx.old.example")
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 //nolint:gosec // that is the point
	refused := at("STARTTLS", testutil.Act{Reply: "454 4.7.0 TLS not available"})
	port, hosts := freePort(t), map[string]*testutil.MX{}
	for i, h := range []struct {
		name string
		mx   *testutil.MX
	}{
		{"foreign", &testutil.MX{TLS: stranger.Server(t, "mx.other.example")}},
		{"valid", &testutil.MX{TLS: ca.Server(t, "mx.valid.example")}},
		{"none", &testutil.MX{TLS: stranger.Server(t, "mx.none.example")}}, // stripped below
		{"garbage", &testutil.MX{Extensions: []string{"STARTTLS"}, Rule: at("STARTTLS", testutil.Act{BadTLS: true})}},
		{"refused", &testutil.MX{TLS: stranger.Server(t, "mx.refused.example"), Rule: refused}},
		{"old", &testutil.MX{TLS: old}},
		{"known", &testutil.MX{TLS: stranger.Server(t, "mx.known.example")}},
	} {
		h.mx.IP, h.mx.Port = fmt.Sprintf("127.0.0.%d", 31+i), port
		hosts[h.name] = h.mx.Start(t)
	}
	hosts["none"].StripTLS(true)
	r := newRelay(t, options{
		mxPort: port, deliv: "max_messages_per_connection = 1", env: trusted(t, ca),
		extra: "[[delivery.rule]]\nrecipient_domains = [\".require.example\"]\ntls = \"require\"\n" +
			"[[delivery.rule]]\nrecipient_domains = [\".verify.example\"]\ntls = \"verify\"\n",
	})
	for name, mx := range hosts {
		r.point(name+".example", mx.IP)
		for _, level := range []string{"require", "verify"} {
			require.NoError(t, r.dns.Add(name+"."+level+".example. 60 IN MX 10 mx."+name+".example."))
		}
	}
	l := r.domain("shop.example")
	ids := map[string]string{}
	for _, to := range []string{
		"foreign.require", "valid.verify", "foreign.verify", "none.require", "none.verify", "garbage.require", "garbage.verify",
		"refused.require", "refused.verify", "old.require", "old.verify",
	} {
		ids[to] = r.handIn("ann@" + to + ".example")
	}

	// Required and not to be had: the mail waits, and the host has seen no MAIL.
	for to, id := range ids {
		if to == "foreign.require" || to == "valid.verify" {
			require.NotEmpty(t, r.until(id, "delivered").TLS, to)
			continue
		}
		var code string
		wait(t, to+" to be put off", 20*time.Second, func() bool {
			e := r.envelope(id)
			if e.LastReply != nil {
				code = e.LastReply.Status.String()
			}
			return code != ""
		})
		require.Contains(t, []string{"4.7.5", "4.7.0"}, code, to)
		require.Zero(t, r.envelope(id).Attempts, to)
	}
	for _, name := range []string{"none", "garbage", "refused", "old"} {
		require.Zero(t, said(hosts[name], "MAIL"), name)
	}
	require.Equal(t, 1, said(hosts["foreign"], "MAIL"), "verify has not sent any")
	require.Equal(t, 9, r.stats().Queued)

	// Opportunistic: a bad certificate is better than none, and none better than no mail.
	for name, want := range map[string]string{"foreign": "TLS1.3", "garbage": "", "refused": "", "old": "", "none": ""} {
		require.Equal(t, want, r.until(r.handIn("bob@"+name+".example"), "delivered").TLS, name)
	}
	for name, reason := range map[string]string{"garbage": "handshake", "refused": "refused", "old": "handshake"} {
		r.record("session.downgraded", "mx", "mx."+name+".example[", "reason", reason)
	}
	require.InDelta(t, 3, r.metric("relayd_delivery_broken_tls_total"), 0)
	for _, to := range []string{"old.require", "old.verify"} { // they would ask again
		wait(t, to+" to be held", 20*time.Second, func() bool {
			r.json(nil, "queue", "hold", ids[to]) // passes over what is in flight
			return r.envelope(ids[to]).State == "held"
		})
	}
	asked := said(hosts["old"], "STARTTLS")
	r.until(r.handIn("carl@old.example"), "delivered")
	require.Equal(t, asked, said(hosts["old"], "STARTTLS"), "broken TLS is remembered: only those who require it ask again")

	// Stripped on a host that had it.
	require.NotEmpty(t, r.until(r.handIn("ann@known.example"), "delivered").TLS)
	hosts["known"].StripTLS(true)
	require.Empty(t, r.until(r.handIn("bob@known.example"), "delivered").TLS)
	require.Equal(t, "WARN", r.record("session.downgraded", "mx", "mx.known.example[", "reason", "not_offered")["level"])

	// What waits for TLS goes when there is some.
	hosts["none"].StripTLS(false)
	require.NotEmpty(t, r.until(ids["none.require"], "delivered").TLS)

	t.Run("requiretls_of_the_message", func(t *testing.T) { // RFC 8689
		before := map[string]int{}
		c := r.dial(l)
		for i, name := range []string{"garbage", "foreign", "known"} {
			before[name] = said(hosts[name], "MAIL")
			require.NoError(t, c.Mail("news@shop.example", &smtp.MailOptions{RequireTLS: true}))
			require.NoError(t, c.Rcpt(fmt.Sprintf("strict%d@%s.example", i, name), nil))
			w, err := c.Data()
			require.NoError(t, err)
			_, err = w.Write([]byte(plain("news@shop.example", "strict@"+name+".example", "strict")))
			require.NoError(t, err)
			require.NoError(t, w.Close())
		}
		wait(t, "three failures", 20*time.Second, func() bool { return r.stats().Outcomes["failed"] == 3 })
		for name, n := range before {
			require.Equal(t, n, said(hosts[name], "MAIL"), name)
		}
		for _, e := range r.events("message.failed") {
			require.Equal(t, "5.7.10", e.Reply.Status.String())
		}
	})
}

// TestD10_LostFinalRepliesArePossibleDuplicates: the host took the message and its reply never came.
func TestD10_LostFinalRepliesArePossibleDuplicates(t *testing.T) {
	t.Parallel()
	for name, act := range map[string]testutil.Act{"closed": {Drop: true}, "reset": {Reset: true}} {
		for _, chunking := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s_chunking_%v", name, chunking), func(t *testing.T) {
				t.Parallel()
				mx := (&testutil.MX{Extensions: []string{"PIPELINING", "CHUNKING"}, Rule: func(s testutil.Step) testutil.Act {
					if s.Verb == "DOT" && s.Seen == 0 {
						return act
					}
					return testutil.Act{}
				}}).Start(t)
				r := newRelay(t, options{mxPort: mx.PortNumber(), deliv: fmt.Sprintf("chunking = %v", chunking)})
				r.mx("dest.example")
				r.domain("shop.example")
				id := r.handIn("ann@dest.example")
				e := r.until(id, "delivered")
				require.Equal(t, 2, e.Attempts, "deferred, and tried again")
				mails := mx.Wait(t, 2) // the MX had taken the first one
				require.Equal(t, mails[0].Data, mails[1].Data, "the same Message-ID: who has both can tell")
				require.Equal(t, "in_doubt", r.record("attempt.deferred", "envelope", id)["reason"])
				events := r.events("message.deferred")
				require.Len(t, events, 1)
				require.Equal(t, "in_doubt", events[0].Reason)
				require.Contains(t, events[0].Reply.Text, "may have been delivered")
				require.InDelta(t, 1, r.metric("relayd_delivery_in_doubt_total"), 0)
			})
		}
	}
	t.Run("of_the_last_attempt", func(t *testing.T) {
		t.Parallel()
		mx := (&testutil.MX{Rule: at("DOT", testutil.Act{Reset: true})}).Start(t)
		r := newRelay(t, options{mxPort: mx.PortNumber(), retry: "attempts = 1\nfirst_delay = \"1s\"\nmultiplier = 1.0\nmax_age = \"5m\""})
		r.mx("dest.example")
		r.domain("shop.example")
		e := r.until(r.handIn("ann@dest.example"), "expired")
		require.Contains(t, e.LastReply.Text, "may have been delivered", "the sender is told")
		require.InDelta(t, 1, r.metric("relayd_delivery_in_doubt_total"), 0)
	})
}

// TestD11_SmarthostGetsThePasswordUnderVerifiedTLSOnly, and that it refuses it is trouble of the route, not of the mail.
func TestD11_SmarthostGetsThePasswordUnderVerifiedTLSOnly(t *testing.T) {
	t.Parallel()
	ca, other := testutil.NewCA(t), testutil.NewCA(t)
	users := map[string]string{"relay": "s3cret"}
	garbage := at("STARTTLS", testutil.Act{BadTLS: true})
	ups := map[string]*testutil.MX{
		"clear":    {},
		"name":     {TLS: ca.Server(t, "somebody.else")},
		"issuer":   {TLS: other.Server(t, "localhost")},
		"implicit": {TLS: other.Server(t, "localhost"), Implicit: true},
		"garbage":  {Extensions: []string{"STARTTLS"}, Rule: garbage},
		"good":     {TLS: ca.Server(t, "localhost")},
	}
	pw := filepath.Join(t.TempDir(), "pw")
	writeFile(t, pw, "wrong\n")
	var conf strings.Builder
	for name, mx := range ups {
		mx.Auth, mx.Users = "PLAIN LOGIN", users
		mx.Start(t)
		mode := "starttls"
		if mx.Implicit {
			mode = "implicit"
		}
		fmt.Fprintf(&conf, "[[delivery.smarthost]]\nname = %q\naddress = \"localhost:%d\"\ntls = %q\nusername = \"relay\"\npassword_file = %q\n"+
			"[[delivery.rule]]\nrecipient_domains = [\"%s.example\"]\nroute = %q\n", name, mx.PortNumber(), mode, pw, name, name)
	}
	r := newRelay(t, options{mxPort: 25, env: trusted(t, ca), extra: conf.String(), suspend: "1m", deliv: "connect_tries = 1"})
	r.domain("shop.example")
	ids := map[string]string{}
	for name := range ups {
		ids[name] = r.handIn("ann@" + name + ".example")
	}
	for name, mx := range ups {
		if name == "good" {
			continue
		}
		r.record("site.suspended", "site", name)
		require.Zero(t, said(mx, "AUTH"), name)
		require.Zero(t, said(mx, "MAIL"), name)
		require.Zero(t, r.envelope(ids[name]).Attempts, name)
	}

	// 535: the route stops with an alarm.
	require.Equal(t, "ERROR", r.record("route.auth_refused", "site", "good")["level"])
	require.InDelta(t, 1, r.metric("relayd_delivery_auth_refused_total"), 0)
	page, err := r.client().Site(t.Context(), "good")
	require.NoError(t, err)
	require.Equal(t, "paused", page.Data[0].State)
	require.Equal(t, "auth", page.Data[0].Cause)
	require.Equal(t, 535, page.Data[0].LastReply.Code)
	second := r.handIn("bob@good.example")
	st := r.stats()
	require.Equal(t, len(ups)+1, st.Queued)
	require.Zero(t, st.Outcomes["bounced"]+st.Outcomes["failed"]+st.Outcomes["expired"], "%v", st.Outcomes)
	require.Equal(t, 1, said(ups["good"], "AUTH"), "it is not asked again and again")
	require.Zero(t, said(ups["good"], "MAIL"))
	require.NotContains(t, r.logText(), "s3cret")

	// The operator's mend, as docs/operations.md has it.
	writeFile(t, pw, "s3cret\n")
	require.NoError(t, r.cmd.Process.Signal(syscall.SIGHUP))
	r.record("configuration.loaded")
	r.json(nil, "site", "resume", "good")
	require.Equal(t, 1, r.until(second, "delivered").Attempts)
	r.json(nil, "queue", "retry", "site=good") // what met the 535 would come at the end of the pause
	for _, id := range []string{ids["good"], second} {
		require.Equal(t, 1, r.until(id, "delivered").Attempts)
	}
	for _, m := range ups["good"].Mails() {
		require.Equal(t, "relay", m.User)
		require.NotEmpty(t, m.TLS)
	}
}
