package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/testutil"
)

// This file shows the rows D1 and D2 of the list of threats: what names and name servers may make relayd do.

// mailTo hands in one message by the API and returns its queue ID.
func (r *relay) mailTo(t *testing.T, to ...string) string {
	t.Helper()
	boxes := make(api.Mailboxes, len(to))
	for i := range to {
		boxes[i].Email = to[i]
	}
	m, err := r.client().SendMessage(t.Context(), api.SendMessage{
		From: api.Mailbox{Email: "news@shop.example"}, To: boxes, Subject: "row", Text: "Hello.",
	}, "")
	require.NoError(t, err)
	return m.ID
}

// await waits for an envelope of a message to be what ok asks for.
func (r *relay) await(t *testing.T, id string, n int, what string, ok func(e api.QueueItem) bool) api.QueueItem {
	t.Helper()
	var e api.QueueItem
	wait(t, what, 30*time.Second, func() bool {
		m, err := r.client().QueueMessage(t.Context(), id+"."+strconv.FormatInt(int64(n), 36))
		require.NoError(t, err)
		require.Len(t, m.Envelopes, 1)
		e = m.Envelopes[0]
		return ok(e)
	})
	return e
}

// final waits for the outcome of an envelope.
func (r *relay) final(t *testing.T, id string, n int) api.QueueItem {
	t.Helper()
	return r.await(t, id, n, "an outcome", func(e api.QueueItem) bool { return !e.SettledAt.IsZero() })
}

// deferred waits until an envelope waits with a reply.
func (r *relay) deferred(t *testing.T, id string, n int) api.QueueItem {
	t.Helper()
	return r.await(t, id, n, "a deferral", func(e api.QueueItem) bool {
		require.Zero(t, e.SettledAt, "%+v", e)
		return e.LastReply != nil && e.LastReply.Code != 0
	})
}

// zone publishes records in which @ stands for the domain. Names are full, without the last dot where they begin a line.
func (r *relay) zone(domain string, lines ...string) {
	r.t.Helper()
	for _, line := range lines {
		require.NoError(r.t, r.dns.Add(strings.ReplaceAll(line, "@", domain+".")))
	}
}

// name is a case of D1. In its records @ is the domain, which is called like the case; "good" is a host that takes
// everything, "trap" one that nobody may ever connect to, "dead" one that refuses connections.
type name struct {
	name    string
	records []string
	rcode   map[string]int // of all questions about a name
	silent  string         // name that is never answered about
	to      string         // default: a@NAME.example
	want    string         // delivered, bounced, or deferred; deferred mail is delivered when the names are mended
	status  string         // of the reply; none where delivered
	reason  string         // of a bounce
	code    int            // of the reply
}

