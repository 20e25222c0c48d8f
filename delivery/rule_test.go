package delivery

import (
	"net/netip"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
	"relayd/internal/testutil"
	"relayd/internal/tlspolicy"
	"relayd/spool"
)

func TestRulesChoose(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.Smarthosts = []Smarthost{{Name: "up", Address: "smtp.up.example:587"}, {Name: "down", Address: "smtp.down.example:587"}}
	cfg.Sources = []Source{{Name: "bulk", EHLO: "bulk.relay.test"}, {Name: "fast", EHLO: "fast.relay.test"}}
	cfg.Rules = []Rule{
		{RecipientDomains: []string{"Bank.Example", ".bank.example"}, TLS: tlspolicy.Verify},
		{RecipientDomains: []string{"sink.example"}, Route: RouteDiscard},
		{SenderDomains: []string{"legacy.example"}, Route: "down", Fallback: RouteMX},
		{SenderDomains: []string{".legacy.example"}, Accounts: []string{"shop"}, Source: "fast", TLS: tlspolicy.Require},
		{Campaigns: []string{"*"}, Source: "bulk"},
		{Accounts: []string{"shop"}, Streams: []string{"codes"}, Route: "up", Fallback: RouteMX, Source: "fast"},
		{Route: RouteMX, Fallback: "up"},
	}
	require.NoError(t, cfg.Validate())
	sched := &Scheduler{router: newRouter(cfg, Deps{})}
	tests := []struct {
		name                            string
		account, stream, domain, sender string
		want                            choice
		apart                           bool // waits in a queue of its sender's domain
	}{
		{name: "the_last_rule_is_for_the_rest", domain: "dest.example", want: choice{route: "mx", fallback: "up"}},
		{name: "domain", domain: "bank.example", want: choice{route: "mx", fallback: "up", tls: tlspolicy.Verify}},
		{name: "domain_below", domain: "a.b.bank.example", want: choice{route: "mx", fallback: "up", tls: tlspolicy.Verify}},
		{name: "domain_that_only_ends_alike", domain: "riverbank.example", want: choice{route: "mx", fallback: "up"}},
		{name: "campaign", stream: "cmp_06gzmrq9761tb5f36yr0", domain: "dest.example", want: choice{route: "mx", fallback: "up", source: "bulk"}},
		{name: "stream_of_an_account", account: "shop", stream: "codes", domain: "bank.example", want: choice{route: "up", fallback: "mx", source: "fast", tls: tlspolicy.Verify}},
		{name: "stream_of_another_account", account: "other", stream: "codes", domain: "dest.example", want: choice{route: "mx", fallback: "up"}},
		{name: "sender", domain: "dest.example", sender: "legacy.example", want: choice{route: "down", fallback: "mx"}, apart: true},
		{name: "sender_below", account: "shop", domain: "dest.example", sender: "a.legacy.example", want: choice{route: "mx", fallback: "up", source: "fast", tls: tlspolicy.Require}, apart: true},
		{name: "sender_below_of_another_account", account: "other", domain: "dest.example", sender: "a.legacy.example", want: choice{route: "mx", fallback: "up"}},
		{name: "sender_adds_to_an_earlier_rule", account: "shop", domain: "bank.example", sender: "a.legacy.example", want: choice{route: "mx", fallback: "up", source: "fast", tls: tlspolicy.Verify}, apart: true},
		{name: "an_earlier_rule_wins_over_the_sender", domain: "sink.example", sender: "legacy.example", want: choice{route: RouteDiscard}, apart: true},
		{name: "another_sender", domain: "dest.example", sender: "shop.example", want: choice{route: "mx", fallback: "up"}},
		{name: "null_path", domain: "dest.example", want: choice{route: "mx", fallback: "up"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			from := mail.Path{}
			if tt.sender != "" {
				from = mail.Path{Local: "a", Domain: tt.sender}
			}
			q := spool.Queue{Account: tt.account, Stream: tt.stream}
			q.Domain = sched.QueueDomain(q.Account, q.Stream, from, mail.Path{Local: "b", Domain: tt.domain})
			require.Equal(t, tt.want, sched.router.table.Load().choose(q))
			require.Equal(t, tt.domain, q.Recipient())
			require.Equal(t, tt.apart, q.Sender() != "")
			require.Contains(t, []string{"", tt.sender}, q.Sender())
		})
	}
}

