package admin

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/suppression"
)

// send sends JSON, if body is not empty, and decodes a good answer.
func send[T any](h *harness, method, path, token, body string, status int, header ...string) T {
	h.t.Helper()
	a := h.raw(method, path, token, body, append([]string{"Content-Type", "application/json"}, header...)...)
	require.Equal(h.t, status, a.status, "%s %s: %s", method, path, a.body)
	var out T
	require.NoError(h.t, json.Unmarshal([]byte(a.body), &out), a.body)
	return out
}

const customers = `{"name":"customers","display_name":"Shop customers","opt_in":"single",
 "topics":[{"name":"promotions","default":"subscribed"},{"name":"news","default":"unsubscribed"}],
 "attributes_schema":{"Name":{"type":"string","max_length":200},"Gender":{"type":"string","enum":["M","F","X",null]},"CreateTime":{"type":"datetime"}}}`

func TestListsOverTheAPI(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := h.key("acme", "contacts:read", "contacts:write")
	l := send[api.ContactList](h, "POST", "/v1/lists", token, customers, 201, "Idempotency-Key", "k1")
	require.True(t, strings.HasPrefix(l.ID, "lst_"))
	require.Equal(t, []api.Topic{{Name: "promotions", Default: "subscribed"}, {Name: "news", Default: "unsubscribed"}}, l.Topics)
	again := h.post("/v1/lists", token, customers, "Idempotency-Key", "k1")
	require.Equal(t, []any{201, "true"}, []any{again.status, again.header.Get("Idempotent-Replayed")})
	require.Equal(t, "conflict", h.post("/v1/lists", token, customers).problem(t).Code)
	for body, pointer := range map[string]string{
		`{"name":"A"}`: "/name", `{"name":"lst_x"}`: "/name", `{"name":"a","opt_in":"maybe"}`: "/opt_in",
		`{"name":"a","topics":[{"name":"x"},{"name":"x"}]}`: "/topics/1/name", `{"name":"a","topics":[{"name":"x","default":"yes"}]}`: "/topics/0/default",
		`{"name":"a","attributes_schema":{"n":{"type":"int"}}}`: "/attributes_schema/n/type", `{"name":"a","nope":1}`: "/nope",
		`{"name":"a","attributes_schema":{"n":{"type":"number","enum":["x"]}}}`: "/attributes_schema/n/enum/0",
	} {
		p := h.post("/v1/lists", token, body).problem(t)
		require.Equal(t, pointer, p.Errors[0].Pointer, body)
	}
	stale := h.raw("PATCH", "/v1/lists/customers", token, `{"display_name":"x"}`, "Content-Type", "application/json", "If-Match", `"other"`)
	require.Equal(t, "etag_mismatch", stale.problem(t).Code)
	patched := send[api.ContactList](h, "PATCH", "/v1/lists/customers", token, `{"display_name":"New","topics":[{"name":"news"}]}`, 200, "If-Match", l.ETag)
	require.Equal(t, []any{"New", 1}, []any{patched.DisplayName, len(patched.Topics)})
	require.NotEqual(t, l.ETag, patched.ETag)
	page := send[api.Page[api.ContactList]](h, "GET", "/v1/lists", token, "", 200)
	require.Len(t, page.Data, 1)
	require.Equal(t, 204, h.raw("DELETE", "/v1/lists/"+l.ID, token, "").status)
	require.Equal(t, 404, h.raw("GET", "/v1/lists/customers", token, "").status)
}

