package admin

import (
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/account"
	"relayd/internal/api"
)

// probeOf makes a request to a route that passes its authorisation and can do no harm.
func probeOf(rt route) (path, contentType string) {
	path = rt.path
	for _, name := range []string{"{id}", "{name}", "{username}"} {
		path = strings.ReplaceAll(path, name, "nothing")
	}
	path = strings.ReplaceAll(path, "{email}", "nobody@example.com")
	if rt.upload {
		return path, "text/csv"
	}
	return path, "application/json"
}

func TestB6EveryRouteTimesEveryScope(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	tokens := map[string]string{}
	for _, scope := range append(account.Scopes(), account.ScopeAll) {
		tokens[scope] = h.key("", scope)
	}
	for _, rt := range h.routes {
		path, contentType := probeOf(rt)
		a := h.raw(rt.method, path, "", "", "Content-Type", contentType)
		require.Equal(t, http.StatusUnauthorized, a.status, "%s without a key", rt.pattern())
		require.Equal(t, `Bearer realm="relayd"`, a.header.Get("WWW-Authenticate"))
		require.Equal(t, api.CodeUnauthorized, a.problem(t).Code)
		for scope, token := range tokens {
			body := "{}"
			if rt.method != http.MethodPost {
				body = ""
			}
			a := h.raw(rt.method, path, token, body, "Content-Type", contentType)
			require.NotEqual(t, http.StatusUnauthorized, a.status, "%s with %s", rt.pattern(), scope)
			may := rt.scope == "" || scope == rt.scope || scope == account.ScopeAll && rt.scope != account.ScopeAdmin || scope == account.ScopeAdmin
			if may {
				require.NotEqual(t, http.StatusForbidden, a.status, "%s with %s: %s", rt.pattern(), scope, a.body)
				require.NotEqual(t, http.StatusInternalServerError, a.status, "%s: %s", rt.pattern(), a.body)
			} else {
				require.Equal(t, http.StatusForbidden, a.status, "%s with %s", rt.pattern(), scope)
				require.Equal(t, api.CodeForbiddenScope, a.problem(t).Code)
			}
		}
	}
}

func TestRoutesAreSane(t *testing.T) {
	t.Parallel()
	known := account.Scopes()
	for _, rt := range (&Server{}).table() {
		if rt.scope != "" {
			require.Contains(t, known, rt.scope, rt.pattern())
		}
		require.NotEmpty(t, rt.summary, rt.pattern())
		switch {
		case rt.method == http.MethodGet:
			require.True(t, rt.scope == "" || rt.scope == account.ScopeAdmin || strings.HasSuffix(rt.scope, ":read"), "%s: GET never changes state", rt.pattern())
		case slices.Contains([]string{"verify", "render", "validate", "preview", "count"}, path.Base(rt.path)): // they only tell
			require.NotEmpty(t, rt.scope, rt.pattern())
		default:
			require.False(t, strings.HasSuffix(rt.scope, ":read") || rt.scope == "", rt.pattern())
		}
	}
}

func TestB6BadKeysAreRefusedAlike(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := h.key("", "all")
	var bodies []string
	for _, header := range []string{
		"", "Bearer", "Bearer ", "Bearer x", "Basic " + token, token, "Bearer " + token[:len(token)-1], "Bearer " + token + "0",
		"Bearer rk_live_" + strings.Repeat("0", 26) + "_" + strings.Repeat("0", 52), "Bearer " + strings.ToUpper(token),
		"Bearer " + strings.Repeat("x", 10000), "Bearer " + token + "," + token,
	} {
		a := h.raw("GET", "/v1/version", "", "", "Authorization", header)
		require.Equal(t, http.StatusUnauthorized, a.status, "%.40q", header)
		p := a.problem(t)
		p.RequestID = ""
		bodies = append(bodies, fmt.Sprint(p))
	}
	require.Len(t, slices.Compact(bodies), 1)
	req, err := http.NewRequestWithContext(t.Context(), "GET", h.url+"/v1/version", nil)
	require.NoError(t, err)
	req.Header["Authorization"] = []string{"Bearer " + token, "Bearer " + token}
	res, err := h.http.Do(req)
	require.NoError(t, err)
	_ = res.Body.Close()
	require.Equal(t, http.StatusUnauthorized, res.StatusCode, "two keys are none")
	require.Equal(t, http.StatusOK, h.raw("GET", "/v1/version", "", "", "Authorization", "bearer "+token).status)
	a := h.raw("GET", "/v1/version?key="+token, "", "")
	require.Equal(t, http.StatusUnauthorized, a.status, "a key in the URL is no key")
}