func TestRulesAreCheckedPrecisely(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.Fallback = "nowhere"
	cfg.Smarthosts = []Smarthost{{Name: "up", Address: "smtp.up.example:587"}, {Name: "discard", Address: "x.example:25"}, {Name: "no blank", Address: "x.example:25"}}
	cfg.Sources = []Source{
		{Name: "bulk", Addresses: []string{"192.0.2.300", "0.0.0.0"}, EHLO: "bad name"}, {Name: "bulk", EHLO: "x.example"}, {Name: "empty"},
	}
	cfg.Rules = []Rule{
		{Route: "up"},
		{RecipientDomains: []string{"ok.example", "b@d"}},
		{RecipientDomains: []string{"a.example"}, Route: "sideways", Fallback: "up"},
		{Streams: []string{"cmp_x"}, Campaigns: []string{"sale"}, Accounts: []string{""}, Source: "none", TLS: "always"},
		{SenderDomains: []string{"a b"}, Source: "bulk", Fallback: "up"},
		{RecipientDomains: []string{"a.example"}, Route: "up", Fallback: "up"},
		{RecipientDomains: []string{"a.example"}, Route: RouteDiscard, Fallback: "up"},
	}
	cfg.DelayNotice = 1
	cfg.ReplyRules = "class odd nobody retry bounce no"
	err := cfg.Validate()
	for _, want := range []string{
		`delivery.fallback: "nowhere" is neither mx nor the name of a smarthost`,
		`delivery.smarthost[1].name: "discard" is used twice, or one of mx, discard, default`,
		`delivery.smarthost[2].name: "no blank"`,
		`delivery.source[0].addresses[0]: "192.0.2.300"`, `delivery.source[0].addresses[1]: "0.0.0.0"`, `delivery.source[0].ehlo: "bad name"`,
		`delivery.source[1].name: "bulk" is used twice`, `delivery.source[2].addresses: none`,
		`delivery.rule[0]: matches everything`,
		`delivery.rule[1].recipient_domains[1]: "b@d"`, `delivery.rule[1]: sets none of route, source and tls`,
		`delivery.rule[2].route: "sideways"`,
		`delivery.rule[3].streams[0]: "cmp_x" is the ID of a campaign`, `delivery.rule[3].campaigns[0]: "sale"`, `delivery.rule[3].accounts[0]: is empty`,
		`delivery.rule[3].source: there is no delivery.source named "none"`, `delivery.rule[3].tls: "always"`,
		`delivery.rule[4].sender_domains[0]: "a b"`, `delivery.rule[4].fallback: needs a route`,
		`delivery.rule[5].fallback: "up" is the route itself`, `delivery.rule[6].fallback: discard never fails`,
		`delivery.delay_notice: 1ns`, `delivery.reply_rules_file: line 1: class odd: blame "nobody"`,
	} {
		require.ErrorContains(t, err, want)
	}
}

func TestDiscardedMailIsDeliveredToNobody(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.Rules = []Rule{{RecipientDomains: []string{"dest.example"}, Route: RouteDiscard}}
	r.start()
	got := r.outcome(r.send("a@dest.example"), 0)
	require.Equal(t, spool.Delivered, got.Result.Outcome)
	require.Equal(t, "discarded", got.Result.Reason)
	r.outcome(r.send("a@other.example"), 0)
	require.Len(t, mx.Mails(), 1)
	require.Equal(t, []string{"a@other.example"}, mx.Mails()[0].To)
}

func TestSuspendedRouteHandsOverToItsFallback(t *testing.T) {
	t.Parallel()
	for name, act := range map[string]testutil.Act{
		"unreachable": {Reset: true}, "throttling": {Reply: "421 4.7.0 not now", Drop: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mx := (&testutil.MX{Rule: on("CONNECT", act)}).Start(t)
			up := (&testutil.MX{}).Start(t)
			r := newRig(t, mx.PortNumber(), zone())
			r.cfg.Smarthosts = []Smarthost{{Name: "up", Address: up.AddrPort().String(), TLS: TLSNone}}
			r.cfg.Fallback = "up"
			r.cfg.SuspendFirst, r.cfg.SuspendMax = r.cfg.Retry.FirstDelay, r.cfg.Retry.FirstDelay // longer than the test
			r.sleepless().start()
			for range 20 {
				r.send("a@dest.example")
			}
			for _, m := range up.Wait(t, 20) {
				require.Equal(t, []string{"a@dest.example"}, m.To)
			}
			require.Empty(t, mx.Mails())
		})
	}
}

