package intake

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/account"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/suppression"
	"relayd/spool"
)

func TestAcceptStoresSignsAndTraces(t *testing.T) {
	t.Parallel()
	f := open(t)
	s := submission(plain)
	s.EnvelopeID, s.RetHeaders, s.RetFull = "q1", true, true // of which a client names one
	s.Recipients[0].Notify, s.Recipients[0].ORCPT = "FAILURE", "rfc822;b@example.net"
	id, err := f.Accept(t.Context(), s)
	require.NoError(t, err)
	m, text := f.stored(t, id)
	require.Equal(t, "café", m.Subject)
	require.Equal(t, "<"+id.String()+"@relay.example.com>", m.MessageID)
	require.Equal(t, noon.Add(24*time.Hour), m.ExpiresAt.UTC())
	require.False(t, m.Deadline, "nobody has named a time")
	require.Equal(t, "transactional", m.Stream)
	require.Equal(t, "q1", m.EnvelopeID)
	require.True(t, m.RetHeaders)
	require.True(t, m.RetFull)
	require.False(t, m.EightBit)
	_, after, _ := strings.Cut(text, "Received:")
	require.Equal(t, " from client.example ([192.0.2.1])\r\n\tby relay.example.com (relayd) with ESMTPSA\r\n"+
		"\t(TLS1.3 TLS_AES_128_GCM_SHA256)\r\n\tid "+id.String()+"\r\n\tfor <b@example.net>;\r\n\tFri, 20 Nov 2026 12:00:00 +0000\r\n"+
		"From: App <a@example.com>\r\nTo: b@example.net\r\nSubject: =?utf-8?q?caf=C3=A9?=\r\n"+
		"Date: Fri, 20 Nov 2026 12:00:00 +0000\r\nMessage-ID: "+m.MessageID+"\r\n\r\nHello\r\n.dot\r\n", after)
	require.Equal(t, 2, strings.Count(text, "DKIM-Signature:"))
	v := f.verify(t, text)
	require.Len(t, v, 2)
	for _, r := range v {
		require.Equal(t, "example.com", r.Domain)
		require.Equal(t, "pass", r.Result, r)
	}
	_, infos, err := f.spool.Get(t.Context(), id)
	require.NoError(t, err)
	require.Len(t, infos, 1)
	require.Equal(t, 1, f.queued(t))
}

