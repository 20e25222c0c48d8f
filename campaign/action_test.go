package campaign

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/suppression"
	"relayd/spool"
)

func bounced(_ []byte, _ *spool.Envelope) spool.Result {
	return spool.Result{Outcome: spool.Bounced, Presented: true, Reply: mail.Reply{Code: 550, Text: "no such user"}}
}

// Complaint 17 and B03: a rate pauses, with a minimum sample, and noise does not.
func TestGuardPausesOnARateAndNotOnNoise(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	rate := 0.1
	c := r.draftOf(300, func(req *api.CreateCampaign) { req.Guards = api.CampaignGuards{BounceRate: &rate, MinSample: 100} })
	_, err := r.Start(ctx, "default", c.ID)
	require.NoError(t, err)
	r.fan()
	require.Equal(t, 90, r.deliver(90, bounced), "90 of 90 bounced, and the sample is too small")
	require.Equal(t, Running, r.progress(c.ID).State)
	r.deliver(10, delivered)
	r.round(ctx)
	p := r.progress(c.ID)
	require.Equal(t, Paused, p.State)
	require.Equal(t, "guard_bounce", p.Reason)
	require.Equal(t, "90 bounces of 100 recipients: 90.0 % where the limit is 10.0 %", p.Detail)
	require.Equal(t, "tripped", p.Guards.State)
	require.Zero(t, r.deliver(300, delivered), "nothing more is sent")
	require.Equal(t, "paused", r.blocked(c.ID), "what is leased already goes back")
	r.reopen()
	require.Zero(t, r.deliver(300, delivered), "nor after a restart")

	// Who resumes has seen it: the guard counts from then on.
	_, err = r.Resume(ctx, "default", c.ID)
	require.NoError(t, err)
	r.deliver(150, delivered)
	r.round(ctx)
	require.Equal(t, Running, r.progress(c.ID).State)
}

func TestGuardOfComplaintsAndOfDeferrals(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	half := 0.5
	c := r.draftOf(200, func(req *api.CreateCampaign) {
		req.Guards = api.CampaignGuards{DeferralRate: &half, MinSample: 50}
	})
	_, err := r.Start(ctx, "default", c.ID)
	require.NoError(t, err)
	r.fan()
	r.deliver(100, delivered)
	require.NoError(t, r.db.Update(ctx, func(tx kv.Tx) error { return r.ComplainedTx(tx, c.ID, 1) }))
	r.round(ctx)
	p := r.progress(c.ID)
	require.Equal(t, "guard_complaint", p.Reason, "1 %% of 100 is above 0.5 %%")
	_, err = r.Resume(ctx, "default", c.ID)
	require.NoError(t, err)
	r.deliver(100, func([]byte, *spool.Envelope) spool.Result {
		return spool.Result{Outcome: spool.Deferred, Presented: true, NextAttempt: r.now().Add(time.Hour), Reply: mail.Reply{Code: 451, Text: "later"}}
	})
	r.round(ctx)
	require.Equal(t, "guard_deferral", r.progress(c.ID).Reason)
}

func TestGuardsAreCheckedAndMayBeOff(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	bad, off := 1.5, 0.0
	req := request(many(1)...)
	req.Guards.BounceRate = &bad
	_, err := r.Create(ctx, "default", req)
	requireInvalid(t, err, api.CodeInvalidParameter, "/guards/bounce_rate")

	c := r.draftOf(300, func(req *api.CreateCampaign) { req.Guards = api.CampaignGuards{BounceRate: &off} })
	_, err = r.Start(ctx, "default", c.ID)
	require.NoError(t, err)
	r.fan()
	r.deliver(300, bounced)
	require.Equal(t, CompletedWithFailures, r.progress(c.ID).State)
}

