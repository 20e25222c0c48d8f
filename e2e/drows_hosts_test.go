package e2e

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/testutil"
)

// This file shows the rows D3 to D6 of the list of threats: hosts that are dead, late, of two minds, or want less.

// silent takes no connection: whoever connects to it waits.
func silent(t *testing.T, ip string, port int) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte(net.ParseIP(ip).To4())}))
	require.NoError(t, syscall.Listen(fd, 0))
	waited := 0
	for range 5 { // the first ones fill its queue
		c, err := net.DialTimeout("tcp", net.JoinHostPort(ip, itoa(port)), 200*time.Millisecond)
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		} else if waited++; waited == 2 { // one may have waited for this machine
			return
		}
	}
	t.Fatal("the host answers")
}

// manyTo hands in n messages to one address.
func (r *relay) manyTo(l login, n int, to string) {
	r.t.Helper()
	c := r.dial(l)
	for i := range n {
		require.NoError(r.t, c.SendMail("news@shop.example", []string{to}, strings.NewReader(plain("news@shop.example", to, fmt.Sprint("letter ", i)))))
	}
	require.NoError(r.t, c.Quit())
}

// TestD3_EqualHostsShareAndDeadOnesAreSkipped: two of four hosts of one preference are alive, one refuses connections and one
// never answers; and the hosts before the last one are dead.
func TestD3_EqualHostsShareAndDeadOnesAreSkipped(t *testing.T) {
	t.Parallel()
	const count = 60
	port := freePort(t)
	a := (&testutil.MX{Port: port}).Start(t)
	b := (&testutil.MX{IP: "127.0.0.2", Port: port}).Start(t)
	silent(t, "127.0.0.4", port)
	r := newRelay(t, options{mxPort: port, level: "info", deliv: "connect_timeout = \"3s\"\nmax_messages_per_connection = 1"})
	l := r.domain("shop.example")
	r.zone("equal.example", "@ MX 10 a.@", "@ MX 10 b.@", "@ MX 10 dead.@", "@ MX 10 silent.@",
		"a.@ A 127.0.0.1", "b.@ A 127.0.0.2", "dead.@ A 127.0.0.3", "silent.@ A 127.0.0.4")
	r.zone("first.example", "@ MX 10 dead.@", "@ MX 20 silent.@", "@ MX 30 last.@", "dead.@ A 127.0.0.3", "silent.@ A 127.0.0.4", "last.@ A 127.0.0.1")
	id := r.mailTo(t, "a@first.example")
	e := r.final(t, id, 0)
	require.Equal(t, "delivered", e.State)
	require.Equal(t, 1, e.Attempts)
	require.Equal(t, "last.first.example[127.0.0.1]", e.LastHost)
	before := len(a.Mails())
	r.manyTo(l, count, "a@equal.example")
	wait(t, "all letters", 30*time.Second, func() bool { return r.stats().Queued == 0 })
	na, nb := len(a.Mails())-before, len(b.Mails())
	require.Equal(t, count, na+nb)
	require.Greater(t, min(na, nb), count/5, "%d and %d", na, nb)
	require.NotContains(t, r.logText(), `"attempt.deferred"`, "within the same attempt")

	// The time of a connect is bounded: here by the configuration, which takes no more than a minute (and by default 30 s).
	long := strings.Replace(r.conf, `connect_timeout = "3s"`, `connect_timeout = "61s"`, 1)
	writeFile(t, r.dir+"/long.toml", long)
	_, stderr, code := r.tool("relayd", "check", "--config", r.dir+"/long.toml")
	require.NotZero(t, code)
	require.Contains(t, stderr, "delivery.connect_timeout")
}

