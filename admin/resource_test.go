package admin

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/event"
	"relayd/internal/kv"
)

func (h *harness) send(to ...string) string {
	h.t.Helper()
	in := api.SendMessage{From: api.Mailbox{Email: "a@example.com"}, Subject: "s", Text: "t"}
	for _, email := range to {
		in.To = append(in.To, api.Mailbox{Email: email})
	}
	got, err := h.root.SendMessage(h.t.Context(), in, "")
	require.NoError(h.t, err)
	return got.ID
}

func TestQueueCalls(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	ctx := t.Context()
	h.ready("", "example.com")
	one := h.send("x@one.example", "y@two.example")
	two := h.send("z@one.example")

	page, err := h.root.Queue(ctx, api.QueueSelector{Domain: "one.example"}, api.List{Limit: 1})
	require.NoError(t, err)
	require.Len(t, page.Data, 1)
	require.True(t, page.HasMore)
	first := page.Data[0].Message
	page, err = h.root.Queue(ctx, api.QueueSelector{Domain: "one.example"}, api.List{Limit: 1, Cursor: page.NextCursor})
	require.NoError(t, err)
	require.ElementsMatch(t, []string{one, two}, []string{first, page.Data[0].Message}, "in any order when of one millisecond")
	require.Equal(t, "ready", page.Data[0].State)
	require.Equal(t, "transactional", page.Data[0].Class)
	for _, sel := range []api.QueueSelector{
		{Message: one}, {To: "x@one.example", From: "a@example.com"}, {State: "ready"}, {Query: "domain=two.example"}, {Class: "transactional"},
	} {
		page, err := h.root.Queue(ctx, sel, api.List{})
		require.NoError(t, err, "%+v", sel)
		require.NotEmpty(t, page.Data, "%+v", sel)
	}

	res, err := h.root.QueueAct(ctx, api.QueueAction{Action: "hold", IDs: []string{one}, DryRun: true})
	require.NoError(t, err)
	require.Equal(t, api.QueueActionResult{Action: "hold", DryRun: true, Matched: 2, Changed: 2}, res)
	res, err = h.root.QueueAct(ctx, api.QueueAction{Action: "hold", IDs: []string{one}, Reason: "ticket 12"})
	require.NoError(t, err)
	require.Equal(t, 2, res.Changed)
	stats, err := h.root.QueueStats(ctx, 10, 0)
	require.NoError(t, err)
	require.Equal(t, []int64{3, 1, 0, 2, 0}, []int64{stats.Queued, stats.Ready, stats.Deferred, stats.Held, stats.Leased})
	require.Len(t, stats.Outcomes, 6)
	require.Len(t, stats.Queues, 2)
	require.Equal(t, "one.example", stats.Queues[0].Domain, "the largest first")

	res, err = h.root.QueueAct(ctx, api.QueueAction{Action: "fail", Selector: &api.QueueSelector{State: "held"}, Reason: "spam"})
	require.NoError(t, err)
	require.Equal(t, 2, res.Changed)
	m, err := h.root.QueueMessage(ctx, one+".0")
	require.NoError(t, err)
	require.Len(t, m.Envelopes, 1)
	require.Equal(t, "failed", m.Envelopes[0].State)
	require.False(t, m.Envelopes[0].SettledAt.IsZero())
	events, err := h.root.Events(ctx, api.EventFilter{Envelope: one, Type: "message.failed"}, api.List{})
	require.NoError(t, err)
	require.Len(t, events.Data, 2)

	for name, body := range map[string]string{
		"unknown_action":    `{"action":"eat","ids":["` + two + `"]}`,
		"nothing_selected":  `{"action":"hold"}`,
		"everything":        `{"action":"fail","selector":{}}`,
		"both":              `{"action":"fail","ids":["` + two + `"],"selector":{"all":true}}`,
		"bad_id":            `{"action":"fail","ids":["x"]}`,
		"bad_reason":        `{"action":"fail","ids":["` + two + `"],"reason":"a\nb"}`,
		"mixed_ids":         `{"action":"fail","ids":["` + two + `","` + two + `.0"]}`,
		"everything_of_own": `{"action":"fail","selector":{"state":""}}`,
	} {
		a := h.post("/v1/queue/actions", h.key("", "admin"), body)
		require.Equal(t, http.StatusUnprocessableEntity, a.status, "%s: %s", name, a.body)
	}
	_, err = h.root.QueueAct(ctx, api.QueueAction{Action: "retry", IDs: []string{one}})
	requireCode(t, err, api.CodeNotFound)
	_, err = h.root.QueueMessage(ctx, "00000000000000000000")
	requireCode(t, err, api.CodeNotFound)
	_, err = h.root.QueueMessage(ctx, two+".9")
	requireCode(t, err, api.CodeNotFound)
	_, err = h.root.QueueAct(ctx, api.QueueAction{Action: "fail", Selector: &api.QueueSelector{All: true}})
	require.NoError(t, err)
}