var names = []name{
	// RFC 5321 section 5.1: MX first, then the address as MX of preference 0.
	{name: "mx", records: []string{"@ MX 10 good."}, want: "delivered"},
	{name: "no-mx-but-a", records: []string{"@ A 127.0.0.1"}, want: "delivered"},
	{name: "no-mx-but-aaaa", records: []string{"@ AAAA ::1"}, want: "delivered"},
	{name: "neither-mx-nor-address", records: []string{"@ TXT x"}, want: "bounced", code: 550, status: "5.1.2", reason: "no_mx"},
	{name: "only-a-name-below-exists", records: []string{"www.@ A 127.0.0.2"}, want: "bounced", code: 550, status: "5.1.2", reason: "no_mx"},
	{name: "nxdomain", want: "bounced", code: 550, status: "5.1.2", reason: "no_such_domain"},
	{name: "wildcard", records: []string{"*.@ MX 10 good."}, to: "a@any.wildcard.example", want: "delivered"},
	{name: "upper-case", records: []string{"@ MX 10 GOOD."}, to: "a@UPPER-CASE.Example", want: "delivered"},
	{name: "two-families", records: []string{"@ MX 10 mx.@", "mx.@ AAAA ::1", "mx.@ A 127.0.0.1"}, want: "delivered"},

	// RFC 7505: a null MX ends it, and the address is not asked for.
	{name: "null-mx", records: []string{"@ MX 0 .", "@ A 127.0.0.2"}, want: "bounced", code: 556, status: "5.1.10", reason: "null_mx"},
	{name: "null-mx-of-another-preference", records: []string{"@ MX 10 .", "@ A 127.0.0.2"}, want: "bounced", code: 556, status: "5.1.10", reason: "null_mx"},
	{name: "null-mx-twice", records: []string{"@ MX 0 .", "@ MX 10 .", "@ A 127.0.0.2"}, want: "bounced", code: 556, status: "5.1.10", reason: "null_mx"},
	{name: "null-mx-beside-a-host", records: []string{"@ MX 0 .", "@ MX 10 good.", "@ A 127.0.0.2"}, want: "delivered"},

	// Aliases: followed for the domain (RFC 5321 section 5.1) and, although RFC 2181 section 10.3 forbids them there, for
	// hosts. A circle may be mended.
	{name: "alias", records: []string{"@ CNAME mx.example."}, want: "delivered"},
	{name: "alias-of-a-null-mx", records: []string{"@ CNAME null-mx.example."}, want: "bounced", code: 556, status: "5.1.10", reason: "null_mx"},
	{name: "alias-of-nothing", records: []string{"@ CNAME gone.@"}, want: "bounced", code: 550, status: "5.1.2", reason: "no_such_domain"},
	{name: "alias-in-a-circle", records: []string{"@ CNAME b.@", "b.@ CNAME @"}, want: "deferred", code: 451, status: "4.4.3"},
	{name: "host-is-an-alias", records: []string{"@ MX 10 mx.@", "mx.@ CNAME good."}, want: "delivered"},
	{name: "host-is-an-alias-in-a-circle", records: []string{"@ MX 10 mx.@", "mx.@ CNAME b.@", "b.@ CNAME mx.@"}, want: "deferred", code: 451, status: "4.4.3"},

	// Where there are MX records the address of the domain stands for none of them (RFC 5321 section 5.1).
	{name: "host-without-address", records: []string{"@ MX 10 mx.@", "mx.@ TXT x", "@ A 127.0.0.2"}, want: "bounced", code: 550, status: "5.4.4", reason: "no_address"},
	{name: "host-that-does-not-exist", records: []string{"@ MX 10 mx.@", "@ A 127.0.0.2"}, want: "bounced", code: 550, status: "5.4.4", reason: "no_address"},
	{name: "host-is-an-address", records: []string{"@ MX 10 127.0.0.2.", "@ A 127.0.0.2"}, want: "bounced", code: 550, status: "5.1.2", reason: "no_mx"},
	{name: "first-host-does-not-exist", records: []string{"@ MX 10 mx.@", "@ MX 20 good.", "@ A 127.0.0.2"}, want: "delivered"},
	{name: "all-hosts-dead", records: []string{"@ MX 10 dead.", "@ A 127.0.0.2"}, want: "deferred", code: 451, status: "4.4.1"},

	// What cannot be found out now may be found out later, and is never taken for "no".
	{name: "servfail", records: []string{"@ A 127.0.0.2"}, rcode: map[string]int{"@": dns.RcodeServerFailure}, want: "deferred", code: 451, status: "4.4.3"},
	{name: "refused", records: []string{"@ A 127.0.0.2"}, rcode: map[string]int{"@": dns.RcodeRefused}, want: "deferred", code: 451, status: "4.4.3"},
	{name: "servfail-about-the-mx-alone", records: []string{"@ A 127.0.0.2"}, rcode: map[string]int{"@ MX": dns.RcodeServerFailure}, want: "deferred", code: 451, status: "4.4.3"},
	{name: "servfail-about-the-address", records: []string{"@ TXT x"}, rcode: map[string]int{"@ A": dns.RcodeServerFailure}, want: "deferred", code: 451, status: "4.4.3"},
	{name: "servfail-about-one-family", records: []string{"@ MX 10 mx.@", "mx.@ A 127.0.0.1"}, rcode: map[string]int{"mx.@ AAAA": dns.RcodeServerFailure}, want: "delivered"},
	{name: "no-answer", records: []string{"@ A 127.0.0.2"}, silent: "@", want: "deferred", code: 451, status: "4.4.3"},
	{name: "servfail-about-the-host", records: []string{"@ MX 10 mx.@"}, rcode: map[string]int{"mx.@": dns.RcodeServerFailure}, want: "deferred", code: 451, status: "4.4.3"},
	{name: "no-answer-about-the-host", records: []string{"@ MX 10 mx.@"}, silent: "mx.@", want: "deferred", code: 451, status: "4.4.3"},
	{
		name: "servfail-about-one-host-and-the-other-does-not-exist", records: []string{"@ MX 10 mx.@", "@ MX 20 mx2.@"},
		rcode: map[string]int{"mx.@": dns.RcodeServerFailure}, want: "deferred", code: 451, status: "4.4.3",
	},
	{
		name: "servfail-about-one-host-of-two", records: []string{"@ MX 10 mx.@", "@ MX 20 good."},
		rcode: map[string]int{"mx.@": dns.RcodeServerFailure}, want: "delivered",
	},

	// An MX that is ourselves by name, and all that are not preferred to it, are left out (RFC 5321 section 5.1).
	{name: "we-are-the-mx", records: []string{"@ MX 10 Relay.Example."}, want: "bounced", code: 550, status: "5.4.6", reason: "mail_loop"},
	{name: "we-are-the-first-mx", records: []string{"@ MX 10 relay.example.", "@ MX 10 trap.", "@ MX 20 trap."}, want: "bounced", code: 550, status: "5.4.6", reason: "mail_loop"},
	{name: "we-are-the-backup", records: []string{"@ MX 10 good.", "@ MX 20 relay.example.", "@ MX 30 trap."}, want: "delivered"},
	{name: "we-are-the-backup-of-a-dead-host", records: []string{"@ MX 10 dead.", "@ MX 20 relay.example.", "@ MX 20 trap.", "@ MX 30 trap."}, want: "deferred", code: 451, status: "4.4.1"},

	// 200 MX records do not fit into a datagram: the rest of the answer comes by TCP.
	{name: "two-hundred-hosts", records: hosts(200, "good"), want: "delivered"},
}