// TestFamiliesAlternateBetweenAttempts: a host with two addresses that wants to be asked again is asked by IPv6, by IPv4, and where
// it was asked first (issue 5, "Addresses").
func TestFamiliesAlternateBetweenAttempts(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	asked := make(chan string, 10)
	for _, ip := range []string{"::1", "127.0.0.1"} {
		(&testutil.MX{IP: ip, Port: port, Rule: func(s testutil.Step) testutil.Act {
			if s.Verb != "RCPT" {
				return testutil.Act{}
			}
			asked <- ip
			if len(asked) < 3 {
				return testutil.Act{Reply: "450 4.2.0 come back"}
			}
			return testutil.Act{}
		}}).Start(t)
	}
	r := newRelay(t, options{mxPort: port, level: "info", deliv: "idle_timeout = \"0s\""})
	r.domain("shop.example")
	r.zone("dest.example", "@ MX 10 mx.@", "mx.@ AAAA ::1", "mx.@ A 127.0.0.1")
	e := r.final(t, r.mailTo(t, "a@dest.example"), 0)
	require.Equal(t, "delivered", e.State)
	require.Equal(t, 3, e.Attempts)
	require.Equal(t, []string{"::1", "127.0.0.1", "::1"}, []string{<-asked, <-asked, <-asked})
}

// TestD3_DeadDomainSlowsNobody sends letters through two relays in turn, of which one has 10,000 envelopes queued for a host that
// never answers: 19 of 20 take less than twice as long there. What else the machine does meets both, and may spoil a round, but not
// all of them. Were letters to wait for a connect to end they would come too late: it lasts a minute.
func TestD3_DeadDomainSlowsNobody(t *testing.T) {
	t.Parallel()
	const messages, recipients, count, rounds = 10, 1000, 20, 15
	port := freePort(t)
	silent(t, "127.0.0.4", port)
	type way struct {
		relay *relay
		mx    *testutil.MX
		send  func(to ...string)
	}
	newWay := func(ip string) *way {
		w := &way{mx: (&testutil.MX{IP: ip, Port: port}).Start(t)}
		w.relay = newRelay(t, options{mxPort: port, level: "warn", deliv: "connect_timeout = \"60s\""})
		c := w.relay.dial(w.relay.domain("shop.example"))
		w.send = func(to ...string) {
			require.NoError(t, c.SendMail("news@shop.example", to, strings.NewReader(plain("news@shop.example", "all@shop.example", "crowd"))))
		}
		w.relay.zone("dest.example", "@ MX 10 mx.@", "mx.@ A "+ip)
		w.relay.zone("dead.example", "@ MX 10 mx.@", "mx.@ A 127.0.0.4")
		return w
	}
	alone, beside := newWay("127.0.0.1"), newWay("127.0.0.2")
	for i := range messages {
		to := make([]string, recipients)
		for j := range to {
			to[j] = fmt.Sprintf("a%d.%d@dead.example", i, j)
		}
		beside.send(to...)
	}
	letters := 0
	round := func() (p95 [2]time.Duration) {
		var all [2][]time.Duration
		for i := range count {
			letters++
			for k := range 2 { // who goes first changes
				k = (k + i) % 2
				w, began := []*way{alone, beside}[k], time.Now()
				w.send(fmt.Sprintf("a%d@dest.example", letters))
				w.mx.Wait(t, letters)
				all[k] = append(all[k], time.Since(began))
			}
		}
		for k := range all {
			slices.Sort(all[k])
			p95[k] = all[k][count*95/100-1]
		}
		return p95
	}
	var seen []string
	for {
		p95 := round()
		seen = append(seen, fmt.Sprintf("%v and %v", p95[0], p95[1]))
		if p95[1] < 2*p95[0] {
			break
		}
		require.Less(t, len(seen), rounds, "p95 from submission to the host alone, and beside %d for a dead one: %v", messages*recipients, seen)
	}
	t.Logf("p95 from submission to the host alone, and beside %d for a dead one: %v", messages*recipients, seen)
	for w, queued := range map[*way]int{alone: 0, beside: messages * recipients} {
		var st stats
		wait(t, "the letters' outcomes", 20*time.Second, func() bool { st = w.relay.stats(); return st.Outcomes["delivered"] == letters })
		require.Equal(t, queued, st.Queued, "%+v", st)
		require.Equal(t, map[string]int{"delivered": letters}, positive(st.Outcomes))
	}
}