func TestContactsOverTheAPI(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := h.key("acme", "contacts:read", "contacts:write")
	l := send[api.ContactList](h, "POST", "/v1/lists", token, customers, 201)
	put := `{"list":"customers","status":"true","attributes":{"Name":"Ann","Gender":"F","CreateTime":"2023-01-05T16:00:00+09:00","big":12345678901234567890},
	 "timezone":"Europe/Paris","locale":"fr","topics":{"news":"subscribed"},"consent":{"at":"2026-01-02T03:04:05Z","ip":"192.0.2.1","text":"yes"}}`
	c := send[api.Contact](h, "PUT", "/v1/contacts/email:Ann@Example.com", token, put, 201)
	require.Equal(t, []string{"Ann@example.com", "ann@example.com", "ok"}, []string{c.Email, c.EmailNormalized, c.Deliverability.State})
	require.Equal(t, "2023-01-05T07:00:00.000Z", c.Attributes["CreateTime"])
	require.Equal(t, map[string]string{"promotions": "subscribed", "news": "subscribed"}, c.Subscriptions[0].Topics)
	require.Contains(t, h.raw("GET", "/v1/contacts/"+c.ID, token, "").body, "12345678901234567890", "numbers keep their form")
	same := send[api.Contact](h, "PUT", "/v1/contacts/email:ann@example.com", token, strings.Replace(put, `"list"`, `"email":"Ann@Example.com","list"`, 1), 200)
	require.Equal(t, c.ETag, same.ETag, "nothing changed")

	patched := send[api.Contact](h, "PATCH", "/v1/contacts/"+c.ID, token, `{"attributes":{"Gender":null,"City":"Paris"}}`, 200, "If-Match", c.ETag)
	require.Equal(t, []any{nil, "Paris", "Ann"}, []any{patched.Attributes["Gender"], patched.Attributes["City"], patched.Attributes["Name"]})
	stale := h.raw("PATCH", "/v1/contacts/"+c.ID, token, `{"locale":"de"}`, "Content-Type", "application/json", "If-Match", c.ETag)
	require.Equal(t, 412, stale.status)
	require.Equal(t, 412, h.raw("PUT", "/v1/contacts/email:new@x.example", token, `{}`, "Content-Type", "application/json", "If-Match", "*").status)

	for body, want := range map[string][2]string{
		`{"list":"customers","status":"maybe"}`:                          {"invalid_subscription_status", "/status"},
		`{"list":"nope","status":true}`:                                  {"invalid_parameter", "/list"},
		`{"status":true}`:                                                {"invalid_parameter", "/list"},
		`{"list":"customers","topics":{"x":"yes"}}`:                      {"unknown_topic", "/topics"},
		`{"list":"customers","attributes":{"Gender":"Q"}}`:               {"invalid_attribute", "/Gender"},
		`{"timezone":"Mars"}`:                                            {"invalid_timezone", "/timezone"},
		`{"locale":"x!"}`:                                                {"invalid_locale", "/locale"},
		`{"list":"customers","consent":{"at":"0001-01-01T00:00:00Z"}}`:   {"invalid_consent", "/consent/at"},
		`{"email":"other@x.example"}`:                                    {"invalid_parameter", "/email"},
		`{"attributes":{"` + strings.Repeat("n", 200) + `":"too long"}}`: {"invalid_attribute", "/attributes"},
	} {
		p := h.raw("PATCH", "/v1/contacts/"+c.ID, token, body, "Content-Type", "application/json").problem(t)
		require.Equal(t, want, [2]string{p.Code, p.Errors[0].Pointer}, body)
	}
	require.Equal(t, patched.ETag, send[api.Contact](h, "GET", "/v1/contacts/"+c.ID, token, "", 200).ETag, "a refusal changes nothing")

	send[api.Contact](h, "PATCH", "/v1/contacts/"+c.ID, token, `{"list":"customers","status":"unsubscribed"}`, 200)
	p := h.raw("PATCH", "/v1/contacts/"+c.ID, token, `{"list":"customers","status":1}`, "Content-Type", "application/json").problem(t)
	require.Equal(t, "unsubscribed", p.Code)
	send[api.Contact](h, "PATCH", "/v1/contacts/"+c.ID, token, `{"list":"customers","status":1,"allow_resubscribe":true}`, 200)
	_, err := h.list.Add(t.Context(), suppression.Entry{Account: "acme", Address: "ann@example.com", Reason: suppression.Complaint})
	require.NoError(t, err)
	page := send[api.Page[api.Contact]](h, "GET", "/v1/lists/"+l.ID+"/contacts?status=subscribed", token, "", 200)
	require.Len(t, page.Data, 1)
	require.Equal(t, []string{"suppressed", "complaint"}, []string{page.Data[0].Deliverability.State, page.Data[0].Deliverability.Reason})
	require.Equal(t, "customers", page.Data[0].Subscription.List)
	require.Empty(t, send[api.Page[api.Contact]](h, "GET", "/v1/lists/"+l.ID+"/contacts?status=pending", token, "", 200).Data)

	gone := send[api.ContactErased](h, "DELETE", "/v1/contacts/email:ann@example.com?erase=true", token, "", 200)
	require.Equal(t, api.ContactErased{ID: c.ID, Erased: true}, gone)
	require.Equal(t, 404, h.raw("GET", "/v1/contacts/"+c.ID, token, "").status)
	batch := `{"list":"customers","mode":"partial","contacts":[{"email":"ANN@example.com"},{"email":"b@x.example","status":"yes"},{"email":"bad"}]}`
	res := send[api.ContactBatchResult](h, "POST", "/v1/contacts/batch", token, batch, 200)
	require.Equal(t, []string{"skipped_erased", "created", "rejected"}, []string{res.Results[0].State, res.Results[1].State, res.Results[2].State})
	require.Equal(t, api.RowCounts{RowsRead: 3, Created: 1, SkippedErased: 1, Rejected: 1}, res.RowCounts)
	send[api.Contact](h, "PUT", "/v1/contacts/email:ann@example.com", token, `{"list":"customers"}`, 201)
}

func TestAtomicBatchWritesAllOrNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := h.key("acme", "contacts:read", "contacts:write")
	send[api.ContactList](h, "POST", "/v1/lists", token, customers, 201)
	p := h.post("/v1/contacts/batch", token, `{"list":"customers","contacts":[{"email":"a@x.example"},{"email":"b@x.example","attributes":{"Gender":"Q"}},{"email":"c"}]}`).problem(t)
	require.Equal(t, []string{"/contacts/1/Gender", "/contacts/2/email"}, []string{p.Errors[0].Pointer, p.Errors[1].Pointer})
	require.EqualValues(t, 0, send[api.ContactList](h, "GET", "/v1/lists/customers", token, "", 200).ContactCount)
	good := `{"list":"customers","contacts":[{"email":"a@x.example"},{"email":"A@x.example","attributes":{"Name":"A"}}]}`
	for range 2 {
		res := send[api.ContactBatchResult](h, "POST", "/v1/contacts/batch", token, good, 200, "Idempotency-Key", "b1")
		require.Equal(t, api.RowCounts{RowsRead: 2, Created: 1, Updated: 1, Duplicates: 1}, res.RowCounts)
	}
	require.Equal(t, "idempotency_key_reused", h.post("/v1/contacts/batch", token, strings.Replace(good, "a@", "z@", 1), "Idempotency-Key", "b1").problem(t).Code)
}

