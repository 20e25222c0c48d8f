package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/mail"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// campaign posts a campaign from a map through relayctl and returns its ID.
func (r *relay) campaign(body map[string]any) string {
	r.t.Helper()
	b, err := json.Marshal(body)
	require.NoError(r.t, err)
	file := filepath.Join(r.t.TempDir(), "campaign.json")
	writeFile(r.t, file, string(b))
	var c struct{ ID, State string }
	r.json(&c, "campaign", "create", file)
	require.NotEmpty(r.t, c.ID)
	return c.ID
}

func short(start bool, emails ...string) map[string]any {
	var to []map[string]any
	for _, e := range emails {
		to = append(to, map[string]any{"email": e, "attributes": map[string]any{"Name": "친구 " + e}})
	}
	return map[string]any{
		"name": "Hello", "from": map[string]any{"email": "deals@shop.example", "name": "가게"},
		"template": map[string]any{
			"subject": "{{Subject}} – {{Name}}",
			"html":    "<p>Hi {{Name}}</p>{{Body}}<p><a href=\"{{unsubscribe_url}}\">Unsubscribe</a></p>",
		},
		"data":       map[string]any{"Subject": "블랙 프라이데이", "Body": "<p>모두 <b>반값</b></p>"},
		"recipients": to, "start": start,
	}
}

// progress is the object of api.md 3.6, as far as the tests look.
type progress struct {
	ID, State string
	Total     int
	Counts    map[string]int
}

func (r *relay) progress(id string) progress {
	r.t.Helper()
	var p progress
	r.json(&p, "campaign", "show", id)
	sum := 0
	for _, n := range p.Counts {
		sum += n
	}
	require.Equal(r.t, p.Total, sum, "counts sum to the total: %v", p.Counts)
	return p
}

var oneClick = regexp.MustCompile(`<(http[^>]+/u/[^>]+)>`)

func TestSuppressionStopsAQueuedMessage(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port, retry: "attempts = 5\nfirst_delay = \"1h\"\nmultiplier = 1.0\nmax_age = \"24h\""})
	r.mx("dest.example")
	l := r.domain("shop.example")
	require.NoError(t, r.dns.Add("later.example. 60 IN MX 10 mx.dest.example."))
	s.onRcpt = func(_, to string) error {
		if strings.HasPrefix(to, "busy@") {
			return reply(451, 4, 2, 0, "Busy")
		}
		return nil
	}
	r.submit(l, "news@shop.example", []string{"busy@dest.example"}, plain("news@shop.example", "busy@dest.example", "x"))
	wait(t, "the first attempt", 10*time.Second, func() bool { return s.rcpts() >= 1 })
	_, stderr, code := r.ctl("suppression", "add", "BUSY@dest.example.")
	require.Zero(t, code, stderr)
	wait(t, "the first attempt to be settled", 10*time.Second, func() bool { return r.stats().Deferred == 1 })
	r.json(nil, "queue", "retry", "domain=dest.example")
	out := r.settled(20 * time.Second).Outcomes
	require.Equal(t, 1, out["suppressed"], "checked again right before MAIL FROM")
	require.Zero(t, s.count())
}