// TestD4_LateFinalReplyIsOneCopy: hosts answer the end of a message late, to DATA and to BDAT. That they may take 100, 300
// and 590 seconds shows TestD4LateFinalReplyIsOneCopy of package delivery, under a fake clock.
func TestD4_LateFinalReplyIsOneCopy(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	late := make(chan struct{})
	hosts := map[string]*testutil.MX{
		"DOT":  {Port: port, Extensions: []string{"PIPELINING"}},
		"BDAT": {IP: "127.0.0.2", Port: port, Extensions: []string{"PIPELINING", "CHUNKING"}},
	}
	r := newRelay(t, options{mxPort: port, level: "info", deliv: "chunking = true"})
	r.domain("shop.example")
	for name, mx := range hosts {
		mx.Rule = func(s testutil.Step) testutil.Act {
			if s.Verb == "DOT" {
				return testutil.Act{Stall: late}
			}
			return testutil.Act{}
		}
		mx.Start(t)
		r.zone(name+".example", "@ MX 10 mx.@", "mx.@ A "+mx.AddrPort().Addr().String())
	}
	ids := map[string]string{}
	for name, mx := range hosts {
		ids[name] = r.mailTo(t, "a@"+name+".example")
		mx.WaitCommands(t, "DOT", 1)
	}
	time.AfterFunc(5*time.Second, func() { close(late) })
	for name, mx := range hosts {
		e := r.final(t, ids[name], 0)
		require.Equal(t, "delivered", e.State)
		require.Equal(t, 1, e.Attempts)
		require.Zero(t, e.InDoubt)
		all, _ := mx.Sessions()
		require.Equal(t, 1, all)
		require.Len(t, mx.Mails(), 1)
		require.Equal(t, name == "BDAT", slices.ContainsFunc(mx.Commands(), func(c string) bool { return strings.HasPrefix(c, "BDAT") }))
	}
	require.Zero(t, r.stats().InDoubt)
	require.NotContains(t, r.logText(), "in_doubt")
}

// d5 is a host that refuses one step once.
type d5 struct {
	verb, reply string
	extensions  []string
	mx          *testutil.MX
	domain      string
	id          string
}