func TestStatsOfOneOfSeveralAccounts(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	h.send("x@one.example")
	c := h.client("", "all")
	stats, err := c.QueueStats(t.Context(), 5, 0)
	require.NoError(t, err)
	require.Len(t, stats.Outcomes, 6, "the only account sees all")
	h.ready("beta", "beta.example")
	stats, err = c.QueueStats(t.Context(), 5, 0)
	require.NoError(t, err)
	require.Empty(t, stats.Outcomes)
	require.Equal(t, int64(1), stats.Queued)
	stats, err = h.client("beta", "all").QueueStats(t.Context(), 5, 0)
	require.NoError(t, err)
	require.Zero(t, stats.Queued)
	require.Empty(t, stats.Queues)
}

func TestSuppressionCalls(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	ctx := t.Context()
	added, err := h.root.AddSuppression(ctx, api.Suppression{Email: `"Ann"@Example.NET.`, Note: "ticket 12"})
	require.NoError(t, err)
	require.True(t, added.Created)
	require.Equal(t, "manual", added.Reason)
	require.Equal(t, "global", added.Scope)
	added, err = h.root.AddSuppression(ctx, api.Suppression{Email: "ann@example.net"})
	require.NoError(t, err)
	require.False(t, added.Created)
	require.Equal(t, "ticket 12", added.Note, "the first entry stands")
	check, err := h.root.CheckSuppression(ctx, "", "ANN@example.net")
	require.NoError(t, err)
	require.Len(t, check.Entries, 1)
	require.Equal(t, api.SuppressionEffective{Transactional: "blocked", Broadcast: "blocked"}, check.Effective)
	removed, err := h.root.RemoveSuppression(ctx, "", "ann@example.net", "broadcast")
	requireCode(t, err, api.CodeNotFound)
	require.Zero(t, removed.Removed)
	removed, err = h.root.RemoveSuppression(ctx, "", "ann@example.net", "")
	require.NoError(t, err)
	require.Equal(t, 1, removed.Removed)
	odd := `"a b/c?d#e%f"@example.net`
	_, err = h.root.AddSuppression(ctx, api.Suppression{Email: odd})
	require.NoError(t, err)
	check, err = h.root.CheckSuppression(ctx, "", odd)
	require.NoError(t, err)
	require.Len(t, check.Entries, 1, "addresses survive the path")
	for _, bad := range []api.Suppression{
		{Email: "x"},
		{Email: ""},
		{Email: "a@b.c\r\nd"},
		{Email: "a@example.net", Scope: "some"},
		{Email: "a@example.net", Reason: "mood"},
		{Email: "a@example.net", Note: "a\nb"},
		{Email: "a@example.net", ExpiresAt: time.Now().Add(-time.Hour)},
	} {
		_, err := h.root.AddSuppression(ctx, bad)
		var p *api.Problem
		require.ErrorAs(t, err, &p, "%+v", bad)
		require.Equal(t, http.StatusUnprocessableEntity, p.Status)
	}
}

