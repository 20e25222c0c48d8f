package campaign

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// recipientStates are those that Recipients can be asked for.
var recipientStates = []string{
	"pending", "sending", "deferred", "delivered", "bounced", "failed", "suppressed", "unsubscribed", "invalid", "render_failed",
	"expired", "cancelled", "in_doubt",
}

// maxExamined bounds the recipients that one call looks at while it seeks those of one state.
const maxExamined = 20_000

// numbered is a result with its place in the order of all.
type numbered struct {
	n      uint64
	source int
	api.RecipientResult
}

// Recipients tells what became of each recipient, of those in one state or for "" of all, in the order in which they are
// queued. A page may be short, even empty, before the end: HasMore tells. It is right while mail flows: a recipient is
// listed once.
func (s *Service) Recipients(ctx context.Context, account, id, state, cursor string, limit int) (api.RecipientList, error) {
	list := api.RecipientList{Data: []api.RecipientResult{}}
	if state != "" && !slices.Contains(recipientStates, state) {
		return list, &Invalid{Code: api.CodeInvalidParameter, Errors: []api.FieldError{{
			Pointer: "state", Code: api.CodeInvalidParameter, Detail: fmt.Sprintf("no recipient is ever %q", clip(state, 40)),
		}}}
	}
	if limit <= 0 || limit > maxPage {
		limit = 100
	}
	after, err := cursorNumber(cursor)
	if err != nil {
		return list, err
	}
	var r *record
	err = s.db.View(ctx, func(tx kv.Tx) (err error) {
		r, err = s.owned(tx, account, id)
		return err
	})
	if err != nil {
		return list, err
	}
	for examined := 0; examined < maxExamined; {
		page, last, more, err := s.results(ctx, r, after, maxPage)
		if err != nil {
			return list, err
		}
		examined += maxPage
		for _, result := range page {
			if state != "" && result.State != state {
				after = result.n
				continue
			}
			if len(list.Data) == limit {
				list.HasMore, list.NextCursor = true, cursorOf(after)
				return list, nil
			}
			after = result.n
			list.Data = append(list.Data, result.RecipientResult)
		}
		if !more {
			return list, nil
		}
		after = last
	}
	list.HasMore, list.NextCursor = true, cursorOf(after)
	return list, nil
}

// results merges the three places in which a recipient can be: not queued yet, queued, finished. They are read in the
// order in which a recipient moves through them, so that none is missed; what is met twice counts where it is later. The
// page is complete up to last, and may be empty though there is more behind.
func (s *Service) results(ctx context.Context, r *record, after uint64, most int) (page []numbered, last uint64, more bool, err error) {
	from := after + 1 // the number before the first wraps around to it
	var rows []row
	var gone []uint64
	err = s.db.View(ctx, func(tx kv.Tx) (err error) { // in one snapshot: who is taken back is in both
		if rows, err = scanRecipients(tx, r.ID, from, most); err != nil {
			return err
		}
		gone, err = retried(tx, r.ID, from, most)
		return err
	})
	if err != nil {
		return nil, 0, false, err
	}
	live, err := s.spool.ListEnvelopes(ctx, r.ID, after, most)
	if err != nil {
		return nil, 0, false, fmt.Errorf("list envelopes: %w", err)
	}
	done, err := s.spool.ListOutcomes(ctx, r.ID, after, most)
	if err != nil {
		return nil, 0, false, fmt.Errorf("list outcomes: %w", err)
	}
	last = math.MaxUint64
	for i := range rows {
		if !rows[i].unsubscribed {
			page = append(page, numbered{rows[i].n, 0, waitingResult(r, &rows[i])})
		}
	}
	if len(rows) == most {
		last, more = min(last, rows[most-1].n), true
	}
	for i := range live {
		page = append(page, numbered{live[i].Envelope.ID.N, 1, liveResult(&live[i])})
	}
	if len(live) == most {
		last, more = min(last, live[most-1].Envelope.ID.N), true
	}
	if len(gone) == most {
		last, more = min(last, gone[most-1]), true
	}
	for i := range done {
		if _, again := slices.BinarySearch(gone, done[i].ID.N); !again {
			page = append(page, numbered{done[i].ID.N, 2, doneResult(&done[i])})
		}
	}
	if len(done) == most {
		last, more = min(last, done[most-1].ID.N), true
	}
	sort.Slice(page, func(i, j int) bool {
		return page[i].n < page[j].n || page[i].n == page[j].n && page[i].source > page[j].source
	})
	page = slices.CompactFunc(page, func(a, b numbered) bool { return a.n == b.n })
	end := sort.Search(len(page), func(i int) bool { return page[i].n > last })
	return page[:end], last, more, nil
}

func waitingResult(r *record, row *row) api.RecipientResult {
	state := "pending"
	if r.State == Cancelled || r.State == Failed {
		state = "cancelled"
	}
	return api.RecipientResult{Address: row.to.String(), State: state}
}

func liveResult(in *spool.Info) api.RecipientResult {
	e := &in.Envelope
	result := api.RecipientResult{Address: e.To.String(), Attempts: e.Attempts, Message: e.ID.String(), SMTP: smtpOf(e.LastReply, e.LastHost, "")}
	switch in.State {
	case spool.StateLeased:
		result.State = "sending"
	case spool.StateDeferred, spool.StateHeld:
		result.State = "deferred"
	default:
		result.State = "pending"
		if e.Attempts > 0 {
			result.State = "deferred"
		}
	}
	if !e.NextAttempt.IsZero() {
		result.NextAttempt = momentOf(e.NextAttempt)
	}
	return result
}

func doneResult(o *spool.OutcomeRecord) api.RecipientResult {
	return api.RecipientResult{
		Address: o.To.String(), State: stateOf(o.Outcome, o.Reason), Reason: o.Reason, Attempts: o.Attempts,
		Message: o.ID.String(), SMTP: smtpOf(o.Reply, o.Host, o.TLS), At: momentOf(o.SettledAt),
	}
}

func smtpOf(r mail.Reply, host, tls string) *api.SMTPReply {
	if r.IsZero() {
		return nil
	}
	reply := &api.SMTPReply{Code: r.Code, Text: r.Text, Host: host, TLS: tls}
	if !r.Status.IsZero() {
		reply.Enhanced = r.Status.String()
	}
	return reply
}

func momentOf(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