func TestSegmentsOverTheAPI(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := h.key("acme", "contacts:read", "contacts:write")
	send[api.ContactList](h, "POST", "/v1/lists", token, customers, 201)
	send[api.ContactBatchResult](h, "POST", "/v1/contacts/batch", token, `{"list":"customers","contacts":[
	 {"email":"a@x.example","attributes":{"Gender":"F","CreateTime":"2023-01-01"}},{"email":"b@x.example","attributes":{"Gender":"M"}},
	 {"email":"c@x.example","attributes":{"Gender":"F","CreateTime":"2026-02-01"}},{"email":"d@x.example","status":"no","attributes":{"Gender":"F","CreateTime":"2023-01-01"}}]}`, 200)
	g := send[api.Segment](h, "POST", "/v1/segments", token,
		`{"name":"women","list":"customers","where":{"all":[{"attr":"Gender","eq":"F"},{"attr":"CreateTime","lt":"2026-01-01"}]}}`, 201)
	require.EqualValues(t, 1, send[api.SegmentCount](h, "POST", "/v1/segments/women/count", token, "", 200).Count)
	patched := send[api.Segment](h, "PATCH", "/v1/segments/"+g.ID, token, `{"name":"ladies","where":{"attr":"Gender","eq":"F"}}`, 200, "If-Match", g.ETag)
	require.EqualValues(t, 2, send[api.SegmentCount](h, "POST", "/v1/segments/ladies/count", token, "", 200).Count)
	require.Equal(t, patched, send[api.Page[api.Segment]](h, "GET", "/v1/segments", token, "", 200).Data[0])
	for body, want := range map[string][2]string{
		`{"name":"x","list":"nope"}`: {"/list", `There is no list "nope".`},
		`{"name":"x","list":"customers","where":{"all":[{"attr":"a","eq":1,"ne":2}]}}`:                             {"/where/all/0/ne", `"ne" stands beside "eq": one comparison has one operator.`},
		`{"name":"x","list":"customers","where":{"attr":"a"}}`:                                                     {"/where", ""},
		`{"name":"x","list":"customers","where":{"attr":"a","like":"x"}}`:                                          {"/where/like", ""},
		`{"name":"x","list":"customers","where":{"any":[]}}`:                                                       {"/where/any", ""},
		`{"name":"x","list":"customers","where":{"not":{"field":"phone","eq":"1"}}}`:                               {"/where/not/field", ""},
		`{"name":"x","list":"customers","where":{"attr":"a","between":[1,"b"]}}`:                                   {"/where/between", ""},
		`{"name":"x","list":"customers","topic":"nope"}`:                                                           {"/topic", ""},
		`{"name":"x","list":"customers","exclude_lists":["customers","nope"]}`:                                     {"/exclude_lists/1", ""},
		`{"name":"x","list":"customers","where":` + strings.Repeat(`{"not":`, 20) + `{}` + strings.Repeat("}", 21): {"/where" + strings.Repeat("/not", 16), ""},
	} {
		p := h.post("/v1/segments", token, body).problem(t)
		require.NotEmpty(t, p.Errors, body)
		require.Equal(t, want[0], p.Errors[0].Pointer, body)
		if want[1] != "" {
			require.Equal(t, want[1], p.Detail)
		}
	}
	require.Equal(t, 204, h.raw("DELETE", "/v1/segments/ladies", token, "").status)
	require.Equal(t, 404, h.raw("POST", "/v1/segments/ladies/count", token, "").status)
}

const upload = "Email,Name,SubscriptionStatus\nann@x.example,Ann,true\nbob@example,\"Bo\nb\",true\nc@x.example,C\"c,true\n"

