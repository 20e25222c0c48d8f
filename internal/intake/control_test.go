package intake

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/account"
	"relayd/internal/event"
	"relayd/internal/mail"
)

const head = "From: a@example.com\r\nTo: b@example.net\r\nSubject: x\r\n"

func TestControlFieldsAreConsumed(t *testing.T) {
	t.Parallel()
	f := open(t)
	id, err := f.Accept(t.Context(), submission(head+
		"X-Relay-Stream: receipts\r\nx-relay-tags: order,\r\n shop:eu, order\r\nX-Relay-TTL: 600\r\n"+
		"X-Relay-Send-At: 2026-11-20T14:00:00+01:00\r\nX-Relay-Whatever: 1\r\n\r\nHello\r\n"))
	require.NoError(t, err)
	m, whole := f.stored(t, id)
	require.NotContains(t, strings.ToLower(whole), "x-relay")
	require.Equal(t, "receipts", m.Stream)
	require.Equal(t, []string{"order", "shop:eu"}, m.Tags)
	require.Equal(t, noon.Add(time.Hour), at(t, f, id))
	require.Equal(t, noon.Add(time.Hour+10*time.Minute), m.ExpiresAt.UTC(), "the TTL counts from the wished time")
	require.True(t, m.Deadline)

	log, err := event.Open(f.db, nil)
	require.NoError(t, err)
	events, _, err := log.List(t.Context(), event.Filter{}, "", 10)
	require.NoError(t, err)
	require.Equal(t, []any{"order", "shop:eu"}, events[0].Data["tags"])
}

func at(t *testing.T, f *fixture, id mail.QueueID) time.Time {
	t.Helper()
	_, infos, err := f.spool.Get(t.Context(), id)
	require.NoError(t, err)
	require.Len(t, infos, 1)
	return infos[0].Envelope.NextAttempt.UTC()
}

func TestControlFieldsThatAreWrongRefuse(t *testing.T) {
	t.Parallel()
	f := open(t)
	for name, c := range map[string]struct{ field, want string }{
		"stream_with_slash":    {"X-Relay-Stream: a/b", "X-Relay-Stream: give 1 to 64"},
		"stream_empty":         {"X-Relay-Stream:", "X-Relay-Stream: give 1 to 64"},
		"stream_of_a_campaign": {"X-Relay-Stream: cmp_x", "X-Relay-Stream: give 1 to 64"},
		"stream_encoded":       {"X-Relay-Stream: =?utf-8?q?a=0D=0ABcc:_b?=", "X-Relay-Stream: give 1 to 64"},
		"stream_folded":        {"X-Relay-Stream: a\r\n b", "X-Relay-Stream: give 1 to 64"},
		"stream_with_NUL_text": {"X-Relay-Stream: a%00b", "X-Relay-Stream: give 1 to 64"},
		"tag_encoded":          {"X-Relay-Tags: =?utf-8?q?a=0D=0ABcc:_b?=", "each tag"},
		"tag_with_quote":       {`X-Relay-Tags: a","b":"c`, "each tag"},
		"tag_folded_inside":    {"X-Relay-Tags: a\r\n b", "each tag"},
		"key_folded":           {"X-Relay-Idempotency-Key: a\r\n\tb", "1 to 255 printable"},
		"key_twice":            {"X-Relay-Idempotency-Key: a\r\nX-Relay-Idempotency-key: b", "stands more than once"},
		"send_at_and_more":     {"X-Relay-Send-At: 2026-11-20T13:00:00Z, 0", "RFC 3339"},
		"ttl_and_more":         {"X-Relay-TTL: 5 5", "whole seconds"},
		"stream_twice":         {"X-Relay-Stream: a\r\nX-RELAY-STREAM: b", "stands more than once"},
		"tag_with_blank":       {"X-Relay-Tags: a b", "each tag"},
		"tag_empty":            {"X-Relay-Tags: a,,b", "each tag"},
		"tag_long":             {"X-Relay-Tags: " + strings.Repeat("a", 65), "each tag"},
		"too_many_tags":        {"X-Relay-Tags: " + strings.TrimSuffix(numbered(17), ","), "more than 16 tags"},
		"ttl_zero":             {"X-Relay-TTL: 0", "whole seconds from 1 to 2592000"},
		"ttl_negative":         {"X-Relay-TTL: -5", "whole seconds"},
		"ttl_signed":           {"X-Relay-TTL: +5", "whole seconds"},
		"ttl_fraction":         {"X-Relay-TTL: 1.5", "whole seconds"},
		"ttl_huge":             {"X-Relay-TTL: 99999999999999999999", "whole seconds"},
		"ttl_empty":            {"X-Relay-TTL:", "whole seconds"},
		"send_at_date_only":    {"X-Relay-Send-At: 2026-11-21", "RFC 3339"},
		"send_at_milliseconds": {"X-Relay-Send-At: 1795000000000", "RFC 3339"},
		"send_at_too_far":      {"X-Relay-Send-At: 2027-11-21T00:00:00Z", "more than 30 days ahead"},
		"key_empty":            {"X-Relay-Idempotency-Key:", "1 to 255 printable"},
		"key_with_blank":       {"X-Relay-Idempotency-Key: a b", "1 to 255 printable"},
		"key_long":             {"X-Relay-Idempotency-Key: " + strings.Repeat("k", 256), "1 to 255 printable"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.Accept(t.Context(), submission(head+c.field+"\r\n\r\nHello\r\n"))
			e, ok := errors.AsType[*mail.Error](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, "554 5.6.0", fmt.Sprintf("%d %s", e.Reply.Code, e.Reply.Status))
			require.Contains(t, e.Reply.Text, c.want)
		})
	}
	require.Zero(t, f.queued(t))
}