// Complaint 2: retry only those who were not sent to, and see who they are.
func TestRetryFailedReachesThoseAndNobodyElse(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c := r.draftOf(20)
	_, err := r.Start(ctx, "default", c.ID)
	require.NoError(t, err)
	r.fan()
	i := 0
	failed := map[string]bool{}
	r.deliver(20, func(msg []byte, e *spool.Envelope) spool.Result {
		i++
		switch i % 4 {
		case 0:
			failed[e.To.String()] = true
			return spool.Result{Outcome: spool.Expired, Presented: true, Reason: "max_age", Reply: mail.Reply{Code: 451, Text: "later"}}
		case 1:
			failed[e.To.String()] = true
			return spool.Result{Outcome: spool.Failed, Reason: "no_route"}
		case 2:
			return bounced(msg, e)
		}
		return delivered(msg, e)
	})
	p := r.progress(c.ID)
	require.Equal(t, CompletedWithFailures, p.State, "it is not called finished when half has failed") // complaint 3
	require.Equal(t, api.Counts{Delivered: 5, Bounced: 5, Failed: 5, Expired: 5}, p.Counts)
	require.Len(t, r.all(c.ID, "failed"), 5)

	out, err := r.RetryFailed(ctx, "default", c.ID)
	require.NoError(t, err)
	require.Equal(t, Preparing, out.State)
	_, err = r.RetryFailed(ctx, "default", c.ID)
	require.NoError(t, err, "it may be repeated")
	r.reopen()
	r.waitFor(c.ID, Running)
	r.fan()
	p = r.progress(c.ID)
	require.Equal(t, api.Counts{Delivered: 5, Bounced: 5, Pending: 10}, p.Counts)
	require.Len(t, r.all(c.ID, ""), 20, "each is listed once")
	n := r.deliver(100, func(msg []byte, e *spool.Envelope) spool.Result {
		require.True(t, failed[e.To.String()], e.To)
		require.Contains(t, string(msg), "Subject: Black Friday for User "+e.To.Local[4:]+"\r\n", "merge data is kept")
		delete(failed, e.To.String())
		return delivered(msg, e)
	})
	require.Equal(t, 10, n)
	require.Empty(t, failed)
	p = r.progress(c.ID)
	require.Equal(t, CompletedWithFailures, p.State, "five bounced")
	require.Equal(t, api.Counts{Delivered: 15, Bounced: 5}, p.Counts)
	_, err = r.RetryFailed(ctx, "default", c.ID)
	require.ErrorContains(t, err, "nobody is left to retry")
	require.Equal(t, CompletedWithFailures, r.progress(c.ID).State)
}

func TestContentDoesNotChangeOnceItIsSent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c := r.draftOf(2)
	name := "New name"
	_, err := r.Patch(ctx, "default", c.ID, `"77"`, &api.PatchCampaign{Name: &name})
	require.ErrorIs(t, err, ErrChanged)
	out, err := r.Patch(ctx, "default", c.ID, c.ETag, &api.PatchCampaign{Name: &name, Data: map[string]any{"Subject": "Changed", "Body": ""}})
	require.NoError(t, err)
	require.Equal(t, name, out.Name)
	require.NotEqual(t, c.ETag, out.ETag)
	require.Equal(t, int64(2), out.Total, "its recipients stay")
	_, err = r.Patch(ctx, "default", c.ID, "", &api.PatchCampaign{Template: &api.CampaignTemplate{Subject: "{{#if", HTML: "x"}})
	require.ErrorAs(t, err, new(*Invalid))

	_, err = r.Start(ctx, "default", c.ID)
	require.NoError(t, err)
	_, err = r.Pause(ctx, "default", c.ID)
	require.NoError(t, err)
	_, err = r.Patch(ctx, "default", c.ID, "", &api.PatchCampaign{Data: map[string]any{}})
	require.ErrorContains(t, err, "clone it instead")
	out, err = r.Patch(ctx, "default", c.ID, "", &api.PatchCampaign{Send: &api.CampaignSend{MaxConcurrency: 3}})
	require.NoError(t, err)
	require.Equal(t, 3, out.Send.MaxConcurrency)
	require.Equal(t, 3, r.Parallel(c.ID))

	clone, err := r.Clone(ctx, "default", c.ID)
	require.NoError(t, err)
	require.Equal(t, Draft, clone.State, "a clone sends nothing by itself") // complaint 6
	require.Equal(t, "New name (copy)", clone.Name)
	require.Zero(t, clone.Total)
	r.fan()
	require.Zero(t, r.deliver(10, delivered))
}

