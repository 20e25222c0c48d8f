package delivery

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/testutil"
	"relayd/spool"
)

// This file shows what hosts that are broken or mean cannot do to the mail of others, and to the mail that is theirs.

// TestOneMailboxThatAsksForAPauseStarvesNobody has few mailboxes of a shared host answer each RCPT as if the host were
// full: mail to the others leaves after a pause or two.
func TestOneMailboxThatAsksForAPauseStarvesNobody(t *testing.T) {
	t.Parallel()
	for i, reply := range []string{
		"452 4.3.1 insufficient system storage", "451 Temporary local problem - please try later", "450 4.7.28 too many messages for this mailbox",
		"452 4.3.1 insufficient system storage, and another account's mail behind it",
	} {
		account := map[bool]string{true: "other", false: "default"}[i == 3]
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				mx := &testutil.MX{Rule: func(s testutil.Step) testutil.Act {
					if s.Verb == "RCPT" && strings.HasPrefix(s.To, "poison") {
						return testutil.Act{Reply: reply}
					}
					return testutil.Act{}
				}}
				r := wireRig(t, &wire{}, mx, map[string]string{"dest.example": "mx.dest.example"})
				poison := r.submit(submission{to: []string{"poison@dest.example"}, account: account})
				r.submit(submission{to: []string{"poison2@dest.example"}, account: account})
				r.submit(submission{to: []string{"poison3@dest.example"}, account: account})
				var ids []mail.QueueID
				for i := range 20 { // they come to the site together
					ids = append(ids, r.send(fmt.Sprintf("a%d@dest.example", i)))
				}
				r.start()
				<-time.After(15 * time.Minute) // three pauses in a row
				require.Len(t, mx.Mails(), 20)
				for _, id := range ids {
					require.Equal(t, spool.Delivered, r.outcome(id, 0).Result.Outcome)
				}
				require.Zero(t, r.deferred(poison, 0).Attempts, "it costs no attempt")
				<-time.After(6 * time.Hour)
				require.LessOrEqual(t, r.logs.count("site.suspended"), 75, "asked more and more rarely")
				<-time.After(20 * time.Hour)
				require.Equal(t, reasonAge, r.outcome(poison, 0).Result.Reason)
			})
		})
	}
}

// TestBrokenFirstHostIsPassedBy has the host of first preference break, or close, each session after EHLO.
func TestBrokenFirstHostIsPassedBy(t *testing.T) {
	t.Parallel()
	for name, act := range map[string]testutil.Act{
		"closes": {Drop: true}, "resets": {Reset: true}, "nonsense": {Reply: "hello?"}, "421": {Reply: "421 4.3.2 going down", Drop: true},
	} {
		for _, verb := range []string{"MAIL", "RCPT", "DATA"} {
			t.Run(name+"_"+verb, func(t *testing.T) {
				t.Parallel()
				good := (&testutil.MX{}).Start(t)
				bad := (&testutil.MX{IP: "127.0.0.2", Port: good.PortNumber(), Rule: on(verb, act)}).Start(t)
				r := newRig(t, good.PortNumber(), zone()).sleepless()
				r.cfg.ConnectTries = 3
				r.start()
				got := r.outcome(r.submit(submission{to: []string{"x@two.example"}, retry: spool.RetryPolicy{Attempts: 1, First: time.Second, MaxAge: time.Hour}}), 0)
				require.Equal(t, spool.Delivered, got.Result.Outcome, got.Result.Reply.String())
				require.Len(t, good.Mails(), 1)
				require.NotEmpty(t, bad.Commands(), "it was tried first")
			})
		}
	}
}