func TestB6RevokedKeyFailsAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	k, err := h.root.CreateKey(t.Context(), api.CreateKey{Scopes: []string{"all"}})
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, h.raw("GET", "/v1/version", k.Key, "").status)
	require.NoError(t, h.root.RevokeKey(t.Context(), k.ID))
	require.Equal(t, http.StatusUnauthorized, h.raw("GET", "/v1/version", k.Key, "").status)
}

func TestB6KeysAreNeverLoggedNorShownAgain(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	k, err := h.root.CreateKey(t.Context(), api.CreateKey{Scopes: []string{"all"}, Name: "n"})
	require.NoError(t, err)
	c, err := h.root.CreateCredential(t.Context(), api.CreateCredential{})
	require.NoError(t, err)
	secret := k.Key[strings.LastIndexByte(k.Key, '_')+1:]
	h.raw("GET", "/v1/keys", k.Key, "")
	h.raw("GET", "/v1/nothing/"+k.Key, k.Key, "")
	h.raw("GET", "/v1/version?key="+k.Key, k.Key, "")
	h.raw("GET", "/v1/version", k.Key+"x", "")
	h.post("/v1/keys", k.Key, `{"scopes":["`+k.Key+`"]}`)
	list, err := h.root.Keys(t.Context(), "", api.List{})
	require.NoError(t, err)
	require.Empty(t, list.Data[0].Key)
	credentials, err := h.root.Credentials(t.Context(), "", api.List{})
	require.NoError(t, err)
	require.Empty(t, credentials.Data[0].Password)
	logs := h.logs.String()
	require.Contains(t, logs, "request.served")
	require.NotContains(t, logs, secret)
	require.NotContains(t, logs, c.Password)
	require.NotContains(t, h.raw("GET", "/metrics", "", "").body, secret)
}

func TestAKeyCannotGrantMoreThanItHas(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	c := h.client("", "keys:write", "queue:read")
	for _, scopes := range [][]string{{"all"}, {"admin"}, {"queue:write"}, {"queue:read", "queue:write"}} {
		_, err := c.CreateKey(t.Context(), api.CreateKey{Scopes: scopes})
		requireCode(t, err, api.CodeForbiddenScope)
	}
	_, err := c.CreateKey(t.Context(), api.CreateKey{Scopes: []string{"queue:read"}})
	require.NoError(t, err)
	_, err = h.client("", "all").CreateKey(t.Context(), api.CreateKey{Scopes: []string{"admin"}})
	requireCode(t, err, api.CodeForbiddenScope)
	_, err = h.client("", "all").CreateKey(t.Context(), api.CreateKey{Scopes: []string{"all"}})
	require.NoError(t, err)
	_, err = h.client("", "all").CreateKey(t.Context(), api.CreateKey{Account: "other", Scopes: []string{"all"}})
	requireCode(t, err, api.CodeNotFound)
}

