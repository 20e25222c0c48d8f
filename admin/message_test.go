package admin

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	netmail "net/mail"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// ready adds a sender domain with keys.
func (h *harness) ready(account, name string) {
	h.t.Helper()
	_, err := h.root.CreateDomain(h.t.Context(), api.CreateDomain{Name: name, Account: account})
	require.NoError(h.t, err)
}

// stored returns the message as it would leave.
func (h *harness) stored(id string) (header, body string) {
	h.t.Helper()
	queueID, err := mail.ParseQueueID(id)
	require.NoError(h.t, err)
	m, _, err := h.spool.Get(h.t.Context(), queueID)
	require.NoError(h.t, err)
	var b bytes.Buffer
	_, err = h.spool.WriteBody(h.t.Context(), queueID, &b)
	require.NoError(h.t, err)
	return string(m.Header), b.String()
}

func TestSendMessage(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	c := h.client("", "messages:send", "queue:read")
	got, err := c.SendMessage(t.Context(), api.SendMessage{
		From:    api.Mailbox{Email: "shop@example.com", Name: "가게"},
		To:      api.Mailboxes{{Email: "ann@example.net", Name: "Ann"}, {Email: "bob@example.net"}, {Email: "ANN@example.net"}},
		ReplyTo: &api.Mailbox{Email: "help@example.com"}, Subject: "안녕하세요", Text: "hello\n.\nworld", HTML: "<p>안녕</p>",
	}, "")
	require.NoError(t, err)
	require.Equal(t, 2, got.Recipients, "one mail per mailbox")
	m, err := c.QueueMessage(t.Context(), got.ID)
	require.NoError(t, err)
	require.Len(t, m.Envelopes, 2)
	require.Equal(t, "안녕하세요", m.Subject)
	require.Equal(t, "shop@example.com", m.From)

	header, body := h.stored(got.ID)
	require.Contains(t, header, "DKIM-Signature:")
	parsed, err := netmail.ReadMessage(strings.NewReader(header + "\r\n" + body))
	require.NoError(t, err)
	from, err := parsed.Header.AddressList("From")
	require.NoError(t, err)
	require.Equal(t, "가게", from[0].Name)
	require.Equal(t, "help@example.com", parsed.Header.Get("Reply-To"))
	mediaType, params, err := mime.ParseMediaType(parsed.Header.Get("Content-Type"))
	require.NoError(t, err)
	require.Equal(t, "multipart/alternative", mediaType)
	parts := multipart.NewReader(parsed.Body, params["boundary"])
	var texts []string
	for {
		p, err := parts.NextPart()
		if err != nil {
			require.Equal(t, io.EOF, err)
			break
		}
		b, err := io.ReadAll(p)
		require.NoError(t, err)
		texts = append(texts, strings.TrimSpace(string(b)))
	}
	require.Equal(t, []string{"hello\r\n.\r\nworld", "<p>안녕</p>"}, texts)
}

func TestShortFormsOfAddresses(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	token := h.key("", "all")
	for _, to := range []string{`"a@example.net"`, `["a@example.net","b@example.net"]`, `{"email":"a@example.net","name":"A"}`, `[{"email":"a@example.net"}]`} {
		a := h.post("/v1/messages", token, `{"from":"x@example.com","to":`+to+`,"text":"t"}`)
		require.Equal(t, http.StatusAccepted, a.status, "%s: %s", to, a.body)
	}
	for _, to := range []string{`1`, `[1]`, `{"email":1}`, `null`, `[]`, `{"email":"a@example.net","mail":"x"}`} {
		a := h.post("/v1/messages", token, `{"from":"x@example.com","to":`+to+`,"text":"t"}`)
		require.Contains(t, []int{400, 422}, a.status, "%s: %s", to, a.body)
	}
}

