package campaign

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/mail"
	"relayd/spool"
)

func promo() *api.CreateTemplate {
	there := "there"
	return &api.CreateTemplate{Name: "promo", TemplateSource: api.TemplateSource{
		Subject: "{{Subject}}",
		HTML:    `<html><head><style>p{margin:0}</style></head><body><p>Hi {{Name}}</p>{{Body}}{{> footer}}</body></html>`,
		Variables: map[string]api.Variable{
			"Subject": {Scope: "campaign", Required: true}, "Body": {Scope: "campaign", Type: "html"}, "Name": {Scope: "contact", Default: &there},
		},
		Partials: map[string]api.Partial{"footer": {HTML: `<p><a href="{{unsubscribe_url}}">Unsubscribe</a></p>`}},
		Samples:  []api.TemplateSample{{Name: "Ann", Data: map[string]any{"Name": "Ann", "Subject": "Hello", "Body": "<p>Hi</p>"}}, {Name: "no name", Data: map[string]any{"Subject": "Hello", "Body": ""}}},
	}}
}

func receipt() *api.CreateTemplate {
	return &api.CreateTemplate{Name: "receipt", Kind: "transactional", TemplateSource: api.TemplateSource{
		Subject: "Order {{order}}", HTML: `<p>{{shop.name}}: {{total}}</p>{{note}}`,
		Variables: map[string]api.Variable{"note": {Scope: "message", Type: "html"}},
		Samples:   []api.TemplateSample{{Name: "one", Data: map[string]any{"order": json.Number("12345678901234567890"), "total": "5", "shop": map[string]any{"name": "S"}, "note": "<b>x</b>"}}},
	}}
}

func invalidOf(t *testing.T, err error) *Invalid {
	t.Helper()
	bad, ok := errors.AsType[*Invalid](err)
	require.True(t, ok, "%v", err)
	require.NotEmpty(t, bad.Errors)
	return bad
}

func TestTemplateVersions(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	one, err := r.CreateTemplate(ctx, "default", promo())
	require.NoError(t, err)
	require.Equal(t, 1, one.Version)
	require.Equal(t, "draft", one.State)
	require.Equal(t, []string{"Body", "Name", "Subject", "unsubscribe_url"}, one.VariablesUsed)
	require.Positive(t, one.Compiled.HTMLBytes)
	_, err = r.CreateTemplate(ctx, "default", promo())
	require.ErrorIs(t, err, ErrTemplateExists)
	_, err = r.CreateTemplate(ctx, "other", promo())
	require.NoError(t, err, "names belong to accounts")

	subject := "{{Subject}}!"
	same, err := r.PatchTemplate(ctx, "default", "promo", one.ETag, &api.PatchTemplate{Subject: &subject})
	require.NoError(t, err)
	require.Equal(t, 1, same.Version, "a draft is changed in place")
	_, err = r.PatchTemplate(ctx, "default", "promo", one.ETag, &api.PatchTemplate{Subject: &subject})
	require.ErrorIs(t, err, ErrChanged)
	require.ErrorIs(t, r.DeleteTemplate(ctx, "default", "promo", one.ETag), ErrChanged)

	done, err := r.PublishTemplate(ctx, "default", "promo", 0)
	require.NoError(t, err)
	require.Equal(t, "published", done.State)
	require.Equal(t, 1, done.Published)
	subject = "changed {{Subject}}"
	two, err := r.PatchTemplate(ctx, "default", "promo", "", &api.PatchTemplate{Subject: &subject})
	require.NoError(t, err)
	require.Equal(t, [2]int{2, 1}, [2]int{two.Version, two.Published}, "a published version is not changed")
	r.reopen()
	first, err := r.Template(ctx, "default", "promo", 1)
	require.NoError(t, err)
	require.Equal(t, "{{Subject}}!", first.Subject)
	latest, err := r.Template(ctx, "default", "promo", 0)
	require.NoError(t, err)
	require.Equal(t, subject, latest.Subject)
	require.Len(t, latest.Samples, 2)

	list, next, err := r.TemplateVersions(ctx, "default", "promo", 0, 1)
	require.NoError(t, err)
	require.Equal(t, 2, list[0].Version)
	list, next, err = r.TemplateVersions(ctx, "default", "promo", next, 1)
	require.NoError(t, err)
	require.Equal(t, [2]int{1, 0}, [2]int{list[0].Version, next})
	all, _, err := r.Templates(ctx, "default", "", 10)
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Empty(t, all[0].HTML)
	require.NoError(t, r.DeleteTemplate(ctx, "default", "promo", ""))
	_, err = r.Template(ctx, "default", "promo", 1)
	require.ErrorIs(t, err, ErrTemplateNotFound)
	_, err = r.Template(ctx, "other", "promo", 1)
	require.NoError(t, err)
}

