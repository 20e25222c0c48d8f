package bounce_test

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/bounce"
	"relayd/internal/mail"
)

// verdicts is a classifier for tests: delivery has the real one, and cmd/relayctl tests the two together.
func verdicts(r mail.Reply) bounce.Verdict {
	switch {
	case r.Status.Subject == 2 && r.Status.Detail == 2 || strings.Contains(r.Text, "full"):
		return bounce.Verdict{Class: "mailbox_full", Recipient: true}
	case r.Status.Subject == 7:
		return bounce.Verdict{Class: "policy"}
	case r.Status.Subject == 1, strings.Contains(strings.ToLower(r.Text), "unknown"), strings.Contains(r.Text, "no mailbox"):
		return bounce.Verdict{Class: "mailbox_unknown", Recipient: true, Suppress: true}
	}
	return bounce.Verdict{Class: "unknown"}
}

func report(kind, status string) string {
	return "From: MAILER-DAEMON@mx.dest.example\nTo: b.x@bounce.shop.example\nSubject: Undelivered Mail Returned to Sender\n" +
		"Content-Type: multipart/report; report-type=" + kind + "; boundary=\"=_b\"\n\n--=_b\nContent-Type: text/plain\n\nSorry.\n\n" +
		"--=_b\n" + status + "\n--=_b\nContent-Type: text/rfc822-headers\n\nMessage-ID: <1@shop.example>\nTo: gone@dest.example\n\n--=_b--\n"
}

func dsn(fields string) string {
	return report("delivery-status", "Content-Type: message/delivery-status\n\nReporting-MTA: dns; mx.dest.example\n\n"+fields)
}

func plainFrom(from, subject, extra, body string) string {
	return "From: " + from + "\nTo: b.x@bounce.shop.example\nSubject: " + subject + "\n" + extra + "\n" + body
}

