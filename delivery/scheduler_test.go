package delivery

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
	"relayd/internal/testutil"
	"relayd/spool"
)

// zone has domains whose mail goes to 127.0.0.1, and some that have none.
func zone() map[string][]string {
	return map[string][]string{
		"dest.example":    {"@ MX 10 mx", "mx A 127.0.0.1"},
		"other.example":   {"@ MX 20 MX.dest.example."},
		"plain.example":   {"@ A 127.0.0.1"},
		"null.example":    {"@ MX 0 ."},
		"nothing.example": {`@ TXT "no mail here"`},
		"lost.example":    {"@ MX 10 nowhere"},
		"two.example":     {"@ MX 10 a", "@ MX 20 b", "a A 127.0.0.2", "b A 127.0.0.1"},
		"equal.example":   {"@ MX 10 a", "@ MX 10 b", "a A 127.0.0.2", "b A 127.0.0.1"},
		"self.example":    {"@ MX 10 relay.test."},
		"backup.example":  {"@ MX 5 mx.dest.example.", "@ MX 10 relay.test.", "@ MX 20 late.example."},
		"sender.example":  {"@ MX 10 mx.dest.example."},
	}
}

// quick makes a second attempt come at once.
var quick = spool.RetryPolicy{Attempts: 3, First: 20 * time.Millisecond, Multiplier: 1, MaxAge: time.Hour}

// on returns a rule that does act when the verb comes.
func on(verb string, act testutil.Act) func(testutil.Step) testutil.Act {
	return func(s testutil.Step) testutil.Act {
		if s.Verb == verb {
			return act
		}
		return testutil.Act{}
	}
}

// first returns a rule that does act the first n times that the verb comes.
func first(n int, verb string, act testutil.Act) func(testutil.Step) testutil.Act {
	return func(s testutil.Step) testutil.Act {
		if s.Verb == verb && s.Seen < n {
			return act
		}
		return testutil.Act{}
	}
}