func TestTemplatesAreRefusedWithTheirPlace(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	many := make([]any, 400)
	for i := range many {
		many[i] = "x"
	}
	tests := map[string]struct {
		change  func(*api.CreateTemplate)
		pointer string
		detail  string
	}{
		"unclosed_block":      {func(c *api.CreateTemplate) { c.HTML += "\n\n {{#if Name}}" }, "/html", "html:3:2"},
		"unknown_helper":      {func(c *api.CreateTemplate) { c.Subject = "{{uper Subject}}" }, "/subject", `did you mean "upper"`},
		"no_unsubscribe":      {func(c *api.CreateTemplate) { c.HTML = "<p>x</p>" }, "/html", "no unsubscribe link"},
		"no_unsubscribe_text": {func(c *api.CreateTemplate) { c.Text = "x" }, "/text", "no unsubscribe link"},
		"unknown_partial":     {func(c *api.CreateTemplate) { c.HTML += "{{> foter}}" }, "/html", `did you mean "footer"`},
		"broken_partial":      {func(c *api.CreateTemplate) { c.Partials["footer"] = api.Partial{HTML: "\n{{/if}}"} }, "/partials/footer", "partials.footer:2:1"},
		"name":                {func(c *api.CreateTemplate) { c.Name = "a/b" }, "/name", "letters"},
		"kind":                {func(c *api.CreateTemplate) { c.Kind = "x" }, "/kind", "broadcast"},
		"sample_lacks":        {func(c *api.CreateTemplate) { c.HTML += "{{name}}" }, "/samples/0/data/name", `did you mean "Name"`},
		"sample_campaign":     {func(c *api.CreateTemplate) { c.Samples[1].Data["Body"] = "{{#if}}" }, "/samples/1/data/Body", "data.Body:1:"},
		"loop_over_a_million": {func(c *api.CreateTemplate) {
			c.HTML += "{{#each l}}{{#each @root.l}}.{{/each}}{{/each}}"
			c.Variables["l"] = api.Variable{Scope: "contact"}
			c.Samples[0].Data["l"] = many
		}, "/samples/0/data", "more than 100000 iterations"},
		"html_of_a_contact": {func(c *api.CreateTemplate) { c.Variables["Name"] = api.Variable{Scope: "contact", Type: "html"} }, "/variables/Name/type", "always text"},
		"single_only":       {func(c *api.CreateTemplate) { c.Kind, c.Variables = "transactional", nil }, "/html", "broadcasts only"},
		"output":            {func(c *api.CreateTemplate) { c.HTML = strings.Repeat("x", maxSource+1) }, "/html", "longer than"},
		"no_auto_text":      {func(c *api.CreateTemplate) { c.Options.AutoText = new(bool) }, "/text", "a text part is needed"},
		"data_uri":          {func(c *api.CreateTemplate) { c.HTML += `<img src="data:image/png;base64,x">` }, "/html", "data: URIs"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in := promo()
			tt.change(in)
			_, err := r.CreateTemplate(t.Context(), "default", in)
			bad := invalidOf(t, err)
			require.Contains(t, bad.Errors[0].Detail, tt.detail)
			if name == "single_only" {
				require.Contains(t, bad.Error(), "unsubscribe_url")
				return
			}
			require.Equal(t, tt.pointer, bad.Errors[0].Pointer, "%v", bad)
			_, err = r.Template(t.Context(), "default", in.Name, 0)
			require.ErrorIs(t, err, ErrTemplateNotFound, "nothing is stored")
		})
	}
}