func TestParse(t *testing.T) {
	t.Parallel()
	type want struct {
		kind      bounce.Kind
		addresses string
		status    string
		class     string
		hard      bool
	}
	gone := want{bounce.Bounce, "gone@dest.example", "5.1.1", "mailbox_unknown", true}
	tests := map[string]struct {
		text string
		want want
	}{
		"dsn_failed": {dsn("Final-Recipient: rfc822; gone@dest.example\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 5.1.1 <gone@dest.example>: user unknown\n"), gone},
		"dsn_original_recipient_is_whom_we_wrote_to": {dsn("Original-Recipient: rfc822;gone@dest.example\nFinal-Recipient: rfc822; other@far.example\nAction: failed\nStatus: 5.1.1\n"), gone},
		"dsn_without_action":                         {dsn("Final-Recipient: rfc822; gone@dest.example\nStatus: 5.1.1\n"), gone},
		"dsn_odd_case":                               {dsn("FINAL-RECIPIENT: RFC822; <gone@dest.example>\nACTION: Failed (permanent)\nstatus: 5.1.1 (unknown)\n"), gone},
		"dsn_folded":                                 {dsn("Final-Recipient: rfc822;\n gone@dest.example\nAction: failed\nStatus: 5.0.0\nDiagnostic-Code: smtp;\n 550 5.1.1\n user unknown\n"), gone},
		"dsn_mailbox_full":                           {dsn("Final-Recipient: rfc822; gone@dest.example\nAction: failed\nStatus: 5.2.2\nDiagnostic-Code: smtp; 552 5.2.2 mailbox full\n"), want{bounce.Bounce, "gone@dest.example", "5.2.2", "mailbox_full", false}},
		"dsn_policy":                                 {dsn("Final-Recipient: rfc822; gone@dest.example\nAction: failed\nStatus: 5.7.1\n"), want{bounce.Bounce, "gone@dest.example", "5.7.1", "policy", false}},
		"dsn_expired_is_soft":                        {dsn("Final-Recipient: rfc822; gone@dest.example\nAction: failed\nStatus: 5.4.7\nDiagnostic-Code: smtp; 451 4.1.1 try later\n"), want{bounce.Bounce, "gone@dest.example", "4.1.1", "mailbox_unknown", false}},
		"dsn_temporary":                              {dsn("Final-Recipient: rfc822; gone@dest.example\nAction: failed\nStatus: 4.1.1\n"), want{bounce.Bounce, "gone@dest.example", "4.1.1", "mailbox_unknown", false}},
		"dsn_delayed":                                {dsn("Final-Recipient: rfc822; gone@dest.example\nAction: delayed\nStatus: 4.4.1\n"), want{bounce.Delay, "gone@dest.example", "4.4.1", "", false}},
		"dsn_delayed_with_5":                         {dsn("Final-Recipient: rfc822; gone@dest.example\nAction: delayed\nStatus: 5.1.1\n"), want{bounce.Delay, "gone@dest.example", "5.1.1", "", false}},
		"dsn_delivered":                              {dsn("Final-Recipient: rfc822; gone@dest.example\nAction: delivered\nStatus: 2.1.5\n"), want{bounce.Delivered, "gone@dest.example", "2.1.5", "", false}},
		"dsn_relayed":                                {dsn("Final-Recipient: rfc822; gone@dest.example\nAction: relayed\nStatus: 2.0.0\n"), want{bounce.Delivered, "gone@dest.example", "2.0.0", "", false}},
		"dsn_two":                                    {dsn("Final-Recipient: rfc822; gone@dest.example\nAction: failed\nStatus: 5.1.1\n\nFinal-Recipient: rfc822; also@dest.example\nAction: failed\nStatus: 5.1.1\n"), want{bounce.Bounce, "gone@dest.example also@dest.example", "5.1.1", "mailbox_unknown", true}},
		"dsn_failed_beside_delivered":                {dsn("Final-Recipient: rfc822; ok@dest.example\nAction: delivered\nStatus: 2.0.0\n\nFinal-Recipient: rfc822; gone@dest.example\nAction: failed\nStatus: 5.1.1\n"), gone},
		"qmail":                                      {plainFrom("MAILER-DAEMON@mx.dest.example", "failure notice", "", "Hi. This is the qmail-send program at mx.dest.example.\nI'm afraid I wasn't able to deliver your message to the following addresses.\nThis is a permanent error; I've given up. Sorry it didn't work out.\n\n<gone@dest.example>:\nSorry, no mailbox here by that name. (#5.1.1)\n\n--- Below this line is a copy of the message.\n\nReturn-Path: <news@shop.example>\nTo: someone@else.example\n"), gone},
		"exim":                                       {plainFrom("Mail Delivery System <Mailer-Daemon@mx.dest.example>", "Mail delivery failed: returning message to sender", "X-Failed-Recipients: gone@dest.example\nAuto-Submitted: auto-replied\n", "This message was created automatically by mail delivery software.\n\nA message that you sent could not be delivered to one or more of its\nrecipients. This is a permanent error. The following address(es) failed:\n\n  gone@dest.example\n    host mx.far.example [192.0.2.1]\n    SMTP error from remote mail server after RCPT TO:<gone@dest.example>:\n    550 5.1.1 User unknown\n\n------ This is a copy of the message, including all the headers. ------\n\nTo: someone@else.example\n"), gone},
		"sendmail":                                   {plainFrom("Mail Delivery Subsystem <MAILER-DAEMON@mx.dest.example>", "Returned mail: see transcript for details", "", "The original message was received at Thu, 26 Nov 2026 10:00:00 GMT\n\n   ----- The following addresses had permanent fatal errors -----\n<gone@dest.example>\n    (reason: 550 5.1.1 user unknown)\n\n   ----- Transcript of session follows -----\n... while talking to mx.far.example.:\n>>> DATA\n<<< 550 5.1.1 user unknown\n"), gone},
		"sendmail_transcript_only":                   {plainFrom("Mail Delivery Subsystem <MAILER-DAEMON@mx.dest.example>", "Returned mail: User unknown", "", "   ----- Transcript of session follows -----\n550 5.1.1 <gone@dest.example>... User unknown\n   ----- Original message follows -----\n\nTo: someone@else.example\n"), gone},
		"yahoo":                                      {plainFrom("MAILER-DAEMON@yahoo.example", "Failure Notice", "", "Sorry, we were unable to deliver your message to the following address.\n\n<gone@dest.example>:\nRemote host said: 550 5.1.1 user unknown [RCPT_TO]\n"), gone},
		"korean":                                     {plainFrom("postmaster@dest.example", "=?utf-8?B?67CY7Iah?= 메일", "", "메일을 전달하지 못했습니다.\n<gone@dest.example>\n550 5.1.1 unknown user\n"), gone},
		"html":                                       {plainFrom("Mail Delivery System <mailer-daemon@dest.example>", "Undeliverable mail", "Content-Type: text/html\n", "<html><p>Delivery has failed to <b>gone@dest.example</b></p><p>550 5.1.1 unknown user</p></html>"), gone},
		"base64":                                     {plainFrom("Mail Delivery System <mailer-daemon@dest.example>", "Undeliverable mail", "Content-Transfer-Encoding: base64\n", "PGdvbmVAZGVzdC5leGFtcGxlPjogNTUwIDUuMS4xIHVua25vd24K"), gone},
		"warning":                                    {plainFrom("Mail Delivery System <Mailer-Daemon@dest.example>", "Warning: message delayed 24 hours", "", "A message that you sent has not yet been delivered. You do not need to resend it.\n\n  gone@dest.example\n    Delay reason: 451 4.4.1 connection timed out\n"), want{bounce.Delay, "gone@dest.example", "4.4.1", "", false}},
		"complaint":                                  {report("feedback-report", "Content-Type: message/feedback-report\n\nFeedback-Type: abuse\nUser-Agent: Provider/1.0\nVersion: 1\nOriginal-Rcpt-To: gone@dest.example\n"), want{bounce.Complaint, "gone@dest.example", "", "", false}},
		"complaint_redacted":                         {report("feedback-report", "Content-Type: message/feedback-report\n\nFeedback-Type: abuse\nVersion: 1\n"), want{bounce.Complaint, "gone@dest.example", "", "", false}},
		"opt_out":                                    {report("feedback-report", "Content-Type: message/feedback-report\n\nFeedback-Type: opt-out\nRemoval-Recipient: gone@dest.example\nVersion: 1\n"), want{bounce.Unsubscribe, "gone@dest.example", "", "", false}},
		"auth_failure":                               {report("feedback-report", "Content-Type: message/feedback-report\n\nFeedback-Type: auth-failure\nOriginal-Rcpt-To: gone@dest.example\n"), want{bounce.AuthFailure, "gone@dest.example", "", "", false}},
		"not_spam":                                   {report("feedback-report", "Content-Type: message/feedback-report\n\nFeedback-Type: not-spam\nOriginal-Rcpt-To: gone@dest.example\n"), want{bounce.None, "gone@dest.example", "", "", false}},
		"vacation":                                   {plainFrom("Ann <gone@dest.example>", "Out of office: hello", "", "I am away. Write to bob@dest.example; user unknown until Monday.\n"), want{bounce.AutoReply, "gone@dest.example", "", "", false}},
		"auto_replied":                               {plainFrom("Ann <gone@dest.example>", "Re: hello", "Auto-Submitted: auto-replied\n", "Thank you, ticket 550.\n"), want{bounce.AutoReply, "gone@dest.example", "", "", false}},
		"korean_vacation":                            {plainFrom("Ann <gone@dest.example>", "부재중 자동 회신", "", "휴가 중입니다.\n"), want{bounce.AutoReply, "gone@dest.example", "", "", false}},
		"receipt":                                    {report("disposition-notification", "Content-Type: message/disposition-notification\n\nFinal-Recipient: rfc822; gone@dest.example\nDisposition: automatic-action; displayed\n"), want{bounce.None, "", "", "", false}},
		"unsubscribe":                                {plainFrom("Ann <gone@dest.example>", "unsubscribe u_token", "", "\n"), want{bounce.Unsubscribe, "gone@dest.example", "", "", false}},
		"person":                                     {plainFrom("Ann <ann@dest.example>", "Re: your offer", "", "My colleague bob@dest.example told me: the user unknown error is gone. 550 5.1.1\n"), want{bounce.None, "", "", "", false}},
		"empty":                                      {"", want{bounce.None, "", "", "", false}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var first *bounce.Report
			for _, end := range []string{"\n", "\r\n", "\r"} { // the same bounce in every form of line ends
				rep, err := bounce.Parse(strings.NewReader(strings.ReplaceAll(tt.text, "\n", end)), bounce.UnknownPath, verdicts)
				require.NoError(t, err)
				if first == nil {
					first = rep
				}
				require.Equal(t, first, rep, "%q", end)
			}
			var to []string
			for _, r := range first.Recipients {
				to = append(to, r.Address)
			}
			require.Equal(t, tt.want.kind, first.Kind, "%+v", first)
			require.Equal(t, tt.want.addresses, strings.Join(to, " "))
			for _, r := range first.Recipients {
				require.Equal(t, tt.want.status, r.Status)
				require.Equal(t, tt.want.class, r.Class)
				require.Equal(t, tt.want.hard, r.Hard, r.Diagnostic)
				require.False(t, r.Suppress && !r.Hard)
			}
		})
	}
}