func TestDelivery(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		mx      *testutil.MX
		msg     submission
		outcome spool.Outcome
		code    int
		status  mail.Status
		tries   int // Attempts of the envelope
		reason  string
		check   func(t *testing.T, r *rig, mx *testutil.MX, got spool.Settled)
	}{
		{name: "mail_is_delivered", outcome: spool.Delivered, code: 250, tries: 1},
		{name: "domain_without_mx_is_reached_by_its_address", msg: submission{to: []string{"a@plain.example"}}, outcome: spool.Delivered, code: 250, tries: 1},
		{name: "address_literal_is_dialled", msg: submission{to: []string{"a@[127.0.0.1]"}}, outcome: spool.Delivered, code: 250, tries: 1},
		{
			name: "null_mx_fails_permanently", msg: submission{to: []string{"a@null.example"}},
			outcome: spool.Bounced, code: 556, status: mail.Status{Class: 5, Subject: 1, Detail: 10}, reason: "null_mx",
		},
		{
			name: "nxdomain_fails_permanently", msg: submission{to: []string{"a@missing.example"}},
			outcome: spool.Bounced, code: 550, status: mail.Status{Class: 5, Subject: 1, Detail: 2}, reason: "no_such_domain",
		},
		{
			name: "domain_without_mx_and_address_fails_permanently", msg: submission{to: []string{"a@nothing.example"}},
			outcome: spool.Bounced, code: 550, status: mail.Status{Class: 5, Subject: 1, Detail: 2}, reason: "no_mx",
		},
		{
			name: "mx_without_address_fails_permanently", msg: submission{to: []string{"a@lost.example"}},
			outcome: spool.Bounced, code: 550, status: mail.Status{Class: 5, Subject: 4, Detail: 4}, reason: "no_address",
		},
		{
			name: "mx_pointing_at_ourselves_is_caught", msg: submission{to: []string{"a@self.example"}},
			outcome: spool.Bounced, code: 550, status: mail.Status{Class: 5, Subject: 4, Detail: 6}, reason: "mail_loop",
		},
		{name: "backup_mx_tries_better_hosts_only", msg: submission{to: []string{"a@backup.example"}}, outcome: spool.Delivered, code: 250, tries: 1},
		{
			name: "dead_first_mx_is_skipped_in_the_same_attempt", msg: submission{to: []string{"a@two.example"}},
			outcome: spool.Delivered, code: 250, tries: 1,
		},
		{
			name: "5xx_at_rcpt_bounces_at_once", mx: &testutil.MX{Rule: on("RCPT", testutil.Act{Reply: "550 5.1.1 no such user"})},
			outcome: spool.Bounced, code: 550, status: mail.Status{Class: 5, Subject: 1, Detail: 1}, tries: 1,
			check: func(t *testing.T, _ *rig, _ *testutil.MX, got spool.Settled) { require.True(t, got.Result.Suppress) },
		},
		{
			name: "5xx_at_mail_bounces", mx: &testutil.MX{Rule: on("MAIL", testutil.Act{Reply: "550 5.7.1 go away"})},
			outcome: spool.Bounced, code: 550, status: mail.Status{Class: 5, Subject: 7, Detail: 1}, tries: 1,
			check: func(t *testing.T, _ *rig, _ *testutil.MX, got spool.Settled) { require.False(t, got.Result.Suppress) },
		},
		{
			name: "5xx_at_data_bounces", mx: &testutil.MX{Rule: on("DATA", testutil.Act{Reply: "554 5.7.0 no"})},
			outcome: spool.Bounced, code: 554, status: mail.Status{Class: 5, Subject: 7}, tries: 1,
		},
		{
			name: "5xx_at_dot_bounces", mx: &testutil.MX{Rule: on("DOT", testutil.Act{Reply: "550 5.7.1 looks like spam"})},
			outcome: spool.Bounced, code: 550, status: mail.Status{Class: 5, Subject: 7, Detail: 1}, tries: 1,
			check: func(t *testing.T, _ *rig, _ *testutil.MX, got spool.Settled) { require.False(t, got.Result.Suppress) },
		},
		{
			name: "5xx_at_banner_bounces", mx: &testutil.MX{Rule: on("CONNECT", testutil.Act{Reply: "554 no mail service here", Drop: true})},
			outcome: spool.Bounced, code: 554, tries: 1,
		},
		{
			name: "4xx_at_rcpt_comes_again", mx: &testutil.MX{Rule: first(1, "RCPT", testutil.Act{Reply: "451 4.2.1 not now"})},
			msg: submission{retry: quick}, outcome: spool.Delivered, code: 250, tries: 2,
		},
		{
			name: "4xx_at_mail_comes_again", mx: &testutil.MX{Rule: first(1, "MAIL", testutil.Act{Reply: "451 4.1.8 not now"})},
			msg: submission{retry: quick}, outcome: spool.Delivered, code: 250, tries: 2,
		},
		{
			name: "4xx_at_data_comes_again", mx: &testutil.MX{Rule: first(1, "DATA", testutil.Act{Reply: "451 4.6.0 not now"})},
			msg: submission{retry: quick}, outcome: spool.Delivered, code: 250, tries: 2,
		},
		{
			name: "4xx_at_dot_comes_again", mx: &testutil.MX{Rule: first(2, "DOT", testutil.Act{Reply: "451 4.6.0 not now"})},
			msg: submission{retry: quick}, outcome: spool.Delivered, code: 250, tries: 3,
		},
		{
			name: "4xx_at_banner_costs_no_attempt", mx: &testutil.MX{Rule: first(4, "CONNECT", testutil.Act{Reply: "450 busy", Drop: true})},
			msg: submission{retry: quick}, outcome: spool.Delivered, code: 250, tries: 1,
		},
		{
			name: "greylisting_passes", mx: &testutil.MX{Rule: first(1, "RCPT", testutil.Act{Reply: "451 4.7.1 Greylisting in action, please come back later"})},
			msg: submission{retry: quick}, outcome: spool.Delivered, code: 250, tries: 2,
		},
		{
			name: "421_costs_no_attempt", mx: &testutil.MX{Rule: first(5, "MAIL", testutil.Act{Reply: "421 4.7.0 slow down", Drop: true})},
			msg: submission{retry: quick}, outcome: spool.Delivered, code: 250, tries: 1,
			check: func(t *testing.T, r *rig, _ *testutil.MX, _ spool.Settled) {
				require.GreaterOrEqual(t, r.metric("suspensions_total", causeThrottled), 5.0)
			},
		},
		{
			name: "rate_reply_at_rcpt_costs_no_attempt", mx: &testutil.MX{Rule: first(4, "RCPT", testutil.Act{Reply: "450 4.7.28 unusual rate of mail"})},
			msg: submission{retry: quick}, outcome: spool.Delivered, code: 250, tries: 1,
		},
		{
			name: "attempts_over_expires_with_the_last_reply", mx: &testutil.MX{Rule: on("RCPT", testutil.Act{Reply: "451 4.2.1 never now"})},
			msg: submission{retry: quick}, outcome: spool.Expired, code: 451, status: mail.Status{Class: 4, Subject: 2, Detail: 1}, tries: 3,
			reason: reasonAttempts,
		},
		{
			name: "time_over_expires_with_the_last_reply", mx: &testutil.MX{Rule: on("RCPT", testutil.Act{Reply: "451 4.2.1 never now"})},
			msg:     submission{retry: spool.RetryPolicy{Attempts: 3, First: time.Hour, Multiplier: 1}, expires: time.Minute},
			outcome: spool.Expired, code: 451, tries: 1, reason: reasonAge,
		},
		{
			name: "unreachable_site_expires_mail_past_its_time", mx: &testutil.MX{Rule: on("CONNECT", testutil.Act{Reset: true})},
			msg: submission{expires: 200 * time.Millisecond}, outcome: spool.Expired, code: 451, tries: 0, reason: reasonAge,
		},
		{
			name: "lost_reply_is_in_doubt", mx: &testutil.MX{Rule: first(1, "DOT", testutil.Act{Drop: true})},
			msg: submission{retry: quick}, outcome: spool.Delivered, code: 250, tries: 2,
			check: func(t *testing.T, r *rig, mx *testutil.MX, _ spool.Settled) {
				require.InDelta(t, 1, r.metric("in_doubt_total"), 0)
				l := r.logs.wait(t, "attempt.deferred", nil)
				require.Equal(t, reasonInDoubt, l.attrs["reason"])
				require.Len(t, mx.Mails(), 2)
			},
		},
		{
			name: "reset_after_the_dot_is_in_doubt", mx: &testutil.MX{Rule: first(1, "DOT", testutil.Act{Reset: true})},
			msg: submission{retry: quick, size: 100_000}, outcome: spool.Delivered, code: 250, tries: 2,
			check: func(t *testing.T, r *rig, _ *testutil.MX, _ spool.Settled) {
				require.InDelta(t, 1, r.metric("in_doubt_total"), 0)
			},
		},
		{
			name: "8bit_to_a_host_without_8bitmime_fails", mx: &testutil.MX{Extensions: []string{"PIPELINING"}},
			msg: submission{eightBit: true}, outcome: spool.Failed, code: 554, status: mail.Status{Class: 5, Subject: 6, Detail: 3}, reason: reasonEightBit,
		},
		{
			name: "8bit_is_announced", msg: submission{eightBit: true}, outcome: spool.Delivered, code: 250, tries: 1,
			check: func(t *testing.T, _ *rig, mx *testutil.MX, _ spool.Settled) {
				require.Contains(t, mx.Mails()[0].MailArg, " BODY=8BITMIME")
			},
		},
		{
			name: "too_large_is_not_sent", mx: &testutil.MX{Extensions: []string{"PIPELINING", "SIZE 1000"}}, msg: submission{size: 5000},
			outcome: spool.Bounced, code: 552, status: mail.Status{Class: 5, Subject: 3, Detail: 4}, reason: reasonSize,
			check: func(t *testing.T, _ *rig, mx *testutil.MX, _ spool.Settled) {
				for _, c := range mx.Commands() {
					require.NotContains(t, c, "MAIL")
				}
			},
		},
		{
			name: "utf8_address_to_a_host_without_smtputf8_fails", msg: submission{to: []string{"홍길동@dest.example"}},
			outcome: spool.Failed, code: 550, status: mail.Status{Class: 5, Subject: 6, Detail: 7}, reason: reasonUTF8,
		},
		{
			name: "utf8_address_goes_with_smtputf8", mx: &testutil.MX{Extensions: []string{"SMTPUTF8", "8BITMIME"}},
			msg: submission{to: []string{"홍길동@dest.example"}}, outcome: spool.Delivered, code: 250, tries: 1,
			check: func(t *testing.T, _ *rig, mx *testutil.MX, _ spool.Settled) {
				require.Contains(t, mx.Mails()[0].MailArg, " SMTPUTF8")
			},
		},
		{
			name: "host_without_ehlo_gets_helo", mx: &testutil.MX{Rule: on("EHLO", testutil.Act{Reply: "502 what?"})},
			outcome: spool.Delivered, code: 250, tries: 1,
		},
		{
			name: "too_many_recipients_go_in_another_transaction",
			mx: &testutil.MX{Rule: func(s testutil.Step) testutil.Act {
				if s.Verb == "RCPT" && strings.Contains(s.To, "b@") && s.Seen < 2 {
					return testutil.Act{Reply: "452 4.5.3 too many recipients"}
				}
				return testutil.Act{}
			}},
			msg: submission{to: []string{"a@dest.example", "b@dest.example"}}, outcome: spool.Delivered, code: 250, tries: 1,
			check: func(t *testing.T, r *rig, _ *testutil.MX, got spool.Settled) {
				require.Equal(t, 1, r.outcome(got.Message.ID, 1).Envelope.Attempts)
			},
		},
		{
			name: "connection_that_breaks_in_data_is_tried_again", mx: &testutil.MX{Rule: first(1, "DATA", testutil.Act{Drop: true})},
			outcome: spool.Delivered, code: 250, tries: 1,
		},
		{
			name: "nonsense_is_not_a_reply", mx: &testutil.MX{Rule: on("MAIL", testutil.Act{Raw: []byte("hello\r\n"), Swallow: true})},
			msg: submission{retry: spool.RetryPolicy{Attempts: 1, First: time.Minute, Multiplier: 1}}, outcome: spool.Expired, code: 451, tries: 1, reason: reasonAttempts,
		},
		{
			name: "endless_reply_is_bounded", mx: &testutil.MX{Rule: on("MAIL", testutil.Act{Raw: []byte(strings.Repeat("250-x\r\n", 200)), Swallow: true})},
			msg: submission{retry: spool.RetryPolicy{Attempts: 1, First: time.Minute, Multiplier: 1}}, outcome: spool.Expired, code: 451, tries: 1, reason: reasonAttempts,
		},
		{
			name: "reply_text_is_cleaned", mx: &testutil.MX{Rule: on("RCPT", testutil.Act{Reply: "550 5.1.1 bad\x00\x1b[31m" + strings.Repeat("x", 1000)})},
			outcome: spool.Bounced, code: 550, tries: 1,
			check: func(t *testing.T, _ *rig, _ *testutil.MX, got spool.Settled) {
				require.LessOrEqual(t, len(got.Result.Reply.Text), 512)
				require.NotContains(t, got.Result.Reply.Text, "\x1b")
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			mx := tt.mx
			if mx == nil {
				mx = &testutil.MX{}
			}
			mx.Start(t)
			r := newRig(t, mx.PortNumber(), zone())
			r.cfg.ConnectTries = 2
			r.sleepless().start()
			if tt.msg.to == nil {
				tt.msg.to = []string{"someone@dest.example"}
			}
			id := r.submit(tt.msg)
			got := r.outcome(id, 0)
			require.Equal(t, tt.outcome.String(), got.Result.Outcome.String(), "%v", got.Result.Reply)
			require.Equal(t, tt.code, got.Result.Reply.Code)
			require.Equal(t, tt.tries, got.Envelope.Attempts)
			require.Equal(t, tt.reason, got.Result.Reason)
			if !tt.status.IsZero() {
				require.Equal(t, tt.status, got.Result.Reply.Status)
			}
			require.Empty(t, mx.Faults())
			if tt.check != nil {
				tt.check(t, r, mx, got)
			}
		})
	}
}

