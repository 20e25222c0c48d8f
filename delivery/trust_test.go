package delivery

import (
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
	"relayd/internal/testutil"
	"relayd/internal/tlspolicy"
	"relayd/spool"
)

// This file shows what delivery promises about hostile or broken name servers and hosts, one test per row of the list of
// threats: D1 to D13. D2 is shown by internal/resolver, the times of D4 and D7 by outage_test.go.

func TestD1NamesDecideAsTheRulesOfMailSay(t *testing.T) {
	t.Parallel()
	status := func(s string) mail.Status { st, _, _ := mail.ParseStatus(s); return st }
	zones := zone()
	zones["alias.example"] = []string{"@ CNAME dest.example."}
	zones["cname-mx.example"] = []string{"@ MX 10 also", "also CNAME mx.dest.example."}
	zones["loop-mx.example"] = []string{"@ MX 10 a", "a CNAME b.loop-mx.example.", "b CNAME a.loop-mx.example."}
	zones["mixed-null.example"] = []string{"@ MX 0 .", "@ MX 10 mx.dest.example."}
	zones["wild.example"] = []string{"* MX 10 mx.dest.example."}
	zones["v6.example"] = []string{"@ MX 10 mx", "mx AAAA ::1", "mx A 127.0.0.1"}
	zones["broken-first.example"] = []string{"@ MX 10 nowhere", "@ MX 20 mx.dest.example."}
	zones["root-mx.example"] = []string{"@ MX 10 ."}
	many := make([]string, 0, 200)
	for i := range 100 {
		many = append(many, fmt.Sprintf("@ MX 10 h%d", i), fmt.Sprintf("h%d A 127.0.0.1", i))
	}
	zones["many.example"] = many
	tests := []struct {
		name, to string
		outcome  spool.Outcome
		status   string // of a refusal
		reason   string
	}{
		{"mx", "a@dest.example", spool.Delivered, "", ""},
		{"no_mx_but_address", "a@plain.example", spool.Delivered, "", ""},
		{"neither_mx_nor_address", "a@nothing.example", spool.Bounced, "5.1.2", "no_mx"},
		{"nxdomain", "a@missing.example", spool.Bounced, "5.1.2", "no_such_domain"},
		{"null_mx", "a@null.example", spool.Bounced, "5.1.10", "null_mx"},
		{"cname_of_the_domain_is_followed", "a@alias.example", spool.Delivered, "", ""},
		{"cname_of_the_host_is_followed", "a@cname-mx.example", spool.Delivered, "", ""},
		{"mx_without_address", "a@lost.example", spool.Bounced, "5.4.4", "no_address"},
		{"one_mx_without_address_is_skipped", "a@broken-first.example", spool.Delivered, "", ""},
		{"dead_first_mx_is_skipped", "a@two.example", spool.Delivered, "", ""},
		{"mx_is_ourselves", "a@self.example", spool.Bounced, "5.4.6", "mail_loop"},
		{"we_are_the_backup", "a@backup.example", spool.Delivered, "", ""},
		{"wildcard", "a@any.wild.example", spool.Delivered, "", ""},
		{"two_families", "a@v6.example", spool.Delivered, "", ""},
		{"a_hundred_mx", "a@many.example", spool.Delivered, "", ""},
		{"address_literal", "a@[127.0.0.1]", spool.Delivered, "", ""},
		{"upper_case", "a@DEST.example", spool.Delivered, "", ""},
	}
	mx := (&testutil.MX{}).Start(t)
	r := newRig(t, mx.PortNumber(), zones).sleepless().start()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := r.outcome(r.send(tt.to), 0)
			require.Equal(t, tt.outcome.String(), got.Result.Outcome.String(), got.Result.Reply.String())
			require.Equal(t, tt.reason, got.Result.Reason)
			if tt.status != "" {
				require.Equal(t, status(tt.status), got.Result.Reply.Status)
				require.False(t, got.Result.Suppress, "the mailbox is not to blame")
			}
		})
	}
	for name, to := range map[string]string{"mx_0_of_the_root_beside_another": "a@mixed-null.example", "loop_of_cnames": "a@loop-mx.example", "mx_10_of_the_root": "a@root-mx.example"} {
		t.Run(name+"_ends", func(t *testing.T) { // delivered, refused or deferred: what matters is that nothing hangs or spins
			id := r.send(to)
			eid := mail.EnvelopeID{Message: id}.String()
			r.logs.until(t, "a verdict on "+to, func(lines []logLine) bool {
				for _, l := range lines {
					if l.attrs["envelope"] == eid && strings.HasPrefix(l.msg, "attempt.") {
						return true
					}
				}
				return false
			})
		})
	}
	for name, rcode := range map[string]int{"servfail": dns.RcodeServerFailure, "refused": dns.RcodeRefused} {
		t.Run(name+"_is_temporary", func(t *testing.T) {
			domain := name + ".example"
			require.NoError(t, r.dns.Add(domain+". 60 IN MX 10 mx.dest.example."))
			r.dns.SetRcode(domain, rcode)
			id := r.send("a@" + domain)
			e := r.deferred(id, 0)
			require.Equal(t, status("4.4.3"), e.LastReply.Status)
			require.Zero(t, e.Attempts)
			r.dns.SetRcode(domain, dns.RcodeSuccess)
			require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome)
		})
	}
}