// TestRepliesOutOfStepDecideNothing: a host says more than it was asked for; the rest of it is not taken for the answer to
// what comes next.
func TestRepliesOutOfStepDecideNothing(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		ehlo    string
		answers map[string]string
		chunked bool
	}{
		"a_250_before_the_chunk":     {"250-script\r\n250-PIPELINING\r\n250 CHUNKING", map[string]string{"RCPT": "250 ok\r\n250 2.0.0 taken", "BDAT": "554 5.7.1 no"}, true},
		"a_250_before_the_message":   {"", map[string]string{"DATA": "354 go\r\n250 2.0.0 taken", "Subject:": "-", "": "-", ".": "554 5.7.1 no"}, false},
		"two_to_mail_one_at_a_time":  {"250 script", map[string]string{"MAIL": "250 ok\r\n250 ok", "RCPT": "550 5.1.1 no"}, false},
		"two_to_rcpt_one_at_a_time":  {"250 script", map[string]string{"RCPT": "250 ok\r\n550 5.1.1 no"}, false},
		"greeting_that_goes_on":      {"250 script", map[string]string{}, false},
		"two_to_mail_before_a_chunk": {"250-script\r\n250 CHUNKING", map[string]string{"MAIL": "250 ok\r\n250 ok", "RCPT": "550 5.1.1 no"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tt.ehlo != "" {
				tt.answers["EHLO"] = tt.ehlo
			}
			banner := "220 hi"
			if name == "greeting_that_goes_on" {
				banner += "\r\n250 hi"
			}
			s, err := newOpener().open(t.Context(), target{host: "mx.test", addr: script(t, banner, tt.answers), chunking: tt.chunked})
			if err == nil {
				t.Cleanup(s.Close)
				var answers []Answer
				answers, err = s.Send(t.Context(), message("Subject: x\r\n\r\n", "one@x.example", "two@x.example"))
				for _, a := range answers {
					require.True(t, a.Reply.IsZero(), a.Reply.String())
				}
				require.True(t, s.broken)
			}
			require.Error(t, err)
			require.Equal(t, faultProtocol, faultOf(err).kind, err)
		})
	}
}

// TestAHintNeverCostsTheLastTry: a host that wants a longer wait than the mail has time gets it sooner.
func TestAHintNeverCostsTheLastTry(t *testing.T) {
	t.Parallel()
	r := newRetrier(DefaultConfig())
	r.jitter = func() float64 { return 0.5 }
	now := time.Unix(1e9, 0)
	m := &spool.Message{AcceptedAt: now, ExpiresAt: now.Add(20 * time.Minute)}
	res := r.presented(m, &spool.Envelope{}, mail.Reply{Code: 451, Text: "try again in 1 hour"}, now)
	require.Equal(t, spool.Deferred, res.Outcome)
	require.Equal(t, m.ExpiresAt, res.NextAttempt)
	m.ExpiresAt = now.Add(10 * time.Minute)
	require.Equal(t, spool.Expired, r.presented(m, &spool.Envelope{}, mail.Reply{Code: 451, Text: "try again in 1 hour"}, now).Outcome, "the policy's own wait is too long")
}

// TestOneRefusalOfTheMessageProvesNoMailboxGone: what is said to the final dot is about a message to several.
func TestOneRefusalOfTheMessageProvesNoMailboxGone(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Rule: on("DOT", testutil.Act{Reply: "550 5.1.1 <one@dest.example>: no such user"})}).Start(t)
	r := newRig(t, mx.PortNumber(), zone()).start()
	id := r.send("one@dest.example", "two@dest.example")
	for n := range uint64(2) {
		got := r.outcome(id, n)
		require.Equal(t, spool.Bounced, got.Result.Outcome)
		require.False(t, got.Result.Suppress)
	}
	require.True(t, r.outcome(r.send("one@dest.example"), 0).Result.Suppress, "alone it is meant")
}

// TestRefusalsOfTheSenderSuppressNobody are texts of real hosts that name a mailbox that is not the recipient's.
func TestRefusalsOfTheSenderSuppressNobody(t *testing.T) {
	t.Parallel()
	for text, class := range map[string]string{
		"550 Verification failed for <a@sender.example> No Such User Here Sender verify failed":                                                                   "sender_refused",
		"550 Verification failed for <a@sender.example> Called: 192.0.2.1 Sent: RCPT TO:<a@sender.example> Response: 550 5.1.1 User unknown Sender verify failed": "sender_refused",
		"550 5.1.0 <a@sender.example>: Sender address rejected: User unknown in relay recipient table":                                                            "sender_refused",
		"550 5.7.1 sender address does not exist":     "sender_refused",
		"550 Sender address does not exist":           "sender_refused",
		"550 sender domain does not exist":            "sender_refused",
		"550 5.1.0 Sender user unknown":               "sender_refused",
		"553 5.1.8 no such user: a@sender.example":    "sender_refused",
		"550 5.7.1 recipient unknown to this gateway": "mailbox_unknown",
	} {
		r, err := ParseReply(text)
		require.NoError(t, err)
		v := Classify(r, PhaseRcpt)
		require.Equal(t, class, v.Class, text)
		require.False(t, v.Suppress, text)
	}
}

// TestSmarthostWithOurNameBouncesNothing: a filter on this machine often says the machine's name.
func TestSmarthostWithOurNameBouncesNothing(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Hostname: "relay.test"}).Start(t)
	r := newRig(t, 1, nil)
	r.cfg.Route = "filter"
	r.cfg.Smarthosts = []Smarthost{{Name: "filter", Address: mx.AddrPort().String(), TLS: TLSNone}}
	r.start()
	e := r.deferred(r.send("a@dest.example"), 0)
	require.Zero(t, e.Attempts)
	require.Contains(t, e.LastReply.Text, "our own name")
	require.Empty(t, mx.Mails())
}

