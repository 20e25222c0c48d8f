package campaign

import (
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
