package campaign

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/event"
	"relayd/internal/mail"
	"relayd/internal/suppression"
	"relayd/spool"
)

func many(n int) []api.Recipient {
	list := make([]api.Recipient, n)
	for i := range list {
		list[i] = to(fmt.Sprintf("user%d@d%d.example", i, i%7), fmt.Sprintf("User %d", i))
	}
	return list
}

func TestCampaignFromCreationToEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.PageSize = 10 })
	_, err := r.list.Add(t.Context(), suppression.Entry{Account: "default", Address: "user3@d3.example", Reason: suppression.HardBounce})
	require.NoError(t, err)
	_, err = r.list.Add(t.Context(), suppression.Entry{Account: "default", Address: "USER4@d4.example", Scope: suppression.Broadcast, Reason: suppression.Unsubscribe})
	require.NoError(t, err)
	c, err := r.Create(t.Context(), "default", request(many(40)...))
	require.NoError(t, err)
	require.Equal(t, Running, c.State)
	require.Equal(t, int64(40), c.Total)
	require.Equal(t, int64(40), r.progress(c.ID).Counts.Pending)

	seen := map[string]int{}
	result := func(msg []byte, e *spool.Envelope) spool.Result {
		seen[e.To.String()]++
		require.Contains(t, string(msg), "Message-ID: <"+e.ID.String()+"@relay.example>")
		switch e.To.Local {
		case "user5":
			return spool.Result{Outcome: spool.Bounced, Presented: true, Reply: mail.Reply{Code: 550, Status: mail.Status{Class: 5, Subject: 1, Detail: 1}, Text: "no such user"}}
		case "user6":
			if e.Attempts == 0 {
				return spool.Result{Outcome: spool.Deferred, Presented: true, NextAttempt: r.now().Add(time.Minute), Reply: mail.Reply{Code: 451, Text: "later"}}
			}
		}
		return delivered(msg, e)
	}
	for r.round(t.Context()) == 0 {
		r.progress(c.ID)
		r.deliver(7, result)
		r.progress(c.ID)
		require.Len(t, r.all(c.ID, ""), 40)
	}
	for r.deliver(7, result) > 0 {
		r.progress(c.ID)
	}
	p := r.progress(c.ID)
	require.Equal(t, Running, p.State)
	require.Equal(t, api.Counts{Deferred: 1, Delivered: 36, Bounced: 1, Suppressed: 1, Unsubscribed: 1}, p.Counts)
	require.Len(t, r.all(c.ID, "deferred"), 1)
	require.Equal(t, "retry_schedule", p.LimitedBy)

	r.pass(2 * time.Minute)
	require.Equal(t, 1, r.deliver(10, result))
	p = r.progress(c.ID)
	require.Equal(t, CompletedWithFailures, p.State)
	require.Equal(t, api.Counts{Delivered: 37, Bounced: 1, Suppressed: 1, Unsubscribed: 1}, p.Counts)
	require.NotNil(t, p.FirstDeliveredAt)
	require.NotNil(t, p.FinishedAt)

	results := r.all(c.ID, "")
	require.Len(t, results, 40)
	require.Equal(t, "bounced", results["user5@d5.example"].State)
	require.Equal(t, &api.SMTPReply{Code: 550, Enhanced: "5.1.1", Text: "no such user"}, results["user5@d5.example"].SMTP)
	require.Equal(t, 2, results["user6@d6.example"].Attempts)
	require.Equal(t, "suppressed", results["user3@d3.example"].State)
	require.Equal(t, "unsubscribed", results["user4@d4.example"].State)
	require.Len(t, r.all(c.ID, "bounced"), 1)
	for address, n := range seen {
		require.Equal(t, map[bool]int{true: 2, false: 1}[address == "user6@d6.example"], n, address)
	}
	require.Len(t, seen, 38)
	r.round(t.Context())
	require.Empty(t, r.active())
	events, _, err := r.log.List(t.Context(), event.Filter{Type: "campaign.completed"}, "", 10)
	require.NoError(t, err)
	require.Len(t, events, 1)
}

