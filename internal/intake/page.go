package intake

import (
	"fmt"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/suppression"
	"relayd/spool"
)

// Page is one step of a campaign's fan-out.
type Page struct {
	Message    *spool.Message // the campaign's, without a body
	Recipients []PageRecipient
	Envelopes  []*spool.Envelope // filled in by PageTx
	Done       []spool.Result    // filled in by PageTx: those of suppressed recipients
}

// PageRecipient is one recipient of a campaign.
type PageRecipient struct {
	To   mail.Path
	N    uint64 // of the envelope's ID, derived from campaign and address
	Data []byte // snapshot of the merge data
}

// PageTx creates the envelopes of p in tx and settles those of suppressed recipients at once. It may run more than once.
func (in *Intake) PageTx(tx kv.Tx, p *Page) (err error) {
	m, now := p.Message, in.deps.Now()
	p.Envelopes = make([]*spool.Envelope, len(p.Recipients))
	for i, r := range p.Recipients {
		p.Envelopes[i] = &spool.Envelope{
			ID:          mail.EnvelopeID{Message: m.ID, N: r.N},
			Queue:       in.queue(m.Account, m.Stream, m.ReversePath, r.To),
			Class:       spool.Bulk,
			To:          r.To,
			Data:        r.Data,
			NextAttempt: now,
		}
	}
	if p.Done, err = in.suppressTx(tx, m.Account, p.Envelopes, true, now); err != nil {
		return fmt.Errorf("put page of %s: %w", m.ID, err)
	}
	return in.deps.Spool.PutTx(tx, m, nil, p.Envelopes, p.Done)
}

// PageAdded wakes the queues. Call it after the transaction is durable.
func (in *Intake) PageAdded(p *Page) { in.deps.Spool.Added(p.Envelopes, p.Done) }

// reasonErased is that of a recipient who asked to be forgotten. It holds for bulk mail: who orders again later wants the
// receipt.
const reasonErased = "erased"

// suppressTx returns the results of those envelopes whose recipients are suppressed, or, for bulk mail, were erased.
func (in *Intake) suppressTx(
	tx kv.Tx, account string, envs []*spool.Envelope, broadcast bool, now time.Time,
) ([]spool.Result, error) {
	to := recipientsOf(envs)
	entries, err := in.deps.Suppression.CheckManyTx(tx, account, to, broadcast)
	if err != nil {
		return nil, err
	}
	if broadcast && in.deps.Erasures != nil {
		erased, err := in.deps.Erasures.ErasedManyTx(tx, account, to)
		if err != nil {
			return nil, err
		}
		addErased(entries, erased)
	}
	return suppressed(envs, entries, now), nil
}

// addErased makes entries of those who were erased and have none.
func addErased(entries []*suppression.Entry, erased []bool) {
	for i := range erased {
		if erased[i] && entries[i] == nil {
			entries[i] = &suppression.Entry{Reason: reasonErased}
		}
	}
}

func recipientsOf(envs []*spool.Envelope) []mail.Path {
	to := make([]mail.Path, len(envs))
	for i, e := range envs {
		to[i] = e.To
	}
	return to
}

// suppressed are the results of the envelopes that have an entry.
func suppressed(envs []*spool.Envelope, entries []*suppression.Entry, now time.Time) (done []spool.Result) {
	for i, entry := range entries {
		if entry == nil {
			continue
		}
		done = append(done, spool.Result{
			ID:      envs[i].ID,
			Outcome: spool.Suppressed,
			Reply: mail.Reply{
				Code: 550, Status: mail.Status{Class: 5, Subject: 7, Detail: 1}, Text: "Recipient is suppressed: " + entry.Reason,
			},
			Reason: entry.Reason,
			At:     now,
		})
	}
	return done
}