// TestD5_EachReplyIsForItsRecipient: in each phase of a session, with PIPELINING and without, a refusal for now is followed by
// delivery, and one for good ends those whom it is about, and nobody else.
func TestD5_EachReplyIsForItsRecipient(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	r := newRelay(t, options{mxPort: port, level: "info"})
	r.domain("shop.example")
	var cases []*d5
	for _, verb := range []string{"CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"} {
		for _, reply := range []string{"451 4.3.0 not now", "554 5.3.0 never", "421 4.3.2 closing"} {
			for _, extensions := range [][]string{{"PIPELINING", "DSN"}, {"SIZE"}} {
				n := len(cases)
				var refused atomic.Bool
				c := &d5{verb: verb, reply: reply, extensions: extensions, domain: fmt.Sprintf("d%d.example", n)}
				c.mx = &testutil.MX{IP: fmt.Sprintf("127.0.5.%d", n+1), Port: port, Extensions: extensions, Rule: func(s testutil.Step) testutil.Act {
					refuses := s.Verb == verb && (verb != "RCPT" || strings.HasPrefix(s.To, "a"))
					if verb == "EHLO" && s.Verb == "HELO" && strings.HasPrefix(reply, "554") { // it is asked when EHLO is refused
						return testutil.Act{Reply: reply}
					}
					if strings.HasPrefix(s.To, "gone") {
						return testutil.Act{Reply: "550 5.1.1 unknown"}
					}
					if refuses && refused.CompareAndSwap(false, true) {
						return testutil.Act{Reply: reply, Drop: strings.HasPrefix(reply, "421")}
					}
					return testutil.Act{}
				}}
				c.mx.Start(t)
				r.zone(c.domain, "@ MX 10 mx.@", "mx.@ A "+c.mx.IP)
				c.id = r.mailTo(t, "gone@"+c.domain, "a@"+c.domain, "b@"+c.domain)
				cases = append(cases, c)
			}
		}
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("%s_%s_%s", c.verb, c.reply[:3], c.extensions[0]), func(t *testing.T) {
			early := c.verb == "CONNECT" || c.verb == "EHLO" // before an envelope is presented
			gone, a, b := r.final(t, c.id, 0), r.final(t, c.id, 1), r.final(t, c.id, 2)
			require.Equal(t, "bounced", gone.State)
			for _, e := range []api.QueueItem{a, b} {
				mine := c.verb != "RCPT" || e.ID == a.ID
				switch {
				case c.reply[:3] == "554" && mine:
					require.Equal(t, "bounced", e.State)
					require.Equal(t, 554, e.LastReply.Code)
					require.Equal(t, 1, e.Attempts)
				case c.reply[:3] == "451" && mine && !early:
					require.Equal(t, "delivered", e.State)
					require.Equal(t, 2, e.Attempts)
				default:
					require.Equal(t, "delivered", e.State)
					require.Equal(t, 1, e.Attempts)
				}
			}
			copies := map[string]int{}
			for _, m := range c.mx.Mails() {
				for _, to := range m.To {
					copies[to]++
				}
			}
			for _, e := range []api.QueueItem{gone, a, b} {
				require.Equal(t, boolCount(e.State == "delivered"), copies[e.To], "exactly one copy to %s", e.To)
			}
			presented := 0
			for _, cmd := range c.mx.Commands() {
				presented += boolCount(strings.HasPrefix(cmd, "RCPT TO:<gone@"))
			}
			if c.verb == "RCPT" || c.verb == "DATA" || c.verb == "DOT" { // it was settled before
				require.Equal(t, 550, gone.LastReply.Code)
				require.Equal(t, 1, presented)
			}
			id := r.mailTo(t, "c@"+c.domain) // nothing of it is held against another message
			require.Equal(t, "delivered", r.final(t, id, 0).State)
		})
	}
}

func boolCount(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestD5_MixedRecipientsAreSettledOneByOne: each recipient of one transaction has a reply of its own.
func TestD5_MixedRecipientsAreSettledOneByOne(t *testing.T) {
	t.Parallel()
	replies := map[string]string{
		"full": "452 4.2.2 mailbox full", "busy": "450 4.2.1 busy", "gone": "550 5.1.1 unknown", "moved": "551 5.1.6 moved", "big": "552 5.3.4 too big",
	}
	var later atomic.Bool
	mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
		who, _, _ := strings.Cut(s.To, "@")
		if reply := replies[who]; s.Verb == "RCPT" && (reply[:min(1, len(reply))] == "5" || !later.Load()) {
			return testutil.Act{Reply: reply}
		}
		return testutil.Act{}
	}}).Start(t)
	r := newRelay(t, options{mxPort: mx.PortNumber(), level: "info", retry: "attempts = 3\nfirst_delay = \"1h\"\nmultiplier = 1.0\nmax_age = \"24h\""})
	r.domain("shop.example")
	r.mx("dest.example")
	to := []string{"one", "full", "gone", "busy", "moved", "big", "two"}
	for i := range to {
		to[i] += "@dest.example"
	}
	id := r.mailTo(t, to...)
	for i, want := range []string{"delivered", "", "bounced", "", "bounced", "bounced", "delivered"} {
		who, _, _ := strings.Cut(to[i], "@")
		if want == "" {
			e := r.deferred(t, id, i)
			require.Equal(t, replies[who][:3], itoa(e.LastReply.Code))
			require.Equal(t, 1, e.Attempts)
			continue
		}
		e := r.final(t, id, i)
		require.Equal(t, want, e.State, to[i])
		if want == "bounced" {
			require.Equal(t, replies[who], e.LastReply.String())
		}
	}
	later.Store(true)
	r.json(nil, "queue", "retry", id)
	for _, i := range []int{1, 3} {
		require.Equal(t, "delivered", r.final(t, id, i).State)
	}
	rcpt := map[string]int{}
	for _, c := range mx.Commands() {
		if rest, ok := strings.CutPrefix(c, "RCPT TO:<"); ok {
			who, _, _ := strings.Cut(rest, "@")
			rcpt[who]++
		}
	}
	for who := range replies {
		require.GreaterOrEqual(t, rcpt[who], 1)
	}
	for _, who := range []string{"one", "two", "gone", "moved", "big"} {
		require.Equal(t, 1, rcpt[who], who)
	}
	copies := map[string]int{}
	for _, m := range mx.Mails() {
		for _, to := range m.To {
			copies[to]++
		}
	}
	require.Equal(t, map[string]int{to[0]: 1, to[1]: 1, to[3]: 1, to[6]: 1}, copies)
}

