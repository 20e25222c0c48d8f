package delivery

import (
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
	"relayd/internal/testutil"
	"relayd/spool"
)

// TestMarkedMessages: a message with REQUIRETLS (RFC 8689) goes to a host whose certificate is right and that keeps the promise, and to
// no other; a host without SMTPUTF8 gets no header in UTF-8 (RFC 6531).
func TestMarkedMessages(t *testing.T) {
	t.Parallel()
	ca, stranger := testutil.NewCA(t), testutil.NewCA(t)
	tests := []struct {
		name   string
		mx     *testutil.MX
		mark   func(m *spool.Message)
		status mail.Status // zero: delivered
		arg    string
	}{
		{name: "no_tls", mx: &testutil.MX{}, status: mail.Status{Class: 5, Subject: 7, Detail: 10}},
		{name: "foreign_certificate", mx: &testutil.MX{TLS: stranger.Server(t, "mx.dest.example")}, status: mail.Status{Class: 5, Subject: 7, Detail: 10}},
		{name: "other_name", mx: &testutil.MX{TLS: ca.Server(t, "mx.other.example")}, status: mail.Status{Class: 5, Subject: 7, Detail: 10}},
		{name: "broken_tls_is_no_way_out", mx: &testutil.MX{TLS: ca.Server(t, "mx.dest.example"), Rule: on("STARTTLS", testutil.Act{BadTLS: true})}, status: mail.Status{Class: 5, Subject: 7, Detail: 10}},
		{name: "not_kept", mx: &testutil.MX{TLS: ca.Server(t, "mx.dest.example")}, status: mail.Status{Class: 5, Subject: 7, Detail: 30}},
		{
			name: "kept", mx: &testutil.MX{TLS: ca.Server(t, "mx.dest.example"), Extensions: []string{"STARTTLS", "REQUIRETLS"}}, arg: " REQUIRETLS",
		},
		{
			name: "utf8_header_without_smtputf8", mx: &testutil.MX{}, mark: func(m *spool.Message) { m.UTF8 = true },
			status: mail.Status{Class: 5, Subject: 6, Detail: 7},
		},
		{
			name: "utf8_header_with_smtputf8", mx: &testutil.MX{Extensions: []string{"SMTPUTF8", "8BITMIME"}},
			mark: func(m *spool.Message) { m.UTF8 = true }, arg: " SMTPUTF8",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			mx := tt.mx.Start(t)
			mark := tt.mark
			if mark == nil {
				mark = func(m *spool.Message) { m.RequireTLS = true }
			}
			r := newRig(t, mx.PortNumber(), zone()).sleepless()
			r.deps.Roots = ca.Pool()
			r.start()
			id := r.submit(submission{to: []string{"one@dest.example"}, mark: mark})
			got := r.outcome(id, 0)
			if tt.status.IsZero() {
				require.Equal(t, spool.Delivered, got.Result.Outcome, got.Result.Reply)
				require.Contains(t, mx.Mails()[0].MailArg, tt.arg)
				return
			}
			require.Equal(t, spool.Failed, got.Result.Outcome, got.Result.Reply)
			require.Equal(t, tt.status, got.Result.Reply.Status)
			require.Empty(t, mx.Mails())
			for _, c := range mx.Commands() {
				require.NotContains(t, c, "MAIL")
			}
		})
	}
}

// TestEachHostIsAskedToKeepTheTLS: RFC 8689 section 4.2.1. A session to the first host is open already.
func TestEachHostIsAskedToKeepTheTLS(t *testing.T) {
	t.Parallel()
	ca := testutil.NewCA(t)
	ext := []string{"REQUIRETLS"}
	good := (&testutil.MX{TLS: ca.Server(t, "b.two.example"), Extensions: ext}).Start(t)
	first := (&testutil.MX{IP: "127.0.0.2", Port: good.PortNumber(), TLS: ca.Server(t, "a.two.example")}).Start(t)
	r := newRig(t, good.PortNumber(), zone()).sleepless()
	r.deps.Roots = ca.Pool()
	r.start()
	require.Equal(t, spool.Delivered, r.outcome(r.send("a@two.example"), 0).Result.Outcome)
	require.Len(t, first.Mails(), 1)
	got := r.outcome(r.submit(submission{to: []string{"a@two.example"}, mark: func(m *spool.Message) { m.RequireTLS = true }}), 0)
	require.Equal(t, spool.Delivered, got.Result.Outcome, got.Result.Reply.String())
	require.Len(t, first.Mails(), 1)
	require.Contains(t, good.Mails()[0].MailArg, " REQUIRETLS")
	good.Close()
	got = r.outcome(r.submit(submission{to: []string{"a@two.example"}, mark: func(m *spool.Message) { m.RequireTLS = true }}), 0)
	require.Equal(t, spool.Failed, got.Result.Outcome)
	require.Equal(t, mail.Status{Class: 5, Subject: 7, Detail: 30}, got.Result.Reply.Status)
}