func TestSuppressionImportAndExport(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	ctx := t.Context()
	upload := "\ufeffEmail,Reason,Note\r\n" +
		"a@example.net,hard_bounce,\"two\nlines\"\r\n" + // bad note
		"b@example.net,unsubscribed,=1+1\r\n" +
		"not an address,,\r\n" +
		"c@example.net,mood,\r\n" +
		"d@example.net\r\n" +
		"b@example.net,manual,\r\n"
	report, err := h.root.ImportSuppressions(ctx, "", "text/csv", strings.NewReader(upload))
	require.NoError(t, err)
	require.Equal(t, 6, report.Rows)
	require.Equal(t, 3, report.Rejected, "%+v", report.Errors)
	require.Equal(t, 3, report.Created+report.Unchanged, "%+v", report)
	require.Equal(t, []int{2, 5, 6}, []int{report.Errors[0].Row, report.Errors[1].Row, report.Errors[2].Row})
	require.Equal(t, "email", report.Errors[1].Column)
	require.Equal(t, "not an address", report.Errors[1].Value)

	again, err := h.root.ImportSuppressions(ctx, "", "text/csv", strings.NewReader(upload))
	require.NoError(t, err)
	require.Zero(t, again.Created)

	lines := `{"email":"e@example.net","reason":"complaint"}` + "\n\n" + `{"email":"f@example.net","colour":1}` + "\n" + `nonsense` + "\n"
	report, err = h.root.ImportSuppressions(ctx, "", "application/x-ndjson", strings.NewReader(lines))
	require.NoError(t, err)
	require.Equal(t, api.SuppressionImport{Rows: 3, Created: 1, Rejected: 2, Errors: report.Errors}, report)

	var b bytes.Buffer
	_, err = h.root.ExportSuppressions(ctx, "", "csv", &b)
	require.NoError(t, err)
	rows, err := csv.NewReader(bytes.NewReader(b.Bytes())).ReadAll()
	require.NoError(t, err)
	require.Len(t, rows, 5)
	require.Equal(t, []string{"b@example.net", "broadcast", "unsubscribe", "import", "'=1+1"}, rows[1][:5])

	other, err := h.root.ImportSuppressions(ctx, "other", "text/csv", bytes.NewReader(b.Bytes()))
	require.NoError(t, err)
	require.Equal(t, 4, other.Created, "what was exported can be imported: %+v", other.Errors)
	b.Reset()
	_, err = h.root.ExportSuppressions(ctx, "other", "jsonl", &b)
	require.NoError(t, err)
	require.Equal(t, 4, strings.Count(b.String(), "\n"))
}

// rows makes an upload of n rows without holding it.
type rows struct {
	n, at int
	left  []byte
}

