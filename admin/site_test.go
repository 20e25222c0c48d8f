package admin

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/delivery"
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

func (b siteBook) SiteStates() []delivery.SiteState {
	return []delivery.SiteState{
		{Name: "mx.google.example", Kind: "site", State: "paused", Limit: "suspended", LimitedBy: "mx.google.example", Connections: 3, Failures: 2},
		{Name: "provider:google", Kind: "provider", State: "idle"},
	}
}

func (b siteBook) SuspendSite(_ context.Context, name string, h delivery.Hold) error {
	if name == "nonsense" {
		return fmt.Errorf("%w: nonsense", delivery.ErrNoSite)
	}
	b["suspended "+name] = h.Who + " " + h.Reason + " " + h.Until.Sub(h.Since).String()
	return nil
}

func (b siteBook) ResumeSite(_ context.Context, name, who, reason string) (bool, error) {
	_, was := b["suspended "+name]
	delete(b, "suspended "+name)
	return was, nil
}

func TestSitesAreTheOperators(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	book := siteBook{}
	h.deps.Sites = book
	ctx := t.Context()
	page, err := h.root.Sites(ctx, "", api.List{Limit: 1})
	require.NoError(t, err)
	require.Len(t, page.Data, 1)
	require.Equal(t, "paused", page.Data[0].State)
	page, err = h.root.Sites(ctx, "", api.List{Limit: 1, Cursor: page.NextCursor})
	require.NoError(t, err)
	require.Equal(t, "provider:google", page.Data[0].Name)
	require.False(t, page.HasMore)
	page, err = h.root.Sites(ctx, "idle", api.List{})
	require.NoError(t, err)
	require.Len(t, page.Data, 1)
	_, err = h.root.Sites(ctx, "lazy", api.List{})
	requireCode(t, err, api.CodeInvalidParameter)
	page, err = h.root.Site(ctx, "MX.google.example")
	require.NoError(t, err)
	require.Equal(t, 2, page.Data[0].Failures)
	_, err = h.root.Site(ctx, "mx.unknown.example")
	requireCode(t, err, api.CodeNotFound)

	changed, err := h.root.SuspendSite(ctx, "provider:Google", api.SiteSuspension{Seconds: 3600, Reason: "ticket 12"})
	require.NoError(t, err)
	require.Equal(t, "provider:google", changed.Name)
	require.Contains(t, book["suspended provider:google"], "ticket 12 1h0m0s")
	changed, err = h.root.ResumeSite(ctx, "provider:google", api.SiteResumption{})
	require.NoError(t, err)
	require.True(t, changed.Changed)
	changed, err = h.root.ResumeSite(ctx, "provider:google", api.SiteResumption{})
	require.NoError(t, err)
	require.False(t, changed.Changed)
	_, err = h.root.SuspendSite(ctx, "nonsense", api.SiteSuspension{})
	requireCode(t, err, api.CodeNotFound)
	_, err = h.root.SuspendSite(ctx, "mx.example", api.SiteSuspension{Seconds: -1})
	requireCode(t, err, api.CodeInvalidParameter)
	_, err = h.root.SuspendSite(ctx, "mx.example", api.SiteSuspension{Reason: "two\nlines"})
	requireCode(t, err, api.CodeInvalidParameter)
	require.Empty(t, book)

	h.ready("beta", "beta.example")
	_, err = h.client("beta", "all").Sites(ctx, "", api.List{})
	require.Error(t, err)
	_, err = h.client("beta", "all").SuspendSite(ctx, "mx.example", api.SiteSuspension{})
	require.Error(t, err)
	require.Empty(t, book)
}

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
