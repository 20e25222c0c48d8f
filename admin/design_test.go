package admin

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

// The requests that the design shows for lists, templates and campaigns (api.md 3.3 to 3.6), as they stand there.
func TestRequestsOfTheDesignAreTaken(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.ready("acme", "example.com")
	token := h.key("acme", "all")
	const list = `{"name":"customers","display_name":"Shop customers","opt_in":"single",
 "topics":[{"name":"promotions","display_name":"Promotions","default":"subscribed"},
           {"name":"news","display_name":"News","default":"unsubscribed"}],
 "attributes_schema":{"Name":{"type":"string","max_length":200},"Gender":{"type":"string","enum":["M","F","X",null]},
                      "CreateTime":{"type":"datetime"}}}`
	send[api.ContactList](h, "POST", "/v1/lists", token, list, 201)
	send[api.ContactList](h, "POST", "/v1/lists", token, `{"name":"vip"}`, 201)
	const rows = "Email,Name,Gender,CreateTime,SubscriptionStatus\n" +
		"ann@example.com,Ann,F,2023-01-05 16:00:00,true\n" +
		"bob@example,Bob,M,2023-01-06 09:00:00,\"true\"\n"
	a := h.do("POST", "/v1/imports?list=customers&on_conflict=upsert&max_errors=1000", token, "text/csv; charset=utf-8", []byte(rows),
		"Idempotency-Key", `"crm-2026-11-20"`,
		"X-Import-Options", strings.ReplaceAll(`{"column_map":{"Email":"email","Name":"attributes.Name","Gender":"attributes.Gender",
   "CreateTime":{"field":"attributes.CreateTime","format":"2006-01-02 15:04:05","timezone":"Asia/Seoul"},
   "SubscriptionStatus":"status"},"delimiter":"auto","default_status":"subscribed"}`, "\n", ""))
	require.Equal(t, http.StatusAccepted, a.status, a.body)
	done := send[api.Import](h, "GET", a.header.Get("Location")+"?wait_seconds=30", token, "", 200)
	require.Equal(t, []int64{2, 1, 1}, []int64{done.RowsRead, done.Created, done.Rejected})
	report := h.raw("GET", a.header.Get("Location")+"/errors?limit=100", token, "").body
	require.Contains(t, report, `"code":"invalid_email"`)
	require.Contains(t, report, `"line":3`)

	png, err := base64.StdEncoding.DecodeString("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, h.do("POST", "/v1/assets?name=logo.png", token, "image/png", png).status)
	const template = `{"name":"promo","kind":"broadcast",
 "subject":"{{Subject}}","preheader":"{{preheader}}",
 "html":"<html><img src=\"asset:logo.png\" alt=\"Shop\" width=\"160\"> Hi {{default Name \"there\"}}, {{{Body}}} <a href=\"{{unsubscribe_url}}\">Unsubscribe</a></html>",
 "text":null,
 "variables":{"Subject":{"scope":"campaign","required":true},
              "Body":{"scope":"campaign","required":true,"type":"html"},
              "Name":{"scope":"contact","default":"there"}},
 "options":{"inline_css":true,"images":"cid","auto_text":true,"minify":false},
 "samples":[{"name":"Ann","data":{"Name":"Ann","Subject":"Hello","Body":"<p>Hi</p>","preheader":""}},{"name":"no name","data":{"Subject":"Hello","Body":"","preheader":""}}]}`
	stored := send[api.Template](h, "POST", "/v1/templates", token, template, 201)
	require.Equal(t, []any{1, "draft"}, []any{stored.Version, stored.State})
	require.Equal(t, 1, stored.Compiled.InlineImages)
	send[api.Template](h, "POST", "/v1/templates/promo/publish", token, `{"version":1}`, 200)
	rendered := send[api.RenderedTemplate](h, "POST", "/v1/templates/promo/render", token,
		`{"version":1,"data":{"Subject":"S","Body":"B","preheader":""},"contact":"email:ann@example.com"}`, 200)
	require.Contains(t, rendered.HTML, "Hi Ann, B")

	const campaign = `{"name":"Black Friday","stream":"marketing","from":{"email":"deals@example.com","name":"Shop"},"reply_to":"help@example.com",
 "template":{"name":"promo","version":1},
 "data":{"Subject":"Black Friday for {{Name}}","Body":"<p>x</p>","preheader":"48 hours only"},
 "audience":{"list":"customers","topic":"promotions","segment":{"all":[{"attr":"Gender","eq":"F"},{"attr":"CreateTime","lt":"2026-01-01"}]},
             "exclude_lists":["vip"],"dedupe":"address"},
 "send":{"max_concurrency":10,"max_rate_per_second":50,"ttl_seconds":86400,
         "retry":{"max_attempts":3,"interval_seconds":1,"backoff_rate":2.0}},
 "guards":{"bounce_rate":0.05,"complaint_rate":0.001,"min_sample":200,"deferral_rate":0.5,"action":"pause"},
 "tracking":{"opens":false,"clicks":false},"tags":{"season":"bf26"}}`
	c := send[api.Campaign](h, "POST", "/v1/campaigns", token, campaign, 201, "Idempotency-Key", `"black-friday-2026"`)
	require.Equal(t, "draft", c.State)
	path := "/v1/campaigns/" + c.ID
	check := send[api.CampaignCheck](h, "POST", path+"/validate", token, "", 200)
	require.Equal(t, api.RecipientFates{Total: 1, WillSend: 1}, check.Recipients, "%+v", check.Checks)
	preview := send[api.CampaignPreview](h, "POST", path+"/preview", token, `{"contact":"email:ann@example.com"}`, 200)
	require.Equal(t, "Black Friday for Ann", preview.Subject)
	ann := send[api.Contact](h, "GET", "/v1/contacts/email:ann@example.com", token, "", 200)
	sent := send[api.TestSent](h, "POST", path+"/test", token, `{"to":["me@example.com"],"as_contact":"`+ann.ID+`"}`, 202)
	require.Len(t, sent.Messages, 1)
	day := time.Now().AddDate(0, 0, 7).Format(time.DateOnly)
	for _, schedule := range []string{`{"send_at":"` + day + `T09:00:00+09:00"}`, `{"send_at_local":"` + day + `T09:00","fallback_timezone":"Asia/Seoul"}`} {
		require.Equal(t, "scheduled", send[api.Campaign](h, "POST", path+"/schedule", token, schedule, 200).State)
		require.Equal(t, "draft", send[api.Campaign](h, "POST", path+"/unschedule", token, "", 200).State)
	}
	require.Contains(t, []string{"preparing", "running"}, send[api.Campaign](h, "POST", path+"/start", token, "", 202).State)
	var progress map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(h.raw("GET", path+"/progress", token, "").body), &progress))
	for _, field := range []string{"id", "state", "total", "counts", "rate", "limited_by", "eta", "started_at", "first_delivered_at", "snapshot_at", "providers"} {
		require.Contains(t, progress, field)
	}
	require.Contains(t, h.raw("GET", path+"/recipients?state=bounced&limit=2", token, "").body, `"has_more":false`)

	const short = `{"name":"Hello","from":{"email":"deals@example.com","name":"Shop"},
 "template":{"subject":"{{Subject}}","html":"<p>Hi {{Name}}</p>{{Body}}<p><a href=\"{{unsubscribe_url}}\">Unsubscribe</a></p>"},
 "data":{"Subject":"Black Friday","Body":"<p>x</p>"},
 "recipients":[{"email":"ann@example.com","attributes":{"Name":"Ann"}},{"email":"bob@example.com","attributes":{"Name":"Bob"}}],
 "start":true}`
	c = send[api.Campaign](h, "POST", "/v1/campaigns", token, short, 201)
	require.Equal(t, []any{"running", int64(2)}, []any{c.State, c.Total})
	a = h.post("/v1/campaigns", token, strings.Replace(short, `"start":true`, `"start":true,"tracking":{"opens":true}`, 1))
	require.Equal(t, 422, a.status)
	require.Contains(t, a.body, `"pointer":"/tracking/opens"`)
}
