package campaign

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/spool"
)

// This file holds answers to what users of other programs complain about (docs/complaints.md) that are in no file of their
// own subject.

// Row 4: starts that come at once, and rounds that overlap, make one envelope of each recipient.
func TestStartsAtOnceAreOneStart(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.PageSize = 7 })
	c := r.draftOf(60)
	var wg sync.WaitGroup
	errs := make(chan error, 20)
	for range 10 {
		wg.Go(func() {
			_, err := r.Start(t.Context(), "default", c.ID)
			errs <- err
		})
		wg.Go(func() {
			for range 20 {
				r.round(t.Context())
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err, "each start is answered as if it were the only one")
	}
	r.waitFor(c.ID, Running)
	r.fan()
	require.Equal(t, int64(60), r.progress(c.ID).Counts.Pending)
	seen := map[string]int{}
	r.deliver(1000, func(msg []byte, e *spool.Envelope) spool.Result {
		seen[e.To.String()]++
		return delivered(msg, e)
	})
	require.Len(t, seen, 60)
	for address, n := range seen {
		require.Equal(t, 1, n, address)
	}
	require.Equal(t, Completed, r.progress(c.ID).State)
}

// counted counts the records that are read.
type counted struct {
	kv.DB
	reads *atomic.Int64
}

func (d counted) View(ctx context.Context, fn func(kv.Tx) error) error {
	return d.DB.View(ctx, func(tx kv.Tx) error { return fn(countedTx{tx, d.reads}) })
}

type countedTx struct {
	kv.Tx
	reads *atomic.Int64
}

func (tx countedTx) Get(t kv.Table, key []byte) ([]byte, error) {
	tx.reads.Add(1)
	return tx.Tx.Get(t, key)
}

func (tx countedTx) GetMany(t kv.Table, keys [][]byte) ([][]byte, error) {
	tx.reads.Add(int64(len(keys)))
	return tx.Tx.GetMany(t, keys)
}

func (tx countedTx) Scan(t kv.Table, from, to []byte, fn func(key, value []byte) (bool, error)) error {
	return tx.Tx.Scan(t, from, to, func(k, v []byte) (bool, error) {
		tx.reads.Add(1)
		return fn(k, v)
	})
}

// Row 9: progress of a large campaign reads as much as that of a small one.
func TestProgressReadsTheSameForFewAndMany(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	reads := func(n int) int64 {
		c := r.draftOf(n)
		_, err := r.Start(t.Context(), "default", c.ID)
		require.NoError(t, err)
		r.fan()
		r.deliver(n/2, delivered)
		var count atomic.Int64
		was := r.Service.db
		r.Service.db = counted{was, &count}
		p := r.progress(c.ID)
		r.Service.db = was
		require.Equal(t, int64(n/2), p.Counts.Delivered)
		require.Positive(t, count.Load())
		r.deliver(n, delivered)
		return count.Load()
	}
	require.Equal(t, reads(10), reads(3000))
}

// Row 13: values that are empty, in every place that takes one, are no reason to fall over.
func TestEmptyValuesMakeAMessage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.draftOf(0, func(req *api.CreateCampaign) {
		req.Data = map[string]any{"Subject": "S", "Body": "", "List": []any{}, "Shop": map[string]any{}}
		req.Template.HTML = `<p class="{{Body}}">{{Body}}{{#each List}}x{{/each}}{{#with Shop}}y{{/with}}{{#if Body}}z{{/if}}</p><a href="{{unsubscribe_url}}">-</a>`
		req.Recipients = []api.Recipient{{Email: "ann@example.com"}}
	})
	p, err := r.Preview(t.Context(), "default", c.ID, &api.PreviewCampaign{})
	require.NoError(t, err)
	require.Contains(t, p.HTML, `<p class="">y</p>`, "an object is there, even an empty one")
	for _, part := range []func(*api.CampaignTemplate){
		func(x *api.CampaignTemplate) { x.HTML, x.Text = "", "" },
		func(x *api.CampaignTemplate) { x.Subject = "" },
		func(x *api.CampaignTemplate) { x.HTML = " \n " },
	} {
		req := request(to("a@x.example", "A"))
		part(&req.Template)
		_, err := r.Create(t.Context(), "default", req)
		require.ErrorAs(t, err, new(*Invalid))
	}
}