func TestValidateTellsTheFateOfEachRecipient(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	list := many(10)
	list[3].Attributes = nil // lacks Name
	for i, e := range []suppression.Entry{
		{Scope: suppression.Global, Reason: suppression.HardBounce},
		{Scope: suppression.Broadcast, Reason: suppression.Unsubscribe},
	} {
		e.Account, e.Address = "default", list[i].Email
		_, err := r.list.Add(ctx, e)
		require.NoError(t, err)
	}
	req := request()
	req.Start = false
	c, err := r.Create(ctx, "default", req)
	require.NoError(t, err)
	var lines strings.Builder
	for _, one := range list {
		lines.WriteString(`{"email":"` + one.Email + `"`)
		if one.Attributes != nil {
			lines.WriteString(`,"attributes":{"Name":"N"}`)
		}
		lines.WriteString("}\n")
	}
	_, err = r.AddRecipients(ctx, "default", c.ID, "application/x-ndjson", strings.NewReader(lines.String()), api.ImportOptions{})
	require.NoError(t, err)
	v, err := r.Validate(ctx, "default", c.ID)
	require.NoError(t, err)
	require.False(t, v.OK)
	require.Equal(t, api.RecipientFates{Total: 10, Suppressed: 1, Unsubscribed: 1, WillSend: 8}, v.Recipients)
	require.Equal(t, int64(8), v.Estimated.ByProvider["other"])
	require.Positive(t, v.Estimated.Bytes)
	found := false
	for _, check := range v.Checks {
		if check.ID == "missing_variables" {
			found = true
			require.False(t, check.OK)
			require.Equal(t, int64(1), check.Count)
			require.Equal(t, "/data/Name", check.Pointer)
			require.Equal(t, []string{list[3].Email}, check.Sample)
		} else {
			require.True(t, check.OK, "%+v", check)
		}
	}
	require.True(t, found)
	require.Equal(t, Draft, r.progress(c.ID).State, "nothing has changed")
}

// Complaint 13: preview and send are one code.
func TestPreviewIsWhatIsSent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c := r.draftOf(3)
	_, err := r.Preview(ctx, "default", c.ID, &api.PreviewCampaign{Contact: "stranger@a.example"})
	requireInvalid(t, err, api.CodeRecipientInvalid, "/contact")
	all := r.all(c.ID, "")
	for address := range all {
		p, err := r.Preview(ctx, "default", c.ID, &api.PreviewCampaign{Contact: "email:" + address})
		require.NoError(t, err)
		require.Equal(t, address, p.To)
		require.Contains(t, p.Headers["List-Unsubscribe"], "https://u.shop.example/u/")
		require.Contains(t, p.HTML, "Unsubscribe")
	}
	require.Equal(t, Draft, r.progress(c.ID).State)
}

func TestTestMailIsMarkedAndNotCounted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c := r.draftOf(3)
	sent, err := r.Test(ctx, "default", c.ID, &api.TestCampaign{To: []string{"me@shop.example", "ME@shop.example", "you@b.example"}, Data: map[string]any{"Name": "안나"}})
	require.NoError(t, err)
	require.Len(t, sent.Messages, 2, "one mail for one mailbox")
	id, err := mail.ParseQueueID(sent.Messages[0])
	require.NoError(t, err)
	m, _, err := r.store.Get(ctx, id)
	require.NoError(t, err)
	require.Equal(t, "[TEST] Black Friday for 안나", m.Subject)
	require.Empty(t, m.Campaign)
	require.Contains(t, string(m.Header), "DKIM-Signature")
	p := r.progress(c.ID)
	require.Equal(t, Draft, p.State)
	require.Equal(t, api.Counts{Pending: 3}, p.Counts)
	_, err = r.Test(ctx, "default", c.ID, &api.TestCampaign{To: []string{"nonsense"}})
	requireInvalid(t, err, api.CodeRecipientInvalid, "/to/0")
}

