package e2e

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/testutil"
)

// The rows D9, D12 and D13 of the threat model, on the real relayd.

// hostile is an MX host that behaves until a verb ("CONNECT", or "DOT" after the message), and then does evil and closes.
func hostile(t *testing.T, ip string, port int, at string, evil func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, itoa(port)))
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
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				behave(c, at, evil)
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
}

func behave(c net.Conn, at string, evil func(net.Conn)) {
	in := bufio.NewReader(c)
	usual := map[string]string{"CONNECT": "220 mx", "EHLO": "250 mx", "DATA": "354 go on", "DOT": "250 taken", "QUIT": "221 bye"}
	step := func(verb string) bool {
		if verb == at {
			evil(c)
			return false
		}
		reply, ok := usual[verb]
		if !ok {
			reply = "250 ok"
		}
		_, err := c.Write([]byte(reply + "\r\n"))
		return err == nil && verb != "QUIT"
	}
	next := "CONNECT"
	for step(next) {
		for data := next == "DATA"; ; {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			if !data {
				next, _, _ = strings.Cut(strings.ToUpper(strings.TrimSpace(line)), " ")
				break
			}
			if line == ".\r\n" {
				next = "DOT"
				break
			}
		}
	}
}

// flood writes a block again and again, until enough octets have left or nobody reads any more, and counts them.
func flood(block string, total int64, sent *atomic.Int64) func(net.Conn) {
	return func(c net.Conn) {
		for n := int64(0); n < total; {
			w, err := c.Write([]byte(block))
			n += int64(w)
			sent.Add(int64(w))
			if err != nil {
				return
			}
		}
	}
}

// TestD9_HostileRepliesCostLittleAndAreDeferred has 66 hosts at once, each of which breaks the protocol in its own way at
// its own point of the session.
func TestD9_HostileRepliesCostLittleAndAreDeferred(t *testing.T) { // not parallel: it measures another process
	const gigabyte = 1 << 30
	var sent atomic.Int64
	write := func(s string) func(net.Conn) {
		return func(c net.Conn) { _, _ = c.Write([]byte(s)) }
	}
	ways := map[string]func(net.Conn){
		"gigabyte-line": flood(strings.Repeat("x", 64<<10), gigabyte, &sent), "gigabyte-of-nul": flood(strings.Repeat("\x00", 64<<10), gigabyte, &sent),
		"gigabyte-of-lines": flood(strings.Repeat("250-more to come\r\n", 4<<10), gigabyte, &sent),
		"no-crlf":           write("250 hello"), "wrong-digits": write("2x0 hello\r\n"), "no-such-code": write("999 hello\r\n"),
		"nul": write("25\x000 hello\r\n"), "eight-bit": write("\xff\xfe\xfd\r\n"), "tls": write("\x15\x03\x01\x00\x02\x02\x28"),
		"two-codes": write("250-one\r\n450 another\r\n"),
		"reset": func(c net.Conn) {
			_ = c.(*net.TCPConn).SetLinger(0)
		},
	}
	port := freePort(t)
	healthy := (&testutil.MX{Port: port}).Start(t)
	r := newRelay(t, options{mxPort: port, suspend: "10m", level: "info", retry: "attempts = 2\nfirst_delay = \"10m\"\nmultiplier = 1.0\nmax_age = \"1h\"", deliv: "connect_tries = 1"})
	r.mx("healthy.example")
	r.domain("shop.example")
	r.until(r.handIn("ann@healthy.example"), "delivered")
	r.resetPeak()
	before, _ := r.cost()
	ids, n := map[string]string{}, 0
	for name, evil := range ways {
		for _, verb := range []string{"CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"} {
			n++
			ip, domain := fmt.Sprintf("127.0.1.%d", n), name+"."+strings.ToLower(verb)+".example"
			hostile(t, ip, port, verb, evil)
			r.point(domain, ip)
			ids[domain] = r.handIn("ann@" + domain)
		}
	}
	for domain, id := range ids {
		e := r.until(id, "deferred")
		require.Equal(t, 4, e.LastReply.Status.Class, "%s: %s", domain, e.LastReply)
		harmless(t, e.LastReply.Text)
		if strings.Contains(domain, ".dot.") {
			require.Equal(t, "in_doubt", r.record("attempt.deferred", "envelope", id)["reason"], domain)
		}
	}
	require.Equal(t, r.stats().Deferred, len(ways)*6)
	r.until(r.handIn("bob@healthy.example"), "delivered")
	require.Len(t, healthy.Mails(), 2)
	peak, _ := r.cost()
	require.Less(t, peak-before, int64(64<<20), "octets of resident memory")
	require.Less(t, sent.Load(), int64(gigabyte), "nobody listens to the end")
	require.Zero(t, r.metric("relayd_delivery_panics_total"))
	require.False(t, r.ended())
	for domain, id := range ids {
		r.record("attempt.deferred", "envelope", id, "mx", "mx."+domain+"[")
	}
	for line := range strings.Lines(r.logText()) {
		require.Less(t, len(line), 4096)
	}
	t.Logf("%d hosts: %d KB of memory more at the peak, %d KB were sent", n, (peak-before)>>10, sent.Load()>>10)
}