// TestAcceptIsTheSameInAnyPieces: blocks of any size give the same message.
func TestAcceptIsTheSameInAnyPieces(t *testing.T) {
	t.Parallel()
	f := open(t)
	message := strings.Replace(plain, "Hello", strings.Repeat("H", 998)+"\r\n\r\n\x80 \t\r\n", 1)
	for _, body := range []io.Reader{
		strings.NewReader(message), iotest.OneByteReader(strings.NewReader(message)), iotest.HalfReader(strings.NewReader(message)),
	} {
		s := submission("")
		s.Body = body
		id, err := f.Accept(t.Context(), s)
		require.NoError(t, err)
		m, text := f.stored(t, id)
		require.False(t, m.EightBit)
		require.Contains(t, text, "Content-Transfer-Encoding: quoted-printable\r\nMIME-Version: 1.0\r\n")
		require.True(t, strings.HasSuffix(text, "HHH=\r\n"+strings.Repeat("H", 998%75)+"\r\n\r\n=80 =09\r\n\r\n.dot\r\n"), text)
		for _, r := range f.verify(t, text) {
			require.Equal(t, "pass", r.Result)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	f := open(t)
	from := func(v string) string { return "From: " + v + "\r\nSubject: x\r\n\r\nHello\r\n" }
	field := func(v string) string { return "From: a@example.com\r\n" + v + "\r\n\r\nHello\r\n" }
	tests := []struct{ name, message, want string }{
		{"from_is_missing", "Subject: x\r\n\r\nHello\r\n", "554 5.6.0 Header field From is missing"},
		{"no_header", "\r\nHello\r\n", "554 5.6.0 Header field From is missing"},
		{"empty_message", "", "554 5.6.0 Header field From is missing"},
		{"no_field", "From: a@example.com\r\nHello there\r\n\r\n", "554 5.6.0 Bad header: line 2 is not a field"},
		{"begins_with_blank", " From: a@example.com\r\n\r\n", "554 5.6.0 Bad header: line 1"},
		{"B5_two_from_fields", "From: a@example.com\r\nfrom: b@example.com\r\n\r\n", "554 5.6.0 Header field From stands more than once"},
		{"B5_two_addresses", from("a@example.com, b@example.com"), "554 5.6.0 Header field From: must hold exactly one"},
		{"B5_two_bracketed", from("<a@example.com>, <b@victim.example>"), "554 5.6.0"},
		{"B5_two_bracketed_without_comma", from("<a@example.com> <b@victim.example>"), "554 5.6.0"},
		{"B5_group", from("x: a@example.com;"), "554 5.6.0"},
		{"B5_route", from("<@example.com:b@victim.example>"), "554 5.6.0"},
		{"B5_comment_in_address", from("a@(x)example.com"), "554 5.6.0"},
		{"B5_address_before_brackets", from("b@victim.example <a@example.com>"), "554 5.6.0"},
		{"B5_display_name_shows_other_address", from(`"b@victim.example" <a@example.com>`), "550 5.7.1 Display name of From shows an address at victim.example"},
		{"B5_encoded_display_name_shows_other_address", from("=?utf-8?b?YkB2aWN0aW0uZXhhbXBsZQ==?= <a@example.com>"), "550 5.7.1"},
		{"B5_encoded_in_another_charset", from("=?windows-1252?Q?b=40victim.example?= <a@example.com>"), "550 5.7.1 Display name of From shows an address at victim.example"},
		{"B5_encoded_with_a_language", from("=?utf-8*en?Q?b=40victim.example?= <a@example.com>"), "550 5.7.1 Display name"},
		{"B5_encoded_inside_quotes", from(`"=?utf-8?Q?b=40victim.example?=" <a@example.com>`), "550 5.7.1 Display name"},
		{"B5_encoded_as_UTF_16", from("=?utf-16le?B?YgBAAHYAaQBjAHQAaQBtAC4AZQB4AGEAbQBwAGwAZQA=?= <a@example.com>"), "550 5.7.1 Display name"},
		{"B5_encoded_in_unknown_charset", from("=?utf-7?Q?b+AEA-victim.example?= <a@example.com>"), "554 5.6.0 Header field From: has a display name with an encoded word"},
		{"B5_encoded_with_a_blank_inside", from("=?utf-8?Q?b =40victim.example?= <a@example.com>"), "550 5.7.1 Display name"},
		{"B5_encoded_twice", from("=?utf-8?Q?=3D?utf-8?Q?b=3D40victim.example?=3D?= <a@example.com>"), "554 5.6.0"},
		{"B5_encoded_word_inside_another", from("=?utf-8?B?PT91dGYtOD9RP2I9NDB2aWN0aW0uZXhhbXBsZT89?= <a@example.com>"), "554 5.6.0 Header field From: has a display name with an encoded word"},
		{"B5_encoded_with_broken_base64", from("=?utf-8?B?YkB2aWN0aW0uZXhhbXBsZQ=?= <a@example.com>"), "554 5.6.0 Header field From: has a display name with an encoded word"},
		{"B5_wide_at", from("=?utf-8?Q?b=EF=BC=A0victim=EF=BC=8Eexample?= <a@example.com>"), "550 5.7.1 Display name of From shows an address at victim.example"},
		{"B5_invisible_in_domain", from("=?utf-8?Q?b=40vic=C2=ADtim.example?= <a@example.com>"), "550 5.7.1 Display name"},
		{"B5_comment_shows_other_address", from("<a@example.com> (b@victim.example)"), "550 5.7.1 Display name of From shows an address at victim.example"},
		{"B5_encoded_comment_shows_other_address", from("a@example.com (=?utf-8?Q?b=40victim.example?=)"), "550 5.7.1 Display name"},
		{"B5_comment_before_name", from("(b@victim.example) <a@example.com>"), "554 5.6.0"},
		{"B5_group_with_other_address", from("x: a@example.com, b@victim.example;"), "554 5.6.0"},
		{"B5_empty_group", from("a@example.com:;"), "554 5.6.0"},
		{"B5_folded_second_address", from("a@example.com,\r\n\tb@victim.example"), "554 5.6.0"},
		{"B5_folded_in_address", from("b@victim.example\r\n <a@example.com>"), "554 5.6.0"},
		{"B5_brackets_in_brackets", from("<b@victim.example<a@example.com>"), "554 5.6.0"},
		{"B5_second_from_behind_blank_name", "From: a@example.com\r\nFrom\t: b@victim.example\r\n\r\n", "554 5.6.0 Header field From has a blank"},
		{"B5_name_without_colon", "From: a@example.com\r\nFrom b@victim.example\r\n\r\n", "554 5.6.0 Bad header: line 2"},
		{"B5_name_split_by_folding", "From: a@example.com\r\nFro\r\n m: b@victim.example\r\n\r\n", "554 5.6.0 Bad header: line 2"},
		{"B5_sender_display_name_shows_other_address", field("Sender: \"b@victim.example\" <a@example.com>"), "550 5.7.1 Display name of Sender shows"},
		{"B5_encoded_line_break", from("=?utf-8?q?x=0D=0AFrom:_b?= <a@example.com>"), "554 5.6.0"},
		{"B5_other_domain", from("a@victim.example"), "550 5.7.1 From domain victim.example is not registered"},
		{"B5_domain_of_another_account", from("a@other.example"), "550 5.7.1 From domain other.example is not registered"},
		{"B5_subdomain", from("a@sub.example.com"), "550 5.7.1 From domain sub.example.com"},
		{"B5_IDN_homograph", from("a@xn--exmple-cua.com"), "550 5.7.1"},
		{"B5_sender_of_other_domain", field("Sender: b@victim.example"), "550 5.7.1 Sender field's domain victim.example"},
		{"B5_two_senders", field("Sender: a@example.com\r\nSender: a@example.com"), "554 5.6.0 Header field Sender"},
		{"B5_blank_before_colon", "From : a@example.com\r\n\r\n", "554 5.6.0 Header field From has a blank"},
		{"B5_blank_line_that_is_none", field("X: y\r\n \r\nFrom: b@victim.example"), "554 5.6.0 Header field X has a blank continuation"},
		{"unclosed_quote", from(`"App <a@example.com>`), "554 5.6.0"},
		{"unclosed_bracket", from("App <a@example.com"), "554 5.6.0"},
		{"unclosed_quote_in_address", from(`App <"a@example.com>`), "554 5.6.0"},
		{"direction_override_in_name", from("=?utf-8?b?4oCuZ3Bq?= <a@example.com>"), "554 5.6.0 Header field From: has a display name"},
		{"empty_from", from(""), "554 5.6.0"},
		{"two_subjects", field("Subject: a\r\nSubject: b"), "554 5.6.0 Header field Subject stands more than once"},
		{"header_outside_ASCII", field("Subject: caf\xc3\xa9"), "554 5.6.9 Header field Subject is not ASCII"},
		{"control_character", field("Subject: a\x07"), "554 5.6.0 Header field Subject has a control character"},
		{"NUL_in_header", field("Subject: a\x00"), "554 5.6.0 Line 2 holds a NUL"},
		{"NUL_in_body", plain + "x\x00\r\n", "554 5.6.0 Line 7 holds a NUL"},
		{"bare_LF", plain + "x\ny\r\n", "554 5.6.0 Message has a bare LF"},
		{"bare_LF_everywhere", strings.ReplaceAll(plain, "\r\n", "\n"), "554 5.6.0 Message has a bare LF"},
		{"bare_CR", plain + "x\ry\r\n", "554 5.6.0 Message has a bare CR"},
		{"bare_CR_at_the_end", plain + "x\r", "554 5.6.0 Message has a bare CR"},
		{"A8_long_line", plain + strings.Repeat("x", 999) + "\r\n", "554 5.6.0 Line 7 has more than 998 octets"},
		{"A8_endless_line", plain + strings.Repeat("x", 5_000_000) + "\r\n", "554 5.6.0 Line 7 has more than 998 octets"},
		{"A15_large_header", field(strings.Repeat("X: y\r\n", 50_000)), "552 5.3.4 Header section is larger than 262144 octets"},
		{"loop", strings.Repeat("Received: from x by y; date\r\n", 51) + plain, "554 5.4.6 Too many hops"},
		{"F_missing_key", from("a@keyless.example"), "550 5.7.5 No DKIM key for keyless.example: run relayctl domain add keyless.example"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, err := f.Accept(t.Context(), submission(tc.message))
			require.Error(t, err)
			reply := mail.ReplyOf(err)
			require.True(t, strings.HasPrefix(reply.String(), tc.want), "%s", reply)
			require.Equal(t, reply.Code/100, reply.Status.Class)
			require.Equal(t, 0, f.queued(t))
		})
	}
}

func TestSubmissionsRefusedBeforeReading(t *testing.T) {
	t.Parallel()
	f := open(t)
	tests := []struct {
		name   string
		change func(s *Submission)
		want   string
	}{
		{"null_reverse_path", func(s *Submission) { s.ReversePath = mail.Path{} }, "550 5.7.1"},
		{"unknown_domain", func(s *Submission) { s.ReversePath.Domain = "victim.example" }, "550 5.7.1 Sender domain victim.example"},
		{"domain_not_of_credential", func(s *Submission) { s.Domains = []string{"unsigned.example"} }, "550 5.7.1 Sender domain example.com is not one"},
		{"no_recipients", func(s *Submission) { s.Recipients = nil }, "554 5.5.1"},
		{"address_literal", func(s *Submission) { s.Recipients[0].To.Domain = "[192.0.2.1]" }, "550 5.1.2"},
		{"single_label", func(s *Submission) { s.Recipients[0].To.Domain = "localhost" }, "550 5.1.2"},
		{"non_ASCII_recipient", func(s *Submission) { s.Recipients[0].To.Local = "\u00fc" }, "553 5.6.7"},
		{"null_recipient", func(s *Submission) { s.Recipients[0].To = mail.Path{} }, "501 5.1.3"},
		{"bad_stream", func(s *Submission) { s.Stream = "a/b" }, "550 5.6.0"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := submission("")
			s.Body = iotest.ErrReader(io.ErrClosedPipe)
			tc.change(s)
			_, err := f.Accept(t.Context(), s)
			require.True(t, strings.HasPrefix(mail.ReplyOf(err).String(), tc.want), "%v", err)
		})
	}
	require.NoError(t, f.CheckSender(account.Credential{}, "example.com"))
	require.Error(t, f.CheckSender(account.Credential{Account: "other"}, "example.com"))
	require.Error(t, f.CheckSender(account.Credential{Domains: []string{"a.example"}}, "example.com"))
}

