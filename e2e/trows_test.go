package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/testutil"
)

// The rows T of the deliverability checklist, on the real relayd. docs/deliverability.md names all tests of each row.

// letters hands in one message for each address, over a few connections.
func (r *relay) letters(l login, to ...string) {
	r.t.Helper()
	var wg sync.WaitGroup
	next := make(chan string, len(to))
	for _, addr := range to {
		next <- addr
	}
	close(next)
	for range 8 {
		c := r.dial(l)
		wg.Go(func() {
			for addr := range next {
				if err := c.SendMail("news@shop.example", []string{addr}, strings.NewReader(plain("news@shop.example", addr, "letter"))); err != nil {
					r.t.Errorf("%s: %v", addr, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// addresses are n of a domain.
func addresses(n int, domain string) (to []string) {
	for i := range n {
		to = append(to, fmt.Sprintf("user%d@%s", i, domain))
	}
	return to
}

// hosted names a host of a provider as the MX of a domain; it stands at ip.
func (r *relay) hosted(domain, host, ip string) {
	r.t.Helper()
	require.NoError(r.t, r.dns.Add(domain+". 60 IN MX 10 "+host+"."))
	require.NoError(r.t, r.dns.Add(host+". 60 IN A "+ip))
}

// TestT03T07_ConnectionsArePerProvider: two domains whose hosts are Google's share 20 connections, whatever the domains
// are called, and a third one elsewhere has its own.
func TestT03T07_ConnectionsArePerProvider(t *testing.T) {
	t.Parallel()
	const free = 80 // letters that are taken, once all are queued: so relayd dares to open all the connections that it may
	queued, gate := make(chan struct{}), make(chan struct{})
	port := freePort(t)
	google := (&testutil.MX{Port: port, Rule: func(s testutil.Step) testutil.Act {
		switch {
		case s.Verb == "DOT" && s.Seen >= free:
			return testutil.Act{Stall: gate}
		case s.Verb == "DOT":
			return testutil.Act{Stall: queued}
		}
		return testutil.Act{}
	}}).Start(t)
	other := (&testutil.MX{IP: "127.0.0.61", Port: port}).Start(t)
	r := newRelay(t, options{mxPort: port, level: "info"})
	r.hosted("one.example", "aspmx.l.google.com", "127.0.0.1")
	r.hosted("two.example", "alt1.aspmx.l.google.com", "127.0.0.1")
	r.point("other.example", other.IP)
	l := r.domain("shop.example")
	r.letters(l, append(addresses(90, "one.example"), addresses(90, "two.example")...)...)
	close(queued)
	busy := func() (n, one, two int) {
		for _, s := range r.sites() {
			switch s.Name {
			case "provider:google":
				n = s.Connections
			case "aspmx.l.google.com":
				one = s.Connections
			case "alt1.aspmx.l.google.com":
				two = s.Connections
			}
		}
		return n, one, two
	}
	wait(t, "20 busy connections", 20*time.Second, func() bool { n, _, _ := busy(); return n == 20 })
	r.letters(l, addresses(20, "other.example")...)
	other.Wait(t, 20)
	n, one, two := busy() // by site alone each might have 20, and both have mail left
	require.Equal(t, 20, n)
	require.Equal(t, 20, one+two)
	wait(t, "20 connections as Google sees it", 3*time.Second, func() bool { return google.Open() == 20 }) // idle ones would stay for 5 s
	close(gate)
	require.Equal(t, 200, r.settled(30 * time.Second).Outcomes["delivered"])
}

// sites are all sites and providers that relayd knows.
func (r *relay) sites() []api.Site {
	r.t.Helper()
	c := r.client()
	defer c.Close()
	page, err := c.Sites(r.t.Context(), "", api.List{Limit: 100})
	require.NoError(r.t, err)
	return page.Data
}

// TestT04_AHostThatClosesAfterSomeMailsIsNoTrouble: 20 mails over one connection for Yahoo, 100 for others; a host that
// closes before that is dialled again, and nothing is deferred.
func TestT04_AHostThatClosesAfterSomeMailsIsNoTrouble(t *testing.T) {
	t.Parallel()
	const count = 45
	port := freePort(t)
	closing := func(act testutil.Act) func(testutil.Step) testutil.Act {
		return func(s testutil.Step) testutil.Act {
			if s.Verb == "MAIL" && s.Message >= 7 {
				return act
			}
			return testutil.Act{}
		}
	}
	hosts := map[string]*testutil.MX{
		"mta5.am0.yahoodns.net": {}, "mx.other.example": {},
		"mx.silent.example": {Rule: closing(testutil.Act{Drop: true})},
		"mx.polite.example": {Rule: closing(testutil.Act{Reply: "421 4.4.2 enough for one connection", Drop: true})},
	}
	r := newRelay(t, options{mxPort: port, level: "info", extra: "[delivery.limits.site.default]\nconnections = 1\n"})
	l := r.domain("shop.example")
	var to []string
	n := 0
	for host, mx := range hosts {
		mx.IP, mx.Port = fmt.Sprintf("127.0.0.%d", 71+n), port
		mx.Start(t)
		domain := fmt.Sprintf("d%d.example", n)
		r.hosted(domain, host, mx.IP)
		to = append(to, addresses(count, domain)...)
		n++
	}
	r.letters(l, to...)
	require.Equal(t, 4*count, r.settled(30 * time.Second).Outcomes["delivered"])
	require.Empty(t, r.events("message.deferred"))
	require.Empty(t, r.records("site.suspended"))
	for host, mx := range hosts {
		per := map[int]int{}
		for _, m := range mx.Mails() {
			per[m.Session]++
		}
		most := 0
		for _, n := range per {
			most = max(most, n)
		}
		switch host {
		case "mta5.am0.yahoodns.net":
			require.Equal(t, 20, most, "%v", per)
		case "mx.other.example":
			require.Greater(t, most, 20, "%v", per)
		default:
			require.Equal(t, 7, most, "%s: %v", host, per)
		}
	}
	for _, s := range r.sites() {
		switch s.Name {
		case "mta5.am0.yahoodns.net":
			require.Equal(t, 20, s.Messages)
		case "mx.other.example":
			require.Equal(t, 100, s.Messages)
		}
	}
}

// TestT06_QuotaStopsTheProvider uses a pause of six seconds; the ten minutes of the built-in rules are in
// TestT06_AfterTheQuotaOneConnectionMoreAtATime of delivery, under a clock of its own.
func TestT06_QuotaStopsTheProvider(t *testing.T) {
	t.Parallel()
	const pause = 6 * time.Second
	var mu sync.Mutex
	var complained, again time.Time
	open, taken, most := map[int]bool{}, 0, []int(nil) // sessions with a transaction, when the nth was begun after the pause
	mx := (&testutil.MX{}).Start(t)
	mx.Rule = func(s testutil.Step) testutil.Act {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case s.Verb == "RCPT" && s.Seen == 40:
			complained = time.Now()
			return testutil.Act{Reply: "421 4.7.28 unusual rate of mail", Drop: true}
		case s.Verb == "MAIL" && !complained.IsZero() && time.Since(complained) > pause/2: // else it was under way
			if again.IsZero() {
				again = time.Now()
			}
			open[s.Session] = true
			most = append(most, len(open))
		case s.Verb == "DOT" && open[s.Session]:
			delete(open, s.Session)
			taken++
		}
		return testutil.Act{}
	}
	providers := t.TempDir() + "/providers.txt"
	writeFile(t, providers, "provider big connections=20 pause=6s\nmx big .big.example\n")
	r := newRelay(t, options{mxPort: mx.PortNumber(), level: "info", deliv: fmt.Sprintf("providers_file = %q", providers)})
	r.hosted("one.example", "a.big.example", "127.0.0.1")
	r.hosted("two.example", "b.big.example", "127.0.0.1")
	l := r.domain("shop.example")
	r.letters(l, append(addresses(40, "one.example"), addresses(40, "two.example")...)...)
	suspended := r.record("site.suspended", "site", "provider:")
	require.Equal(t, "provider:big", suspended["site"])
	require.Equal(t, "4.7.28", suspended["status"])
	wait(t, "mail after the pause", 60*time.Second, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return taken >= 4
	})
	mu.Lock()
	defer mu.Unlock()
	require.GreaterOrEqual(t, again.Sub(complained), pause)
	for i, n := range most { // N that were taken win one more: 1, then 2 after 1, 3 after 1+2…
		require.LessOrEqual(t, n*(n-1)/2, i, "%v", most)
	}
	for _, e := range r.events("message.delivered") {
		require.Equal(t, 1, e.Attempt, "the complaint costs nobody an attempt")
	}
}

// TestT08_NothingIsAskedOfAHostButMail: a host sees no connection before there is mail for it, no VRFY or EXPN, and no RCPT
// that belongs to no message.
func TestT08_NothingIsAskedOfAHostButMail(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Extensions: []string{"VRFY", "EXPN", "PIPELINING"}, Rule: func(s testutil.Step) testutil.Act {
		switch {
		case s.Verb == "RCPT" && strings.HasPrefix(s.To, "gone"):
			return testutil.Act{Reply: "550 5.1.1 unknown"}
		case s.Verb == "RCPT" && strings.HasPrefix(s.To, "busy") && s.Seen < 4:
			return testutil.Act{Reply: "450 4.2.1 busy"}
		}
		return testutil.Act{}
	}}).Start(t)
	r := newRelay(t, options{mxPort: mx.PortNumber()})
	r.mx("dest.example")
	l := r.domain("shop.example")
	r.json(nil, "suppression", "add", "x@dest.example")
	_, _, _ = r.ctl("suppression", "check", "y@dest.example")
	_, _, _ = r.ctl("domain", "verify", "shop.example")
	draft := r.campaign(short(false, "ann@dest.example", "gone@dest.example", "busy@dest.example"))
	require.NotEmpty(t, draft)
	r.submit(l, "news@shop.example", []string{"x@dest.example"}, plain("news@shop.example", "x@dest.example", "suppressed"))
	wait(t, "the suppressed one", 20*time.Second, func() bool { return r.stats().Outcomes["suppressed"] == 1 })
	sessions, _ := mx.Sessions()
	require.Zero(t, sessions, "addresses alone are no reason to call")

	c := r.client()
	defer c.Close()
	require.NoError(t, c.Do(t.Context(), "POST", "/v1/campaigns/"+draft+"/start", nil, nil, nil))
	wait(t, "the campaign to complete", 30*time.Second, func() bool { return strings.HasPrefix(r.progress(draft).State, "completed") })
	tried := len(r.events("message.deferred")) + len(r.events("message.delivered")) + len(r.events("message.bounced"))
	require.Equal(t, tried, said(mx, "RCPT"))
	require.Equal(t, said(mx, "RCPT"), said(mx, "MAIL"))
	require.Equal(t, said(mx, "MAIL"), said(mx, "DATA"), "each was a message")
	for _, line := range mx.Commands() {
		verb, _, _ := strings.Cut(line, " ")
		require.Contains(t, []string{"EHLO", "MAIL", "RCPT", "DATA", ".", "RSET", "QUIT"}, verb)
	}
	require.Equal(t, 1, countOf(mx.Commands(), "RCPT TO:<gone@"))
}

func countOf(lines []string, prefix string) (n int) {
	for _, l := range lines {
		if strings.HasPrefix(l, prefix) {
			n++
		}
	}
	return n
}

// TestT09_EachStreamLeavesFromItsOwnAddress, the same after a restart.
func TestT09_EachStreamLeavesFromItsOwnAddress(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var peers []string
	from := map[string]map[string]bool{}
	mx := (&testutil.MX{
		Peer: func(c netip.AddrPort) {
			mu.Lock()
			defer mu.Unlock()
			peers = append(peers, c.Addr().String())
		},
	}).Start(t)
	mx.Rule = func(s testutil.Step) testutil.Act {
		mu.Lock()
		defer mu.Unlock()
		if s.Verb == "RCPT" {
			stream, _, _ := strings.Cut(s.To, "@")
			if from[stream] == nil {
				from[stream] = map[string]bool{}
			}
			from[stream][peers[s.Session-1]] = true
		}
		return testutil.Act{}
	}
	r := newRelay(t, options{
		mxPort: mx.PortNumber(), deliv: "max_messages_per_connection = 1", extra: `[[delivery.source]]
name = "receipts"
addresses = ["127.0.0.81"]
ehlo = "receipts.relay.example"
[[delivery.source]]
name = "pool"
addresses = ["127.0.0.82", "127.0.0.83", "127.0.0.84", "127.0.0.85"]
[[delivery.rule]]
streams = ["receipts"]
source = "receipts"
[[delivery.rule]]
source = "pool"
`,
	})
	r.mx("dest.example")
	r.domain("shop.example")
	c := r.client()
	defer c.Close()
	for range 2 {
		for range 4 {
			for _, stream := range []string{"receipts", "others"} {
				_, err := c.SendMessage(t.Context(), api.SendMessage{
					Stream: stream, From: api.Mailbox{Email: "news@shop.example"}, To: api.Mailboxes{{Email: stream + "@dest.example"}}, Subject: "x", Text: "x",
				}, "")
				require.NoError(t, err)
			}
		}
		r.settled(20 * time.Second)
		r.stop()
		r.start()
	}
	mu.Lock()
	defer mu.Unlock()
	require.Len(t, mx.Mails(), 16)
	require.Equal(t, map[string]bool{"127.0.0.81": true}, from["receipts"])
	require.Len(t, from["others"], 1, "one of the pool, always the same towards this host")
	for ip := range from["others"] {
		require.Contains(t, []string{"127.0.0.82", "127.0.0.83", "127.0.0.84", "127.0.0.85"}, ip)
	}
	require.Equal(t, 8, countOf(mx.Commands(), "EHLO receipts.relay.example"))
}

// TestT05_ARefusalForGoodIsNeverTriedAgain, not by the queue, not by the next message and not by the next campaign.
func TestT05_ARefusalForGoodIsNeverTriedAgain(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
		if s.Verb == "RCPT" && strings.HasPrefix(s.To, "gone") {
			return testutil.Act{Reply: "550 5.1.1 no such user"}
		}
		return testutil.Act{}
	}}).Start(t)
	r := newRelay(t, options{mxPort: mx.PortNumber()})
	r.mx("dest.example")
	l := r.domain("shop.example")
	c := r.dial(l)
	require.NoError(t, c.Mail("news@shop.example", nil))
	require.NoError(t, c.Rcpt("gone@dest.example", &smtp.RcptOptions{Notify: []smtp.DSNNotify{smtp.DSNNotifyNever}}))
	w, err := c.Data()
	require.NoError(t, err)
	_, err = w.Write([]byte(plain("news@shop.example", "gone@dest.example", "first")))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	wait(t, "the refusal", 20*time.Second, func() bool { return r.stats().Outcomes["bounced"] == 1 })
	r.submit(l, "news@shop.example", []string{"gone@dest.example"}, plain("news@shop.example", "gone@dest.example", "second"))
	id := r.campaign(short(true, "gone@dest.example", "ann@dest.example"))
	wait(t, "the campaign to complete", 30*time.Second, func() bool { return strings.HasPrefix(r.progress(id).State, "completed") })
	r.settled(20 * time.Second)
	require.Equal(t, 1, countOf(mx.Commands(), "RCPT TO:<gone@"))
	require.Equal(t, 2, r.stats().Outcomes["suppressed"])
}