func TestServfailIsTemporaryAndCostsNoAttempt(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.dns.SetRcode("dest.example", dns.RcodeServerFailure)
	r.start()
	id := r.send("a@dest.example")
	e := r.deferred(id, 0)
	require.Zero(t, e.Attempts)
	require.Equal(t, mail.Status{Class: 4, Subject: 4, Detail: 3}, e.LastReply.Status)
	r.dns.SetRcode("dest.example", dns.RcodeSuccess)
	got := r.outcome(id, 0)
	require.Equal(t, spool.Delivered, got.Result.Outcome)
	require.Equal(t, 1, got.Envelope.Attempts)
}

func TestPrivateMXIsNeverDialled(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.AllowPrivateMX = false
	r.start()
	got := r.outcome(r.send("a@dest.example"), 0)
	require.Equal(t, spool.Bounced, got.Result.Outcome)
	require.Equal(t, "private_mx", got.Result.Reason)
	all, _ := mx.Sessions()
	require.Zero(t, all)
}

func TestMixedRecipientsAreSettledOneByOne(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
		switch {
		case s.Verb != "RCPT":
		case strings.HasPrefix(s.To, "gone"):
			return testutil.Act{Reply: "550 5.1.1 unknown"}
		case strings.HasPrefix(s.To, "full"):
			return testutil.Act{Reply: "452 4.2.2 full"}
		}
		return testutil.Act{}
	}}).Start(t)
	r := newRig(t, mx.PortNumber(), zone()).start()
	id := r.send("good@dest.example", "gone@dest.example", "full@dest.example", "fine@dest.example")
	require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome)
	require.Equal(t, spool.Bounced, r.outcome(id, 1).Result.Outcome)
	require.Equal(t, 1, r.deferred(id, 2).Attempts)
	require.Equal(t, spool.Delivered, r.outcome(id, 3).Result.Outcome)
	mails := mx.Wait(t, 2) // the message, and the notice to the sender
	require.Equal(t, []string{"good@dest.example", "fine@dest.example"}, mails[0].To)
}