func TestImportOverTheAPI(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := h.key("acme", "contacts:read", "contacts:write", "contacts:import")
	send[api.ContactList](h, "POST", "/v1/lists", token, customers, 201)
	options := `{"column_map":{"Email":"email","Name":{"field":"attributes.Name"}},"delimiter":"auto"}`
	header := []string{"Content-Type", "text/csv", "X-Import-Options", options, "Idempotency-Key", `"crm-1"`}
	dry := send[api.Import](h, "POST", "/v1/imports?list=customers&dry_run=true", token, upload, 202, "Content-Type", "text/csv")
	require.True(t, dry.DryRun)
	for i := range 2 {
		a := h.raw("POST", "/v1/imports?list=customers&on_conflict=upsert&max_errors=1000", token, upload, header...)
		require.Equal(t, 202, a.status, a.body)
		require.Equal(t, []string{"", "true"}[i], a.header.Get("Idempotent-Replayed"))
		var got api.Import
		require.NoError(t, json.Unmarshal([]byte(a.body), &got))
		require.Equal(t, "/v1/imports/"+got.ID, a.header.Get("Location"))
		require.Equal(t, []any{"completed", "utf-8", dry.RowCounts}, []any{got.State, got.Encoding, got.RowCounts})
		require.Equal(t, api.RowCounts{RowsRead: 3, Created: 1, Rejected: 2}, got.RowCounts)
		require.Equal(t, got, send[api.Import](h, "GET", "/v1/imports/"+got.ID, token, "", 200))
		page := send[api.Page[api.ContactImportError]](h, "GET", got.ErrorsURL+"?limit=1", token, "", 200)
		require.Equal(t, []any{"invalid_email", true}, []any{page.Data[0].Code, page.HasMore})
		page = send[api.Page[api.ContactImportError]](h, "GET", got.ErrorsURL+"?limit=1&cursor="+page.NextCursor, token, "", 200)
		require.Equal(t, []any{"csv_quote", false}, []any{page.Data[0].Code, page.HasMore})
		report := h.raw("GET", got.ErrorsURL, token, "", "Accept", "text/csv")
		require.Equal(t, "Email,Name,SubscriptionStatus,relayd_line,relayd_column,relayd_code,relayd_detail,relayd_row\n"+
			"bob@example,\"Bo\nb\",true,3,Email,invalid_email,domain has no dot,\n"+
			",,,5,Name,csv_quote,\"a quote inside a field, or text behind a quoted field\",\"c@x.example,C\"\"c,true\"\n", report.body)
		mended := strings.Replace(strings.Replace(report.body, "bob@example,", "bob@x.example,", 1), ",,,5", "c@x.example,Cc,true,5", 1)
		again := send[api.Import](h, "POST", "/v1/imports?list=customers", token, mended, 202, "Content-Type", "text/csv")
		require.Equal(t, []int64{2, 0}[i], int64(again.Created))
		require.Zero(t, again.Rejected)
	}
	require.Len(t, send[api.Page[api.Import]](h, "GET", "/v1/imports", token, "", 200).Data, 4)
	for i, query := range []string{"", "&dry_run=false"} { // the query wins
		got := send[api.Import](h, "POST", "/v1/imports?list=customers"+query, token, upload, 202, "Content-Type", "text/csv", "Prefer", "handling=strict; dry-run")
		require.Equal(t, i == 0, got.DryRun, query)
	}

	for name, tt := range map[string]struct {
		query, body string
		header      []string
		status      int
		code        string
	}{
		"no_list":       {"", upload, []string{"Content-Type", "text/csv"}, 400, "invalid_parameter"},
		"unknown_list":  {"?list=nope", upload, []string{"Content-Type", "text/csv"}, 404, "not_found"},
		"no_type":       {"?list=customers", upload, nil, 415, "unsupported_media_type"},
		"no_header_row": {"?list=customers", "a\nb\n", []string{"Content-Type", "text/csv"}, 422, "csv_header_missing"},
		"brotli":        {"?list=customers", upload, []string{"Content-Type", "text/csv", "Content-Encoding", "br"}, 415, "unsupported_media_type"},
		"no_zstd":       {"?list=customers", "\x28\xb5\x2f\xfdx", []string{"Content-Type", "text/csv", "Content-Encoding", "zstd"}, 422, "invalid_encoding"},
		"digest_form":   {"?list=customers", upload, []string{"Content-Type", "text/csv", "Content-Digest", "md5=:eA==:"}, 400, "invalid_parameter"},
		"digest":        {"?list=customers", upload, []string{"Content-Type", "text/csv", "Content-Digest", digest("x")}, 400, "digest_mismatch"},
		"options":       {"?list=customers", upload, []string{"Content-Type", "text/csv", "X-Import-Options", `{"x":1}`}, 400, "invalid_parameter"},
		"on_conflict":   {"?list=customers&on_conflict=drop", upload, []string{"Content-Type", "text/csv"}, 422, "invalid_parameter"},
		"max_errors":    {"?list=customers&max_errors=1", upload, []string{"Content-Type", "text/csv"}, 422, "import_too_many_errors"},
		"column_map":    {"?list=customers", upload, []string{"Content-Type", "text/csv", "X-Import-Options", `{"column_map":{"Name":{"field":"attributes.Name","format":"15:04"}}}`}, 422, "invalid_parameter"},
	} {
		a := h.raw("POST", "/v1/imports"+tt.query, token, tt.body, tt.header...)
		require.Equal(t, []any{tt.status, tt.code}, []any{a.status, a.problem(t).Code}, name)
	}
}