// TestReversePathIsHeard has the same messages come with the null reverse-path, with another one, and as files.
func TestReversePathIsHeard(t *testing.T) {
	t.Parallel()
	refused := "Your message could not be delivered.\n\ngone@dest.example\n550 5.1.1 unknown user\n"
	wrapped := "From: Ann <ann@dest.example>\nSubject: look at this\nContent-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: text/plain\n\nWhy?\n\n--o\n" +
		"Content-Type: message/delivery-status\n\nReporting-MTA: dns; mx.dest.example\n\nFinal-Recipient: rfc822; gone@dest.example\nAction: failed\nStatus: 5.1.1\n\n--o--\n"
	all := map[bounce.Origin]bounce.Kind{bounce.NullPath: bounce.Bounce, bounce.UnknownPath: bounce.Bounce, bounce.OtherPath: bounce.Bounce}
	tests := map[string]struct {
		text string
		want map[bounce.Origin]bounce.Kind
	}{
		"report":                    {dsn("Final-Recipient: rfc822; gone@dest.example\nAction: failed\nStatus: 5.1.1\n"), all},
		"report_of_no_known_system": {strings.Replace(dsn("Final-Recipient: rfc822; gone@dest.example\nAction: failed\nStatus: 5.1.1\n"), "MAILER-DAEMON", "info", 1), all},
		"text_of_a_system":          {plainFrom("MAILER-DAEMON@mx.dest.example", "Undeliverable", "", refused), all},
		"report_that_a_person_attaches": {wrapped, map[bounce.Origin]bounce.Kind{
			bounce.NullPath: bounce.Bounce, bounce.UnknownPath: bounce.Bounce, bounce.OtherPath: bounce.None,
		}},
		"text_of_a_person": {plainFrom("Ann <ann@dest.example>", "Undeliverable", "", refused), map[bounce.Origin]bounce.Kind{
			bounce.NullPath: bounce.Bounce, bounce.UnknownPath: bounce.Bounce, bounce.OtherPath: bounce.None,
		}},
		"text_without_a_telling_subject": {plainFrom("mail@dest.example", "About your mail", "", refused), map[bounce.Origin]bounce.Kind{
			bounce.NullPath: bounce.Bounce, bounce.UnknownPath: bounce.None, bounce.OtherPath: bounce.None,
		}},
		"field_that_tells_it": {plainFrom("mail@dest.example", "About your mail", "Return-Path: <>\n", refused), map[bounce.Origin]bounce.Kind{
			bounce.NullPath: bounce.Bounce, bounce.UnknownPath: bounce.Bounce, bounce.OtherPath: bounce.None,
		}},
		"vacation": {plainFrom("Ann <gone@dest.example>", "Out of office: hello", "", "I am away; user unknown until Monday.\n"), map[bounce.Origin]bounce.Kind{
			bounce.NullPath: bounce.AutoReply, bounce.UnknownPath: bounce.AutoReply, bounce.OtherPath: bounce.AutoReply,
		}},
		"answer": {plainFrom("Ann <ann@dest.example>", "Re: Undeliverable", "", refused), map[bounce.Origin]bounce.Kind{
			bounce.NullPath: bounce.None, bounce.UnknownPath: bounce.None, bounce.OtherPath: bounce.None,
		}},
	}
	for name, tt := range tests {
		for origin, want := range tt.want {
			rep, err := bounce.Parse(strings.NewReader(tt.text), origin, verdicts)
			require.NoError(t, err)
			require.Equal(t, want, rep.Kind, "%s, %d", name, origin)
			if want == bounce.Bounce {
				require.Equal(t, "gone@dest.example", rep.Recipients[0].Address, name)
				require.True(t, rep.Recipients[0].Suppress, name)
			}
		}
	}
}

