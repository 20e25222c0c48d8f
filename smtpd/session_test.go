package smtpd

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDialogue: each line is what the client sends (with \r\n added, Go escapes resolved) and the begin of the last line
// of the reply.
func TestDialogue(t *testing.T) {
	t.Parallel()
	auth := "AUTH PLAIN " + plainIR("app", "secret")
	tests := []struct {
		name     string
		listener int
		steps    [][2]string
		closes   bool
	}{
		{"helo_is_required", plain, [][2]string{{"MAIL FROM:<a@example.com>", "503 5.5.1"}, {"NOOP", "250 2.0.0"}}, false},
		{"auth_is_required", plain, [][2]string{{"EHLO x", "250 "}, {"MAIL FROM:<a@example.com>", "530 5.7.0"}}, false},
		{"null_reverse_path_is_not_for_submission", plain, [][2]string{{"EHLO x", "250 "}, {auth, "235"}, {"MAIL FROM:<>", "553 5.7.1"}}, false},
		{"foreign_sender_domain_is_refused", plain, [][2]string{{"EHLO x", "250 "}, {auth, "235"}, {"MAIL FROM:<a@other.example>", "550 5.7.1"}, {"MAIL FROM:<a@sub.example.com>", "550 5.7.1"}, {"MAIL FROM:<a@EXAMPLE.com>", "250 2.1.0"}}, false},
		{"nested_mail_is_refused", plain, [][2]string{{"EHLO x", "250 "}, {auth, "235"}, {"MAIL FROM:<a@example.com>", "250"}, {"RCPT TO:<b@example.net>", "250"}, {"MAIL FROM:<a@example.com>", "503 5.5.1"}, {"RSET", "250"}, {"DATA", "503 5.5.1"}}, false},
		{"data_without_rcpt", plain, [][2]string{{"EHLO x", "250 "}, {auth, "235"}, {"DATA", "503 5.5.1"}, {"MAIL FROM:<a@example.com>", "250"}, {"DATA", "554 5.5.1"}, {"RCPT TO:<b@example.net>", "250"}, {"DATA x", "501 5.5.4"}}, false},
		{"second_ehlo_clears_the_envelope", plain, [][2]string{{"EHLO x", "250 "}, {auth, "235"}, {"MAIL FROM:<a@example.com>", "250"}, {"EHLO x", "250 "}, {"RCPT TO:<b@example.net>", "503 5.5.1"}}, false},
		{"declared_size_over_limit", plain, [][2]string{{"EHLO x", "250 "}, {auth, "235"}, {"MAIL FROM:<a@example.com> SIZE=26214401", "552 5.3.4"}, {"MAIL FROM:<a@example.com> SIZE=99999999999999999999", "552 5.3.4"}, {"MAIL FROM:<a@example.com> SIZE=26214400", "250"}}, false},
		{"bad_parameters", plain, [][2]string{
			{"EHLO x", "250 "},
			{auth, "235"},
			{"MAIL FROM:<a@example.com> SIZE=1 SIZE=1", "501 5.5.4"},
			{"MAIL FROM:<a@example.com> SIZE=", "501 5.5.4"},
			{"MAIL FROM:<a@example.com> SIZE=-1", "501 5.5.4"},
			{"MAIL FROM:<a@example.com> BODY=BINARY", "501 5.5.4"},
			{"MAIL FROM:<a@example.com> SMTPUTF8=1", "501 5.5.4"},
			{"MAIL FROM:<ä@example.com>", "553 5.6.7"},
			{`MAIL FROM:<\xff@example.com> SMTPUTF8`, "500 5.5.2"},
			{"MAIL FROM:<a@example.com> REQUIRETLS", "555 5.5.4"},
			{"MAIL FROM:<a@example.com> HOLDFOR=0", "501 5.5.4"},
			{"MAIL FROM:<a@example.com> HOLDFOR=2592001", "501 5.5.4"},
			{"MAIL FROM:<a@example.com> HOLDUNTIL=tomorrow", "501 5.5.4"},
			{"MAIL FROM:<a@example.com> HOLDUNTIL=2999-01-01T00:00:00Z", "501 5.5.4"},
			{"MAIL FROM:<a@example.com> HOLDFOR=1 HOLDUNTIL=2026-11-20T12:00:00Z", "501 5.5.4"},
			{"MAIL FROM:<a@example.com> FOO=ä", "501 5.5.4"},
			{"MAIL FROM:<a@example.com> RET=SOME", "501 5.5.4"},
			{"MAIL FROM:<a@example.com> ENVID=a+0Ab", "501 5.5.4"},
			{"MAIL FROM:<a@example.com> ENVID=" + strings.Repeat("e", 101), "501 5.5.4"},
			{"MAIL FROM:<a@example.com>SIZE=1", "501 5.5.4"},
			{"MAIL FROM:a@example.com", "501 5.5.4"},
			{"MAIL TO:<a@example.com>", "501 5.5.4"},
			{"MAIL FROM:<a@example.com> RET=HDRS ENVID=q+2Bz BODY=8bitmime AUTH=<>", "250"},
			{"RCPT TO:<b@example.net> NOTIFY=NEVER,DELAY", "501 5.5.4"},
			{"RCPT TO:<b@example.net> NOTIFY=DELAY,DELAY", "501 5.5.4"},
			{"RCPT TO:<b@example.net> ORCPT=b@example.net", "501 5.5.4"},
			{"RCPT TO:<b@example.net> ORCPT=rfc822;b+0D+0Ax", "501 5.5.4"},
			{"RCPT TO:<b@example.net> FOO=1", "555 5.5.4"},
			{"RCPT TO:<@x.example:b@example.net>", "501 5.1.3"},
			{"RCPT TO:<b@[192.0.2.1]>", "550 5.1.2"},
			{"RCPT TO:<b>", "501 5.1.3"},
			{"RCPT TO:<b@example.net> NOTIFY=success,DELAY ORCPT=rfc822;b+40example.net", "250"},
		}, false},
		{"quoted_local_part_stays_one_address", plain, [][2]string{{"EHLO x", "250 "}, {auth, "235"}, {`MAIL FROM:<"foo> SIZE=1"@example.com>`, "250"}}, false},
		{"A7_long_command_line", plain, [][2]string{{"NOOP " + strings.Repeat("x", 506), "500 5.5.2"}, {"NOOP " + strings.Repeat("x", 505), "250"}, {"NOOP " + strings.Repeat("x", 50_000), "500 5.5.2"}, {"NOOP", "250"}}, false},
		{"A11_octets_outside_ASCII", plain, [][2]string{{`EHLO x\xff`, "500 5.5.2"}, {`NOOP \x00`, "500 5.5.2"}, {`NOOP \t`, "500 5.5.2"}, {`EHLO 한국`, "500 5.5.2"}, {`N\rOOP`, "500 5.5.2"}, {"NOOP", "250"}}, false},
		{"A11_http_verbs_are_cut", plain, [][2]string{{"GET / HTTP/1.1", "554 5.5.0"}}, true},
		{"bare_LF_ends_the_session", plain, [][2]string{{`NOOP\nMAIL FROM:<a@example.com>`, "500 5.5.2"}}, true},
		{"A16_vrfy_and_expn_tell_nothing", plain, [][2]string{{"VRFY root", "252 2.5.0"}, {"EXPN all", "502 5.5.1"}, {"HELP", "214 2.0.0"}}, false},
		{"bad_ehlo_argument", plain, [][2]string{{"EHLO", "501 5.5.4"}, {"EHLO a b", "501 5.5.4"}, {"EHLO (x)", "501 5.5.4"}, {"EHLO [IPv6:::1]", "250 "}, {"HELO my_host", "250 "}}, false},
		{"starttls_where_it_is_not", plain, [][2]string{{"EHLO x", "250 "}, {"STARTTLS", "502 5.5.1"}}, false},
		{"A5_auth_without_tls", starttls, [][2]string{{"EHLO x", "250 "}, {auth, "538 5.7.11"}, {"AUTH LOGIN", "538 5.7.11"}, {"MAIL FROM:<a@example.com>", "530 5.7.0"}, {"STARTTLS now", "501 5.5.4"}}, false},
		{"B2_inbound_accepts_nobody", inbound, [][2]string{{"EHLO x", "250 "}, {auth, "503 5.5.1"}, {"MAIL FROM:<>", "250"}, {"RCPT TO:<b@example.net>", "550 5.1.1"}, {"RCPT TO:<b@example.com>", "550 5.1.1"}, {"DATA", "554 5.5.1"}}, false},
		{"unknown_commands", plain, [][2]string{{"FOO", "500 5.5.1"}, {"", "500 5.5.1"}, {"TURN", "502 5.5.1"}, {"QUIT", "221 2.0.0"}}, true},
		{"auth_errors", plain, [][2]string{
			{"AUTH PLAIN x", "503 5.5.1"},
			{"EHLO x", "250 "},
			{"AUTH CRAM-MD5", "504 5.5.4"},
			{"AUTH", "504 5.5.4"},
			{"AUTH PLAIN !!!", "501 5.5.2"},
			{"AUTH PLAIN =", "501 5.5.2"},
			{"AUTH PLAIN", "334 "},
			{"*", "501 5.7.0"},
			{"AUTH LOGIN", "334 VXNlcm5hbWU6"},
			{"YXBw", "334 UGFzc3dvcmQ6"},
			{"*", "501 5.7.0"},
			{"AUTH PLAIN " + plainIR("app", "wrong"), "535 5.7.8"},
			{"AUTH LOGIN YXBw", "334 UGFzc3dvcmQ6"},
			{"c2VjcmV0", "235 2.7.0"},
			{auth, "503 5.5.1"},
		}, false},
		{"A4_B3_wrong_user_and_wrong_password_are_equal_and_third_ends", plain, [][2]string{
			{"EHLO x", "250 "},
			{"AUTH PLAIN " + plainIR("app", "wrong"), "535 5.7.8 Authentication credentials are invalid\r\n"},
			{"AUTH PLAIN " + plainIR("nobody", "secret"), "535 5.7.8 Authentication credentials are invalid\r\n"},
			{"AUTH PLAIN " + plainIR("app", ""), "421 4.7.0"},
		}, true},
		{"auth_line_too_long", plain, [][2]string{{"EHLO x", "250 "}, {"AUTH PLAIN", "334 "}, {strings.Repeat("A", 13_000), "500 5.5.6"}, {"NOOP", "250"}}, false},
		{"auth_in_transaction", plain, [][2]string{{"EHLO x", "250 "}, {auth, "235"}, {"MAIL FROM:<a@example.com>", "250"}, {auth, "503 5.5.1"}}, false},
	}
	f := start(t)
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := f.dial(t, tc.listener)
			c.expect("220 relay.example.com ESMTP")
			for _, step := range tc.steps {
				c.cmd(unescape(t, step[0]), step[1])
			}
			if tc.closes {
				c.closed()
			} else {
				c.cmd("NOOP", "250 2.0.0")
			}
			require.Empty(t, f.rec.all())
		})
	}
}