func TestStoredPartialsAreTakenIn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	_, err := r.CreateTemplate(ctx, "default", &api.CreateTemplate{Name: "footer", Kind: "partial", TemplateSource: api.TemplateSource{HTML: `<p>{{> address}} <a href="{{unsubscribe_url}}">stop</a></p>`}})
	require.NoError(t, err)
	_, err = r.CreateTemplate(ctx, "default", &api.CreateTemplate{Name: "address", Kind: "partial", TemplateSource: api.TemplateSource{HTML: "1 First Street"}})
	require.NoError(t, err)
	in := promo()
	in.Partials = nil
	_, err = r.CreateTemplate(ctx, "default", in)
	require.NoError(t, err)
	_, err = r.PublishTemplate(ctx, "default", "promo", 1)
	require.NoError(t, err)
	moved := "2 Second Street"
	_, err = r.PatchTemplate(ctx, "default", "address", "", &api.PatchTemplate{HTML: &moved})
	require.NoError(t, err)
	out, err := r.RenderTemplate(ctx, "default", "promo", &api.RenderTemplate{Sample: "Ann"})
	require.NoError(t, err)
	require.Contains(t, out.HTML, "1 First Street", "a published version never changes")
	require.Contains(t, out.Text, "1 First Street")
	require.Contains(t, out.HTML, `<p style="margin:0">Hi Ann</p><p style="margin:0">Hi</p>`)
	require.Equal(t, "Hello", out.Subject)
	require.Contains(t, out.Headers["List-Unsubscribe"], "https://u.shop.example/u/")
	require.Empty(t, out.Findings)
	c := request(to("a@b.example", "A"))
	c.Template.HTML = "<p>{{> footer}}</p>"
	_, err = r.Create(ctx, "default", c)
	require.NoError(t, err, "campaigns may use them too")
}

func TestRenderingTellsWhatIsMissing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	_, err := r.CreateTemplate(ctx, "default", receipt())
	require.NoError(t, err)
	_, err = r.RenderTemplate(ctx, "default", "receipt", &api.RenderTemplate{Data: map[string]any{"Order": "1", "shop": map[string]any{"name": "x"}, "total": "1", "note": ""}})
	bad := invalidOf(t, err)
	require.Equal(t, api.CodeTemplateVariable, bad.Code)
	require.Equal(t, "Template receipt@1 needs 'order' and no default is declared.", bad.Detail)
	require.Equal(t, api.FieldError{Pointer: "/data/order", Code: "required", Detail: `used in subject:1:9; did you mean "Order"?`}, bad.Errors[0])
	_, err = r.CreateTemplate(ctx, "default", promo())
	require.NoError(t, err)
	_, err = r.RenderTemplate(ctx, "default", "promo", &api.RenderTemplate{Data: map[string]any{"Subject": "S"}})
	require.Equal(t, "/data/Body", invalidOf(t, err).Errors[0].Pointer)
	_, err = r.RenderTemplate(ctx, "default", "promo", &api.RenderTemplate{Data: map[string]any{"Body": "B"}})
	require.Equal(t, "/data/Subject", invalidOf(t, err).Errors[0].Pointer)
	_, err = r.RenderTemplate(ctx, "default", "receipt", &api.RenderTemplate{Sample: "One"})
	require.Contains(t, invalidOf(t, err).Errors[0].Detail, `did you mean "one"`)
	out, err := r.RenderTemplate(ctx, "default", "receipt", &api.RenderTemplate{Sample: "one"})
	require.NoError(t, err)
	require.Equal(t, "Order 12345678901234567890", out.Subject)
	require.Equal(t, "<p>S: 5</p><b>x</b>", out.HTML)
	require.Equal(t, "S: 5\n\nx\n", out.Text)
	require.NotContains(t, out.Headers, "List-Unsubscribe")
	out, err = r.RenderTemplate(ctx, "default", "receipt", &api.RenderTemplate{Sample: "one", Data: map[string]any{"total": `"><script>`, "note": "{{order}} <i>y</i>"}})
	require.NoError(t, err)
	require.Equal(t, "<p>S: &#34;&gt;&lt;script&gt;</p>{{order}} <i>y</i>", out.HTML)
	require.Equal(t, "S: \"><script>\n\n{{order}} y\n", out.Text)
	_, err = r.RenderTemplate(ctx, "default", "receipt", &api.RenderTemplate{Sample: "one", Data: map[string]any{"order": "1\r\nBcc: x@y.example"}})
	require.Equal(t, "header_line_break", invalidOf(t, err).Errors[0].Code)
}

