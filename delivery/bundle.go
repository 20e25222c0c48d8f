package delivery

import (
	"time"

	"relayd/internal/mail"
	"relayd/spool"
)

// batch is one lease on its way through the workers of a site.
type batch struct {
	lease *spool.Lease
	site  *site // nil for a refusal
	flow  *flow // of the site; nil for a refusal
	bulk  bool  // its results may wait for others
	left  int   // envelopes that are not settled; the scheduler's lock holds it

	pending  []settlement // waits for the settler; the settler's lock holds it
	settling bool
}

// bundle is what one transaction takes: one message, or one campaign's envelope, and its recipients at the site.
type bundle struct {
	batch    *batch
	flow     *flow
	message  *spool.Message
	envs     []*spool.Envelope
	class    spool.Class
	queuedAt time.Time
}

// bundles splits a lease, in its order: envelopes of one submitted message go together, up to most of them.
func bundles(b *batch, most int, now time.Time) []*bundle {
	var out []*bundle
	open := map[mail.QueueID]*bundle{}
	for _, e := range b.lease.Envelopes {
		m := b.lease.Messages[e.ID.Message]
		if m == nil {
			continue // the scheduler gives the rest of the lease back
		}
		if t := open[m.ID]; t != nil && len(t.envs) < most && t.class == e.Class && m.Campaign == "" {
			t.envs = append(t.envs, e)
			continue
		}
		t := &bundle{batch: b, flow: b.flow, message: m, envs: []*spool.Envelope{e}, class: e.Class, queuedAt: now}
		out = append(out, t)
		if m.Campaign == "" {
			open[m.ID] = t
		}
	}
	return out
}

// with is the bundle with other recipients.
func (b *bundle) with(envs []*spool.Envelope) *bundle {
	c := *b
	c.envs = envs
	return &c
}

// settlement is the result of one envelope with what the log and the notices want to know of it.
type settlement struct {
	message  *spool.Message
	envelope *spool.Envelope
	result   spool.Result
	relayed  bool // delivered to a host that tells nobody of deliveries
}
