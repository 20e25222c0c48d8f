package admin

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/kv"
)

const draftBody = `{"name":"Sale","from":{"email":"deals@example.com"},"template":{"subject":"S","html":"<p>{{unsubscribe_url}}</p>"},
"recipients":[{"email":"ann@example.net"},{"email":"bob@example.net"}]}`

// makeDraft makes a campaign over the API.
func (h *harness) makeDraft(token string, header ...string) api.Campaign {
	h.t.Helper()
	a := h.post("/v1/campaigns", token, draftBody, header...)
	require.Equal(h.t, http.StatusCreated, a.status, a.body)
	var c api.Campaign
	require.NoError(h.t, json.Unmarshal([]byte(a.body), &c))
	return c
}

// A crash between the campaign and the memory of its key is not possible: both are one transaction.
func TestCampaignAndItsKeyAreStoredTogether(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	token := h.key("", "all")
	c := h.makeDraft(token, "Idempotency-Key", "one")
	rows := 0
	require.NoError(t, h.db.View(t.Context(), func(tx kv.Tx) error {
		return tx.Scan(idempotencyTable, nil, nil, func(_, v []byte) (bool, error) {
			rows++
			var row idempotencyRow
			require.NoError(t, json.Unmarshal(v[1:], &row))
			require.Equal(t, http.StatusCreated, row.Status, "never without an answer")
			require.Contains(t, string(row.Body), c.ID)
			return true, nil
		})
	}))
	require.Equal(t, 1, rows)
	require.Equal(t, c.ID, h.makeDraft(token, "Idempotency-Key", "one").ID)
	require.NotEqual(t, c.ID, h.makeDraft(token).ID)

	a := h.post("/v1/campaigns/"+c.ID+"/clone", token, "", "Idempotency-Key", "two")
	require.Equal(t, http.StatusCreated, a.status, a.body)
	require.Equal(t, a.body, h.post("/v1/campaigns/"+c.ID+"/clone", token, "", "Idempotency-Key", "two").body)
}

func TestPatchNeedsTheETag(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	token := h.key("", "all")
	c := h.makeDraft(token)
	path, body := "/v1/campaigns/"+c.ID, `{"name":"Other"}`
	require.Equal(t, http.StatusPreconditionRequired, h.do(http.MethodPatch, path, token, "application/json", []byte(body)).status)
	require.Equal(t, http.StatusPreconditionFailed, h.do(http.MethodPatch, path, token, "application/json", []byte(body), "If-Match", `"99"`).status)
	a := h.do(http.MethodPatch, path, token, "application/json", []byte(body), "If-Match", c.ETag)
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.NotEqual(t, c.ETag, a.header.Get("ETag"))
	require.Equal(t, http.StatusPreconditionFailed, h.do(http.MethodPatch, path, token, "application/json", []byte(body), "If-Match", c.ETag).status, "whoever is second is told")
	a = h.do(http.MethodPatch, path, token, "application/json", []byte(`{"title":"x"}`), "If-Match", "*")
	require.Equal(t, http.StatusBadRequest, a.status, a.body)
}

func TestStartTellsFirstWhatWouldBecomeOfIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	token := h.key("", "all")
	c := h.makeDraft(token)
	path := "/v1/campaigns/" + c.ID
	_, err := h.contacts.Delete(t.Context(), c.Account, "email:ann@example.net", true)
	require.NoError(t, err)
	dry := send[api.CampaignCheck](h, "POST", path+"/start?dry_run=true", token, "", 200)
	require.Equal(t, send[api.CampaignCheck](h, "POST", path+"/validate", token, "", 200), dry)
	require.Equal(t, []int64{2, 1, 1}, []int64{dry.Recipients.Total, dry.Recipients.WillSend, dry.Recipients.Suppressed}, "one was erased")
	require.Equal(t, "draft", send[api.Campaign](h, "GET", path, token, "", 200).State, "nothing has begun")
	require.Equal(t, 400, h.post(path+"/start?dry_run=perhaps", token, "").status)
	require.Equal(t, 202, h.post(path+"/cancel", token, "").status)
	for _, query := range []string{"", "?dry_run=true"} {
		require.Equal(t, 409, h.post(path+"/start"+query, token, "").status, "as start itself")
	}
}

func TestRecipientsMayBePackedByGzip(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	token := h.key("", "all")
	c := h.makeDraft(token)
	pack := func(text string) string {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		_, err := w.Write([]byte(text))
		require.NoError(t, err)
		require.NoError(t, w.Close())
		return z.String()
	}
	upload := func(body, encoding string) answer {
		return h.raw("POST", "/v1/campaigns/"+c.ID+"/recipients", token, body, "Content-Type", "text/csv", "Content-Encoding", encoding)
	}
	rows := pack("email,Name\nzoe@example.net,Zoe\nyan@example.net,Yan\n")
	a := upload(rows, "gzip")
	require.Equal(t, 200, a.status, a.body)
	var report api.ImportReport
	require.NoError(t, json.Unmarshal([]byte(a.body), &report))
	require.Equal(t, []int64{2, 4}, []int64{report.Created, report.Total})
	require.Equal(t, 415, upload(rows, "br").status)
	require.Equal(t, 422, upload(rows[:len(rows)-9], "gzip").status, "cut off")
}

