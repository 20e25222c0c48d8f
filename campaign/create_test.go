package campaign

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/spool"
)

func TestStartRefusesWhatRecipientsLack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c, err := r.Create(ctx, "default", request())
	require.NoError(t, err)
	csv := "email,first name\n"
	for i := range 1500 {
		csv += fmt.Sprintf("u%d@x.example,N\n", i)
	}
	_, err = r.AddRecipients(ctx, "default", c.ID, "text/csv", strings.NewReader(csv), api.ImportOptions{ColumnMap: map[string]string{"first name": "attributes.name"}})
	require.NoError(t, err)
	_, err = r.Start(ctx, "default", c.ID)
	detail := requireInvalid(t, err, "template_variable_missing", "/data/Name")
	require.Contains(t, detail, `"Name" (data.Subject:1:20, html:1:21, text:1:6), and 1500 of 1500 recipients have none`)
	require.Contains(t, detail, `did you mean "name"?`)
	got, err := r.Get(ctx, "default", c.ID)
	require.NoError(t, err)
	require.Equal(t, Draft, got.State)
	_, err = r.AddRecipients(ctx, "default", c.ID, "text/csv", strings.NewReader(strings.ReplaceAll(csv, "first name", "name")), api.ImportOptions{})
	require.NoError(t, err, "the draft takes recipients again")
	got, err = r.Start(ctx, "default", c.ID)
	require.NoError(t, err)
	require.Equal(t, Running, got.State)
}