func (r *rows) Read(p []byte) (int, error) {
	if len(r.left) == 0 {
		if r.at == r.n {
			return 0, io.EOF
		}
		r.left = fmt.Appendf(nil, "user%d@example%d.net\n", r.at, r.at%7)
		r.at++
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

func TestLargeImportIsStreamed(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const n = 20_500
	report, err := h.root.ImportSuppressions(t.Context(), "", "text/csv", &rows{n: n})
	require.NoError(t, err)
	require.Equal(t, api.SuppressionImport{Rows: n, Created: n}, report)
	var b bytes.Buffer
	_, err = h.root.ExportSuppressions(t.Context(), "", "jsonl", &b)
	require.NoError(t, err)
	require.Equal(t, n, strings.Count(b.String(), "\n"))
	a := h.rawReader("POST", "/v1/suppressions/import", h.key("", "all"), io.MultiReader(strings.NewReader("email\n\""), io.LimitReader(&endless{}, 3<<20)),
		"Content-Type", "text/csv")
	require.Equal(t, http.StatusUnprocessableEntity, a.status, a.body)
}

func TestDomainCalls(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	ctx := t.Context()
	d, err := h.root.CreateDomain(ctx, api.CreateDomain{Name: "Example.COM"})
	require.NoError(t, err)
	require.Equal(t, "example.com", d.Name)
	require.Len(t, d.Keys, 2)
	purposes := map[string]int{}
	for _, rec := range d.DNSRecords {
		purposes[rec.Purpose]++
		require.Equal(t, "unchecked", rec.Status)
		require.Equal(t, "TXT", rec.Type)
		require.NotEmpty(t, rec.Value)
	}
	require.Equal(t, map[string]int{"dkim": 2, "spf": 1, "dmarc": 1}, purposes)
	require.NotContains(t, fmt.Sprint(d), "PRIVATE")
	_, err = h.root.CreateDomain(ctx, api.CreateDomain{Name: "example.com."})
	requireCode(t, err, api.CodeConflict)
	for _, bad := range []api.CreateDomain{{}, {Name: "localhost"}, {Name: "a b.com"}, {Name: "[192.0.2.1]"}, {Name: "x.example", Sign: "maybe"}} {
		_, err := h.root.CreateDomain(ctx, bad)
		requireCode(t, err, api.CodeInvalidParameter)
	}
	unsigned, err := h.root.CreateDomain(ctx, api.CreateDomain{Name: "plain.example", Sign: "none"})
	require.NoError(t, err)
	require.Empty(t, unsigned.Keys)

	v, err := h.root.VerifyDomain(ctx, "example.com")
	require.NoError(t, err)
	require.False(t, v.Ready)
	require.Contains(t, v.Reasons, "dkim_missing")
	for _, rec := range d.DNSRecords {
		h.dns.TXT[rec.Name] = append(h.dns.TXT[rec.Name], strings.ReplaceAll(rec.Value, "a:relay.example", "ip4:192.0.2.10"))
	}
	v, err = h.root.VerifyDomain(ctx, "EXAMPLE.com")
	require.NoError(t, err)
	require.True(t, v.Ready, "%+v", v.DNSRecords)
	for _, rec := range v.DNSRecords {
		require.Equal(t, "ok", rec.Status, "%+v", rec)
	}

	d, err = h.root.RotateDKIM(ctx, "example.com")
	require.NoError(t, err)
	require.Len(t, d.Keys, 4)
	var pending string
	for _, k := range d.Keys {
		if k.State == "pending" && k.Algorithm == "rsa2048" {
			pending = k.Selector
		}
	}
	d, err = h.root.ActivateDKIM(ctx, "example.com", pending)
	require.NoError(t, err)
	states := map[string]int{}
	for _, k := range d.Keys {
		states[k.State]++
	}
	require.Equal(t, map[string]int{"active": 2, "pending": 1, "retired": 1}, states)
	_, err = h.root.ActivateDKIM(ctx, "example.com", "../../etc/passwd")
	requireCode(t, err, api.CodeNotFound)
	_, err = h.root.Domain(ctx, "nothing.example")
	requireCode(t, err, api.CodeNotFound)
	list, err := h.root.Domains(ctx, "", api.List{Limit: 1})
	require.NoError(t, err)
	require.True(t, list.HasMore)
	list, err = h.root.Domains(ctx, "", api.List{Limit: 1, Cursor: list.NextCursor})
	require.NoError(t, err)
	require.Equal(t, "plain.example", list.Data[0].Name)
	require.False(t, list.HasMore)
}

func TestCredentialCalls(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	c, err := h.root.CreateCredential(t.Context(), api.CreateCredential{Domains: []string{"example.com"}})
	require.NoError(t, err)
	_, err = h.accounts.Authenticate(t.Context(), c.Username, c.Password)
	require.NoError(t, err)
	_, err = h.root.CreateCredential(t.Context(), api.CreateCredential{Domains: []string{"unknown.example"}})
	p := requireCode(t, err, api.CodeFromNotVerified)
	require.Contains(t, p.Detail, "relayctl domain add unknown.example")
	require.NoError(t, h.root.RevokeCredential(t.Context(), c.Username))
	_, err = h.accounts.Authenticate(t.Context(), c.Username, c.Password)
	require.Error(t, err)
	requireCode(t, h.root.RevokeCredential(t.Context(), c.Username), api.CodeNotFound)
}

func TestEventCalls(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	at := time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)
	require.NoError(t, h.db.Update(t.Context(), func(tx kv.Tx) error {
		for i := range 5 {
			e := event.Event{Type: "message.delivered", At: at, Account: "default", Campaign: fmt.Sprint("cmp_", i%2), To: "a@example.net\r\n\u2028"}
			if err := h.events.Append(tx, e); err != nil {
				return err
			}
		}
		return nil
	}))
	page, err := h.root.Events(t.Context(), api.EventFilter{Type: "message.*", Campaign: "cmp_0"}, api.List{Limit: 2})
	require.NoError(t, err)
	require.Len(t, page.Data, 2)
	page, err = h.root.Events(t.Context(), api.EventFilter{Type: "message.*", Campaign: "cmp_0"}, api.List{Limit: 2, Cursor: page.NextCursor})
	require.NoError(t, err)
	require.Len(t, page.Data, 1)
	require.Equal(t, at, page.Data[0].At)
	page, err = h.root.Events(t.Context(), api.EventFilter{Until: time.Now().Add(-time.Hour)}, api.List{})
	require.NoError(t, err)
	require.Empty(t, page.Data)
}