// Row 14: both branches of a condition are seen before anything is sent, with the samples of the template.
func TestPreviewWithASample(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	in := promo()
	in.HTML = strings.Replace(in.HTML, "Hi {{Name}}", "{{#if Vip}}Dear {{Name}}{{else}}Hi {{Name}}{{/if}}", 1)
	in.Samples = []api.TemplateSample{
		{Name: "vip", Data: map[string]any{"Name": "Ann", "Subject": "of the sample", "Body": "of the sample"}, Attributes: map[string]any{"Vip": true}},
		{Name: "other", Data: map[string]any{"Subject": "of the sample", "Body": "of the sample"}},
	}
	_, err := r.CreateTemplate(ctx, "default", in)
	require.NoError(t, err)
	_, err = r.PublishTemplate(ctx, "default", "promo", 0)
	require.NoError(t, err)
	c := r.draftOf(1, func(req *api.CreateCampaign) { req.Template = api.CampaignTemplate{Name: "promo"} })
	for sample, want := range map[string]string{"vip": "Dear Ann", "other": "Hi there"} {
		p, err := r.Preview(ctx, "default", c.ID, &api.PreviewCampaign{Sample: sample})
		require.NoError(t, err)
		require.Contains(t, p.HTML, want)
		require.Contains(t, p.Subject, "Black Friday for", "the campaign's data is its own")
	}
	p, err := r.Preview(ctx, "default", c.ID, &api.PreviewCampaign{Sample: "vip", Data: map[string]any{"Name": "Bob"}})
	require.NoError(t, err)
	require.Contains(t, p.HTML, "Dear Bob")
	_, err = r.Preview(ctx, "default", c.ID, &api.PreviewCampaign{Sample: "vjp"})
	require.Contains(t, requireInvalid(t, err, "invalid_parameter", "/sample"), `did you mean "vip"?`)
	_, err = r.Preview(ctx, "default", c.ID, &api.PreviewCampaign{Sample: "vip", Contact: "user0@d0.example"})
	requireInvalid(t, err, "invalid_parameter", "/sample")
	own := r.draftOf(1)
	_, err = r.Preview(ctx, "default", own.ID, &api.PreviewCampaign{Sample: "vip"})
	requireInvalid(t, err, "invalid_parameter", "/sample")
}

// Row 21: nobody is watched, and who asks for it is told.
func TestNobodyIsWatched(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	req := request(to("ann@example.com", "Ann"))
	require.NoError(t, json.Unmarshal([]byte(`{"tracking":{"opens":false,"clicks":false}}`), req))
	req.Template.HTML = strings.Replace(req.Template.HTML, "<p>Hi", `<a href="https://shop.example/sale?id=1">sale</a><p>Hi`, 1)
	c, err := r.Create(t.Context(), "default", req)
	require.NoError(t, err)
	r.fan()
	require.Equal(t, 1, r.deliver(1, func(msg []byte, e *spool.Envelope) spool.Result {
		require.NotContains(t, string(msg), "<img")
		require.Contains(t, string(msg), `href=3D"https://shop.example/sale?id=3D1"`, "links lead where the author wrote")
		return delivered(msg, e)
	}))
	require.Equal(t, Completed, r.progress(c.ID).State)
	for _, field := range []string{"opens", "clicks"} {
		req := request(to("ann@example.com", "Ann"))
		require.NoError(t, json.Unmarshal(fmt.Appendf(nil, `{"tracking":{%q:true}}`, field), req))
		_, err := r.Create(t.Context(), "default", req)
		requireInvalid(t, err, "invalid_parameter", "/tracking/"+field)
	}
}