func TestCampaignAndOneClickUnsubscribe(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port})
	r.mx("dest.example", "other.example")
	l := r.domain("shop.example")
	id := r.campaign(short(true, "ann@dest.example", "bob@other.example", "ANN@dest.example"))
	wait(t, "the campaign to complete", 20*time.Second, func() bool { return r.progress(id).State == "completed" })
	p := r.progress(id)
	require.Equal(t, 2, p.Total, "one address is one recipient")
	require.Equal(t, 2, p.Counts["delivered"])

	var link string
	for _, d := range s.all() {
		require.Equal(t, 2, r.verify(d.Data))
		m, err := mail.ReadMessage(bytes.NewReader(d.Data))
		require.NoError(t, err)
		require.Equal(t, "List-Unsubscribe=One-Click", m.Header.Get("List-Unsubscribe-Post"))
		found := oneClick.FindStringSubmatch(m.Header.Get("List-Unsubscribe"))
		require.Len(t, found, 2)
		require.NotContains(t, found[1], "dest.example", "the token does not show the address")
		for _, sig := range m.Header["Dkim-Signature"] {
			h := strings.ToLower(strings.ReplaceAll(sig, " ", ""))
			require.Contains(t, h, "list-unsubscribe:")
			require.Contains(t, h, "list-unsubscribe-post")
		}
		require.Contains(t, m.Header.Get("Content-Type"), "multipart/alternative")
		for line := range bytes.SplitSeq(d.Data, []byte("\r\n")) {
			require.LessOrEqual(t, len(line), 998)
			require.NotContains(t, string(line), "\n")
		}
		if strings.EqualFold(d.To, "ann@dest.example") {
			link = found[1]
		}
	}
	require.NotEmpty(t, link)

	suppressed := func() bool {
		out, _, _ := r.ctl("suppression", "check", "ann@dest.example")
		return strings.Contains(out, "unsubscribe")
	}
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodOptions} {
		req, err := http.NewRequestWithContext(t.Context(), method, link, http.NoBody)
		require.NoError(t, err)
		res, err := http.DefaultTransport.RoundTrip(req)
		require.NoError(t, err)
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		require.NotContains(t, string(body), "ann@dest.example")
		require.Empty(t, res.Header.Get("Set-Cookie"))
	}
	require.False(t, suppressed(), "looking changes nothing")

	post := func(url, contentType string, body io.Reader) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
		require.NoError(t, err)
		req.Header.Set("Content-Type", contentType)
		res, err := http.DefaultTransport.RoundTrip(req)
		require.NoError(t, err)
		_ = res.Body.Close()
		require.Empty(t, res.Header.Get("Location"))
		require.Empty(t, res.Header.Get("Set-Cookie"))
		return res.StatusCode
	}
	at, other := len(link)-3, "a"
	if link[at] == 'a' {
		other = "b"
	}
	forged := link[:at] + other + link[at+1:]
	require.Equal(t, http.StatusNotFound, post(forged, "application/x-www-form-urlencoded", strings.NewReader("List-Unsubscribe=One-Click")))
	require.False(t, suppressed())
	require.Equal(t, http.StatusOK, post(link, "application/x-www-form-urlencoded", strings.NewReader("List-Unsubscribe=One-Click")))
	require.True(t, suppressed())
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	require.NoError(t, w.WriteField("List-Unsubscribe", "One-Click"))
	require.NoError(t, w.Close())
	require.Equal(t, http.StatusOK, post(link, w.FormDataContentType(), &form), "repeatable, and in the other form")

	before := s.count()
	id = r.campaign(short(true, "ann@dest.example", "bob@other.example"))
	wait(t, "the second campaign", 20*time.Second, func() bool { return strings.HasPrefix(r.progress(id).State, "completed") })
	p = r.progress(id)
	require.Equal(t, 1, p.Counts["delivered"])
	require.Equal(t, 1, p.Counts["suppressed"]+p.Counts["unsubscribed"])
	require.Equal(t, before+1, s.count())

	r.submit(l, "news@shop.example", []string{"ann@dest.example"}, plain("news@shop.example", "ann@dest.example", "receipt"))
	wait(t, "the receipt: who leaves the newsletter still gets receipts", 10*time.Second, func() bool { return s.count() == before+2 })
}