// hosts are n MX records whose hosts are aliases of one.
func hosts(n int, of string) (lines []string) {
	for i := range n {
		lines = append(lines, fmt.Sprintf("@ MX 10 h%d.@", i), fmt.Sprintf("h%d.@ CNAME %s.", i, of))
	}
	return lines
}

// TestD1_NamesDecideAsTheRulesOfMailSay hands in a message for each case.
func TestD1_NamesDecideAsTheRulesOfMailSay(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	good := (&testutil.MX{Port: port}).Start(t)
	(&testutil.MX{IP: "::1", Port: port}).Start(t)
	trap := (&testutil.MX{IP: "127.0.0.2", Port: port}).Start(t)
	r := newRelay(t, options{mxPort: port, deliv: "connect_tries = 1", level: "info", dns: func(server string) string {
		return fmt.Sprintf("servers = [%q]\ntimeout = \"300ms\"", server)
	}})
	r.domain("shop.example")
	r.zone("good", "@ A 127.0.0.1")
	r.zone("trap", "@ A 127.0.0.2")
	r.zone("dead", "@ A 127.0.0.3")
	ids := make([]string, len(names))
	for i, n := range names {
		domain := n.name + ".example"
		r.zone(domain, n.records...)
		for q, rcode := range n.rcode {
			r.dns.SetRcode(strings.ReplaceAll(q, "@", domain), rcode)
		}
		if n.silent != "" {
			r.dns.SetDelay(strings.ReplaceAll(n.silent, "@", domain), -1)
		}
		if n.to == "" {
			n.to = "a@" + domain
		}
		ids[i] = r.mailTo(t, n.to)
	}
	for i, n := range names {
		t.Run(n.name, func(t *testing.T) {
			var e api.QueueItem
			if n.want == "deferred" {
				e = r.await(t, ids[i], 0, "a deferral with "+n.status, func(e api.QueueItem) bool { // a slow name server's comes first
					require.Zero(t, e.SettledAt, "%+v", e)
					return e.LastReply != nil && e.LastReply.Status.String() == n.status
				})
				require.Zero(t, e.Attempts, "a name costs no attempt")
			} else {
				e = r.final(t, ids[i], 0)
				require.Equal(t, n.want, e.State, "%+v", e.LastReply)
				require.Equal(t, n.reason, e.Reason)
			}
			if n.status == "" {
				require.Equal(t, 1, e.Attempts)
				return
			}
			require.Equal(t, n.code, e.LastReply.Code, e.LastReply.Text)
			require.Equal(t, n.status, e.LastReply.Status.String(), e.LastReply.Text)
			check, err := r.client().CheckSuppression(t.Context(), "", e.To)
			require.NoError(t, err)
			require.Empty(t, check.Entries, "the mailbox is not to blame")
		})
	}
	all, _ := trap.Sessions()
	require.Zero(t, all, "no address stands in for an MX")

	for _, n := range names { // the names are mended, and fail meanwhile
		if n.want != "deferred" {
			continue
		}
		domain := n.name + ".example"
		all := []string{domain, "mx." + domain, "mx2." + domain, "b." + domain}
		for _, name := range all {
			r.dns.SetRcode(name, dns.RcodeServerFailure)
			r.dns.Remove(name)
		}
		r.zone(domain, "@ MX 10 mx.@", "@ A 127.0.0.1", "mx.@ A 127.0.0.1", "mx2.@ A 127.0.0.1", "b.@ A 127.0.0.1")
		for q := range n.rcode {
			r.dns.SetRcode(strings.ReplaceAll(q, "@", domain), dns.RcodeSuccess)
		}
		r.dns.SetDelay(strings.ReplaceAll(n.silent, "@", domain), 0)
		for _, name := range all {
			r.dns.SetRcode(name, dns.RcodeSuccess)
		}
	}
	for i, n := range names {
		if n.want == "deferred" && n.status == "4.4.3" {
			e := r.final(t, ids[i], 0)
			require.Equal(t, "delivered", e.State, "%s: %+v", n.name, e.LastReply)
			require.Equal(t, 1, e.Attempts)
		}
	}
	require.NotEmpty(t, good.Mails())
}

