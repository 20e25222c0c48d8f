package delivery

import (
	"bytes"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
	"relayd/internal/testutil"
	"relayd/spool"
)

func TestNoticeIsJudged(t *testing.T) {
	t.Parallel()
	from := mail.MustParsePath("a@sender.example")
	tests := []struct {
		name    string
		message spool.Message
		notify  string
		outcome spool.Outcome
		want    noticeVerdict
	}{
		{"bounce_of_submitted_mail", spool.Message{ReversePath: from}, "", spool.Bounced, noticeSend},
		{"expired_mail", spool.Message{ReversePath: from}, "", spool.Expired, noticeSend},
		{"failed_mail", spool.Message{ReversePath: from}, "", spool.Failed, noticeSend},
		{"delivered_mail", spool.Message{ReversePath: from}, "", spool.Delivered, noticeNone},
		{"deferred_mail", spool.Message{ReversePath: from}, "", spool.Deferred, noticeNone},
		{"suppressed_mail", spool.Message{ReversePath: from}, "", spool.Suppressed, noticeNone},
		{"cancelled_mail", spool.Message{ReversePath: from}, "", spool.Cancelled, noticeNone},
		{"never_to_the_null_path", spool.Message{}, "", spool.Bounced, noticeDouble},
		{"campaign", spool.Message{ReversePath: from, Campaign: "cmp_1"}, "", spool.Bounced, noticeUnwanted},
		{"bulk", spool.Message{ReversePath: from, Class: spool.Bulk}, "", spool.Bounced, noticeUnwanted},
		{"notify_never", spool.Message{ReversePath: from}, "NEVER", spool.Bounced, noticeUnwanted},
		{"notify_success_only", spool.Message{ReversePath: from}, "SUCCESS,DELAY", spool.Bounced, noticeUnwanted},
		{"notify_failure", spool.Message{ReversePath: from}, "success,failure", spool.Bounced, noticeSend},
		{"auto_submitted", spool.Message{ReversePath: from, Header: []byte("Auto-Submitted: auto-generated; x=y\r\n")}, "", spool.Bounced, noticeUnwanted},
		{"auto_submitted_no", spool.Message{ReversePath: from, Header: []byte("Auto-Submitted: no\r\n")}, "", spool.Bounced, noticeSend},
		{"precedence_bulk", spool.Message{ReversePath: from, Header: []byte("Precedence: Bulk\r\n")}, "", spool.Bounced, noticeUnwanted},
		{"list", spool.Message{ReversePath: from, Header: []byte("List-Id: <x.y>\r\n")}, "", spool.Bounced, noticeUnwanted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := &settlement{message: &tt.message, envelope: &spool.Envelope{Notify: tt.notify}, result: spool.Result{Outcome: tt.outcome}}
			if tt.message.Class == 0 {
				tt.message.Class = spool.Transactional
			}
			_, got := (&notifier{}).judge(d)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestBounceTellsTheSender(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
		if s.Verb == "RCPT" && strings.HasPrefix(s.To, "gone") {
			return testutil.Act{Reply: "550 5.1.1 <" + s.To + "> unknown"}
		}
		return testutil.Act{}
	}}).Start(t)
	r := newRig(t, mx.PortNumber(), zone()).start()
	id := r.send("gone1@dest.example", "gone2@dest.example", "gone3@other.example", "there@dest.example")
	r.outcome(id, 3)
	r.logs.until(t, "notices about three recipients", func(lines []logLine) bool {
		n := 0
		for _, l := range lines {
			if l.msg == "notice.queued" {
				n += int(l.attrs["count"][0] - '0')
			}
		}
		return n == 3
	})
	text := ""
	for _, m := range mx.Wait(t, 1+r.logs.count("notice.queued")) {
		if m.From == "" {
			require.Equal(t, []string{"sender@sender.example"}, m.To)
			text += string(m.Data)
		}
	}
	for _, want := range []string{
		"Auto-Submitted: auto-replied", "report-type=delivery-status", "From: \"Mail Delivery System\" <MAILER-DAEMON@relay.test>",
		"Final-Recipient: rfc822; gone1@dest.example", "Status: 5.1.1", "Remote-MTA: dns; mx.dest.example", "Subject: test ", "Message-ID:",
	} {
		require.Contains(t, text, want)
	}
	require.NotContains(t, text, "there@dest.example")
	require.Empty(t, mx.Faults())
	require.InDelta(t, r.logs.count("notice.queued"), r.metric("notices_total", "sent"), 0)
}