func TestSingleMessages(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	send := func(ref api.TemplateRef, data map[string]any) ([]byte, error) {
		return r.SingleMessage(ctx, "default", ref, data, []byte("From: shop@shop.example\r\nTo: ann@example.com\r\n"), mail.MustParsePath("shop@shop.example"), mail.MustParsePath("ann@example.com"))
	}
	data := map[string]any{"order": "1", "total": "5", "shop": map[string]any{"name": "S"}, "note": ""}
	_, err := send(api.TemplateRef{Name: "receipt"}, data)
	require.Equal(t, "/template", invalidOf(t, err).Errors[0].Pointer)
	_, err = r.CreateTemplate(ctx, "default", receipt())
	require.NoError(t, err)
	for _, version := range []int{0, 1} {
		_, err = send(api.TemplateRef{Name: "receipt", Version: version}, data)
		require.Contains(t, invalidOf(t, err).Errors[0].Detail, "relayctl template publish", "a draft is never sent")
	}
	_, err = r.PublishTemplate(ctx, "default", "receipt", 0)
	require.NoError(t, err)
	msg, err := send(api.TemplateRef{Name: "receipt"}, data)
	require.NoError(t, err)
	h := header(t, msg)
	require.Equal(t, "Order 1", h.Get("Subject"))
	require.Empty(t, h.Get("List-Unsubscribe"))
	leaves, order := parts(t, msg)
	require.Equal(t, []string{"multipart/alternative", "text/plain", "text/html"}, order)
	require.Equal(t, "<p>S: 5</p>", leaves["text/html"])
	other, err := send(api.TemplateRef{Name: "receipt"}, data)
	require.NoError(t, err)
	require.NotEqual(t, h.Get("Message-ID"), header(t, other).Get("Message-ID"))
	delete(data, "total")
	_, err = send(api.TemplateRef{Name: "receipt", Version: 1}, data)
	require.Equal(t, "/data/total", invalidOf(t, err).Errors[0].Pointer)
	_, err = r.CreateTemplate(ctx, "default", promo())
	require.NoError(t, err)
	_, err = send(api.TemplateRef{Name: "promo"}, data)
	require.Error(t, err, "a broadcast template is for campaigns")
}