// TestD1_PrivateHostsAreNeverDialled: a host listens behind the loopback addresses, and is not connected to under any of
// their spellings; a public host beside a private one is all that is tried. (A public address that leads to ourselves cannot
// be told from another host's before its EHLO: row D13.)
func TestD1_PrivateHostsAreNeverDialled(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	traps := []*testutil.MX{
		(&testutil.MX{Port: port}).Start(t), (&testutil.MX{IP: "127.0.0.2", Port: port}).Start(t), (&testutil.MX{IP: "::1", Port: port}).Start(t),
	}
	r := newRelay(t, options{mxPort: port, public: true, level: "info", deliv: "connect_tries = 1\nconnect_timeout = \"300ms\""})
	l := r.domain("shop.example")
	ids := map[string]string{}
	for i, a := range []string{
		"A 127.0.0.1", "A 127.0.0.2", "A 0.0.0.0", "A 10.0.0.1", "A 172.16.0.1", "A 192.168.0.1", "A 169.254.0.1", "A 100.64.0.1",
		"A 224.0.0.1", "A 255.255.255.255", "AAAA ::1", "AAAA ::", "AAAA ::ffff:127.0.0.1", "AAAA ::127.0.0.1", "AAAA 64:ff9b::7f00:1",
		"AAAA fe80::1", "AAAA fec0::1", "AAAA fd00::1", "AAAA ff02::1",
	} {
		domain := fmt.Sprintf("p%d.example", i)
		r.zone(domain, "@ MX 10 mx.@", "mx.@ "+a)
		ids[a] = r.mailTo(t, "a@"+domain)
	}
	r.zone("implicit.example", "@ A 127.0.0.1")
	ids["no MX"] = r.mailTo(t, "a@implicit.example")
	for _, to := range []string{"a@[127.0.0.1]", "a@[IPv6:::1]"} { // they are refused at the door
		require.ErrorContains(t, r.trySubmit(l, to), "address literals are not accepted")
	}
	r.zone("mixed.example", "@ MX 10 mx.@", "@ MX 20 out.@", "mx.@ A 127.0.0.1", "out.@ A 192.0.2.1", "out.@ AAAA ::1")
	mixed := r.mailTo(t, "a@mixed.example")
	for a, id := range ids {
		e := r.final(t, id, 0)
		require.Equal(t, "bounced", e.State, a)
		require.Equal(t, "private_mx", e.Reason, a)
		require.Equal(t, "5.4.4", e.LastReply.Status.String(), a)
	}
	require.Equal(t, "out.mixed.example[192.0.2.1]", r.deferred(t, mixed, 0).LastHost)
	for _, mx := range traps {
		all, _ := mx.Sessions()
		require.Zero(t, all)
	}
}