func TestAcceptedSpellings(t *testing.T) {
	t.Parallel()
	f := open(t)
	for _, v := range []string{
		"a@example.com", "<a@EXAMPLE.com>", "App <a@example.com>", `"App, Inc. \"x\"" <a@example.com>`, "a@example.com (App)",
		"[App] News <a@example.com>", "App (staging) <a@example.com>", "=?utf-8?b?7ZWc6rWt?= <a@example.com>", "=?windows-1252?Q?Caf=E9_=80?= <a@example.com>",
		"=?iso-2022-jp?B?GyRCRnxLXBsoQg==?= <a@example.com>", "=?koi8-r?B?8NLJ18XU?= =?koi8-r?B?8NLJ18XU?= <a@example.com>", "=?ISO-8859-15*fr?Q?Caf=E9?= <a@example.com>",
		`"a b"@example.com`, `App <"a>b"@example.com>`, `"a\"b" <"x\"y"@example.com>`, "<a@example.com> (App)", "App\r\n <a@example.com>", `"a@example.com" <a@example.com>`, "Bücher via X <a@xn--bcher-kva.example>",
	} {
		v = strings.ReplaceAll(v, "ü", "ue")
		_, err := f.Accept(t.Context(), submission("From: "+v+"\r\n\r\nHello\r\n"))
		require.NoError(t, err, v)
	}
}