func TestRecipientsAtOneSiteAreBundled(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.MaxRecipients = 100
	var to []string
	for i := range 75 {
		to = append(to, fmt.Sprintf("u%d@dest.example", i), fmt.Sprintf("u%d@other.example", i))
	}
	id := r.send(to...)
	r.start()
	for n := range to {
		require.Equal(t, spool.Delivered, r.outcome(id, uint64(n)).Result.Outcome)
	}
	mails := mx.Mails()
	require.LessOrEqual(t, len(mails), 3) // two domains with the same hosts are one site
	for _, m := range mails {
		require.LessOrEqual(t, len(m.To), 100)
	}
}

func TestConnectionsAreReused(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.MaxConnectionsPerSite, r.cfg.MaxMessagesPerConnection = 1, 10
	count := &counted{network: dialer{time.Minute}}
	r.network = count
	var ids []mail.QueueID
	for range 35 {
		ids = append(ids, r.send("a@dest.example"))
	}
	r.start()
	for _, id := range ids {
		require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome)
	}
	all, _ := mx.Sessions()
	require.Equal(t, 4, all)
	require.Equal(t, 1, count.most)
}

func TestServerThatClosesBetweenMessagesIsNoError(t *testing.T) {
	t.Parallel()
	for name, rule := range map[string]func(testutil.Step) testutil.Act{
		"closes_without_a_word": on("DOT", testutil.Act{Reply: "250 2.0.0 taken, and that was all", Drop: true}),
		"says_421_to_the_next": func(s testutil.Step) testutil.Act {
			if s.Verb == "MAIL" && s.Message > 0 {
				return testutil.Act{Reply: "421 4.7.0 one message a connection", Drop: true}
			}
			return testutil.Act{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mx := (&testutil.MX{Rule: rule}).Start(t)
			r := newRig(t, mx.PortNumber(), zone())
			r.cfg.MaxConnectionsPerSite = 1
			var ids []mail.QueueID
			for range 5 {
				ids = append(ids, r.send("a@dest.example"))
			}
			r.start()
			for _, id := range ids {
				got := r.outcome(id, 0)
				require.Equal(t, spool.Delivered, got.Result.Outcome)
				require.Equal(t, 1, got.Envelope.Attempts)
			}
			require.Zero(t, r.logs.count("site.suspended"))
			require.Zero(t, r.logs.count("attempt.deferred"))
		})
	}
}