func TestCampaignsFreezeTheVersionAtTheirStart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	_, err := r.CreateTemplate(ctx, "default", promo())
	require.NoError(t, err)
	create := func(version int) (api.Campaign, error) {
		return r.Create(ctx, "default", &api.CreateCampaign{
			Name: "C", From: api.Mailbox{Email: "deals@shop.example"}, Template: api.CampaignTemplate{Name: "promo", Version: version},
			Data: map[string]any{"Subject": "S", "Body": "<p>B</p>"}, Recipients: []api.Recipient{to("ann@example.com", "Ann")},
		})
	}
	_, err = create(0)
	require.Contains(t, invalidOf(t, err).Errors[0].Detail, "no published version")
	_, err = r.PublishTemplate(ctx, "default", "promo", 1)
	require.NoError(t, err)
	floating, err := create(0)
	require.NoError(t, err)
	fixed, err := create(1)
	require.NoError(t, err)
	html := strings.Replace(promo().HTML, "Hi", "Hello", 1)
	_, err = r.PatchTemplate(ctx, "default", "promo", "", &api.PatchTemplate{HTML: &html})
	require.NoError(t, err)
	_, err = create(2)
	require.Contains(t, invalidOf(t, err).Errors[0].Detail, "is a draft")
	_, err = r.PublishTemplate(ctx, "default", "promo", 2)
	require.NoError(t, err)
	for _, c := range []api.Campaign{floating, fixed} {
		_, err = r.Start(ctx, "default", c.ID)
		require.NoError(t, err)
	}
	html = strings.Replace(html, "Hello", "Never", 1)
	_, err = r.PatchTemplate(ctx, "default", "promo", "", &api.PatchTemplate{HTML: &html})
	require.NoError(t, err)
	_, err = r.PublishTemplate(ctx, "default", "promo", 3)
	require.NoError(t, err)
	require.NoError(t, r.DeleteTemplate(ctx, "default", "promo", ""))
	r.reopen()
	r.fan()
	got := map[string]string{}
	require.Equal(t, 2, r.deliver(2, func(msg []byte, e *spool.Envelope) spool.Result {
		leaves, _ := parts(t, msg)
		got[formatID(e.ID.Message)] = leaves["text/html"]
		return delivered(msg, e)
	}))
	require.Contains(t, got[floating.ID], "Hello Ann")
	require.Contains(t, got[fixed.ID], "Hi Ann")
	_, err = r.Create(ctx, "default", &api.CreateCampaign{Name: "C", From: api.Mailbox{Email: "deals@shop.example"}, Template: api.CampaignTemplate{Name: "promo", HTML: "x"}})
	require.Equal(t, "/template", invalidOf(t, err).Errors[0].Pointer)
}

func TestAssets(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	png, err := base64.StdEncoding.DecodeString(onePixel)
	require.NoError(t, err)
	a, err := r.AddAsset(ctx, "default", `C:\pictures\logo.png`, "", png)
	require.NoError(t, err)
	require.Equal(t, []any{"logo.png", "image/png", len(png), 1, 1}, []any{a.Name, a.ContentType, a.Bytes, a.Width, a.Height})
	again, err := r.AddAsset(ctx, "default", "logo.png", "", png)
	require.NoError(t, err)
	require.Equal(t, a.ID, again.ID, "the same bytes are stored once")
	_, err = r.AddAsset(ctx, "default", "x.svg", "image/svg+xml", []byte("<svg onload=alert(1)>"))
	require.Equal(t, "/file", invalidOf(t, err).Errors[0].Pointer)
	_, err = r.AddAsset(ctx, "default", "a b.png", "", png)
	require.Equal(t, "/name", invalidOf(t, err).Errors[0].Pointer)

	rest, ok := strings.CutPrefix(a.URL, "https://u.shop.example/a/")
	require.True(t, ok)
	token, name, _ := strings.Cut(rest, "/")
	shown, content, err := r.PublicAsset(ctx, token, name)
	require.NoError(t, err)
	require.Equal(t, a.SHA256, shown.SHA256)
	require.True(t, bytes.Equal(png, content))
	for _, wrong := range [][2]string{{token, "other.png"}, {strings.Repeat("0", 32), name}, {"", name}, {token[1:], name}} {
		_, _, err = r.PublicAsset(ctx, wrong[0], wrong[1])
		require.ErrorIs(t, err, ErrAssetNotFound)
	}

	in := promo()
	in.HTML += `<img src="asset:logo.png" alt=""><img src="cid:big.png" alt="">`
	_, err = r.AddAsset(ctx, "default", "big.png", "", append(png, 0))
	require.NoError(t, err)
	in.Images = []api.CampaignImage{{Name: "logo.png", Mode: "link"}} // chosen for each image
	made, err := r.CreateTemplate(ctx, "default", in)
	require.NoError(t, err)
	require.Equal(t, 1, made.Compiled.InlineImages)
	out, err := r.RenderTemplate(ctx, "default", "promo", &api.RenderTemplate{Sample: "Ann"})
	require.NoError(t, err)
	require.Contains(t, out.HTML, `<img src="`+a.URL+`" alt=""><img src="cid:big.png.`)
	require.ErrorIs(t, r.DeleteAsset(ctx, "default", a.ID, false), ErrAssetUsed)
	require.NoError(t, r.DeleteAsset(ctx, "default", a.ID, true))
	_, _, err = r.PublicAsset(ctx, token, name)
	require.ErrorIs(t, err, ErrAssetNotFound)
	list, _, err := r.Assets(ctx, "default", "", 10)
	require.NoError(t, err)
	require.Len(t, list, 1)
}

