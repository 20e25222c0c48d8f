package delivery

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
	"relayd/spool"
)

// blocklist is a host that answers connections from some addresses in its own way.
type blocklist struct {
	mu      sync.Mutex
	peers   []netip.Addr // by session
	blocked map[netip.Addr]bool
}

// start serves; at verb, or at the message, blocked addresses get reply.
func (b *blocklist) start(t *testing.T, verb, reply string) *testutil.MX {
	b.blocked = map[netip.Addr]bool{}
	return (&testutil.MX{
		Peer: func(a netip.AddrPort) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.peers = append(b.peers, a.Addr())
		},
		Rule: func(s testutil.Step) testutil.Act {
			b.mu.Lock()
			defer b.mu.Unlock()
			if s.Verb == verb && b.blocked[b.peers[s.Session-1]] {
				return testutil.Act{Reply: reply, Drop: verb == "CONNECT"}
			}
			return testutil.Act{}
		},
	}).Start(t)
}

func (b *blocklist) block(a ...netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range a {
		b.blocked[x] = true
	}
}

func (b *blocklist) of(m *testutil.Mail) netip.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.peers[m.Session-1]
}

// TestABlamedAddressIsRelieved by another one of its source, towards the site that blames it.
func TestABlamedAddressIsRelieved(t *testing.T) {
	t.Parallel()
	addresses := []string{"127.0.0.42", "127.0.0.43", "127.0.0.44"}
	for name, tt := range map[string]struct{ verb, reply string }{
		"greeting":            {"CONNECT", "554 5.7.1 your ip is on a blocklist"},
		"greeting for now":    {"CONNECT", "421 4.7.1 your ip is on a blocklist"},
		"recipient":           {"RCPT", "550 5.7.1 Service unavailable; Client host blocked using zen.spamhaus.org"},
		"recipient for now":   {"RCPT", "450 4.7.25 no reverse DNS"},
		"recipient and close": {"RCPT", "421 4.7.1 [192.0.2.1] is on our blocklist"},
		"message":             {"DOT", "554 5.7.1 blocked using rbl.example, a DNSBL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &blocklist{}
			mx := b.start(t, tt.verb, tt.reply)
			r := newRig(t, mx.PortNumber(), zone()).sleepless()
			r.cfg.ConnectTries = 3
			if tt.verb == "CONNECT" { // else the session that is open goes on
				r.cfg.MaxMessagesPerConnection = 1
			}
			r.cfg.Sources = []Source{{Name: "pool", Addresses: addresses}}
			r.cfg.Rules = []Rule{{RecipientDomains: []string{"dest.example"}, Source: "pool"}}
			r.start()
			send := func() spool.Settled {
				return r.outcome(r.submit(submission{to: []string{"a@dest.example"}, retry: quick}), 0)
			}
			require.Equal(t, spool.Delivered, send().Result.Outcome)
			usual := b.of(mx.Wait(t, 1)[0])
			b.block(usual) // while a session from it is open
			for n := 2; n < 4; n++ {
				got := send()
				require.Equal(t, spool.Delivered, got.Result.Outcome, got.Result.Reply.String())
				require.NotEqual(t, usual, b.of(mx.Wait(t, n)[n-1]))
			}
			require.Equal(t, 1, r.logs.count("address.blamed"))
			r.skew.Add(int64(2 * blamedFor))
			got := send()
			require.Equal(t, spool.Delivered, got.Result.Outcome, got.Result.Reply.String())
			require.Equal(t, 2, r.logs.count("address.blamed"), "it got another chance")
		})
	}
}

// TestWhereAllAddressesAreBlamed the reply means what it says; and with no attempt left as well.
func TestWhereAllAddressesAreBlamed(t *testing.T) {
	t.Parallel()
	b := &blocklist{}
	mx := b.start(t, "RCPT", "550 5.7.1 Client host blocked using zen.spamhaus.org")
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.Sources = []Source{{Name: "pool", Addresses: []string{"127.0.0.42", "127.0.0.43"}}, {Name: "one", Addresses: []string{"127.0.0.44"}}}
	r.cfg.Rules = []Rule{{Streams: []string{"one"}, Source: "one"}, {Source: "pool"}}
	r.start()
	for _, a := range []string{"127.0.0.42", "127.0.0.43", "127.0.0.44"} {
		b.block(netip.MustParseAddr(a))
	}
	for _, s := range []submission{
		{to: []string{"a@dest.example"}, retry: spool.RetryPolicy{Attempts: 1, First: time.Second, MaxAge: time.Hour}},
		{to: []string{"a@dest.example"}, retry: quick},
		{to: []string{"a@dest.example"}, retry: quick, stream: "one"},
	} {
		got := r.outcome(r.submit(s), 0)
		require.Equal(t, spool.Bounced, got.Result.Outcome)
		require.Equal(t, 550, got.Result.Reply.Code)
	}
}

// TestAWishForLessIsNotPassedBy from another address.
func TestAWishForLessIsNotPassedBy(t *testing.T) {
	t.Parallel()
	b := &blocklist{}
	mx := b.start(t, "RCPT", "450 4.7.28 unusual rate of mail from your address")
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.Sources = []Source{{Name: "pool", Addresses: []string{"127.0.0.42", "127.0.0.43"}}}
	r.cfg.Rules = []Rule{{Source: "pool"}}
	b.block(netip.MustParseAddr("127.0.0.42"), netip.MustParseAddr("127.0.0.43"))
	r.start()
	r.deferred(r.send("a@dest.example"), 0)
	mx.WaitCommands(t, "RCPT", 3)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.peers {
		require.Equal(t, b.peers[0], p)
	}
	require.Zero(t, r.logs.count("address.blamed"))
}