func TestHeaderIsCleaned(t *testing.T) {
	t.Parallel()
	f := open(t)
	id, err := f.Accept(t.Context(), submission("Return-Path: <x@example.org>\r\nBcc: hidden@example.net\r\nX-Relay-Tags: a\r\n"+
		"DKIM-Signature: v=1; d=example.com; s=x; b=AAAA\r\nDKIM-Signature: v=1; a=rsa-sha256; d=\r\n elsewhere.example; s=x; b=BBBB\r\n"+
		"From: a@example.com\r\nresent-bcc: h@example.net\r\nDate: Thu, 19 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@example.com>\r\n\r\nHello",
		"b@example.net", "c@example.net"))
	require.NoError(t, err)
	m, text := f.stored(t, id)
	for _, gone := range []string{"Return-Path", "hidden", "X-Relay", "AAAA", "resent-bcc", "for <"} {
		require.NotContains(t, text, gone)
	}
	require.Contains(t, text, "d=\r\n elsewhere.example")
	require.Equal(t, 1, strings.Count(text, "Date:"))
	require.Equal(t, "<1@example.com>", m.MessageID)
	require.True(t, strings.HasSuffix(text, "\r\n\r\nHello\r\n"))
}

func TestUnsignedOnlyWhereTheOperatorSaysSo(t *testing.T) {
	t.Parallel()
	f := open(t)
	id, err := f.Accept(t.Context(), submission("From: a@unsigned.example\r\n\r\nHello\r\n"))
	require.NoError(t, err)
	_, text := f.stored(t, id)
	require.NotContains(t, text, "DKIM-Signature")
}