// broadcasts are the campaigns that a door has made of messages.
type broadcasts struct{ got []*Broadcast }

func (b *broadcasts) Broadcast(_ context.Context, c *Broadcast) error {
	b.got = append(b.got, c)
	return nil
}

// TestRequireTLSIsKeptOrRefused (RFC 8689): a message carries it into the spool, whatever its header says (section 4.1),
// and a campaign, whose mails would not keep it, is refused.
func TestRequireTLSIsKeptOrRefused(t *testing.T) {
	t.Parallel()
	f := open(t)
	made := &broadcasts{}
	f.deps.Broadcaster = made
	for _, required := range []bool{false, true} {
		s := submission(head + "TLS-Required: No\r\n\r\nHello\r\n")
		s.RequireTLS = required
		id, err := f.Accept(t.Context(), s)
		require.NoError(t, err)
		m, text := f.stored(t, id)
		require.Equal(t, required, m.RequireTLS)
		require.Contains(t, text, "TLS-Required: No\r\n")

		s = submission(head + "X-Relay-Campaign: May\r\n\r\nHello\r\n")
		s.RequireTLS = required
		_, err = f.Accept(t.Context(), s)
		require.Equal(t, required, err != nil)
		if required {
			require.Equal(t, "554 5.7.30 Header field X-Relay-Campaign: a campaign cannot keep REQUIRETLS", mail.ReplyOf(err).String())
		}
	}
	require.Len(t, made.got, 1)
}

func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "t%d,", i)
	}
	return b.String()
}

func TestSendAtInThePastIsNow(t *testing.T) {
	t.Parallel()
	f := open(t)
	for _, v := range []string{"2020-01-01T00:00:00Z", "0", "1577836800"} {
		id, err := f.Accept(t.Context(), submission(head+"X-Relay-Send-At: "+v+"\r\n\r\nHello\r\n"))
		require.NoError(t, err)
		require.Equal(t, noon, at(t, f, id))
	}
}

func TestClientIsHiddenWhereConfigured(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.cfg.HideClient = true
	id, err := f.Accept(t.Context(), submission(head+"\r\nHello\r\n"))
	require.NoError(t, err)
	m, whole := f.stored(t, id)
	require.NotContains(t, whole, "192.0.2.1")
	require.NotContains(t, whole, "client.example")
	require.Contains(t, whole, "Received: by relay.example.com (relayd) with ESMTPSA\r\n")
	require.Equal(t, "192.0.2.1", m.ClientIP, "the operator knows it")
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	f := open(t)
	now := noon
	f.deps.Now = func() time.Time { return now }
	send := func(fields, body string, change ...func(*Submission)) (mail.QueueID, error) {
		s := submission(head + "X-Relay-Idempotency-Key: order-17\r\n" + fields + "\r\n" + body)
		for _, fn := range change {
			fn(s)
		}
		return f.Accept(t.Context(), s)
	}
	first, err := send("Date: Fri, 20 Nov 2026 12:00:00 +0000\r\n", "Hello\r\n")
	require.NoError(t, err)
	again, err := send("Date: Fri, 20 Nov 2026 12:00:09 +0000\r\nMessage-ID: <2@example.com>\r\n", "Hello\r\n")
	require.NoError(t, err)
	require.Equal(t, first, again, "what a client writes anew at each try does not count")
	require.Equal(t, 1, f.queued(t))

	large := strings.Repeat("0123456789\r\n", 300<<10) // more than one chunk: leaves no draft behind
	_, err = send("", large)
	require.ErrorContains(t, err, "was used for a message with other content")
	e, _ := errors.AsType[*mail.Error](err)
	require.Equal(t, 554, e.Reply.Code)
	for name, change := range map[string]func(*Submission){
		"recipients": func(s *Submission) {
			s.Recipients = append(s.Recipients, Recipient{To: mail.MustParsePath("c@example.net")})
		},
		"sender": func(s *Submission) { s.ReversePath = mail.MustParsePath("z@example.com") },
	} {
		_, err = send("", "Hello\r\n", change)
		require.ErrorContains(t, err, "other content", name)
	}
	require.Equal(t, 1, f.queued(t))
	other, err := send("", "Hello\r\n", func(s *Submission) { s.Credential = "another" })
	require.NoError(t, err)
	require.NotEqual(t, first, other, "keys belong to a credential")

	n, err := f.withDB().PurgeKeys(t.Context(), 100)
	require.NoError(t, err)
	require.Zero(t, n)
	now = noon.Add(25 * time.Hour)
	third, err := send("", "Other\r\n")
	require.NoError(t, err, "a day later the key is free")
	require.NotEqual(t, first, third)
	n, err = f.PurgeKeys(t.Context(), 100)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	fourth, err := send("", "Other\r\n")
	require.NoError(t, err)
	require.Equal(t, third, fourth, "purging leaves keys that are used anew")
}