// A crash at any place: the store is reopened between any two steps, and every recipient is delivered once.
func TestRestartBetweenStepsLosesAndDoublesNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.PageSize = 5 })
	c, err := r.Create(t.Context(), "default", request(many(33)...))
	require.NoError(t, err)
	seen := map[string]int{}
	count := func(msg []byte, e *spool.Envelope) spool.Result {
		seen[e.To.String()]++
		return delivered(msg, e)
	}
	for i := 0; r.progress(c.ID).State == Running; i++ {
		require.Less(t, i, 100)
		r.round(t.Context())
		require.Len(t, r.all(c.ID, ""), 33)
		r.reopen()
		r.deliver(2, count)
		r.reopen()
		r.progress(c.ID)
	}
	require.Equal(t, Completed, r.progress(c.ID).State)
	require.Len(t, seen, 33)
	for address, n := range seen {
		require.Equal(t, 1, n, address)
	}
}

func TestSameMailboxInAllSpellingsIsOneRecipient(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	req := request(to("ann@example.com", "A"), to("ANN@Example.COM", "B"), to(`"ann"@example.com.`, "C"), to("x@bücher.example", "D"), to("x@xn--bcher-kva.example", "E"))
	c, err := r.Create(t.Context(), "default", req)
	require.NoError(t, err)
	require.Equal(t, int64(2), c.Total)
	r.fan()
	var subjects []string
	r.deliver(10, func(msg []byte, e *spool.Envelope) spool.Result {
		subjects = append(subjects, header(t, msg).Get("Subject"))
		return delivered(msg, e)
	})
	require.ElementsMatch(t, []string{"Black Friday for C", "Black Friday for E"}, subjects)
}

func TestPauseResumeCancel(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.PageSize = 10 })
	ctx := t.Context()
	c, err := r.Create(ctx, "default", request(many(30)...))
	require.NoError(t, err)
	r.round(ctx)
	require.Equal(t, 4, r.deliver(4, delivered))

	c, err = r.Pause(ctx, "default", c.ID)
	require.NoError(t, err)
	require.Equal(t, Paused, c.State)
	require.Equal(t, "user", c.Reason)
	c, err = r.Pause(ctx, "default", c.ID)
	require.NoError(t, err)
	require.Equal(t, Paused, c.State)
	r.fan()
	require.Zero(t, r.deliver(100, delivered))
	r.reopen()
	require.Zero(t, r.deliver(100, delivered), "a pause holds over a restart")
	require.Equal(t, api.Counts{Pending: 26, Delivered: 4}, r.progress(c.ID).Counts)

	_, err = r.Start(ctx, "default", c.ID)
	require.ErrorAs(t, err, new(*StateError))
	id, err := parseID(c.ID)
	require.NoError(t, err)
	paused, err := r.readID(ctx, id)
	require.NoError(t, err)
	c, err = r.Resume(ctx, "default", c.ID)
	require.NoError(t, err)
	require.Equal(t, Running, c.State)
	r.follow(paused) // a page that has read the record before tells it late: it must not pause the queues again
	r.round(ctx)
	require.Equal(t, 5, r.deliver(5, delivered))
	require.Empty(t, r.blocked(c.ID))

	c, err = r.Cancel(ctx, "default", c.ID)
	require.NoError(t, err)
	require.Equal(t, Cancelling, c.State)
	require.Equal(t, "cancelled", r.blocked(c.ID))
	require.Zero(t, r.deliver(100, delivered))
	r.reopen()
	r.round(ctx)
	p := r.progress(c.ID)
	require.Equal(t, Cancelled, p.State)
	require.Equal(t, api.Counts{Delivered: 9, Cancelled: 21}, p.Counts)
	require.Len(t, r.all(c.ID, "cancelled"), 21)
	require.Len(t, r.all(c.ID, "delivered"), 9)
	c, err = r.Cancel(ctx, "default", c.ID)
	require.NoError(t, err)
	require.Equal(t, Cancelled, c.State)
	_, err = r.Resume(ctx, "default", c.ID)
	require.ErrorContains(t, err, "resume is not possible: the campaign is cancelled")
}