func TestD1PrivateHostsAreNeverDialled(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{}).Start(t)
	zones := zone()
	for i, a := range []string{"127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.1.1", "0.0.0.0", "100.64.0.1"} {
		zones[fmt.Sprintf("p%d.example", i)] = []string{"@ MX 10 mx", "mx A " + a}
	}
	zones["p6.example"] = []string{"@ MX 10 mx", "mx AAAA ::1", "mx AAAA fe80::1", "mx AAAA ::ffff:127.0.0.1"}
	r := newRig(t, mx.PortNumber(), zones)
	r.cfg.AllowPrivateMX = false
	r.start()
	for i := range 7 {
		got := r.outcome(r.send(fmt.Sprintf("a@p%d.example", i)), 0)
		require.Equal(t, "private_mx", got.Result.Reason, i)
	}
	require.Equal(t, "private_mx", r.outcome(r.send("a@[127.0.0.1]"), 0).Result.Reason)
	all, _ := mx.Sessions()
	require.Zero(t, all)
}

func TestD3EqualHostsShareAndDeadOnesAreSkipped(t *testing.T) {
	t.Parallel()
	port := (&testutil.MX{}).Start(t)
	second := (&testutil.MX{IP: "127.0.0.3", Port: port.PortNumber()}).Start(t)
	zones := zone()
	zones["pair.example"] = []string{"@ MX 10 a", "@ MX 10 b", "@ MX 10 dead", "a A 127.0.0.1", "b A 127.0.0.3", "dead A 127.0.0.99"}
	r := newRig(t, port.PortNumber(), zones)
	r.cfg.IdleTimeout, r.cfg.MaxMessagesPerConnection = 0, 1
	r.start()
	for range 40 {
		require.Equal(t, 1, r.outcome(r.send("a@pair.example"), 0).Envelope.Attempts)
	}
	require.NotEmpty(t, port.Mails())
	require.NotEmpty(t, second.Mails())
}