// TestD6_StormOf421: one attempt is all that the policy allows, so an envelope that lost one to a reply about connections would
// expire.
func TestD6_StormOf421(t *testing.T) {
	t.Parallel()
	const pause, most = 300 * time.Millisecond, 3
	port := freePort(t)
	options := options{
		mxPort: port, level: "info", retry: "attempts = 1\nfirst_delay = \"1s\"\nmultiplier = 1.0\nmax_age = \"5m\"",
		deliv: "max_connections_per_site = " + itoa(most), suspend: pause.String(),
	}
	busy := testutil.Act{Reply: "421 4.7.0 too many connections", Drop: true}

	// A host that never takes a connection is asked less and less often, and by one connection.
	times := make(chan time.Time, 1000)
	var closed atomic.Bool
	closed.Store(true)
	door := (&testutil.MX{Port: port, Rule: func(s testutil.Step) testutil.Act {
		if s.Verb == "CONNECT" && closed.Load() {
			times <- time.Now()
			return busy
		}
		return testutil.Act{}
	}}).Start(t)
	// One that grows tired in the midst of sessions.
	var tired atomic.Int32
	full := make(chan struct{})
	hall := (&testutil.MX{IP: "127.0.0.2", Port: port, Rule: func(s testutil.Step) testutil.Act {
		if s.Verb == "MAIL" && tired.Add(-1) >= 0 {
			return busy
		}
		if s.Verb == "DOT" {
			return testutil.Act{Stall: full}
		}
		return testutil.Act{}
	}}).Start(t)
	r := newRelay(t, options)
	l := r.domain("shop.example")
	r.zone("door.example", "@ MX 10 mx.@", "mx.@ A 127.0.0.1")
	r.zone("hall.example", "@ MX 10 mx.@", "mx.@ A 127.0.0.2")
	const count = 40
	r.manyTo(l, count, "a@door.example")
	r.manyTo(l, count, "a@hall.example")
	hall.WaitCommands(t, "DOT", most) // it stalls until there are as many connections as there may be
	tired.Store(6)
	close(full)

	var seen []time.Time
	for range 4 {
		seen = append(seen, <-times)
	}
	for i := 1; i < len(seen); i++ { // no sooner; noise makes it later only
		require.GreaterOrEqual(t, seen[i].Sub(seen[i-1]), pause<<(i-1)*9/10, "pause %d", i)
	}
	closed.Store(false)
	wait(t, "all letters", 60*time.Second, func() bool { return r.stats().Queued == 0 })
	require.Equal(t, map[string]int{"delivered": 2 * count}, positive(r.stats().Outcomes))
	for name, mx := range map[string]*testutil.MX{"door": door, "hall": hall} {
		_, open := mx.Sessions()
		require.LessOrEqual(t, open, most, name)
		require.Len(t, mx.Mails(), count, name)
	}
	require.Negative(t, tired.Load(), "all of the 421 were said")
	require.NotContains(t, r.logText(), `"attempt":2`+`,"mx"`)
	h, err := r.client().History(t.Context(), api.HistoryQuery{To: "a@hall.example"}, api.List{})
	require.NoError(t, err)
	for _, e := range h.Data {
		require.Equal(t, 1, e.Attempts)
	}
}