// What is under lease when the campaign is cancelled finishes, and the counts add up then too.
func TestCancelWhileEnvelopesAreLeased(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c, err := r.Create(ctx, "default", request(many(10)...))
	require.NoError(t, err)
	r.fan()
	n := r.deliver(3, func(msg []byte, e *spool.Envelope) spool.Result {
		if r.progress(c.ID).State == Running {
			_, err := r.Cancel(ctx, "default", c.ID)
			require.NoError(t, err)
			r.round(ctx)
		}
		p := r.progress(c.ID)
		require.Equal(t, Cancelling, p.State)
		require.Equal(t, int64(3), p.Counts.Sending)
		if e.To.Local[4]%2 == 0 {
			return spool.Result{Outcome: spool.Deferred, NextAttempt: r.now()}
		}
		return delivered(msg, e)
	})
	require.Equal(t, 3, n)
	r.round(ctx)
	p := r.progress(c.ID)
	require.Equal(t, Cancelled, p.State)
	require.Equal(t, int64(10), p.Counts.Delivered+p.Counts.Cancelled)
}

func TestDraftThenUploadThenStart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c, err := r.Create(ctx, "default", request())
	require.NoError(t, err)
	require.Equal(t, Draft, c.State)
	require.Equal(t, []string{"Body", "Name", "Subject", "unsubscribe_url"}, c.VariablesUsed)
	_, err = r.Start(ctx, "default", c.ID)
	requireInvalid(t, err, "audience_empty", "/recipients")

	report, err := r.AddRecipients(ctx, "default", c.ID, "text/csv", strings.NewReader("email,name\na@x.example,Ann\nb@x.example,Bob\n"), api.ImportOptions{})
	require.NoError(t, err)
	require.Equal(t, api.ImportReport{RowsRead: 2, Created: 2, Errors: []api.ImportError{}, BytesRead: 43, Total: 2}, report)
	c, err = r.Start(ctx, "default", c.ID)
	require.NoError(t, err)
	require.Equal(t, Running, c.State)
	_, err = r.AddRecipients(ctx, "default", c.ID, "text/csv", strings.NewReader("email\nc@x.example\n"), api.ImportOptions{})
	require.ErrorAs(t, err, new(*StateError))
	c, err = r.Start(ctx, "default", c.ID)
	require.NoError(t, err, "starting again changes nothing")
	require.Equal(t, Running, c.State)
	r.fan()
	require.Equal(t, 2, r.deliver(10, delivered))
	require.Equal(t, Completed, r.progress(c.ID).State)
}

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

// A process that dies while it prepares a start goes on with it.
func TestStartIsTakenUpAfterRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	req := request(to("a@x.example", "A"))
	req.Start = false
	c, err := r.Create(ctx, "default", req)
	require.NoError(t, err)
	_, err = r.move(ctx, "", c.ID, "start", func(_ kvTx, rec *record) error {
		rec.State = Preparing
		return nil
	})
	require.NoError(t, err)
	r.reopen()
	r.round(ctx)
	require.Equal(t, Running, r.progress(c.ID).State)
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

func TestAccountsDoNotSeeEachOther(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c, err := r.Create(ctx, "default", request(to("a@x.example", "A")))
	require.NoError(t, err)
	_, err = r.Get(ctx, "other", c.ID)
	require.ErrorIs(t, err, ErrNotFound)
	_, err = r.Cancel(ctx, "other", c.ID)
	require.ErrorIs(t, err, ErrNotFound)
	_, err = r.Recipients(ctx, "other", c.ID, "", "", 1)
	require.ErrorIs(t, err, ErrNotFound)
	_, err = r.Progress(ctx, "other", c.ID)
	require.ErrorIs(t, err, ErrNotFound)
	_, err = r.Get(ctx, "", c.ID)
	require.NoError(t, err)
	for _, id := range []string{"", "cmp_", "x", "cmp_0000000000000000000g", c.ID + "0"} {
		_, err = r.Get(ctx, "default", id)
		require.ErrorIs(t, err, ErrNotFound)
	}
}