// hostile values for everything that reaches a header.
var hostileValues = []string{
	"a\r\nBcc: evil@example.org", "a\nBcc: evil@example.org", "a\rBcc: evil@example.org", "a\r\n\r\n<body>", "\r\n.\r\nMAIL FROM:<x>",
	"a\x00b", "a\x1b[31m", "a\u2028b", "a\u2029b", "a\u0085b", "a\x0bb", "a\x0cb", "a\x7fb", "a\u202eb", "a\u2066b", "%0d%0aBcc: x",
	"=?utf-8?q?a=0D=0ABcc:_evil@example.org?=", "\"", "\\", "\\\"", "<x@example.org>", "a, evil@example.org", "a; b", "(comment)",
	"a@example.org, b@example.org", "\"xclow3n@gmail.com x\"@internal.domain", "group: a@example.org;", strings.Repeat("x", 5000),
	"a\tb", " ", "김\r\n민수", "\ufeff",
}

func TestInjectionList(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	c := h.client("", "all")
	fields := map[string]func(*api.SendMessage, string){
		"from.email":     func(m *api.SendMessage, v string) { m.From.Email = v },
		"from.local":     func(m *api.SendMessage, v string) { m.From.Email = v + "@example.com" },
		"from.name":      func(m *api.SendMessage, v string) { m.From.Name = v },
		"to.email":       func(m *api.SendMessage, v string) { m.To[0].Email = v },
		"to.local":       func(m *api.SendMessage, v string) { m.To[0].Email = v + "@example.net" },
		"to.name":        func(m *api.SendMessage, v string) { m.To[0].Name = v },
		"reply_to.email": func(m *api.SendMessage, v string) { m.ReplyTo = &api.Mailbox{Email: v} },
		"reply_to.name":  func(m *api.SendMessage, v string) { m.ReplyTo = &api.Mailbox{Email: "r@example.com", Name: v} },
		"subject":        func(m *api.SendMessage, v string) { m.Subject = v },
		"stream":         func(m *api.SendMessage, v string) { m.Stream = v },
		"text":           func(m *api.SendMessage, v string) { m.Text = v },
		"html":           func(m *api.SendMessage, v string) { m.HTML = v },
	}
	base := api.SendMessage{
		From: api.Mailbox{Email: "a@example.com"}, Subject: "s", Text: "t",
	}
	base.To = api.Mailboxes{{Email: "b@example.net"}}
	names := func(id string) []string {
		header, _ := h.stored(id)
		parsed, err := mail.ParseHeader([]byte(header))
		require.NoError(t, err)
		var out []string
		for _, f := range parsed {
			if !f.Is("Reply-To") && !f.Is("Content-Transfer-Encoding") { // the request asks for those
				out = append(out, f.Name)
			}
		}
		return out
	}
	plain, err := c.SendMessage(t.Context(), base, "")
	require.NoError(t, err)
	want := names(plain.ID)
	for field, set := range fields {
		for _, value := range hostileValues {
			in := base
			in.To = api.Mailboxes{base.To[0]}
			set(&in, value)
			got, err := c.SendMessage(t.Context(), in, "")
			if err != nil {
				var p *api.Problem
				require.ErrorAs(t, err, &p, "%s = %q", field, value)
				require.Contains(t, []int{400, 422}, p.Status, "%s = %q: %v", field, value, p)
				continue
			}
			require.ElementsMatch(t, want, names(got.ID), "%s = %.60q", field, value)
			m, err := c.QueueMessage(t.Context(), got.ID)
			require.NoError(t, err)
			require.Len(t, m.Envelopes, 1, "%s = %q", field, value)
			if field != "to.email" && field != "to.local" {
				require.Equal(t, "b@example.net", m.Envelopes[0].To)
			} else {
				to, err := mail.ParsePath(in.To[0].Email)
				require.NoError(t, err)
				require.Equal(t, to.String(), m.Envelopes[0].To)
			}
		}
	}
}