func TestSourceIsBoundAndSaysItsName(t *testing.T) {
	t.Parallel()
	from := make(chan netip.Addr, 10)
	mx := (&testutil.MX{Peer: func(a netip.AddrPort) { from <- a.Addr() }}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.Sources = []Source{{Name: "codes", Addresses: []string{"127.0.0.42", "127.0.0.43", "127.0.0.44"}, EHLO: "codes.relay.test"}}
	r.cfg.Rules = []Rule{{Streams: []string{"codes"}, Source: "codes"}}
	r.start()
	r.outcome(r.send("a@dest.example"), 0)
	plain := <-from
	require.Equal(t, "127.0.0.1", plain.String())
	r.outcome(r.submit(submission{to: []string{"a@dest.example"}, stream: "codes"}), 0)
	bound := <-from
	require.Contains(t, []string{"127.0.0.42", "127.0.0.43", "127.0.0.44"}, bound.String())
	require.Contains(t, mx.Commands(), "EHLO relay.test")
	require.Contains(t, mx.Commands(), "EHLO codes.relay.test")
	src := newSource(&r.cfg.Sources[0])
	require.Equal(t, bound, src.bind("mx.dest.example", netip.MustParseAddr("127.0.0.1"), func(netip.Addr) bool { return false }), "always the same one towards one host")
	require.False(t, src.reaches(netip.MustParseAddr("2001:db8::1")))
}

// TestRulesOfTheSendersDomain has one recipient's domain get mail of three senders' domains, each with a rule of its own.
func TestRulesOfTheSendersDomain(t *testing.T) {
	t.Parallel()
	var names sync.Map // of the sessions
	mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
		if s.Verb == "EHLO" {
			names.Store(s.Session, s.Arg)
		}
		return testutil.Act{}
	}}).Start(t)
	down := (&testutil.MX{Rule: on("CONNECT", testutil.Act{Reply: "421 4.3.2 not now", Drop: true})}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.Smarthosts = []Smarthost{{Name: "down", Address: down.AddrPort().String(), TLS: TLSNone}}
	r.cfg.Sources = []Source{{Name: "legacy", EHLO: "legacy.relay.test"}}
	r.cfg.Rules = []Rule{
		{SenderDomains: []string{"legacy.example"}, Source: "legacy"},
		{SenderDomains: []string{"secret.example"}, TLS: tlspolicy.Require},
		{SenderDomains: []string{"relayed.example"}, Route: "down", Fallback: RouteMX},
	}
	r.cfg.SuspendFirst, r.cfg.SuspendMax = r.cfg.Retry.FirstDelay, r.cfg.Retry.FirstDelay // longer than the test
	r.deps.Door = nil
	r.sleepless().start()
	id := r.submit(submission{from: "a@secret.example", to: []string{"a@dest.example"}})
	require.Equal(t, mail.Status{Class: 4, Subject: 7, Detail: 5}, r.deferred(id, 0).LastReply.Status, "the host offers no TLS")
	for _, from := range []string{"a@legacy.example", "a@relayed.example", "a@plain.example"} {
		require.Equal(t, spool.Delivered, r.outcome(r.submit(submission{from: from, to: []string{"a@dest.example"}}), 0).Result.Outcome)
	}
	asked, _ := down.Sessions()
	require.Equal(t, 1, asked, "its route is asked first")
	require.Len(t, mx.Mails(), 3)
	for _, m := range mx.Mails() {
		name, _ := names.Load(m.Session)
		require.Equal(t, map[bool]string{true: "legacy.relay.test", false: "relay.test"}[m.From == "a@legacy.example"], name, m.From)
	}
}

// TestUnresolvedDomainIsToldAsMailNamesIt: what sets the queues of a sender's domain apart is no business of who reads the log.
func TestUnresolvedDomainIsToldAsMailNamesIt(t *testing.T) {
	t.Parallel()
	r := newRig(t, 25, zone())
	r.cfg.Rules = []Rule{{SenderDomains: []string{"legacy.example"}, TLS: tlspolicy.Require}}
	r.deps.Door = nil
	r.dns.SetRcode("dest.example", dns.RcodeServerFailure)
	r.start()
	r.deferred(r.submit(submission{from: "a@legacy.example", to: []string{"a@dest.example"}}), 0)
	apart := r.logs.wait(t, "domain.unresolved", func(l logLine) bool { return l.attrs["from"] == "legacy.example" })
	require.Equal(t, "dest.example", apart.attrs["domain"])
	r.deferred(r.submit(submission{from: "a@plain.example", to: []string{"a@dest.example"}}), 0)
	r.logs.wait(t, "domain.unresolved", func(l logLine) bool { return l.attrs["domain"] == "dest.example" && l.attrs["from"] == "" })
}