// harmless tells that remote text was cut and cleaned.
func harmless(t *testing.T, text string) {
	t.Helper()
	require.LessOrEqual(t, len(text), 512)
	require.True(t, utf8.ValidString(text))
	require.NotRegexp(t, `[\x00-\x1f\x7f\x{80}-\x{9f}\x{2028}\x{2029}\x{202e}]`, text)
}

// TestD9_RemoteTextIsCutAndCleaned: in the API, in what relayctl prints, in the event log, in the log and in the notice.
func TestD9_RemoteTextIsCutAndCleaned(t *testing.T) {
	t.Parallel()
	nasty := "\x1b[31mred\x00\xff\xfe \u202ertl \u2028line\r\x07 <script>alert(1)</script> " + strings.Repeat("long ", 200)
	mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
		switch {
		case s.Verb == "RCPT" && strings.HasPrefix(s.To, "later@"):
			return testutil.Act{Reply: "451-4.2.1 " + nasty + "\n451-4.2.1 " + nasty + "\n451 4.2.1 end"}
		case s.Verb == "RCPT" && strings.HasPrefix(s.To, "never@"):
			return testutil.Act{Reply: "550-5.7.1 " + nasty + "\n550 5.7.1 " + nasty}
		}
		return testutil.Act{}
	}}).Start(t)
	r := newRelay(t, options{mxPort: mx.PortNumber(), retry: "attempts = 2\nfirst_delay = \"10m\"\nmultiplier = 1.0\nmax_age = \"1h\""})
	r.mx("dest.example", "shop.example")
	l := r.domain("shop.example")
	r.submit(l, "news@shop.example", []string{"never@dest.example"}, plain("news@shop.example", "never@dest.example", "x"))
	later := r.handIn("later@dest.example")
	e := r.until(later, "deferred")
	require.Contains(t, e.LastReply.Text, "red")
	require.Greater(t, len(e.LastReply.Text), 500, "cut, not dropped")
	harmless(t, e.LastReply.Text)
	for _, args := range [][]string{{"queue", "show", later}, {"why", later}, {"queue", "history", "to=never@dest.example"}, {"queue", "list"}} {
		out, stderr, code := r.ctl(args...)
		require.Zero(t, code, stderr)
		require.NotRegexp(t, `[\x00-\x08\x0b-\x1f\x7f]`, out)
	}
	bounced := r.record("attempt.bounced", "to", "never@dest.example")
	harmless(t, bounced["err"].(string))
	for _, kind := range []string{"message.deferred", "message.bounced"} {
		events := r.events(kind)
		require.Len(t, events, 1)
		harmless(t, events[0].Reply.Text)
	}
	notice := mx.Wait(t, 1)[0]
	require.Equal(t, []string{"news@shop.example"}, notice.To)
	require.Empty(t, mx.Faults())
	require.NotRegexp(t, `[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]`, string(notice.Data))
	for line := range strings.SplitSeq(string(notice.Data), "\r\n") {
		require.LessOrEqual(t, len(line), 998)
	}
}