// TestReturnOfContent asks for the message back: RET of RFC 3461 section 4.3.
func TestReturnOfContent(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		mark    func(*spool.Message)
		size    int
		part    string
		passed  string
		remarks string
	}{
		"full":     {func(m *spool.Message) { m.RetFull = true }, 20_000, "message/rfc822", "RET=FULL", ""},
		"headers":  {func(m *spool.Message) { m.RetHeaders = true }, 20_000, "text/rfc822-headers", "RET=HDRS", ""},
		"default":  {nil, 20_000, "text/rfc822-headers", "", ""},
		"too_long": {func(m *spool.Message) { m.RetFull = true }, maxReturned + 1, "text/rfc822-headers", "RET=FULL", "too large to be returned"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var passed atomic.Pointer[string]
			mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
				if s.Verb == "MAIL" && !strings.Contains(s.Arg, "<>") {
					passed.Store(&s.Arg)
				}
				if s.Verb == "DOT" && s.From != "" {
					return testutil.Act{Reply: "554 5.6.0 no"}
				}
				return testutil.Act{}
			}}).Start(t)
			r := newRig(t, mx.PortNumber(), zone()).start()
			id := r.submit(submission{to: []string{"gone@dest.example"}, size: tt.size, mark: tt.mark})
			r.outcome(id, 0)
			var notice string
			for _, m := range mx.Wait(t, 1) {
				if m.From == "" {
					notice = string(m.Data)
				}
			}
			require.Contains(t, notice, "\r\nContent-Type: "+tt.part+"\r\n")
			require.Contains(t, notice, "Subject: test "+id.String())
			require.Equal(t, tt.part == "message/rfc822", len(notice) > tt.size, "%d octets", len(notice))
			require.Equal(t, tt.passed != "", strings.Contains(*passed.Load(), "RET="))
			require.Contains(t, *passed.Load(), tt.passed)
			require.Contains(t, notice, tt.remarks)
			require.Less(t, len(notice), maxReturned)
		})
	}
}

func TestBouncedNoticeIsDropped(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Rule: on("RCPT", testutil.Act{Reply: "550 5.1.1 unknown"})}).Start(t)
	r := newRig(t, mx.PortNumber(), zone()).start()
	r.outcome(r.send("gone@dest.example"), 0)
	r.logs.wait(t, "notice.dropped", nil)
	require.InDelta(t, 1, r.metric("notices_total", "double_bounce"), 0)
	require.InDelta(t, 1, r.metric("notices_total", "sent"), 0)
	stats, err := r.store.Stats(t.Context())
	require.NoError(t, err)
	require.Zero(t, stats.Queued)
}

func TestSmarthostThatRefusesCredentialsBouncesNothing(t *testing.T) {
	t.Parallel()
	for name, mx := range map[string]*testutil.MX{
		"535":         {Auth: "PLAIN", Users: map[string]string{"user": "other"}},
		"530 at mail": {Auth: "PLAIN", Users: map[string]string{"user": "secret"}, Rule: on("MAIL", testutil.Act{Reply: "530 5.7.0 Authentication required"})},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mx.Start(t)
			r := newRig(t, 25, zone())
			r.cfg.Route = "up"
			r.cfg.Smarthosts = []Smarthost{{Name: "up", Address: mx.AddrPort().String(), TLS: TLSNone, Username: "user", Password: "secret"}}
			r.start()
			ids := []mail.QueueID{r.send("a@dest.example"), r.send("b@missing.example")}
			l := r.logs.wait(t, "route.auth_refused", nil)
			require.Equal(t, slog.LevelError, l.level)
			require.NotContains(t, l.attrs["err"], "secret")
			for _, id := range ids {
				require.Zero(t, r.deferred(id, 0).Attempts)
			}
			require.GreaterOrEqual(t, r.metric("auth_refused_total"), 1.0)
			require.Empty(t, r.final)
		})
	}
}

func TestSmarthostTakesEverything(t *testing.T) {
	t.Parallel()
	ca := testutil.NewCA(t)
	mx := (&testutil.MX{TLS: ca.Server(t, "127.0.0.1"), Auth: "LOGIN", Users: map[string]string{"user": "secret"}}).Start(t)
	r := newRig(t, 25, zone())
	r.cfg.Route = "up"
	r.cfg.AllowPrivateMX = false // holds for MX hosts only
	r.cfg.Smarthosts = []Smarthost{{Name: "up", Address: mx.AddrPort().String(), TLS: TLSStart, Username: "user", Password: "secret"}}
	r.deps.Roots = ca.Pool()
	r.start()
	id := r.send("a@dest.example", "b@missing.example", "c@null.example")
	for n := range uint64(3) {
		require.Equal(t, spool.Delivered, r.outcome(id, n).Result.Outcome)
	}
	for _, m := range mx.Mails() {
		require.Equal(t, "user", m.User)
	}
}