func TestServerThatClosesAtResetIsNoError(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
		switch {
		case s.Verb == "RSET":
			return testutil.Act{Reply: "421 4.4.2 bye", Drop: true}
		case s.Verb == "RCPT" && strings.HasPrefix(s.To, "gone"):
			return testutil.Act{Reply: "550 5.1.1 unknown"}
		}
		return testutil.Act{}
	}}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.MaxConnectionsPerSite = 1
	gone := r.submit(submission{from: "<>", to: []string{"gone@dest.example"}})
	there := r.submit(submission{from: "<>", to: []string{"there@dest.example"}})
	r.start()
	require.Equal(t, spool.Bounced, r.outcome(gone, 0).Result.Outcome)
	require.Equal(t, spool.Delivered, r.outcome(there, 0).Result.Outcome)
	require.Zero(t, r.logs.count("site.suspended"))
}

func TestSiteLimitHolds(t *testing.T) {
	t.Parallel()
	open := make(chan struct{})
	mx := (&testutil.MX{Rule: on("DOT", testutil.Act{Stall: open})}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.MaxConnectionsPerSite = 3
	count := &counted{network: dialer{time.Minute}}
	r.network = count
	var ids []mail.QueueID
	for i := range 20 {
		ids = append(ids, r.send(fmt.Sprintf("a%d@%s.example", i, []string{"dest", "other"}[i%2])))
	}
	r.start()
	mx.WaitCommands(t, "DOT", 3)
	close(open)
	for _, id := range ids {
		require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome)
	}
	require.Equal(t, 3, count.most)
}