func TestDuplicateRecipientsGetOneEnvelope(t *testing.T) {
	t.Parallel()
	f := open(t)
	id, err := f.Accept(t.Context(), submission(plain, "b@example.net", "b@EXAMPLE.net", `"b"@example.net`, "c@example.org"))
	require.NoError(t, err)
	envs, err := f.spool.ListEnvelopes(t.Context(), id, ^uint64(0), 10)
	require.NoError(t, err)
	require.Len(t, envs, 2)
}

func TestErasedRecipientsGetReceiptsOnly(t *testing.T) {
	t.Parallel()
	f := open(t)
	for class, queued := range map[spool.Class]int{spool.Bulk: 0, spool.Transactional: 1} {
		sub := submission(plain, "E@example.net")
		sub.Class = class
		before := f.queued(t)
		id, err := f.Accept(t.Context(), sub)
		require.NoError(t, err)
		require.Equal(t, queued, f.queued(t)-before)
		done, err := f.spool.ListOutcomes(t.Context(), id, ^uint64(0), 10)
		require.NoError(t, err)
		require.Len(t, done, 1-queued)
		for _, o := range done {
			require.Equal(t, []any{spool.Suppressed, "erased"}, []any{o.Outcome, o.Reason})
		}
	}
}

func TestSuppressedRecipientsSettleAtTheDoor(t *testing.T) {
	t.Parallel()
	f := open(t)
	for _, e := range []suppression.Entry{
		{Account: "default", Address: "b@example.net", Scope: suppression.Global, Reason: suppression.HardBounce},
		{Account: "default", Address: "c@example.net", Scope: suppression.Broadcast, Reason: suppression.Unsubscribe},
	} {
		_, err := f.list.Add(t.Context(), e)
		require.NoError(t, err)
	}
	id, err := f.Accept(t.Context(), submission(plain, "B@example.net", "c@example.net"))
	require.NoError(t, err)
	require.Equal(t, 1, f.queued(t))
	done, err := f.spool.ListOutcomes(t.Context(), id, ^uint64(0), 10)
	require.NoError(t, err)
	require.Len(t, done, 1)

	page := &Page{
		Message: &spool.Message{
			ID: mail.NewQueueID(noon), Account: "default", Stream: "cmp_1", Campaign: "cmp_1", Class: spool.Bulk, Keep: true,
			AcceptedAt: noon, ExpiresAt: noon.Add(time.Hour),
		},
		Recipients: []PageRecipient{
			{To: mail.MustParsePath("b@example.net"), N: 7},
			{To: mail.MustParsePath("c@example.net"), N: 8},
			{To: mail.MustParsePath("d@example.net"), N: 9, Data: []byte("{}")},
			{To: mail.MustParsePath("e@example.net"), N: 10},
		},
	}
	require.NoError(t, f.db.Update(t.Context(), func(tx kv.Tx) error { return f.PageTx(tx, page) }))
	f.PageAdded(page)
	require.Len(t, page.Envelopes, 4)
	require.Len(t, page.Done, 3)
	require.Equal(t, reasonErased, page.Done[2].Reason)
	require.Equal(t, suppression.HardBounce, page.Done[0].Reason)
	require.Equal(t, suppression.Unsubscribe, page.Done[1].Reason)
	require.Equal(t, 2, f.queued(t))
}