func TestD5EachReplyIsForItsRecipient(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"} {
		for reply, final := range map[string]bool{"451 4.3.0 not now": false, "554 5.3.0 never": true} {
			t.Run(verb+"_"+reply[:3], func(t *testing.T) {
				t.Parallel()
				mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
					if s.Verb == verb || verb == "EHLO" && s.Verb == "HELO" {
						return testutil.Act{Reply: reply}
					}
					return testutil.Act{}
				}}).Start(t)
				r := newRig(t, mx.PortNumber(), zone()).sleepless()
				r.start()
				id := r.submit(submission{to: []string{"a@dest.example"}, from: "<>"})
				if final {
					require.Equal(t, spool.Bounced, r.outcome(id, 0).Result.Outcome)
					return
				}
				e := r.deferred(id, 0)
				require.Equal(t, 451, e.LastReply.Code)
				require.Equal(t, boolInt(verb != "CONNECT" && verb != "EHLO"), e.Attempts)
			})
		}
	}
	t.Run("421_defers_what_is_open", func(t *testing.T) {
		t.Parallel()
		mx := (&testutil.MX{Extensions: []string{"SIZE"}, Rule: func(s testutil.Step) testutil.Act {
			switch {
			case s.Verb == "RCPT" && strings.HasPrefix(s.To, "gone"):
				return testutil.Act{Reply: "550 5.1.1 unknown"}
			case s.Verb == "RCPT" && strings.HasPrefix(s.To, "late") && s.Session == 1:
				return testutil.Act{Reply: "421 4.3.2 closing", Drop: true}
			}
			return testutil.Act{}
		}}).Start(t)
		r := newRig(t, mx.PortNumber(), zone()).sleepless().start()
		id := r.submit(submission{to: []string{"a@dest.example", "gone@dest.example", "late@dest.example"}, retry: quick})
		require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome)
		require.Equal(t, spool.Bounced, r.outcome(id, 1).Result.Outcome)
		require.Equal(t, spool.Delivered, r.outcome(id, 2).Result.Outcome)
	})
}

func TestD8StrictRulesNeverFallBackToClear(t *testing.T) {
	t.Parallel()
	for _, level := range []tlspolicy.Level{tlspolicy.Require, tlspolicy.Verify} {
		for name, mx := range map[string]*testutil.MX{
			"stripped": {}, "garbage": {Extensions: []string{"STARTTLS"}, Rule: on("STARTTLS", testutil.Act{BadTLS: true})},
		} {
			t.Run(string(level)+"_"+name, func(t *testing.T) {
				t.Parallel()
				mx := &testutil.MX{Extensions: mx.Extensions, Rule: mx.Rule}
				mx.Start(t)
				r := newRig(t, mx.PortNumber(), zone())
				r.cfg.Rules = []Rule{{TLS: level}}
				r.sleepless().start()
				r.deferred(r.send("a@dest.example"), 0)
				for _, c := range mx.Commands() {
					require.NotContains(t, c, "MAIL FROM")
				}
			})
		}
	}
}

// hostile listens and gives every connection to serve.
func hostile(t *testing.T, serve func(c net.Conn)) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				serve(c)
				_ = c.Close()
			}()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().(*net.TCPAddr).Port
}

func TestD9HostileRepliesAreBoundedDeferredAndLogged(t *testing.T) {
	t.Parallel()
	flood := func(block string, total int) func(net.Conn) {
		return func(c net.Conn) {
			for sent := 0; sent < total; sent += len(block) {
				if _, err := c.Write([]byte(block)); err != nil {
					return
				}
			}
		}
	}
	const gigabyte = 1 << 30
	for name, serve := range map[string]func(net.Conn){
		"a_gigabyte_of_one_line":  flood(strings.Repeat("x", 64<<10), gigabyte),
		"a_gigabyte_of_lines":     flood(strings.Repeat("220-more to come\r\n", 4<<10), gigabyte),
		"a_gigabyte_of_nul":       flood(strings.Repeat("\x00", 64<<10), gigabyte),
		"reply_without_end":       func(c net.Conn) { _, _ = c.Write([]byte("220 hello")) },
		"wrong_digits":            func(c net.Conn) { _, _ = c.Write([]byte("2x0 hello\r\n")) },
		"code_out_of_range":       func(c net.Conn) { _, _ = c.Write([]byte("999 hello\r\n")) },
		"nul_in_the_code":         func(c net.Conn) { _, _ = c.Write([]byte("22\x000 hello\r\n")) },
		"eight_bit":               func(c net.Conn) { _, _ = c.Write([]byte("\xff\xfe\xfd\r\n")) },
		"another_protocol":        func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) },
		"tls_without_being_asked": func(c net.Conn) { _, _ = c.Write([]byte{0x15, 3, 1, 0, 2, 2, 40}) },
		"reply_before_the_command": func(c net.Conn) {
			_, _ = c.Write([]byte("220 hi\r\n250 mx\r\n250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n"))
		},
		"connection_that_says_none": func(net.Conn) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, hostile(t, serve), zone()).sleepless()
			r.start()
			id := r.submit(submission{to: []string{"a@dest.example"}, from: "<>"})
			e := r.deferred(id, 0)
			require.Equal(t, 4, e.LastReply.Status.Class, e.LastReply.String())
			require.LessOrEqual(t, len(e.LastReply.Text), 512)
			for _, c := range e.LastReply.Text {
				require.True(t, c >= ' ' && c != 0x7f, "%q", e.LastReply.Text)
			}
			require.Zero(t, r.metric("panics_total"))
		})
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	require.Less(t, m.HeapInuse, uint64(512<<20))
}