// TestD1_HostsAreBounded: of 30 hosts with an address each, 8 are tried in one attempt, and the pauses between attempts
// grow as those of any site although the server gives the hosts in another order each time.
func TestD1_HostsAreBounded(t *testing.T) {
	t.Parallel()
	const hosts, most = 30, 8
	port := freePort(t)
	var tried atomic.Int32
	r := newRelay(t, options{mxPort: port, level: "info", deliv: "connect_tries = 1"})
	r.domain("shop.example")
	for i := range hosts {
		ip := fmt.Sprintf("127.0.1.%d", i+1)
		(&testutil.MX{IP: ip, Port: port, Rule: func(testutil.Step) testutil.Act {
			tried.Add(1)
			return testutil.Act{Reply: "421 4.3.2 not now", Drop: true}
		}}).Start(t)
		r.zone("many.example", fmt.Sprintf("@ MX 10 h%d.@", i), fmt.Sprintf("h%d.@ A %s", i, ip))
	}
	id := r.mailTo(t, "a@many.example")
	pauses := func() int { return strings.Count(r.logText(), `"msg":"site.suspended"`) }
	wait(t, "four pauses", 20*time.Second, func() bool { return pauses() >= 4 })
	connects := tried.Load() // read before the pauses are counted again: of more attempts, not fewer
	require.LessOrEqual(t, int(connects), most*(pauses()+1))
	require.Contains(t, r.logText(), `"attempt":4,"err"`, "one site whose fourth pause this is")
	require.Zero(t, r.deferred(t, id, 0).Attempts)
}

// TestD2_ForgedAnswersAreIgnored delivers to 100 domains behind a server whose true answers come after forged ones.
func TestD2_ForgedAnswersAreIgnored(t *testing.T) {
	t.Parallel()
	const domains = 100
	port := freePort(t)
	good := (&testutil.MX{Port: port}).Start(t)
	trap := (&testutil.MX{IP: "127.0.0.2", Port: port}).Start(t)
	var f *forger
	r := newRelay(t, options{mxPort: port, level: "info", dns: func(server string) string {
		f = newForger(t, server)
		return fmt.Sprintf("servers = [%q]", f.addr())
	}})
	l := r.domain("shop.example")
	r.mx("victim.example")
	var to []string
	for i := range domains {
		d := fmt.Sprintf("d%d.example", i)
		r.mx(d)
		to = append(to, "a@"+d)
	}
	r.submit(l, "news@shop.example", to, plain("news@shop.example", "all@shop.example", "forged"))
	wait(t, "all deliveries", 30*time.Second, func() bool { return r.stats().Queued == 0 })
	require.Equal(t, map[string]int{"delivered": domains}, positive(r.stats().Outcomes))
	id := r.mailTo(t, "a@victim.example") // records of its name came with all the other answers
	require.Equal(t, "delivered", r.final(t, id, 0).State)
	require.Len(t, good.Mails(), domains+1)
	all, _ := trap.Sessions()
	require.Zero(t, all)

	f.mu.Lock()
	defer f.mu.Unlock()
	require.GreaterOrEqual(t, len(f.ids), 3*domains, "MX, A and AAAA")
	requireRandom(t, f.ids, 0, 65536, 0.95)
	requireRandom(t, f.ports, 1024, 65536, 0.8)
	for i, id := range f.ids {
		if i > 0 && id == f.ids[i-1] {
			require.NotEqual(t, f.ports[i], f.ports[i-1])
		}
	}
}

