package app

import (
	"context"
	"slices"
	"strings"

	"relayd/campaign"
	"relayd/delivery"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/suppression"
	"relayd/spool"
)

// suppressBounced makes a mailbox that does not exist a suppression, in the transaction that settles its bounce.
func suppressBounced(list *suppression.List) spool.SettleHook {
	return func(tx kv.Tx, settled []spool.Settled) error {
		for _, s := range settled {
			if !s.Result.Suppress || s.Result.Outcome != spool.Bounced {
				continue
			}
			err := list.AddTx(tx, suppression.Entry{
				Account: s.Message.Account, Address: s.Envelope.To.String(), Scope: suppression.Global,
				Reason: suppression.HardBounce, Source: s.Envelope.ID.String(), Note: s.Result.Reply.String(),
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// refusals is contact.Suppressions: complaints and hard bounces, over which no option of an import goes.
type refusals struct{ list *suppression.List }

// RefusedTx returns the reason for each mailbox, "" for none.
func (r refusals) RefusedTx(tx kv.Tx, account string, to []mail.Path) ([]string, error) {
	entries, err := r.list.CheckManyTx(tx, account, to, true)
	if err != nil {
		return nil, err
	}
	reasons := make([]string, len(to))
	for i, e := range entries {
		if e != nil && (e.Reason == suppression.Complaint || e.Reason == suppression.HardBounce) {
			reasons[i] = e.Reason
		}
	}
	return reasons, nil
}

// gate is delivery.Gate: the last look before MAIL FROM.
type gate struct {
	list      *suppression.List
	campaigns *campaign.Service
}

// Blocked tells why each envelope is no longer wanted, "" if it is.
func (g gate) Blocked(ctx context.Context, m *spool.Message, envs []*spool.Envelope) ([]string, error) {
	reasons, to := make([]string, len(envs)), make([]mail.Path, len(envs))
	for i, e := range envs {
		reason, notBefore, err := g.campaigns.Blocked(ctx, m, e)
		switch {
		case err != nil:
			return nil, err
		case !notBefore.IsZero():
			return nil, &delivery.NotYet{Until: notBefore, Reason: "quiet_hours"}
		}
		reasons[i], to[i] = reason, e.To
	}
	if !slices.Contains(reasons, "") { // a campaign that is paused or over
		return reasons, nil
	}
	entries, err := g.list.CheckMany(ctx, m.Account, to, m.Class == spool.Bulk)
	if err != nil {
		return nil, err
	}
	for i, e := range entries {
		if e != nil && reasons[i] == "" {
			reasons[i] = e.Reason
		}
	}
	return reasons, nil
}

// routes is intake.Routes: delivery is built after the door that asks it, and before anybody comes to the door.
type routes struct{ app *App }

func (r routes) QueueDomain(account, stream string, from, to mail.Path) string {
	return r.app.delivery.QueueDomain(account, stream, from, to)
}

// sites is campaign.Sites: what delivery knows. It is asked only after both are built.
type sites struct{ app *App }

// SiteOf names the hosts of a domain.
func (s sites) SiteOf(domain string) string { return s.app.delivery.SiteOf(domain) }

// Waits tells what keeps queues waiting, in the words of progress.
func (s sites) Waits(queues []spool.Queue) []campaign.Wait {
	known := s.app.delivery.WaitingKnown(queues)
	waits := make([]campaign.Wait, len(known))
	for i := range known {
		waits[i] = waitOf(&known[i])
	}
	return waits
}

func waitOf(w *delivery.Wait) campaign.Wait {
	out := campaign.Wait{Until: w.Until, Detail: w.Text, PerSecond: w.PerSecond}
	switch {
	case w.Reason == "dns":
		out.Limit, out.State = "dns", "backoff"
	case w.Own:
		out.Limit = "campaign.max_concurrency"
	case w.Scope == "campaign":
		out.Limit = "delivery.limits.campaign"
	case w.Scope != "":
		out.Limit = w.Scope + ":" + strings.TrimPrefix(w.Limit, w.Scope+" ")
	default:
		out.Limit = w.Limit // delivery.max_connections, or nothing
	}
	switch w.Reason {
	case "suspended":
		out.State = "backoff"
		if w.Reply.Code != 0 {
			out.Detail = w.Reply.String()
		}
	case "suspended_by_operator":
		out.State = "suspended"
	}
	return out
}

// broadcaster is intake.Broadcaster: campaigns are built after the door, and before anybody comes to it.
type broadcaster struct{ app *App }

func (b broadcaster) Broadcast(ctx context.Context, m *intake.Broadcast) error {
	return b.app.campaigns.Broadcast(ctx, m)
}