func TestPreparedMessageBecomesDurableWithItsCause(t *testing.T) {
	t.Parallel()
	f := open(t)
	s := &Submission{
		Account: "default", Internal: true, Class: spool.Transactional,
		Recipients: []Recipient{{To: mail.MustParsePath("a@example.com")}},
		Body:       strings.NewReader("From: MAILER-DAEMON@relay.example.com\r\nTo: a@example.com\r\n\r\nBounce\r\n"),
	}
	p, err := f.Prepare(t.Context(), s)
	require.NoError(t, err)
	require.Equal(t, 0, f.queued(t))
	require.Error(t, f.db.Update(t.Context(), func(tx kv.Tx) error {
		require.NoError(t, p.PutTx(tx))
		return io.ErrUnexpectedEOF
	}))
	require.NoError(t, f.db.Update(t.Context(), p.PutTx))
	p.Added()
	require.Equal(t, 1, f.queued(t))
	m, text := f.stored(t, p.ID)
	require.True(t, m.ReversePath.IsNull())
	require.Contains(t, text, "d=example.com") // the host's parent domain has the key
	require.Contains(t, text, "Received: by relay.example.com (relayd) with LOCAL\r\n")
	for _, r := range f.verify(t, text) {
		require.Equal(t, "pass", r.Result)
	}
	s.Body = strings.NewReader("From: a@x.example\r\n\r\n" + strings.Repeat("Hello\r\n", 200_000))
	_, err = f.Prepare(t.Context(), s)
	require.ErrorContains(t, err, "body of more than")
}

func TestReadErrorIsTemporaryAndStoresNothing(t *testing.T) {
	t.Parallel()
	f := open(t)
	s := submission("")
	s.Body = io.MultiReader(strings.NewReader(plain), iotest.ErrReader(io.ErrUnexpectedEOF))
	_, err := f.Accept(t.Context(), s)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.True(t, mail.ReplyOf(err).Temporary())
	refusal := mail.Refuse(552, mail.Status{Class: 5, Subject: 3, Detail: 4}, "too large", nil)
	s.Body = io.MultiReader(strings.NewReader(plain), iotest.ErrReader(refusal))
	_, err = f.Accept(t.Context(), s)
	require.ErrorIs(t, err, refusal)
	require.Equal(t, 0, f.queued(t))
}