func TestValidation(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	in := promo()
	in.HTML += `<a href="http://bit.ly/x">x</a><form></form>`
	_, err := r.CreateTemplate(ctx, "default", in)
	require.NoError(t, err)
	v, err := r.ValidateTemplate(ctx, "default", "promo", &api.RenderTemplate{})
	require.NoError(t, err)
	require.True(t, v.OK)
	require.Len(t, v.Findings, 4, "two for each sample")
	require.Equal(t, "F13", v.Findings[0].ID)
	require.Equal(t, "Ann", v.Findings[0].Sample)
	require.Positive(t, v.Findings[0].Line)
	require.Equal(t, []api.VariableUse{{Name: "Name", Places: []string{"html:1:60", "text:1:6"}}}, v.Variables[1:2])
	source := promo()
	source.Samples = nil
	source.Subject = "Re: {{Subject}} {{City}}"
	v, err = r.ValidateTemplate(ctx, "default", "unsaved", &api.RenderTemplate{Source: func() *api.CreateTemplate { source.Name = ""; return source }()})
	require.NoError(t, err)
	require.Contains(t, v.Findings[0].Detail, "begins like an answer")
	require.Contains(t, v.Warnings[len(v.Warnings)-1].Detail, `"City" (subject:1:19) has no default`)
	_, err = r.Template(ctx, "default", "unsaved", 0)
	require.ErrorIs(t, err, ErrTemplateNotFound, "validating stores nothing")
}

func TestCampaignsAreCheckedAsProvidersDo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	req := request(to("ann@example.com", "Ann"))
	req.Start, req.Data["Subject"] = false, "Re: {{Name}}"
	c, err := r.Create(ctx, "default", req)
	require.NoError(t, err)
	v, err := r.Validate(ctx, "default", c.ID)
	require.NoError(t, err)
	require.True(t, v.OK, "%+v", v.Checks)
	require.Len(t, v.Findings, 1)
	require.Equal(t, "F12", v.Findings[0].ID)
	p, err := r.Preview(ctx, "default", c.ID, &api.PreviewCampaign{})
	require.NoError(t, err)
	require.Equal(t, v.Findings, p.Findings)
}

func TestUnknownTemplateRecordsAreErrors(t *testing.T) {
	t.Parallel()
	for _, b := range []string{"", "\x02{}", "\x01", "\x01{"} {
		require.ErrorIs(t, decodeRow([]byte(b), new(templateRecord)), errBadRecord)
	}
	b, err := encodeRow(&edition{Version: 3, Created: time.Unix(1, 0).UTC()})
	require.NoError(t, err)
	e := new(edition)
	require.NoError(t, decodeRow(b, e))
	require.Equal(t, 3, e.Version)
}