// TestD12_AddressesOutsideASCII: a host without SMTPUTF8 gets none of them, one with it gets them as they are.
func TestD12_AddressesOutsideASCII(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	old := (&testutil.MX{Port: port}).Start(t)
	able := (&testutil.MX{IP: "127.0.0.51", Port: port, Extensions: []string{"PIPELINING", "8BITMIME", "SMTPUTF8"}}).Start(t)
	r := newRelay(t, options{mxPort: port})
	r.mx("dest.example", "xn--9t4b11yi5a.example", "shop.example")
	r.point("able.example", able.IP)
	r.point("xn--able-e18n.example", able.IP)
	l := r.domain("shop.example")
	send := func(to string) {
		t.Helper()
		c := r.dial(l)
		require.NoError(t, c.Mail("news@shop.example", &smtp.MailOptions{UTF8: true}))
		require.NoError(t, c.Rcpt(to, nil))
		w, err := c.Data()
		require.NoError(t, err)
		_, err = w.Write([]byte(plain("news@shop.example", "ann@dest.example", "eai")))
		require.NoError(t, err)
		require.NoError(t, w.Close())
	}
	send("홍길동@dest.example")
	wait(t, "the failure", 20*time.Second, func() bool { return r.stats().Outcomes["failed"] == 1 })
	event := r.events("message.failed")[0]
	require.Equal(t, "5.6.7", event.Reply.Status.String())
	require.Equal(t, "홍길동@dest.example", event.To)
	require.Equal(t, []string{"news@shop.example"}, old.Wait(t, 1)[0].To, "nothing but the notice to its sender")

	send("ann@테스트.example") // the domain alone needs no SMTPUTF8
	require.Equal(t, []string{"ann@xn--9t4b11yi5a.example"}, old.Wait(t, 2)[1].To)
	send("홍길동@able.example")
	mail := able.Wait(t, 1)[0]
	require.Equal(t, []string{"홍길동@able.example"}, mail.To)
	require.Contains(t, mail.MailArg, " SMTPUTF8")
	require.Equal(t, 2, r.verify(mail.Data))
	for _, mx := range []*testutil.MX{old, able} {
		for _, c := range mx.Commands() {
			if verb, _, _ := strings.Cut(c, " "); verb == "RCPT" {
				require.NotContains(t, c, "테스트")
				require.NotContains(t, c, "?")
			}
		}
	}
}