func TestUrgentOvertakesBulk(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
		if s.Verb == "DOT" && s.From == "bulk@sender.example" {
			return testutil.Act{Stall: hold}
		}
		return testutil.Act{}
	}}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.MaxConnectionsPerSite = 4
	for range 50 {
		r.submit(submission{from: "bulk@sender.example", to: []string{"a@dest.example"}, class: spool.Bulk, stream: "news"})
	}
	r.start()
	mx.WaitCommands(t, "DOT", 3) // all that bulk may have
	id := r.send("code@dest.example")
	require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome)
	require.Len(t, mx.Wait(t, 4), 4) // the bulk still waits for its replies
	close(hold)
	mx.Wait(t, 51)
}

func TestDeadSiteIsPausedAndGrowing(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Rule: on("CONNECT", testutil.Act{Reset: true})}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.SuspendFirst, r.cfg.SuspendMax = 10*time.Millisecond, 40*time.Millisecond
	var ids []mail.QueueID
	for range 30 {
		ids = append(ids, r.send("a@dest.example"))
	}
	r.start()
	r.logs.wait(t, "site.suspended", func(l logLine) bool { return l.attrs["attempt"] == "4" })
	for _, id := range ids {
		e := r.deferred(id, 0)
		require.Zero(t, e.Attempts)
	}
	r.shutdown()
	all, _ := mx.Sessions()
	require.LessOrEqual(t, all, r.logs.count("site.suspended")+1) // one probe at a time, not one for each message
}

type gateFunc func(e *spool.Envelope) (string, error)

func (g gateFunc) Blocked(_ context.Context, _ *spool.Message, envs []*spool.Envelope) ([]string, error) {
	reasons := make([]string, len(envs))
	for i, e := range envs {
		var err error
		if reasons[i], err = g(e); err != nil {
			return nil, err
		}
	}
	return reasons, nil
}