func TestPasswordNeverReachesTheLog(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	mx := (&testutil.MX{Auth: "PLAIN LOGIN", Users: map[string]string{}}).Start(t)
	r := newRig(t, 25, zone())
	r.deps.Log = slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r.cfg.Route = "up"
	r.cfg.Smarthosts = []Smarthost{{Name: "up", Address: mx.AddrPort().String(), TLS: TLSNone, Username: "user", Password: "hunter2hunter2"}}
	r.send("a@dest.example")
	r.start()
	mx.WaitCommands(t, "AUTH", 1)
	r.shutdown()
	require.NotContains(t, b.String(), "hunter2hunter2")
	require.NotContains(t, b.String(), "aHVudGVyMmh1bnRlcjI")
}

func TestDelayIsToldOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		mx := &testutil.MX{Rule: func(s testutil.Step) testutil.Act {
			if s.Verb == "RCPT" && !strings.HasPrefix(s.To, "sender") && time.Since(began) < 8*time.Hour {
				return testutil.Act{Reply: "451 4.2.1 not now"}
			}
			return testutil.Act{}
		}}
		r := outageRigWith(t, &wire{}, mx, func(c *Config) {
			c.DelayNotice = 4 * time.Hour
			c.Retry = Retry{Attempts: 20, FirstDelay: time.Hour, Multiplier: 1, MaxAge: 24 * time.Hour}
		})
		told := r.submit(submission{from: "sender@dest.example", to: []string{"a@dest.example", "b@dest.example"}})
		r.submit(submission{from: "sender@dest.example", to: []string{"c@dest.example"}, notify: "FAILURE"})
		<-time.After(20 * time.Hour)
		require.Equal(t, spool.Delivered, r.outcome(told, 0).Result.Outcome)
		text := ""
		for _, m := range mx.Mails() {
			if m.From == "" {
				text += string(m.Data)
			}
		}
		for _, to := range []string{"a@dest.example", "b@dest.example"} {
			require.Equal(t, 1, strings.Count(text, "Final-Recipient: rfc822; "+to), "once for each recipient")
		}
		require.Contains(t, text, "Subject: Delayed Mail (still being retried)")
		for _, want := range []string{
			"Action: delayed", "Status: 4.2.1", "Will-Retry-Until: ", "Auto-Submitted: auto-replied",
		} {
			require.Contains(t, text, want)
		}
		require.NotContains(t, text, "c@dest.example")
		require.InDelta(t, r.logs.count("notice.queued"), r.metric("notices_total", "delayed"), 0)
	})
}

func TestRelayedMailIsToldWhereTheNextHopTellsNobody(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		ext    []string
		notify string
		told   bool
	}{
		"host_without_dsn":   {[]string{"PIPELINING"}, "SUCCESS,FAILURE", true},
		"host_with_dsn":      {[]string{"PIPELINING", "DSN"}, "SUCCESS,FAILURE", false},
		"success_not_asked":  {[]string{"PIPELINING"}, "FAILURE", false},
		"nothing_was_asked":  {[]string{"PIPELINING"}, "", false},
		"never_asked":        {[]string{"PIPELINING"}, "NEVER", false},
		"success_alone_asks": {[]string{"PIPELINING"}, "SUCCESS", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mx := (&testutil.MX{Extensions: tt.ext}).Start(t)
			r := newRig(t, mx.PortNumber(), zone()).start()
			r.outcome(r.submit(submission{to: []string{"a@dest.example"}, notify: tt.notify}), 0)
			if !tt.told {
				require.Zero(t, r.logs.count("notice.queued"))
				return
			}
			notice := mx.Wait(t, 2)[1]
			require.Empty(t, notice.From)
			require.Equal(t, []string{"sender@sender.example"}, notice.To)
			for _, want := range []string{"Action: relayed", "Status: 2.0.0", "Final-Recipient: rfc822; a@dest.example", "Subject: Mail Relayed"} {
				require.Contains(t, string(notice.Data), want)
			}
		})
	}
}