// TestOneBrokenHandshakeIsNoDayInClear: a connection that breaks while hands are shaken tells little of the host.
func TestOneBrokenHandshakeIsNoDayInClear(t *testing.T) {
	t.Parallel()
	ca := testutil.NewCA(t)
	mx := (&testutil.MX{TLS: ca.Server(t, "mx.dest.example"), Rule: first(1, "STARTTLS", testutil.Act{Reply: "220 go", Drop: true})}).Start(t)
	r := newRig(t, mx.PortNumber(), zone()).start()
	require.Empty(t, r.outcome(r.send("a@dest.example"), 0).Result.TLS, "better in clear than not at all")
	r.skew.Add(int64(time.Hour))
	require.NotEmpty(t, r.outcome(r.send("a@dest.example"), 0).Result.TLS)
	require.Len(t, mx.Mails(), 2)
}

// TestAbandonedInTheMessageCostsNoAttempt has work be given up while the message is on its way: that is nobody's fault but ours.
func TestAbandonedInTheMessageCostsNoAttempt(t *testing.T) {
	t.Parallel()
	host := script(t, "220 hi", map[string]string{"DATA": "354 go", "0123456789abcd": "-"})
	ctx, abandon := context.WithCancel(t.Context())
	s, err := newOpener().open(ctx, target{host: "mx.test", addr: host})
	require.NoError(t, err)
	defer s.Close()
	m := message("", "one@x.example")
	m.Body = func(_ context.Context, w io.Writer) error {
		block := bytes.Repeat([]byte("0123456789abcd\r\n"), 1<<12)
		for n := 0; ; n += len(block) {
			if n >= 1<<20 {
				abandon()
			}
			if _, err := w.Write(block); err != nil {
				return err
			}
		}
	}
	answers, err := s.Send(ctx, m)
	require.True(t, answers[0].Reply.IsZero())
	require.Equal(t, faultLocal, faultOf(err).kind, err)
}

// TestSitesThatAreNeverMetAgainAreForgotten, on disk too and while relayd runs: dead hosts come and go.
func TestSitesThatAreNeverMetAgainAreForgotten(t *testing.T) {
	t.Parallel()
	kept := func(r *rig) (names []string) {
		require.NoError(t, r.db.View(t.Context(), func(tx kv.Tx) error {
			names = nil
			return tx.Scan(tableSite, nil, nil, func(k, _ []byte) (bool, error) {
				names = append(names, string(k))
				return true, nil
			})
		}))
		return names
	}
	t.Run("after_a_week", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := outageRig(t, &wire{upAt: time.Now().Add(100 * time.Hour)}, &testutil.MX{})
			r.submit(submission{to: []string{"a@dest.example"}, from: "<>", expires: time.Hour})
			require.NoError(t, r.sched.SuspendSite(t.Context(), "mx.held.example", Hold{Who: "op"}))
			<-time.After(3 * time.Hour)
			require.Equal(t, []string{"hmx.held.example", "smx.dest.example"}, kept(r))
			<-time.After(rememberFor + 2*purgeEvery)
			require.Equal(t, []string{"hmx.held.example"}, kept(r))
		})
	})
	t.Run("the_oldest_of_too_many", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, 1, nil).start()
		m := r.sched.memory
		for i := range 30 {
			m.note(fmt.Sprintf("mx%d.example", i), &siteRecord{At: r.deps.Now().Add(time.Duration(i-29) * time.Minute), Host: "x"})
		}
		m.wg.Wait()
		require.Len(t, kept(r), 30)
		m.purge(t.Context(), 2)
		require.Equal(t, []string{"smx28.example", "smx29.example"}, kept(r))
		require.Len(t, m.states, 2)
	})
}

// TestASlowReaderGetsALongMessage: a megabyte that is read at 2 KB a second takes more than the time of a block.
func TestASlowReaderGetsALongMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		got := make(chan int)
		go func() {
			n, buf := 0, make([]byte, 60<<10)
			for {
				k, err := b.Read(buf)
				if n += k; err != nil {
					got <- n
					return
				}
				<-time.After(30 * time.Second)
			}
		}()
		w := &deadlineWriter{a, DefaultTimeouts().DataBlock}
		n, err := w.Write(make([]byte, 1<<20))
		require.NoError(t, err)
		require.Equal(t, 1<<20, n)
		n, err = w.Write(nil)
		require.NoError(t, err)
		require.Zero(t, n)
		require.NoError(t, a.Close())
		require.Equal(t, 1<<20, <-got)
	})
}