func TestBoundsHold(t *testing.T) {
	t.Parallel()
	many := strings.Repeat("Final-Recipient: rfc822; gone@dest.example\nAction: failed\nStatus: 5.1.1\n\n", 100_000)
	rep, err := bounce.Parse(strings.NewReader(dsn(many)), bounce.UnknownPath, verdicts)
	require.NoError(t, err)
	require.LessOrEqual(t, len(rep.Recipients), 1000)

	said := 0
	count := func(r mail.Reply) bounce.Verdict {
		said += len(r.Text)
		return bounce.Verdict{}
	}
	var named, status strings.Builder
	for i := range 600 {
		fmt.Fprintf(&named, "u%d@b.example,", i)
		fmt.Fprintf(&status, "Final-Recipient: rfc822; u%d@b.example\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 %d %s\n\n", i, i, strings.Repeat("no ", 1000))
	}
	long := strings.Repeat("could not be delivered ", 5000)
	for _, text := range []string{plainFrom("mailer-daemon@x.example", "undelivered", "X-Failed-Recipients: "+named.String()+"\n", long), dsn(status.String())} {
		said = 0
		rep, err = bounce.Parse(strings.NewReader(text), bounce.UnknownPath, count)
		require.NoError(t, err)
		require.Greater(t, len(rep.Recipients), 50)
		require.Positive(t, said)
		require.LessOrEqual(t, said, 32<<10, "to classify text costs")
	}

	var nested bytes.Buffer
	for i := range 10_000 {
		fmt.Fprintf(&nested, "Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n", i, i)
	}
	_, err = bounce.Parse(&nested, bounce.UnknownPath, verdicts)
	require.NoError(t, err)
	_, err = bounce.Parse(strings.NewReader("Content-Type: multipart/mixed; boundary=b\n\n"+strings.Repeat("--b\n\nx\n", 200_000)), bounce.UnknownPath, verdicts)
	require.NoError(t, err)
	_, err = bounce.Parse(strings.NewReader("From: mailer-daemon\nSubject: undelivered\n\n"+strings.Repeat("a@b.example ", 200_000)), bounce.UnknownPath, verdicts)
	require.NoError(t, err)
}