func TestProgressWaitsForAChange(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	token := h.key("", "all")
	c := h.makeDraft(token)
	path := "/v1/campaigns/" + c.ID + "/progress"
	for _, bad := range []string{"-1", "51", "x", ""} {
		want := http.StatusBadRequest
		if bad == "" {
			want = http.StatusOK
		}
		require.Equal(t, want, h.raw(http.MethodGet, path+"?wait_seconds="+bad, token, "").status, bad)
	}
	first := h.raw(http.MethodGet, path, token, "")
	tag := first.header.Get("ETag")
	require.NotEmpty(t, tag)
	require.Equal(t, http.StatusNotModified, h.raw(http.MethodGet, path, token, "", "If-None-Match", tag).status)

	a := h.post("/v1/campaigns/"+c.ID+"/start", token, "")
	require.Equal(t, http.StatusAccepted, a.status, a.body)
	running := h.raw(http.MethodGet, path, token, "").header.Get("ETag")
	require.NotEqual(t, tag, running)
	got := make(chan answer)
	go func() { got <- h.raw(http.MethodGet, path+"?wait_seconds=50", token, "", "If-None-Match", running) }()
	a = h.post("/v1/campaigns/"+c.ID+"/pause", token, "")
	require.Equal(t, http.StatusOK, a.status, a.body)
	answered := <-got
	require.Equal(t, http.StatusOK, answered.status)
	require.Contains(t, answered.body, `"paused"`)
}

func TestProgressStreamGoesOnToTheEnd(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	token := h.key("", "all")
	c := h.makeDraft(token)
	require.Equal(t, http.StatusAccepted, h.post("/v1/campaigns/"+c.ID+"/start", token, "").status)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.url+"/v1/campaigns/"+c.ID+"/progress/stream", nil)
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := h.http.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, "text/event-stream", res.Header.Get("Content-Type"))
	lines := bufio.NewScanner(res.Body)
	var events []string
	var last api.Progress
	for lines.Scan() {
		line := lines.Text()
		if name, ok := strings.CutPrefix(line, "event: "); ok {
			events = append(events, name)
			if len(events) == 1 {
				go func() {
					_, err := h.campaign.Cancel(t.Context(), "", c.ID)
					if err == nil {
						ctx := t.Context()
						go func() { _ = h.campaign.Run(ctx) }()
					}
				}()
			}
		}
		if data, ok := strings.CutPrefix(line, "data: "); ok && events[len(events)-1] == "progress" {
			require.NoError(t, json.Unmarshal([]byte(data), &last))
			require.Equal(t, last.Total, last.Counts.Sum())
		}
	}
	require.NoError(t, lines.Err())
	require.Equal(t, "end", events[len(events)-1])
	require.Equal(t, "cancelled", last.State)
}

func TestReportAsCSVIsInert(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	token := h.key("", "all")
	a := h.post("/v1/campaigns", token, strings.Replace(draftBody, "ann@", "=cmd@", 1))
	require.Equal(t, http.StatusCreated, a.status, a.body)
	var c api.Campaign
	require.NoError(t, json.Unmarshal([]byte(a.body), &c))
	a = h.raw(http.MethodGet, "/v1/campaigns/"+c.ID+"/report?format=csv", token, "")
	require.Equal(t, http.StatusOK, a.status)
	lines := strings.Split(strings.TrimSpace(a.body), "\n")
	require.Len(t, lines, 3)
	require.Contains(t, a.body, "'=cmd@example.net,pending")
	require.Equal(t, http.StatusBadRequest, h.raw(http.MethodGet, "/v1/campaigns/"+c.ID+"/report?format=xml", token, "").status)
	require.Equal(t, http.StatusNotFound, h.raw(http.MethodGet, "/v1/campaigns/cmp_zzz/report?format=csv", token, "").status)
	require.Equal(t, http.StatusOK, h.raw(http.MethodGet, "/v1/campaigns/"+c.ID+"/report", token, "").status)
}

func TestComplaintsCountForTheirCampaign(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("", "example.com")
	token := h.key("", "all")
	c := h.makeDraft(token)
	a := h.post("/v1/suppressions", token, `{"email":"ann@example.net","reason":"complaint","source":"`+c.ID+`"}`)
	require.Equal(t, http.StatusCreated, a.status, a.body)
	a = h.post("/v1/suppressions", token, `{"email":"bob@example.net","reason":"complaint","source":"something else"}`)
	require.Equal(t, http.StatusCreated, a.status, a.body)
}