func unescape(t *testing.T, s string) string {
	t.Helper()
	r := strings.NewReplacer(`\r`, "\r", `\n`, "\n", `\t`, "\t", `\x00`, "\x00", `\xff`, "\xff")
	return r.Replace(s)
}

func TestSessionAcceptsMessages(t *testing.T) {
	t.Parallel()
	for name, listener := range map[string]int{"plain": plain, "starttls": starttls, "implicit": implicit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			c := f.ready(t, listener)
			c.cmd("MAIL FROM:<a@example.com> RET=HDRS ENVID=q1", "250 2.1.0")
			c.cmd("RCPT TO:<b@example.net> NOTIFY=FAILURE ORCPT=rfc822;b@example.net", "250 2.1.5")
			c.cmd("RCPT TO:<\"c d\"@example.net>", "250 2.1.5")
			c.cmd("DATA", "354 ")
			c.cmd("Subject: x\r\n\r\n..dot\r\n.", "250 2.0.0 Ok: queued as ")
			c.cmd("QUIT", "221 ")
			c.closed()
			got := f.rec.all()
			require.Len(t, got, 1)
			require.Equal(t, "Subject: x\r\n\r\n.dot\r\n", got[0].body)
			s := got[0].sub
			require.Equal(t, "a@example.com", s.ReversePath.String())
			require.Equal(t, "b@example.net", s.Recipients[0].To.String())
			require.Equal(t, "FAILURE", s.Recipients[0].Notify)
			require.Equal(t, "rfc822;b@example.net", s.Recipients[0].ORCPT)
			require.Equal(t, `"c d"@example.net`, s.Recipients[1].To.String())
			require.Equal(t, "q1", s.EnvelopeID)
			require.True(t, s.RetHeaders)
			require.Equal(t, "app", s.Credential)
			require.Equal(t, []string{"example.com"}, s.Domains)
			require.Equal(t, "127.0.0.1", s.Trace.ClientIP)
			require.Equal(t, "client.example", s.Trace.Helo)
			if listener == plain {
				require.Equal(t, "ESMTPA", s.Trace.With)
				require.Empty(t, s.Trace.TLS)
			} else {
				require.Equal(t, "ESMTPSA", s.Trace.With)
				require.True(t, strings.HasPrefix(s.Trace.TLS, "TLS1.3 TLS_"), s.Trace.TLS)
			}
		})
	}
}
