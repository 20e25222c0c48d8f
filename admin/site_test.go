package admin

import (
	"context"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

// siteBook is Sites as a table of domains.
type siteBook map[string]string

func (b siteBook) Sites(_ context.Context, domains []string) map[string]string {
	out := map[string]string{}
	for _, d := range domains {
		if site := b[d]; site != "" {
			out[d] = site
		}
	}
	return out
}

func (b siteBook) SiteOf(domain string) string { return b[domain] }

func (b siteBook) HasSite(name string) bool { return name == "idle.example" }

func TestQueueBySite(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.deps.Sites = siteBook{"one.example": "mx.google.example", "two.example": "mx.google.example", "three.example": "mx.other.example"}
	ctx := t.Context()
	h.ready("", "example.com")
	h.send("x@one.example", "y@two.example", "z@three.example", "q@dark.example")

	page, err := h.root.Queue(ctx, api.QueueSelector{Site: "MX.google.example"}, api.List{Limit: 1})
	require.NoError(t, err)
	require.Len(t, page.Data, 1)
	require.True(t, page.HasMore)
	require.Equal(t, "mx.google.example", page.Data[0].Site)
	page, err = h.root.Queue(ctx, api.QueueSelector{Site: "MX.google.example"}, api.List{Limit: 1, Cursor: page.NextCursor})
	require.NoError(t, err)
	require.Equal(t, "y@two.example", page.Data[0].To)
	page, err = h.root.Queue(ctx, api.QueueSelector{Query: "site=mx.other.example"}, api.List{})
	require.NoError(t, err)
	require.Len(t, page.Data, 1)
	page, err = h.root.Queue(ctx, api.QueueSelector{Site: "idle.example"}, api.List{})
	require.NoError(t, err, "a site that is known and has nothing")
	require.Empty(t, page.Data)

	_, err = h.root.Queue(ctx, api.QueueSelector{Site: "mx.unknown.example"}, api.List{})
	requireCode(t, err, api.CodeInvalidParameter)
	require.ErrorContains(t, err, "relayctl queue stats --sites")
	a := h.post("/v1/queue/actions", h.key("", "admin"), `{"action":"fail","selector":{"site":"mx.unknown.example"}}`)
	require.Equal(t, http.StatusBadRequest, a.status, "%s", a.body)

	act := api.QueueAction{Action: "hold", Selector: &api.QueueSelector{Site: "mx.google.example"}, DryRun: true}
	res, err := h.root.QueueAct(ctx, act)
	require.NoError(t, err)
	require.Equal(t, api.QueueActionResult{Action: "hold", DryRun: true, Matched: 2, Changed: 2, Unknown: 1}, res)
	act.DryRun = false
	res, err = h.root.QueueAct(ctx, act)
	require.NoError(t, err)
	require.Equal(t, 2, res.Changed)

	stats, err := h.root.QueueStats(ctx, 0, 10)
	require.NoError(t, err)
	require.Equal(t, []api.SiteCount{
		{Site: "mx.google.example", Domains: 2, Held: 2}, {Domains: 1, Ready: 1}, {Site: "mx.other.example", Domains: 1, Ready: 1},
	}, stats.Sites)
	stats, err = h.root.QueueStats(ctx, 0, 1)
	require.NoError(t, err)
	require.Len(t, stats.Sites, 1)
	h.ready("beta", "beta.example")
	_, err = h.client("beta", "all").Queue(ctx, api.QueueSelector{Site: "mx.google.example"}, api.List{})
	requireCode(t, err, api.CodeInvalidParameter)
}