func TestWhatBelongsToAnotherAccountDoesNotExist(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	ctx := t.Context()
	b := h.client("beta", "all")
	domain, err := b.CreateDomain(ctx, api.CreateDomain{Name: "beta.example"})
	require.NoError(t, err)
	require.Equal(t, "beta", domain.Account)
	credential, err := b.CreateCredential(ctx, api.CreateCredential{Domains: []string{"beta.example"}})
	require.NoError(t, err)
	key, err := b.CreateKey(ctx, api.CreateKey{Scopes: []string{"queue:read"}})
	require.NoError(t, err)
	_, err = b.AddSuppression(ctx, api.Suppression{Email: "x@example.net"})
	require.NoError(t, err)
	message, err := b.SendMessage(ctx, api.SendMessage{
		From: api.Mailbox{Email: "a@beta.example"}, To: api.Mailboxes{{Email: "y@example.net"}}, Subject: "s", Text: "t",
	}, "")
	require.NoError(t, err)
	campaign, err := b.CreateCampaign(ctx, api.CreateCampaign{
		Name: "c", From: api.Mailbox{Email: "a@beta.example"},
		Template:   api.CampaignTemplate{Subject: "s", HTML: `<a href="{{unsubscribe_url}}">u</a>`},
		Recipients: []api.Recipient{{Email: "z@example.net"}},
	}, "")
	require.NoError(t, err)
	template, err := b.CreateTemplate(ctx, api.CreateTemplate{Name: "t", Kind: "partial", TemplateSource: api.TemplateSource{HTML: "x"}})
	require.NoError(t, err)
	asset, err := b.UploadAsset(ctx, "a.gif", "image/gif", strings.NewReader("GIF89a"))
	require.NoError(t, err)

	a := h.key("alpha", "all")
	id := map[string]string{
		"/v1/domains": domain.Name, "/v1/credentials": credential.Username, "/v1/keys": key.ID,
		"/v1/suppressions": "x@example.net", "/v1/queue": message.ID, "/v1/campaigns": campaign.ID,
		"/v1/templates": template.Name, "/v1/assets": asset.ID,
	}
	for _, rt := range h.routes {
		if !strings.Contains(rt.path, "{") {
			continue
		}
		path, contentType := probeOf(rt)
		for prefix, id := range id {
			if strings.HasPrefix(path, prefix+"/") {
				path = strings.Replace(strings.Replace(path, "nothing", id, 1), "nobody@example.com", id, 1)
			}
		}
		body := ""
		if rt.call.in != nil {
			body = "{}"
		}
		switch last := rt.path[strings.LastIndexByte(rt.path, '/')+1:]; last {
		case "activate":
			body = `{"selector":"r1"}`
		case "schedule":
			body = `{"send_at":"` + time.Now().Add(time.Hour).UTC().Format(time.RFC3339) + `"}`
		case "test":
			body = `{"to":["q@example.net"]}`
		}
		switch {
		case strings.HasSuffix(path, "/commit"):
			body = `{"chunks":1}`
		case rt.method == http.MethodPut, rt.method == http.MethodPatch:
			body = `{}`
		}
		if rt.upload {
			body = "email\nq@example.net\n"
		}
		if rt.method == http.MethodPatch {
			body = "{}"
		}
		got := h.raw(rt.method, path, a, body, "Content-Type", contentType, "If-Match", "*")
		if rt.method == "GET" && strings.HasPrefix(path, "/v1/suppressions/") {
			require.Contains(t, got.body, `"entries":[]`)
			continue
		}
		want := http.StatusNotFound
		if rt.scope == account.ScopeAdmin {
			want = http.StatusForbidden
		}
		require.Equal(t, want, got.status, "%s %s: %s", rt.method, path, got.body)
	}
	for _, path := range []string{"/v1/queue", "/v1/campaigns", "/v1/suppressions", "/v1/credentials", "/v1/domains", "/v1/events", "/v1/templates", "/v1/assets"} {
		require.Contains(t, h.raw("GET", path, a, "").body, `"data":[]`, path)
		require.Equal(t, http.StatusNotFound, h.raw("GET", path+"?account=beta", a, "").status, path)
	}
	require.NotContains(t, h.raw("GET", "/v1/keys", a, "").body, key.ID)
	require.Contains(t, h.raw("GET", "/v1/queue/stats?queues=10", a, "").body, `"queued":0`)
	require.NotContains(t, h.raw("GET", "/v1/queue?query=account%3Dbeta", a, "").body, message.ID)
	for _, body := range []string{
		`{"action":"fail","ids":["` + message.ID + `"]}`, `{"action":"fail","ids":["` + message.ID + `.0"]}`,
		`{"action":"fail","selector":{"account":"beta"}}`, `{"action":"fail","selector":{"query":"account=beta"}}`,
	} {
		require.Equal(t, http.StatusNotFound, h.post("/v1/queue/actions", a, body).status, body)
	}
	h.post("/v1/queue/actions", a, `{"action":"fail","selector":{"all":true}}`)
	h.post("/v1/suppressions", a, `{"email":"x@example.net","account":"beta"}`)
	still, err := b.QueueMessage(ctx, message.ID)
	require.NoError(t, err)
	require.Equal(t, "ready", still.Envelopes[0].State)
	_, err = h.client("alpha", "all").CreateDomain(ctx, api.CreateDomain{Name: "beta.example"})
	requireCode(t, err, api.CodeConflict)
}

func TestEveryAnswerHasItsHeader(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, path := range []string{"/v1/version", "/v1/nothing", "/healthz", "/u/x", "/robots.txt"} {
		a := h.raw("GET", path, h.key("", "all"), "")
		require.Equal(t, "no-store", a.header.Get("Cache-Control"), path)
		require.Equal(t, "nosniff", a.header.Get("X-Content-Type-Options"), path)
		require.Equal(t, "no-referrer", a.header.Get("Referrer-Policy"), path)
		require.Empty(t, a.header.Get("Set-Cookie"), path)
		require.Empty(t, a.header.Get("Access-Control-Allow-Origin"), path)
		require.True(t, strings.HasPrefix(a.header.Get("X-Request-Id"), "req_"), path)
	}
}