// TestD13_LoopsEnd: at the door by the count of Received, before the first send where a domain's MX is this relay, and
// within the hop limit where two relays send everything to each other.
func TestD13_LoopsEnd(t *testing.T) {
	t.Parallel()
	hops := func(n int) string {
		return strings.Repeat("Received: from a.example by b.example; Fri, 20 Nov 2026 12:00:00 +0000\r\n", n) +
			plain("news@shop.example", "ann@dest.example", "hops")
	}
	t.Run("more_than_50_received", func(t *testing.T) {
		t.Parallel()
		s := newSink(t, "", nil)
		r, port := newInbound(t, s)
		l := r.domain("shop.example")
		require.Contains(t, r.raw(l, hops(51)), "554 5.4.6")
		r.submit(l, "news@shop.example", []string{"ann@dest.example"}, hops(50))
		require.ErrorContains(t, hand(t, port, "x@dest.example", "postmaster@shop.example", hops(51)), "Too many hops")
		wait(t, "both refusals in the log", 10*time.Second, func() bool { return len(r.records("message.refused")) == 2 })
		for _, rec := range r.records("message.refused") {
			require.Equal(t, "5.4.6", rec["status"])
		}
		c := r.client()
		defer c.Close()
		_, err := c.SendMessage(t.Context(), api.SendMessage{
			From: api.Mailbox{Email: "news@shop.example"}, To: api.Mailboxes{{Email: "ann@dest.example"}}, Raw: []byte(hops(51)),
		}, "")
		require.ErrorContains(t, err, "loop")
		wait(t, "the one within the limit", 20*time.Second, func() bool { return s.count() == 1 })
		require.Equal(t, 1, r.settled(10*time.Second).Accepted)
	})
	t.Run("the_mx_is_this_relay", func(t *testing.T) {
		t.Parallel()
		port := freePort(t)
		r := newRelay(t, options{mxPort: port, extra: fmt.Sprintf("[[smtp.listener]]\nkind = \"inbound\"\naddress = \"127.0.0.1:%d\"\ntls = \"starttls\"\n", port)})
		require.NoError(t, r.dns.Add("name.example. 60 IN MX 10 relay.example."))
		require.NoError(t, r.dns.Add("relay.example. 60 IN A 127.0.0.1"))
		r.mx("other.example") // another name of the same host
		r.domain("shop.example")
		sessions := fmt.Sprintf(`relayd_smtpd_sessions_total{kind="inbound",listener="inbound-%d"}`, port)
		for i, domain := range []string{"name.example", "other.example"} {
			e := r.until(r.handIn("ann@"+domain), "bounced")
			require.Equal(t, "5.4.6", e.LastReply.Status.String())
			require.Equal(t, "mail_loop", e.Reason)
			require.Zero(t, e.Attempts)
			require.InDelta(t, i, r.metric(sessions), 0, "by its name it is not even dialled")
		}
		require.NotContains(t, r.logText(), `"line":"MAIL FROM`, "caught before the first send")
	})
	t.Run("two_relays_at_each_other", func(t *testing.T) {
		t.Parallel()
		a := newRelay(t, options{mxPort: 25, host: "a.relay.example", level: "info"})
		b := newRelay(t, options{mxPort: 25, host: "b.relay.example", level: "info"})
		for _, pair := range [][2]*relay{{a, b}, {b, a}} {
			from, to := pair[0], pair[1]
			l := to.domain("shop.example")
			pw := from.dir + "/pw"
			writeFile(t, pw, l.Password+"\n")
			from.conf = strings.Replace(from.conf, "[delivery]\n", "[delivery]\nroute = \"peer\"\n", 1) +
				fmt.Sprintf("[[delivery.smarthost]]\nname = \"peer\"\naddress = \"127.0.0.1:%d\"\ntls = \"none\"\nusername = %q\npassword_file = %q\n", to.plain, l.Username, pw)
		}
		var l login
		for _, r := range []*relay{a, b} {
			writeFile(t, r.dir+"/relayd.toml", r.conf)
			r.stop()
			r.start()
		}
		a.json(&l, "credential", "create", "--domain", "shop.example")
		c := a.dial(l)
		require.NoError(t, c.Mail("news@shop.example", nil))
		require.NoError(t, c.Rcpt("ann@dest.example", &smtp.RcptOptions{Notify: []smtp.DSNNotify{smtp.DSNNotifyNever}})) // it would go round too
		w, err := c.Data()
		require.NoError(t, err)
		_, err = w.Write([]byte(hops(35)))
		require.NoError(t, err)
		require.NoError(t, w.Close())
		var found []api.Event
		wait(t, "the end of the loop", time.Minute, func() bool {
			found = append(a.events("message.bounced"), b.events("message.bounced")...)
			return len(found) > 0
		})
		require.Len(t, found, 1)
		require.Equal(t, "5.4.6", found[0].Reply.Status.String())
		require.Zero(t, a.settled(10*time.Second).Queued+b.settled(10*time.Second).Queued)
		require.Equal(t, 16, a.stats().Accepted+b.stats().Accepted, "with 35 Received and up to 50, each of the 16 hops adds one")
	})
}