func TestRawMessages(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	c := h.client("", "all")
	send := func(raw string) (api.MessageQueued, error) {
		return c.SendMessage(t.Context(), api.SendMessage{
			From: api.Mailbox{Email: "a@example.com"}, To: api.Mailboxes{{Email: "b@example.net"}}, Raw: []byte(raw),
		}, "")
	}
	got, err := send("From: a@example.com\nTo: b@example.net\nBcc: c@example.net\nSubject: s\n\nline\n.\nend\n")
	require.NoError(t, err)
	header, body := h.stored(got.ID)
	require.NotContains(t, header, "Bcc")
	require.NotContains(t, header, "c@example.net")
	require.Equal(t, "line\r\n.\r\nend\r\n", body)
	m, err := c.QueueMessage(t.Context(), got.ID)
	require.NoError(t, err)
	require.Len(t, m.Envelopes, 1, "recipients come from the request alone")
	for name, raw := range map[string]string{
		"no_from":       "Subject: s\r\n\r\nx",
		"foreign_from":  "From: a@elsewhere.example\r\n\r\nx",
		"two_from":      "From: a@example.com\r\nFrom: b@example.com\r\n\r\nx",
		"bare_CR":       "From: a@example.com\r\nSubject: a\rBcc: x\r\n\r\nx",
		"NUL_in_header": "From: a@example.com\r\nSubject: a\x00\r\n\r\nx",
		"no_header":     "hello",
	} {
		_, err := send(raw)
		var p *api.Problem
		require.ErrorAs(t, err, &p, name)
		require.Equal(t, http.StatusUnprocessableEntity, p.Status, "%s: %v", name, p)
	}
	_, err = c.SendMessage(t.Context(), api.SendMessage{
		From: api.Mailbox{Email: "a@nokey.example"}, To: api.Mailboxes{{Email: "b@example.net"}}, Text: "x",
	}, "")
	requireCode(t, err, api.CodeFromNotVerified)
}

func TestLargeMessages(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	c := h.client("", "all")
	in := api.SendMessage{From: api.Mailbox{Email: "a@example.com"}, To: api.Mailboxes{{Email: "b@example.net"}}}
	in.Text = strings.Repeat("0123456789abcdef\n", 200_000)
	for range 2 { // larger than what shares a transaction with its idempotency key
		got, err := c.SendMessage(t.Context(), in, "large")
		require.NoError(t, err)
		m, err := c.QueueMessage(t.Context(), got.ID)
		require.NoError(t, err)
		require.Greater(t, m.Size, int64(3<<20))
	}
	stats, err := c.QueueStats(t.Context(), 0, 0)
	require.NoError(t, err)
	require.Equal(t, int64(1), stats.Queued)
	in.Text = strings.Repeat("x", 26<<20)
	_, err = c.SendMessage(t.Context(), in, "")
	requireCode(t, err, api.CodeMessageTooLarge)
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	token := h.key("", "all")
	body := `{"from":"a@example.com","to":"b@example.net","text":"t"}`
	first := h.post("/v1/messages", token, body, "Idempotency-Key", `"otp/42"`)
	require.Equal(t, http.StatusAccepted, first.status, first.body)
	require.Empty(t, first.header.Get("Idempotent-Replayed"))
	again := h.post("/v1/messages", token, body, "Idempotency-Key", `otp/42`)
	require.Equal(t, http.StatusAccepted, again.status)
	require.Equal(t, first.body, again.body)
	require.Equal(t, "true", again.header.Get("Idempotent-Replayed"))

	other := h.post("/v1/messages", token, strings.Replace(body, `"t"`, `"u"`, 1), "Idempotency-Key", "otp/42")
	require.Equal(t, http.StatusUnprocessableEntity, other.status)
	require.Equal(t, api.CodeIdempotencyKeyReused, other.problem(t).Code)
	require.NotEqual(t, first.body, h.post("/v1/messages", h.key("", "all"), body, "Idempotency-Key", "otp/42").body, "another caller's key")

	bad := h.post("/v1/messages", token, `{"from":"a@example.com","to":"b@","text":"t"}`, "Idempotency-Key", "fixed")
	require.Equal(t, http.StatusUnprocessableEntity, bad.status)
	require.Equal(t, http.StatusAccepted, h.post("/v1/messages", token, body, "Idempotency-Key", "fixed").status, "an error frees the key")

	for _, key := range []string{`""`, strings.Repeat("x", 256), "ключ"} {
		require.Equal(t, http.StatusBadRequest, h.post("/v1/messages", token, body, "Idempotency-Key", key).status, key)
	}
}