func (f *fixture) withDB() *fixture { f.deps.DB = f.db; return f }

// TestIdempotencyKeyAtOnce: 32 equal submissions at the same time make one message.
func TestIdempotencyKeyAtOnce(t *testing.T) {
	t.Parallel()
	f := open(t)
	ids := make([]mail.QueueID, 32)
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			ids[i], errs[i] = f.Accept(context.Background(), submission(head+"X-Relay-Idempotency-Key: k\r\n\r\nHello\r\n"))
		})
	}
	wg.Wait()
	for i := range ids {
		require.NoError(t, errs[i])
		require.Equal(t, ids[0], ids[i])
	}
	require.Equal(t, 1, f.queued(t))
}

// realQuota is the thin layer that the wiring has.
type realQuota struct{ *account.Quota }

func (q realQuota) Reserve(account, credential string, n int) (Reservation, error) {
	r, err := q.Quota.Reserve(account, credential, n)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// TestB7Quotas: recipients of an account count over both doors and over a restart; our own notices are exempt.
func TestB7Quotas(t *testing.T) {
	t.Parallel()
	f := open(t)
	cfg := account.QuotaConfig{AccountPerDay: 5, CredentialPerDay: 3}
	openQuota := func() {
		q, err := account.OpenQuota(t.Context(), f.db, cfg, func() time.Time { return noon })
		require.NoError(t, err)
		f.deps.Quota = realQuota{q}
	}
	openQuota()
	send := func(credential string, to ...string) error {
		s := submission(head+"\r\nHello\r\n", to...)
		s.Credential = credential
		_, err := f.Accept(t.Context(), s)
		return err
	}
	require.NoError(t, send("smtp-1", "b@example.net", "c@example.net"))
	require.Error(t, send("smtp-1", "not@[192.0.2.1]"), "what is refused does not count")
	err := send("smtp-1", "b@example.net", "c@example.net")
	e, ok := errors.AsType[*mail.Error](err)
	require.True(t, ok)
	require.Equal(t, 452, e.Reply.Code)
	require.Equal(t, "4.7.0", e.Reply.Status.String())
	require.Contains(t, e.Reply.Text, "this credential: 2 of 3")

	api := submission(head+"\r\nHello\r\n", "b@example.net", "d@example.net") // as the HTTP side does
	api.Credential = "key_1"
	p, err := f.Prepare(t.Context(), api)
	require.NoError(t, err)
	require.NoError(t, f.db.Update(t.Context(), p.PutTx))
	p.Added()

	openQuota() // a restart
	require.NoError(t, send("smtp-1", "b@example.net"))
	require.ErrorContains(t, send("smtp-2", "b@example.net"), "this account: 5 of 5")
	require.ErrorIs(t, f.CheckSender(account.Credential{Account: "default", Username: "smtp-2"}, "example.com"), account.ErrQuota)

	dsn := submission("From: postmaster@relay.example.com\r\nTo: a@example.com\r\n\r\nHello\r\n", "a@example.com")
	dsn.Internal, dsn.ReversePath = true, mail.Path{}
	_, err = f.Accept(t.Context(), dsn)
	require.NoError(t, err, "our own notices are exempt")
	require.Equal(t, 6, f.queued(t))
}