func requireInvalid(t *testing.T, err error, code, pointer string) string {
	t.Helper()
	bad, ok := errors.AsType[*Invalid](err)
	require.True(t, ok, "%v", err)
	for _, e := range bad.Errors {
		if e.Code == code && e.Pointer == pointer {
			return e.Detail
		}
	}
	require.Fail(t, "not among the errors", "%s %s: %+v", code, pointer, bad)
	return ""
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	tests := map[string]struct {
		change        func(*api.CreateCampaign)
		code, pointer string
	}{
		"no_name":                {func(c *api.CreateCampaign) { c.Name = "" }, "invalid_parameter", "/name"},
		"bad_from":               {func(c *api.CreateCampaign) { c.From.Email = "deals" }, "invalid_parameter", "/from/email"},
		"from_name_line_break":   {func(c *api.CreateCampaign) { c.From.Name = "Shop\r\nBcc: x@y.example" }, "header_line_break", "/from/name"},
		"from_name_elsewhere":    {func(c *api.CreateCampaign) { c.From.Name = "boss@victim.example" }, "from_not_verified", "/from/name"},
		"from_name_encoded":      {func(c *api.CreateCampaign) { c.From.Name = "=?utf-8?Q?boss=40victim.example?=" }, "from_not_verified", "/from/name"},
		"from_of_other_account":  {func(c *api.CreateCampaign) { c.From.Email = "a@other.example" }, "from_not_verified", "/from/email"},
		"from_unknown":           {func(c *api.CreateCampaign) { c.From.Email = "a@nowhere.example" }, "from_not_verified", "/from/email"},
		"return_path_unknown":    {func(c *api.CreateCampaign) { c.ReturnPath = "b@nowhere.example" }, "from_not_verified", "/return_path"},
		"bad_reply_to":           {func(c *api.CreateCampaign) { c.ReplyTo = "a b" }, "invalid_parameter", "/reply_to"},
		"no_key":                 {func(c *api.CreateCampaign) { c.From.Email = "a@keyless.example" }, "domain_not_ready", "/from/email"},
		"no_subject":             {func(c *api.CreateCampaign) { c.Template.Subject = " " }, "template_syntax", "/template/subject"},
		"subject_line_break":     {func(c *api.CreateCampaign) { c.Template.Subject = "a\r\nBcc: x" }, "template_syntax", "/template/subject"},
		"data_subject_break":     {func(c *api.CreateCampaign) { c.Data["Subject"] = "a\nb" }, "template_syntax", "/data/Subject"},
		"no_parts":               {func(c *api.CreateCampaign) { c.Template.HTML = "" }, "template_syntax", "/template/text"},
		"bad_html":               {func(c *api.CreateCampaign) { c.Template.HTML = "{{#if x}}" }, "template_syntax", "/template/html"},
		"bad_body":               {func(c *api.CreateCampaign) { c.Data["Body"] = "{{#if x}}" }, "template_syntax", "/data/Body"},
		"bad_preheader":          {func(c *api.CreateCampaign) { c.Template.Preheader = "{{x" }, "template_syntax", "/template/preheader"},
		"no_unsubscribe":         {func(c *api.CreateCampaign) { c.Template.HTML = "<p>{{Name}}</p>" }, "unsubscribe_link_missing", "/template/html"},
		"no_unsubscribe_in_text": {func(c *api.CreateCampaign) { c.Template.Text = "Hi {{Name}}" }, "unsubscribe_link_missing", "/template/text"},
		"reserved_data":          {func(c *api.CreateCampaign) { c.Data["unsubscribe_url"] = "x" }, "invalid_parameter", "/data/unsubscribe_url"},
		"tags_in_lists":          {func(c *api.CreateCampaign) { c.Data["l"] = []any{"{{Name}}"} }, "invalid_parameter", "/data/l"},
		"unknown_image":          {func(c *api.CreateCampaign) { c.Template.HTML += `<img src="cid:logo.png">` }, "image_missing", "/template/html"},
		"data_uri":               {func(c *api.CreateCampaign) { c.Template.HTML += `<img src="data:image/png;base64,AA">` }, "image_data_uri", "/template/html"},
		"image_not_base64":       {func(c *api.CreateCampaign) { c.Template.Images = []api.CampaignImage{{Name: "a.png", Content: "%"}} }, "invalid_parameter", "/template/images/0/content"},
		"image_type_lies": {func(c *api.CreateCampaign) {
			c.Template.Images = []api.CampaignImage{{Name: "a.png", ContentType: "image/jpeg", Content: "iVBORw0KGgo="}}
		}, "invalid_parameter", "/template/images/0/content_type"},
		"image_link_without_url": {func(c *api.CreateCampaign) {
			c.Template.Options.Images = "link"
			c.Template.Images = []api.CampaignImage{{Name: "a.png", Content: "iVBORw0KGgo="}}
		}, "required", "/template/images/0/url"},
		"bad_recipient":        {func(c *api.CreateCampaign) { c.Recipients[0].Email = "ann@example" }, "recipient_invalid", "/recipients/0/email"},
		"smtputf8_recipient":   {func(c *api.CreateCampaign) { c.Recipients[0].Email = "안@example.com" }, "recipient_invalid", "/recipients/0/email"},
		"recipient_line_break": {func(c *api.CreateCampaign) { c.Recipients[0].Attributes["Name"] = "A\r\nBcc: evil@x.example" }, "header_line_break", "/recipients/0"},
		"missing_variable":     {func(c *api.CreateCampaign) { c.Recipients[1].Attributes = nil }, "template_variable_missing", "/recipients/1/attributes/Name"},
		"null_variable":        {func(c *api.CreateCampaign) { c.Recipients[1].Attributes["Name"] = nil }, "template_variable_missing", "/recipients/1/attributes/Name"},
		"bad_retry":            {func(c *api.CreateCampaign) { c.Retry = &api.CampaignRetry{} }, "invalid_parameter", "/retry/max_attempts"},
		"bad_ttl":              {func(c *api.CreateCampaign) { c.TTLSeconds = -1 }, "invalid_parameter", "/ttl_seconds"},
		"bad_stream":           {func(c *api.CreateCampaign) { c.Stream = "A b" }, "invalid_parameter", "/stream"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			req := request(to("ann@example.com", "Ann"), to("bob@example.com", "Bob"))
			tt.change(req)
			_, err := r.Create(t.Context(), "default", req)
			requireInvalid(t, err, tt.code, tt.pointer)
		})
	}
	list, err := r.List(t.Context(), "", "", 10)
	require.NoError(t, err)
	require.Empty(t, list.Data, "nothing of what was refused is stored")
}

func TestStartNeedsPublicURL(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.PublicURL = "" })
	_, err := r.Create(t.Context(), "default", request(to("a@x.example", "A")))
	require.Contains(t, requireInvalid(t, err, "public_url_missing", ""), "admin.public_url")
	cfg := DefaultConfig()
	for url, ok := range map[string]bool{
		"https://a.example": true, "https://a.example/x/": true, "http://127.0.0.1:8080": true, "http://localhost:1": true,
		"http://a.example": false, "a.example": false, "https://a.example/?x": false, "https://a.example/<": false,
	} {
		cfg.PublicURL = url
		require.Equal(t, ok, cfg.Validate() == nil, url)
	}
}

func TestUnsignedDomainSendsUnsigned(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	req := request(to("a@x.example", "A"))
	req.From.Email = "deals@unsigned.example"
	_, err := r.Create(t.Context(), "default", req)
	require.NoError(t, err)
	r.fan()
	require.Equal(t, 1, r.deliver(1, func(msg []byte, e *spool.Envelope) spool.Result {
		require.NotContains(t, string(msg), "DKIM-Signature")
		return delivered(msg, e)
	}))
}