func TestGateIsAskedBeforeMail(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	var failed atomic.Bool
	r.deps.Gate = gateFunc(func(e *spool.Envelope) (string, error) {
		switch e.To.Local {
		case "gone":
			return "unsubscribed", nil
		case "stopped":
			return "cancelled", nil
		case "later":
			failed.Store(true)
			return "", errors.New("store is away")
		}
		return "", nil
	})
	r.start()
	id := r.send("gone@dest.example", "stopped@dest.example", "good@dest.example")
	other := r.send("good@dest.example", "later@dest.example")
	got := r.outcome(id, 0)
	require.Equal(t, spool.Suppressed, got.Result.Outcome)
	require.Equal(t, "unsubscribed", got.Result.Reason)
	require.Equal(t, spool.Cancelled, r.outcome(id, 1).Result.Outcome)
	require.Equal(t, spool.Delivered, r.outcome(id, 2).Result.Outcome)
	for n := range uint64(2) {
		require.Zero(t, r.deferred(other, n).Attempts, "what could not be asked about waits, and loses nothing")
	}
	require.Equal(t, []string{"good@dest.example"}, mx.Wait(t, 1)[0].To)
}

type composeFunc func(e *spool.Envelope) ([]byte, error)

func (c composeFunc) Compose(_ context.Context, _ *spool.Message, e *spool.Envelope, room []byte) ([]byte, error) {
	msg, err := c(e)
	return append(room[:0], msg...), err
}

func TestCampaignIsRenderedWhenLeased(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.deps.Composer = composeFunc(func(e *spool.Envelope) ([]byte, error) {
		switch e.To.Local {
		case "broken":
			return nil, mail.Refuse(550, mail.Status{Class: 5, Subject: 6, Detail: 0}, "variable missing", nil)
		case "later":
			return nil, errors.New("disk is away")
		}
		return []byte("Subject: for " + e.To.Local + "\r\n\r\nHello\r\n"), nil
	})
	r.start()
	id := r.submit(submission{campaign: "cmp_1", stream: "cmp_1", class: spool.Bulk, to: []string{
		"a@dest.example", "b@dest.example", "broken@dest.example", "later@dest.example",
	}})
	require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome)
	require.Equal(t, spool.Delivered, r.outcome(id, 1).Result.Outcome)
	got := r.outcome(id, 2)
	require.Equal(t, spool.Failed, got.Result.Outcome)
	require.Equal(t, reasonRender, got.Result.Reason)
	require.Zero(t, r.deferred(id, 3).Attempts)
	for _, m := range mx.Wait(t, 2) {
		require.Len(t, m.To, 1)
		require.Contains(t, string(m.Data), "for "+strings.TrimSuffix(m.To[0], "@dest.example"))
	}
}

func TestShutdownLetsAttemptsFinish(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	mx := (&testutil.MX{Rule: on("DOT", testutil.Act{Stall: hold})}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.MaxConnectionsPerSite = 1
	first, second := r.send("a@dest.example"), r.send("b@dest.example")
	r.start()
	mx.WaitCommands(t, "DOT", 1)
	r.stop()
	close(hold)
	<-r.stopped
	a, b := r.final[mail.EnvelopeID{Message: first}], r.final[mail.EnvelopeID{Message: second}]
	require.Equal(t, 1, boolInt(a.Message != nil)+boolInt(b.Message != nil))
	require.Len(t, mx.Mails(), 1)
	stats, err := r.store.Stats(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, stats.Queued)
	require.EqualValues(t, 0, stats.Leased)
}

func TestShutdownAbandonsAfterGrace(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"CONNECT", "MAIL", "DATA"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			mx := (&testutil.MX{Rule: on(verb, testutil.Act{Stall: make(chan struct{})})}).Start(t)
			r := newRig(t, mx.PortNumber(), zone())
			r.cfg.Grace = 20 * time.Millisecond
			r.start()
			id := r.send("a@dest.example")
			mx.WaitCommands(t, verb, 1)
			r.stop()
			<-r.stopped
			_, infos, err := r.store.Get(t.Context(), id)
			require.NoError(t, err)
			require.Len(t, infos, 1)
			require.Zero(t, infos[0].Envelope.Attempts)
			require.Nil(t, infos[0].Outcome)
			stats, err := r.store.Stats(t.Context())
			require.NoError(t, err)
			require.EqualValues(t, 0, stats.Leased)
		})
	}
}