func TestCampaignToAListTakesOverItsSubscribers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	id := r.audience("customers", member("ann@a.example", "Ann", ""), member("bob@a.example", "Bob", ""), member("eve@a.example", "Eve", ""))
	r.audience("vip", member("eve@a.example", "Eve", ""))
	req := request()
	req.Audience = &api.Audience{List: "nobody"}
	_, err := r.Create(ctx, "default", req)
	requireInvalid(t, err, "list_not_found", "/audience/list")
	req.Audience = &api.Audience{List: "customers", ExcludeLists: []string{"vip"}}
	req.Start = true
	c, err := r.Create(ctx, "default", req)
	require.NoError(t, err)
	require.Equal(t, Preparing, c.State)
	r.reopen() // it is taken up again
	r.waitFor(c.ID, Running)
	r.fan()
	require.Equal(t, int64(2), r.progress(c.ID).Total)

	// Bob unsubscribes with the link of his mail while it waits: from the list, not from receipts.
	qid, err := parseID(c.ID)
	require.NoError(t, err)
	token := r.tokens.seal(forUnsubscribe, claim{qid, id, "default", "bob@a.example"})
	u, err := r.Unsubscribe(ctx, token)
	require.NoError(t, err)
	require.True(t, u.Created)
	u, err = r.Unsubscribe(ctx, token)
	require.NoError(t, err)
	require.False(t, u.Created)
	bob, err := mail.ParsePath("bob@a.example")
	require.NoError(t, err)
	m := &spool.Message{ID: qid, Account: "default", Campaign: c.ID, Class: spool.Bulk}
	reason, _, err := r.Blocked(ctx, m, &spool.Envelope{To: bob})
	require.NoError(t, err)
	require.Equal(t, "unsubscribed", reason)
	entry, err := r.list.Check(ctx, "default", bob, true)
	require.NoError(t, err)
	require.Nil(t, entry, "other mail of the account still reaches him")
	ann, err := mail.ParsePath("ann@a.example")
	require.NoError(t, err)
	reason, _, err = r.Blocked(ctx, m, &spool.Envelope{To: ann})
	require.NoError(t, err)
	require.Empty(t, reason)
	_, err = r.lists.Delete(ctx, "default", "email:ann@a.example", false)
	require.NoError(t, err)
	reason, _, err = r.Blocked(ctx, m, &spool.Envelope{To: ann})
	require.NoError(t, err)
	require.Equal(t, "unsubscribed", reason, "a contact that was deleted is not written to")

	// Who is gone from the list stays unsubscribed by suppression, whatever is imported later.
	u, err = r.Unsubscribe(ctx, r.tokens.seal(forUnsubscribe, claim{qid, id, "default", "ann@a.example"}))
	require.NoError(t, err)
	require.True(t, u.Created)
	entry, err = r.list.Check(ctx, "default", ann, true)
	require.NoError(t, err)
	require.NotNil(t, entry)
}