func TestFiftyParallelSendsMakeOneMessage(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	token := h.key("", "all")
	body := `{"from":"a@example.com","to":"b@example.net","text":"t"}`
	var wg sync.WaitGroup
	answers := make([]answer, 50)
	for i := range answers {
		wg.Go(func() {
			for {
				answers[i] = h.post("/v1/messages", token, body, "Idempotency-Key", "one")
				if answers[i].status != http.StatusConflict {
					return
				}
			}
		})
	}
	wg.Wait()
	for _, a := range answers {
		require.Equal(t, http.StatusAccepted, a.status, a.body)
		require.Equal(t, answers[0].body, a.body)
	}
	stats, err := h.root.QueueStats(t.Context(), 0, 0)
	require.NoError(t, err)
	require.Equal(t, int64(1), stats.Queued)
}

// keyed is a request over the socket with an idempotency key.
func keyed(ctx context.Context, key string) *request {
	r := &request{caller: caller{full: true}, body: []byte("{}"), status: 201, w: &statusWriter{ResponseWriter: discard{}}}
	r.Request, _ = http.NewRequestWithContext(ctx, "POST", "/v1/campaigns", nil)
	r.Header.Set("Idempotency-Key", key)
	return r
}

func TestReservationThatACrashLeftIsNotDoneAgain(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	require.Panics(t, func() {
		_, _ = idempotent(h.Server, keyed(t.Context(), "crash"), campaignKeyLife, func(o *once) (api.Campaign, error) {
			require.NoError(t, o.reserve(t.Context()))
			panic("kill -9")
		})
	})
	_, err := idempotent(h.Server, keyed(t.Context(), "crash"), campaignKeyLife, func(*once) (api.Campaign, error) {
		t.Error("done twice")
		return api.Campaign{}, nil
	})
	requireCode(t, err, api.CodeIdempotencyKeyInUse)
	require.ErrorContains(t, err, "cut off")
}

type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}

func TestCallerWhoGivesUpFindsItsAnswer(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	ctx, giveUp := context.WithCancel(t.Context())
	first := keyed(ctx, "patience")
	_, err := idempotent(h.Server, first, campaignKeyLife, func(o *once) (api.Campaign, error) {
		require.NoError(t, o.reserve(first.Context()))
		giveUp()
		return api.Campaign{ID: "cmp_1"}, first.Context().Err()
	})
	require.NoError(t, err)
	again, err := idempotent(h.Server, keyed(t.Context(), "patience"), campaignKeyLife, func(*once) (api.Campaign, error) {
		t.Error("done twice")
		return api.Campaign{}, nil
	})
	require.NoError(t, err)
	require.Contains(t, fmt.Sprintf("%s", again), "cmp_1")
}

func TestIdempotencyKeysAreForgotten(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	token := h.key("", "all")
	send := func(key string) string {
		a := h.post("/v1/messages", token, `{"from":"a@example.com","to":"b@example.net","text":"t"}`, "Idempotency-Key", key)
		require.Equal(t, http.StatusAccepted, a.status)
		return a.body
	}
	first := send("a")
	for i := range 20 {
		send(fmt.Sprint("k", i))
	}
	h.offset.Store(int64(25 * time.Hour))
	require.NoError(t, h.forgetKeys(t.Context()))
	rows := 0
	require.NoError(t, h.db.View(t.Context(), func(tx kv.Tx) error {
		count := func(_, _ []byte) (bool, error) { rows++; return true, nil }
		if err := tx.Scan(idempotencyTable, nil, nil, count); err != nil {
			return err
		}
		return tx.Scan(idempotencyExpiry, nil, nil, count)
	}))
	require.Zero(t, rows)
	require.NotEqual(t, first, send("a"))
}