func TestD10LostFinalReplyIsToldAsAPossibleDuplicate(t *testing.T) {
	t.Parallel()
	for name, act := range map[string]testutil.Act{"closed": {Drop: true}, "reset": {Reset: true}} {
		for _, chunking := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s_chunking_%v", name, chunking), func(t *testing.T) {
				t.Parallel()
				mx := (&testutil.MX{Extensions: []string{"PIPELINING", "CHUNKING"}, Rule: first(1, "DOT", act)}).Start(t)
				r := newRig(t, mx.PortNumber(), zone())
				r.cfg.Chunking = chunking
				r.start()
				id := r.submit(submission{to: []string{"a@dest.example"}, retry: quick})
				require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome)
				require.Equal(t, reasonInDoubt, r.logs.wait(t, "attempt.deferred", nil).attrs["reason"])
				require.InDelta(t, 1, r.metric("in_doubt_total"), 0)
			})
		}
	}
}

func TestD11SmarthostSeesCredentialsOnlyUnderVerifiedTLS(t *testing.T) {
	t.Parallel()
	ca, other := testutil.NewCA(t), testutil.NewCA(t)
	for name, mx := range map[string]*testutil.MX{
		"clear":           {Auth: "PLAIN", Users: map[string]string{"user": "secret"}},
		"another_name":    {Auth: "PLAIN", Users: map[string]string{"user": "secret"}, TLS: ca.Server(t, "somebody.else")},
		"another_ca":      {Auth: "PLAIN", Users: map[string]string{"user": "secret"}, TLS: other.Server(t, "localhost")},
		"garbage_for_tls": {Auth: "PLAIN", Extensions: []string{"STARTTLS"}, Rule: on("STARTTLS", testutil.Act{BadTLS: true})},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mx.Start(t)
			r := newRig(t, 25, zone())
			r.deps.Roots = ca.Pool()
			r.cfg.Smarthosts = []Smarthost{{Name: "up", Address: fmt.Sprintf("localhost:%d", mx.PortNumber()), TLS: TLSStart, Username: "user", Password: "secret"}}
			r.cfg.Route = "up"
			r.sleepless().start()
			require.Zero(t, r.deferred(r.send("a@dest.example"), 0).Attempts)
			for _, c := range mx.Commands() {
				require.NotContains(t, c, "AUTH")
			}
		})
	}
}

func TestD12AddressesOutsideASCIIAreNeverMangled(t *testing.T) {
	t.Parallel()
	plain := (&testutil.MX{}).Start(t)
	zones := zone()
	zones["xn--9t4b11yi5a.example"] = []string{"@ MX 10 mx.dest.example."}
	r := newRig(t, plain.PortNumber(), zones).start()
	got := r.outcome(r.submit(submission{to: []string{"홍길동@dest.example"}, from: "<>"}), 0)
	require.Equal(t, mail.Status{Class: 5, Subject: 6, Detail: 7}, got.Result.Reply.Status)
	require.Equal(t, spool.Delivered, r.outcome(r.send("a@테스트.example"), 0).Result.Outcome)
	require.Equal(t, []string{"a@xn--9t4b11yi5a.example"}, plain.Mails()[0].To, "domain as A-label")
}

func TestD13HostWithOurNameIsNoNextHop(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Hostname: "relay.test"}).Start(t)
	o := newOpener()
	_, err := dial(t, o, mx.AddrPort(), nil)
	require.Equal(t, faultSelf, faultOf(err).kind)
	for _, c := range mx.Commands() {
		require.NotContains(t, c, "MAIL")
	}
}