// However an address that was erased comes back, as an upload or in a message, no bulk mail goes there.
func TestErasedAddressGetsNoBroadcast(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	r.audience("customers", member("ann@a.example", "Ann", ""), member("late@a.example", "Late", ""), member("bob@a.example", "Bob", ""))
	erase := func(who string) {
		t.Helper()
		_, err := r.lists.Delete(ctx, "default", "email:"+who, true)
		require.NoError(t, err)
	}
	erase("Ann@A.example")
	c, err := r.Create(ctx, "default", request(to("ann@a.example", "Ann"), to("late@a.example", "Late"), to("bob@a.example", "Bob")))
	require.NoError(t, err)
	list := request()
	list.Audience, list.Start = &api.Audience{List: "customers"}, true
	l, err := r.Create(ctx, "default", list)
	require.NoError(t, err)
	r.waitFor(l.ID, Running)
	r.fan()
	ann := r.all(c.ID, "suppressed")["ann@a.example"]
	require.Equal(t, []any{"suppressed", "erased"}, []any{ann.State, ann.Reason}, "at fan-out")
	require.Equal(t, api.Counts{Suppressed: 1, Pending: 2}, r.progress(c.ID).Counts)

	erase("late@a.example") // while it waits
	late, bob := mail.MustParsePath("late@a.example"), mail.MustParsePath("bob@a.example")
	ask := func(m *spool.Message, to mail.Path) string {
		t.Helper()
		reason, _, err := r.Blocked(ctx, m, &spool.Envelope{To: to})
		require.NoError(t, err)
		return reason
	}
	for _, id := range []string{c.ID, l.ID, formatID(mail.NewQueueID(r.now()))} {
		qid, err := parseID(id)
		require.NoError(t, err)
		m := &spool.Message{ID: qid, Account: "default", Campaign: id, Class: spool.Bulk}
		require.Equal(t, []string{"erased", ""}, []string{ask(m, late), ask(m, bob)}, "right before MAIL FROM")
		m.Account = "other"
		require.Empty(t, ask(&spool.Message{ID: mail.NewQueueID(r.now()), Account: "other", Class: spool.Bulk}, late), "another account")
		require.Empty(t, ask(&spool.Message{ID: mail.NewQueueID(r.now()), Account: "default", Class: spool.Transactional}, late), "a receipt")
	}
	require.Equal(t, "suppressed", stateOf(spool.Suppressed, "erased"))
}

func TestListWhoseContactsLackSomethingFailsTheCampaign(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	row := member("ann@a.example", "Ann", "")
	row.Attributes = nil
	r.audience("customers", row)
	req := request()
	req.Audience, req.Start = &api.Audience{List: "customers"}, true
	c, err := r.Create(ctx, "default", req)
	require.NoError(t, err)
	p := r.waitFor(c.ID, Failed)
	require.Equal(t, api.CodeTemplateVariable, p.Reason)
	require.Contains(t, p.Detail, `"Name"`)
	require.Zero(t, r.deliver(10, delivered))
}

func TestFinishedCampaignsArePurged(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	done, draft := r.draftOf(5), r.draftOf(5)
	_, err := r.Start(ctx, "default", done.ID)
	require.NoError(t, err)
	r.fan()
	r.deliver(10, func([]byte, *spool.Envelope) spool.Result {
		return spool.Result{Outcome: spool.Failed, Reason: "no_route"}
	})
	n, err := r.Purge(ctx, r.now().Add(-time.Hour), 1000)
	require.NoError(t, err)
	require.Zero(t, n)
	r.pass(2 * time.Hour)
	n, err = r.Purge(ctx, r.now().Add(-time.Hour), 1000)
	require.NoError(t, err)
	require.Positive(t, n)
	_, err = r.Get(ctx, "default", done.ID)
	require.ErrorIs(t, err, ErrNotFound)
	require.Equal(t, int64(5), r.progress(draft.ID).Total, "a draft stays")
	require.NoError(t, r.Delete(ctx, "default", draft.ID))
	require.NoError(t, r.db.View(ctx, func(tx kv.Tx) error {
		for _, table := range []kv.Table{tableCampaign, tableContent, tableAccount, tableActive, tableRecipient, tableLater, tableFailed, tableRetried, tableCount} {
			err := tx.Scan(table, nil, nil, func(k, _ []byte) (bool, error) {
				require.Fail(t, "row left", "%s: %x", table, k)
				return false, nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	}))
}

func TestReportSaysWhy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c := r.draftOf(10)
	_, err := r.Start(ctx, "default", c.ID)
	require.NoError(t, err)
	r.fan()
	r.deliver(4, bounced)
	r.deliver(6, delivered)
	rep, err := r.Report(ctx, "default", c.ID)
	require.NoError(t, err)
	require.Equal(t, rep.Total, rep.Counts.Sum())
	require.Equal(t, []api.ReportReason{{State: "bounced", Count: 4, Sample: "550 no such user"}}, rep.Reasons)
	require.Equal(t, map[string]int64{"1": 10}, rep.Attempts)
	sum := int64(0)
	for _, d := range rep.Domains {
		sum += d.Total
	}
	require.Equal(t, int64(10), sum)
	require.NotEmpty(t, rep.Providers)
}