func digest(body string) string {
	sum := sha256.Sum256([]byte(body))
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

func TestChunkedImportOverTheAPI(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := h.key("acme", "contacts:write", "contacts:import", "contacts:read")
	send[api.ContactList](h, "POST", "/v1/lists", token, customers, 201)
	i := send[api.Import](h, "POST", "/v1/imports", token, `{"list":"customers","format":"jsonl","expected_chunks":2}`, 201, "Idempotency-Key", "i1")
	require.Equal(t, "open", i.State)
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, err := fmt.Fprintln(w, `{"email":"a@x.example","status":"true","attributes":{"Name":"Ann"},"topics":{"news":true}}`)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	packed := z.String()
	for range 2 {
		c := send[api.ImportChunk](h, "PUT", "/v1/imports/"+i.ID+"/chunks/1", token, packed, 200,
			"Content-Type", "application/x-ndjson", "Content-Encoding", "gzip", "Content-Digest", digest(packed))
		require.Equal(t, api.ImportChunk{Chunk: 1, Rows: 1, Accepted: 1}, c)
	}
	for _, bad := range []string{"-1", "51", "x"} {
		require.Equal(t, 400, h.raw("GET", "/v1/imports/"+i.ID+"?wait_seconds="+bad, token, "").status, bad)
	}
	ended := make(chan answer)
	go func() { ended <- h.raw("GET", "/v1/imports/"+i.ID+"?wait_seconds=50", token, "") }()
	second := `{"email":"Info@x.example"}` + "\n" + `{"email":"c"}`
	require.Equal(t, "conflict", h.post("/v1/imports/"+i.ID+"/commit", token, `{"chunks":2}`).problem(t).Code)
	require.Equal(t, 415, h.raw("PUT", "/v1/imports/"+i.ID+"/chunks/2", token, "email\n", "Content-Type", "text/csv").status)
	require.Equal(t, 400, h.raw("PUT", "/v1/imports/"+i.ID+"/chunks/0", token, second, "Content-Type", "application/x-ndjson").status)
	c := send[api.ImportChunk](h, "PUT", "/v1/imports/"+i.ID+"/chunks/2", token, second, 200, "Content-Type", "application/x-ndjson")
	require.Equal(t, api.ImportChunk{Chunk: 2, Rows: 2, Accepted: 1, Rejected: 1}, c)
	require.Equal(t, 409, h.raw("PUT", "/v1/imports/"+i.ID+"/chunks/2", token, second+" ", "Content-Type", "application/x-ndjson").status)
	done := send[api.Import](h, "POST", "/v1/imports/"+i.ID+"/commit", token, `{"chunks":2}`, 202)
	require.Equal(t, []any{"completed", 2, api.RowCounts{RowsRead: 3, Created: 2, Rejected: 1}}, []any{done.State, done.ChunksReceived, done.RowCounts})
	require.EqualValues(t, 1, done.RoleAddresses)
	waited := <-ended
	require.Equal(t, 200, waited.status, waited.body)
	require.Contains(t, waited.body, `"state":"completed"`, "who waits hears of the end")
	require.Equal(t, "completed", send[api.Import](h, "DELETE", "/v1/imports/"+i.ID, token, "", 200).State)
	require.Equal(t, 404, h.raw("GET", "/v1/imports/"+i.ID, token, "").status)
}

// To a key of one account nothing of another exists.
func TestContactsOfOthersDoNotExist(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	owner, other := h.key("a", "all"), h.key("b", "all")
	l := send[api.ContactList](h, "POST", "/v1/lists", owner, customers, 201)
	c := send[api.Contact](h, "PUT", "/v1/contacts/email:ann@x.example", owner, `{"list":"customers"}`, 201)
	g := send[api.Segment](h, "POST", "/v1/segments", owner, `{"name":"s","list":"customers"}`, 201)
	i := send[api.Import](h, "POST", "/v1/imports", owner, `{"list":"customers"}`, 201)
	for _, call := range []string{
		"GET /v1/lists/" + l.ID, "GET /v1/lists/customers", "PATCH /v1/lists/" + l.ID + " {}", "DELETE /v1/lists/" + l.ID,
		"GET /v1/lists/" + l.ID + "/contacts", "GET /v1/lists?account=a", "POST /v1/lists?account=a " + `{"name":"x"}`,
		"GET /v1/contacts/" + c.ID, "GET /v1/contacts/email:ann@x.example", "GET /v1/contacts/email:ann@x.example?account=a",
		"PATCH /v1/contacts/" + c.ID + " {}", "PUT /v1/contacts/" + c.ID + " {}", "DELETE /v1/contacts/" + c.ID,
		"GET /v1/segments/" + g.ID, "PATCH /v1/segments/" + g.ID + " {}", "DELETE /v1/segments/" + g.ID, "POST /v1/segments/" + g.ID + "/count",
		"GET /v1/imports/" + i.ID, "GET /v1/imports/" + i.ID + "/errors", "DELETE /v1/imports/" + i.ID,
		"POST /v1/imports/" + i.ID + "/commit " + `{"chunks":1}`, "POST /v1/imports " + `{"list":"` + l.ID + `"}`,
	} {
		method, rest, _ := strings.Cut(call, " ")
		path, body, _ := strings.Cut(rest, " ")
		a := h.raw(method, path, other, body, "Content-Type", "application/json")
		require.Equal(t, http.StatusNotFound, a.status, "%s: %s", call, a.body)
	}
	a := h.raw("PUT", "/v1/imports/"+i.ID+"/chunks/1", other, "email\n", "Content-Type", "text/csv")
	require.Equal(t, http.StatusNotFound, a.status)
	for _, path := range []string{"/v1/lists", "/v1/segments", "/v1/imports"} {
		require.Empty(t, send[api.Page[any]](h, "GET", path, other, "", 200).Data)
	}
	// The other's own contact of the same address is another one.
	mine := send[api.Contact](h, "PUT", "/v1/contacts/email:ann@x.example", other, `{}`, 201)
	require.NotEqual(t, c.ID, mine.ID)
	reader := h.key("a", "contacts:read")
	require.Equal(t, 403, h.raw("DELETE", "/v1/contacts/"+c.ID, reader, "").status)
	require.Equal(t, 403, h.raw("POST", "/v1/imports?list=customers", reader, upload, "Content-Type", "text/csv").status)
}

func TestActivityOfAContact(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := h.key("acme", "contacts:read", "contacts:write")
	send[api.ContactList](h, "POST", "/v1/lists", token, customers, 201)
	send[api.Contact](h, "PUT", "/v1/contacts/email:ann@example.com", token, `{"list":"customers","attributes":{"Gender":"F"}}`, 201)
	require.Empty(t, send[api.Page[api.QueueItem]](h, "GET", "/v1/contacts/email:ann@example.com/activity", token, "", 200).Data)

	// Mail to whom is suppressed is settled at once.
	_, err := h.root.AddSuppression(t.Context(), api.Suppression{Account: "acme", Email: "ann@example.com", Scope: "global", Reason: "manual"})
	require.NoError(t, err)
	_, err = h.root.CreateDomain(t.Context(), api.CreateDomain{Account: "acme", Name: "acme.example"})
	require.NoError(t, err)
	sender := h.key("acme", "messages:send")
	var sent []string
	for _, to := range []string{"ann@example.com", "bob@example.com", "Ann@Example.com"} {
		m := send[api.MessageQueued](h, "POST", "/v1/messages", sender, `{"from":"x@acme.example","to":["`+to+`"],"subject":"S","text":"t"}`, 202)
		if !strings.HasPrefix(to, "bob") {
			sent = append(sent, strings.TrimPrefix(m.ID, "msg_"))
		}
	}
	var found []string
	for cursor := ""; ; {
		page := send[api.Page[api.QueueItem]](h, "GET", "/v1/contacts/email:ann@example.com/activity?limit=1&cursor="+cursor, token, "", 200)
		for _, item := range page.Data {
			require.Equal(t, "suppressed", item.State)
			require.Equal(t, "S", item.Subject)
			message, _, _ := strings.Cut(item.ID, ".")
			found = append([]string{message}, found...)
		}
		if cursor = page.NextCursor; cursor == "" {
			break
		}
	}
	slices.Sort(sent) // two of one millisecond came in any order
	require.Equal(t, sent, found, "the newest first")
	require.Equal(t, 404, h.raw("GET", "/v1/contacts/email:bob@example.com/activity", token, "").status, "no contact, however much was sent")
	require.Equal(t, 404, h.raw("GET", "/v1/contacts/email:ann@example.com/activity", h.key("other", "contacts:read"), "").status)
}