func BenchmarkParseOneMegabyte(b *testing.B) {
	text := plainFrom("mailer-daemon@dest.example", "Undelivered", "", strings.Repeat("could not be delivered to gone@dest.example 550 5.1.1 unknown\n", 16_000))
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := bounce.Parse(strings.NewReader(text), bounce.UnknownPath, verdicts); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(dsn("Final-Recipient: rfc822; gone@dest.example\nAction: failed\nStatus: 5.1.1\n")))
	f.Add([]byte(report("feedback-report", "Content-Type: message/feedback-report\n\nFeedback-Type: abuse\nOriginal-Rcpt-To: gone@dest.example\n")))
	f.Add([]byte(plainFrom("MAILER-DAEMON@x.example", "failure notice", "X-Failed-Recipients: a@b.example, c@d.example\n", "<a@b.example>:\n550 5.1.1 unknown\n")))
	f.Add([]byte("Subject: out of office\r\rhello"))
	for _, s := range corpus(f) {
		f.Add(s.text)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		rep, err := bounce.Parse(bytes.NewReader(raw), bounce.Origin(len(raw)%3), verdicts) //nolint:gosec // small
		require.NoError(t, err)
		require.LessOrEqual(t, len(rep.Recipients), 1000)
		for _, r := range rep.Recipients {
			_, err := mail.ParsePath(r.Address)
			require.NoError(t, err)
			require.Equal(t, mail.ReplyText(r.Diagnostic), r.Diagnostic)
			require.False(t, r.Hard && rep.Kind != bounce.Bounce)
			require.False(t, r.Suppress && !r.Hard)
		}
	})
}

// TestA15_FoldedFieldsCostLittle: a field of thousands of lines takes as much work as it has octets, wherever it stands.
func TestA15_FoldedFieldsCostLittle(t *testing.T) { // not parallel: it measures memory
	field := "X: y\n" + strings.Repeat(" z\n", 4000)
	many := strings.Repeat(field, 1<<20/len(field))
	for name, text := range map[string]string{
		"header": many + "\nx\n",
		"part":   "Content-Type: multipart/mixed; boundary=b\n\n--b\n" + many + "\nx\n--b--\n",
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := bounce.Parse(strings.NewReader(text), bounce.UnknownPath, verdicts)
		require.NoError(t, err)
		runtime.ReadMemStats(&after)
		made := after.TotalAlloc - before.TotalAlloc
		t.Logf("%s: %d octets allocated for %d", name, made, len(text))
		require.Less(t, made, uint64(8<<20), name)
	}
}