// requireRandom requires that hardly any value comes twice, that few are near the one before, and that they are spread.
func requireRandom(t *testing.T, values []int, low, high int, distinct float64) {
	t.Helper()
	seen := map[int]bool{}
	near := 0
	least, most := high, low
	for i, v := range values {
		seen[v] = true
		least, most = min(least, v), max(most, v)
		if i > 0 && max(v-values[i-1], values[i-1]-v) <= 16 {
			near++
		}
	}
	require.Greater(t, float64(len(seen)), distinct*float64(len(values)))
	require.Less(t, near, len(values)/10, "%v", values)
	require.Greater(t, most-least, (high-low)/3)
}

// TestD2_HugeAnswersCostLittle looks up 25 domains at the same time whose answers by TCP, and those about their hosts, are as
// large as they can be: a thousand records in 16 KiB, which is the most that relayd takes, 4,000 records (10,000 do not fit
// into the 64 KiB of a DNS message), records that claim to be larger than the message, and counts that are lies. GOGC keeps the
// garbage of all that is done for a deferral from hiding what an answer costs.
func TestD2_HugeAnswersCostLittle(t *testing.T) { // not parallel: it measures another process
	port := freePort(t)
	good := (&testutil.MX{Port: port}).Start(t)
	var f *forger
	r := newRelay(t, options{mxPort: port, level: "info", env: []string{"GOGC=20"}, deliv: "connect_tries = 1\nconnect_timeout = \"100ms\"", dns: func(server string) string {
		f = newForger(t, server)
		return fmt.Sprintf("servers = [%q]", f.addr())
	}})
	r.domain("shop.example")
	peak := func(suffix string, each func(domain string)) (most int64) { // of memory until each of 25 domains has failed
		var to []string
		for _, kind := range []string{"hosts", "many", "record", "text", "count"} {
			for i := range 5 {
				domain := fmt.Sprintf("%s-%d.%s", kind, i, suffix)
				each(domain)
				to = append(to, "a@"+domain)
			}
		}
		id := r.mailTo(t, to...)
		for i := range to {
			r.await(t, id, i, "a verdict on each", func(e api.QueueItem) bool {
				most = max(most, r.anonymous())
				return e.LastReply != nil && e.LastReply.Code != 0
			})
		}
		r.json(nil, "queue", "fail", id, "--reason", "seen") // so that each round has the same to do
		return most
	}
	dead := make([]string, 0, 32)
	for i := range 16 {
		dead = append(dead, fmt.Sprintf("@ MX 10 h%d.@", i), fmt.Sprintf("h%d.@ A 127.1.1.1", i))
	}
	usual := int64(0)
	for _, suffix := range []string{"usual.example", "again.example"} {
		usual = max(usual, peak(suffix, func(domain string) { r.zone(domain, dead...) }))
	}
	huge := peak("huge.example", func(string) {})
	t.Logf("%.1f MB for answers as usual, +%.1f MB for huge ones", float64(usual)/(1<<20), float64(huge-usual)/(1<<20))
	require.LessOrEqual(t, huge-usual, int64(10<<20))
	f.mu.Lock()
	require.GreaterOrEqual(t, f.huge, 25)
	f.mu.Unlock()
	r.mx("after.example")
	require.Equal(t, "delivered", r.final(t, r.mailTo(t, "a@after.example"), 0).State)
	require.NotEmpty(t, good.Mails())
}