func TestCampaignRefusals(t *testing.T) {
	t.Parallel()
	r := newRelay(t, options{mxPort: freePort(t)})
	r.domain("shop.example")
	for name, tt := range map[string]struct {
		change func(map[string]any)
		want   []string
	}{
		"unclosed_variable":   {func(m map[string]any) { tmpl(m)["html"] = "<p>\n{{Name</p>{{unsubscribe_url}}" }, []string{"html", "2"}},
		"unclosed_block":      {func(m map[string]any) { tmpl(m)["html"] = "<p>{{#if Name}}x {{unsubscribe_url}}</p>" }, []string{"html", "if"}},
		"missing_merge_value": {func(m map[string]any) { tmpl(m)["html"] = tmpl(m)["html"].(string) + "{{name}}" }, []string{"name", "Name"}},
		"no_unsubscribe_link": {func(m map[string]any) { tmpl(m)["html"] = "<p>Hi</p>" }, []string{"unsubscribe_url"}},
		"unknown_sender":      {func(m map[string]any) { m["from"] = map[string]any{"email": "x@stranger.example"} }, []string{"stranger.example"}},
		"bad_recipient":       {func(m map[string]any) { m["recipients"] = []any{map[string]any{"email": "no address"}} }, []string{"/recipients/0"}},
		"line_break_in_name": {func(m map[string]any) {
			m["from"] = map[string]any{"email": "deals@shop.example", "name": "a\r\nBcc: x"}
		}, []string{"from"}},
		"line_break_in_header": {func(m map[string]any) { m["data"].(map[string]any)["Subject"] = "a\r\nBcc: x@y.example" }, []string{"ubject"}},
		"unknown_field":        {func(m map[string]any) { m["recipientz"] = []any{} }, []string{"recipientz"}},
	} {
		t.Run(name, func(t *testing.T) {
			body := short(true, "ann@dest.example")
			tt.change(body)
			b, err := json.Marshal(body)
			require.NoError(t, err)
			file := filepath.Join(t.TempDir(), "c.json")
			writeFile(t, file, string(b))
			out, stderr, code := r.ctl("-o", "json", "campaign", "create", file)
			require.Equal(t, 1, code, out)
			require.Empty(t, out)
			for _, want := range tt.want {
				require.Contains(t, stderr, want)
			}
			require.Zero(t, r.stats().Queued)
		})
	}
}

func tmpl(m map[string]any) map[string]any { return m["template"].(map[string]any) }

func TestCSVUpload(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port})
	r.mx("dest.example")
	r.domain("shop.example")
	body := short(false)
	delete(body, "recipients")
	id := r.campaign(body)
	csv := "\ufeffEmail,Name,Gender,CreateTime,SubscriptionStatus\r\n" +
		"ann@dest.example,Ann,F,2023-01-05 16:00:00,true\r\n" +
		"bob@dest.example,\"Bob, \"\"the\"\" Builder\",M,2023-01-06 09:00:00,\"true\"\r\n" +
		"no-address,X,M,2023-01-06 09:00:00,true\r\n" +
		"cho@dest.example,조,F,2023-01-06 09:00:00,maybe\r\n" +
		"dan@dest.example,Dan,M,2023-01-06 09:00:00,false\r\n" +
		"eve@dest.example,이브,F,2023-01-06 09:00:00,1\r\n"
	file := filepath.Join(t.TempDir(), "customers.csv")
	writeFile(t, file, csv)
	var report struct {
		RowsRead            int `json:"rows_read"`
		Created             int
		Rejected            int
		SkippedUnsubscribed int `json:"skipped_unsubscribed"`
		Errors              []struct {
			Line          int
			Column, Value string
			Code          string
		}
	}
	r.json(&report, "campaign", "recipients", "add", id, file)
	require.Equal(t, 6, report.RowsRead)
	require.Equal(t, 3, report.Created)
	require.Equal(t, 2, report.Rejected)
	require.Equal(t, 1, report.SkippedUnsubscribed)
	require.Len(t, report.Errors, 2)
	require.Equal(t, 4, report.Errors[0].Line)
	require.Equal(t, "no-address", report.Errors[0].Value)
	require.Equal(t, 5, report.Errors[1].Line)
	require.Equal(t, "invalid_subscription_status", report.Errors[1].Code)

	r.json(nil, "campaign", "start", id)
	wait(t, "the campaign", 20*time.Second, func() bool { return r.progress(id).State == "completed" })
	require.Equal(t, 3, s.count())
	var list struct {
		Data []struct{ Address, State string }
	}
	r.json(&list, "campaign", "recipients", id, "--state", "delivered")
	require.Len(t, list.Data, 3)
	for _, x := range list.Data {
		require.Equal(t, "delivered", x.State, fmt.Sprint(x))
	}
}