func TestSourceOfAnotherMachineStopsTheStart(t *testing.T) {
	t.Parallel()
	r := newRig(t, 25, zone())
	r.cfg.Sources = []Source{{Name: "bulk", Addresses: []string{"127.0.0.1", "192.0.2.77"}}}
	_, err := New(r.cfg, r.deps)
	require.ErrorContains(t, err, "source bulk: cannot send from 192.0.2.77")
}

func TestRulesAboutTLS(t *testing.T) {
	t.Parallel()
	ca := testutil.NewCA(t)
	tests := []struct {
		name  string
		level tlspolicy.Level
		mx    *testutil.MX
		tls   string // of the delivered mail, "-" for none delivered
	}{
		{"opportunistic_encrypts_to_anybody", tlspolicy.Opportunistic, &testutil.MX{TLS: ca.Server(t, "somebody.else")}, "TLS1.3"},
		{"none_does_not_ask", tlspolicy.None, &testutil.MX{TLS: ca.Server(t, "mx.dest.example")}, ""},
		{"require_takes_any_certificate", tlspolicy.Require, &testutil.MX{TLS: ca.Server(t, "somebody.else")}, "TLS1.3"},
		{"require_refuses_a_stripped_host", tlspolicy.Require, &testutil.MX{}, "-"},
		{"require_refuses_broken_tls", tlspolicy.Require, &testutil.MX{Extensions: []string{"STARTTLS"}, Rule: on("STARTTLS", testutil.Act{BadTLS: true})}, "-"},
		{"require_refuses_a_host_that_refuses", tlspolicy.Require, &testutil.MX{TLS: ca.Server(t, "mx.dest.example"), Rule: on("STARTTLS", testutil.Act{Reply: "454 4.7.0 no"})}, "-"},
		{"verify_takes_the_right_name", tlspolicy.Verify, &testutil.MX{TLS: ca.Server(t, "mx.dest.example")}, "TLS1.3"},
		{"verify_refuses_another_name", tlspolicy.Verify, &testutil.MX{TLS: ca.Server(t, "somebody.else")}, "-"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.mx.Start(t)
			r := newRig(t, tt.mx.PortNumber(), zone())
			r.deps.Roots = ca.Pool()
			r.cfg.Rules = []Rule{{RecipientDomains: []string{"dest.example"}, TLS: tt.level}}
			r.sleepless().start()
			id := r.send("a@dest.example")
			if tt.tls != "-" {
				require.Equal(t, tt.tls, r.outcome(id, 0).Result.TLS)
				return
			}
			e := r.deferred(id, 0)
			if tt.name != "require_refuses_a_host_that_refuses" { // its own words say more
				require.Equal(t, mail.Status{Class: 4, Subject: 7, Detail: 5}, e.LastReply.Status, e.LastReply.String())
			}
			require.Equal(t, 7, e.LastReply.Status.Subject)
			require.Zero(t, e.Attempts)
			for _, c := range tt.mx.Commands() {
				require.NotContains(t, c, "MAIL")
			}
		})
	}
}

func TestLostTLSIsTold(t *testing.T) {
	t.Parallel()
	ca := testutil.NewCA(t)
	mx := (&testutil.MX{TLS: ca.Server(t, "mx.dest.example")}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.IdleTimeout = 0
	r.start()
	require.Equal(t, "TLS1.3", r.outcome(r.send("a@dest.example"), 0).Result.TLS)
	mx.StripTLS(true)
	require.Empty(t, r.outcome(r.send("a@dest.example"), 0).Result.TLS)
	l := r.logs.wait(t, "session.downgraded", nil)
	require.Equal(t, "not_offered", l.attrs["reason"])
}

func TestReloadHoldsForWhatComes(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{}).Start(t)
	up := (&testutil.MX{}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.start()
	r.outcome(r.send("a@dest.example"), 0)
	require.Len(t, mx.Mails(), 1)

	bad := r.cfg
	bad.Route = "nowhere"
	_, err := r.sched.Reload(bad)
	require.ErrorContains(t, err, `delivery.route: "nowhere"`)
	r.outcome(r.send("a@dest.example"), 0)
	require.Len(t, mx.Mails(), 2, "a faulty configuration changes nothing")

	next := r.cfg
	next.Smarthosts = []Smarthost{{Name: "up", Address: up.AddrPort().String(), TLS: TLSNone}}
	next.Route = "up"
	kept, err := r.sched.Reload(next)
	require.NoError(t, err)
	require.False(t, kept)
	r.outcome(r.send("a@dest.example"), 0)
	require.Len(t, up.Mails(), 1)
	require.Contains(t, r.sched.Routes(), "up")

	next.IdleTimeout++
	kept, err = r.sched.Reload(next)
	require.NoError(t, err)
	require.True(t, kept, "told: it waits for a restart")
}