// Recipients who lack a variable: the campaign is refused, nothing stands in its place, or they are left out.
func TestOnMissing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	draft := func(how string) string {
		req := request()
		req.OnMissing = how
		req.Template.HTML = strings.Replace(req.Template.HTML, "<p>Hi", `<p>{{upper Name}} {{number Age 2}} {{lookup Shop "city"}}|Hi`, 1)
		req.Data["Shop"] = map[string]any{}
		if how == "error" {
			req.OnMissing = ""
		}
		c, err := r.Create(ctx, "default", req)
		require.NoError(t, err)
		rows := `{"email":"ann@a.example","attributes":{"Name":"Ann","Age":3}}` + "\n" + `{"email":"bob@b.example"}`
		_, err = r.AddRecipients(ctx, "default", c.ID, "application/x-ndjson", strings.NewReader(rows), api.ImportOptions{})
		require.NoError(t, err)
		return c.ID
	}
	id := draft("error")
	_, err := r.Start(ctx, "default", id)
	requireInvalid(t, err, "template_variable_missing", "/data/Age")

	how := "default"
	_, err = r.Patch(ctx, "default", id, "", &api.PatchCampaign{OnMissing: &how})
	require.NoError(t, err)
	v, err := r.Validate(ctx, "default", id)
	require.NoError(t, err)
	require.True(t, v.OK, "%+v", v.Checks)
	require.Equal(t, api.RecipientFates{Total: 2, WillSend: 2}, v.Recipients)
	require.Positive(t, v.Estimated.Bytes)
	requireCheck(t, v, "missing_variables", true, "recipients have none: nothing stands in its place")
	_, err = r.Start(ctx, "default", id)
	require.NoError(t, err)
	r.fan()
	bodies := map[string]string{}
	r.deliver(2, func(msg []byte, e *spool.Envelope) spool.Result {
		bodies[e.To.Local] = string(msg)
		return delivered(msg, e)
	})
	require.Contains(t, bodies["ann"], "<p>ANN=203.00=20|Hi=20Ann</p>")
	require.Contains(t, bodies["bob"], "<p>=20=20|Hi=20</p>")
	require.Equal(t, Completed, r.progress(id).State)

	id = draft("skip")
	_, err = r.Start(ctx, "default", id)
	requireInvalid(t, err, "audience_empty", "/on_missing") // the shop's city is missing for all
	id = r.draftOf(0, func(req *api.CreateCampaign) {
		req.OnMissing = "skip"
		req.Recipients = []api.Recipient{to("ann@a.example", "Ann"), {Email: "bob@b.example"}}
	}).ID
	v, err = r.Validate(ctx, "default", id)
	require.NoError(t, err)
	require.True(t, v.OK, "%+v", v.Checks)
	require.Equal(t, api.RecipientFates{Total: 2, RenderFailed: 1, WillSend: 1}, v.Recipients)
	requireCheck(t, v, "missing_variables", true, "they are left out")
	_, err = r.Start(ctx, "default", id)
	require.NoError(t, err)
	r.fan()
	r.deliver(2, delivered)
	require.Equal(t, api.Counts{Delivered: 1, RenderFailed: 1}, r.progress(id).Counts)
	require.Len(t, r.all(id, "render_failed"), 1)

	req := request(to("ann@a.example", "Ann"))
	req.OnMissing = "ignore"
	_, err = r.Create(ctx, "default", req)
	requireInvalid(t, err, "invalid_parameter", "/on_missing")
}

func requireCheck(t *testing.T, v api.CampaignCheck, id string, ok bool, detail string) {
	t.Helper()
	for _, check := range v.Checks {
		if check.ID == id {
			require.Equal(t, ok, check.OK, "%+v", check)
			require.Contains(t, check.Detail, detail)
			return
		}
	}
	require.Fail(t, "no check "+id, "%+v", v.Checks)
}