func TestListPages(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	var ids []string
	for range 5 {
		r.pass(time.Second)
		c, err := r.Create(ctx, "default", request())
		require.NoError(t, err)
		ids = append([]string{c.ID}, ids...)
	}
	for _, account := range []string{"default", ""} {
		var got []string
		for cursor := ""; ; {
			page, err := r.List(ctx, account, cursor, 2)
			require.NoError(t, err)
			for _, c := range page.Data {
				got = append(got, c.ID)
			}
			if cursor = page.NextCursor; !page.HasMore {
				break
			}
		}
		require.Equal(t, ids, got)
	}
	_, err := r.List(ctx, "default", "???", 2)
	require.ErrorIs(t, err, ErrBadCursor)
	_, err = r.Recipients(ctx, "default", ids[0], "", "x", 2)
	require.ErrorIs(t, err, ErrBadCursor)
	_, err = r.Recipients(ctx, "default", ids[0], "nope", "", 2)
	require.ErrorAs(t, err, new(*Invalid))
}

// Suppression that comes after a recipient was queued is the delivery's to check; one that comes before its page, ours.
func TestUnsubscribeDuringCampaignCounts(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.PageSize = 1 })
	c, err := r.Create(t.Context(), "default", request(many(4)...))
	require.NoError(t, err)
	r.round(t.Context())
	queued := ""
	r.deliver(1, func(msg []byte, e *spool.Envelope) spool.Result {
		queued = e.To.String()
		return delivered(msg, e)
	})
	for address := range r.all(c.ID, "pending") {
		_, err := r.list.Add(t.Context(), suppression.Entry{Account: "default", Address: address, Scope: suppression.Broadcast, Reason: suppression.Unsubscribe})
		require.NoError(t, err)
	}
	r.fan()
	require.Zero(t, r.deliver(10, delivered))
	p := r.progress(c.ID)
	require.Equal(t, Completed, p.State)
	require.Equal(t, api.Counts{Delivered: 1, Unsubscribed: 3}, p.Counts)
	require.NotEmpty(t, queued)
}

func TestRenderFailureIsOneRecipientsOwn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	req := request(to("a@x.example", "A"), to("b@x.example", "B"))
	c, err := r.Create(t.Context(), "default", req)
	require.NoError(t, err)
	r.fan()
	n := 0
	queues := r.store.Take(r.now(), 10)
	lease, err := r.store.Lease(t.Context(), queues, r.now(), 10)
	require.NoError(t, err)
	var results []spool.Result
	for _, e := range lease.Envelopes {
		if e.To.Local == "b" {
			e.Data = append([]byte(nil), snapshot(r.now(), string(appendAttributes(nil, nil)))...)
		}
		_, err := r.Compose(t.Context(), lease.Messages[e.ID.Message], e, nil)
		res := spool.Result{ID: e.ID, At: r.now(), Outcome: spool.Delivered}
		if err != nil {
			n++
			require.Equal(t, mail.Status{Class: 5, Subject: 6, Detail: 0}, mail.ReplyOf(err).Status)
			require.ErrorContains(t, err, `no "Name"`)
			res.Outcome, res.Reason = spool.Failed, "render_failed"
		}
		results = append(results, res)
	}
	require.Equal(t, 1, n)
	require.NoError(t, r.store.Settle(t.Context(), lease, results))
	p := r.progress(c.ID)
	require.Equal(t, api.Counts{Delivered: 1, RenderFailed: 1}, p.Counts)
	require.Equal(t, CompletedWithFailures, p.State)
}

func TestRunStopsWithItsContext(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c, err := r.Create(t.Context(), "default", request(many(50)...))
	require.NoError(t, err)
	ctx, cancel := contextWith(t)
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	for r.progress(c.ID).Counts.Delivered < 50 {
		<-r.store.Changed()
		for r.deliver(10, delivered) > 0 {
		}
	}
	cancel()
	require.NoError(t, <-done)
	require.Equal(t, Completed, r.progress(c.ID).State)
}