func TestConfig(t *testing.T) {
	t.Parallel()
	require.NoError(t, DefaultConfig().Validate())
	require.Error(t, Config{}.Validate())
	_, err := New(DefaultConfig(), Deps{})
	require.Error(t, err)
}

// FuzzMailbox: what is accepted has one address, and nothing that a reader could take for another one before it.
func FuzzMailbox(f *testing.F) {
	for _, s := range []string{"a@b.c", `"x" <a@b.c>`, "a@b.c (x)", "<a@b.c>,<d@e.f>", `"<x@y.z>"<a@b.c>`, `"a<"@b.c`, "=?utf-8?q?=3Cx=40y=2Ez=3E?= <a@b.c>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseMailbox(s)
		if err != nil {
			return
		}
		again, err := mail.ParsePath(a.path.String())
		require.NoError(t, err)
		require.Equal(t, a.path, again)
		require.NotContains(t, a.name, "\r")
		require.NotContains(t, a.name, "\n")
		require.NotContains(t, a.name, "=?")
		require.Equal(t, a.foreignDomain() != "", CheckDisplayName(a.name, a.path.Domain) != nil)
	})
}

// FuzzMessage: what passes leaves with CRLF only, lines within 998 octets, one From, no NUL, and verifies.
func FuzzMessage(f *testing.F) {
	for _, s := range []string{plain, "From: a@example.com\r\n\r\n", "From: a@example.com\r\nBcc: x\r\n y\r\n", "\r\n", "From: a@example.com\n\n"} {
		f.Add([]byte(s), 1)
	}
	fx := open(f)
	f.Fuzz(func(t *testing.T, message []byte, piece int) {
		s := submission("")
		s.Body = bytes.NewReader(message)
		if piece%2 == 0 {
			s.Body = iotest.HalfReader(s.Body)
		}
		p, err := fx.Prepare(t.Context(), s)
		if err != nil {
			return
		}
		out := append(append(append([]byte(nil), p.message.Header...), "\r\n"...), p.body...)
		require.Equal(t, bytes.Count(out, []byte("\r\n")), bytes.Count(out, []byte("\n")))
		require.Equal(t, bytes.Count(out, []byte("\r\n")), bytes.Count(out, []byte("\r")))
		require.NotContains(t, string(out), "\x00")
		for line := range bytes.SplitSeq(out, []byte("\r\n")) {
			require.LessOrEqual(t, len(line), 998)
		}
		h, err := mail.ParseHeader(p.message.Header)
		require.NoError(t, err)
		require.Equal(t, 1, h.Count("From"))
		require.Equal(t, 0, h.Count("Bcc"))
		require.EqualValues(t, len(out), p.message.Size)
		for _, r := range fx.verify(t, string(out)) {
			if r.Domain == "example.com" {
				require.Equal(t, "pass", r.Result, r)
			}
		}
	})
}

// TestTraceFieldCannotBeBroken: what a client says of itself stays inside its place.
func TestTraceFieldCannotBeBroken(t *testing.T) {
	t.Parallel()
	f := open(t)
	s := submission(plain)
	s.Trace = Trace{Helo: "x) (\r\nEvil: 1;", ClientIP: "2001:db8::1", With: "HTTP", TLS: "TLS1.3 (x)\r\n"}
	s.Recipients[0].To.Local = "a\\b"
	id, err := f.Accept(t.Context(), s)
	require.NoError(t, err)
	_, text := f.stored(t, id)
	require.Contains(t, text, "Received: from x?????Evil:?1? ([IPv6:2001:db8::1])\r\n\tby relay.example.com (relayd) with HTTP\r\n\t(TLS1.3 ?x???)")
	require.NotContains(t, text, "\r\nEvil")
}
