package app

import (
	"context"

	"relayd/campaign"
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

// gate is delivery.Gate: the last look before MAIL FROM.
type gate struct {
	list      *suppression.List
	campaigns *campaign.Service
}

// Blocked tells why an envelope is no longer wanted, "" if it is.
func (g gate) Blocked(ctx context.Context, m *spool.Message, e *spool.Envelope) (string, error) {
	if reason := g.campaigns.Blocked(m.Campaign); reason != "" {
		return reason, nil
	}
	entry, err := g.list.Check(ctx, m.Account, e.To, m.Class == spool.Bulk)
	if err != nil || entry == nil {
		return "", err
	}
	return entry.Reason, nil
}

// routes is intake.Routes: delivery is built after the door that asks it, and before anybody comes to the door.
type routes struct{ app *App }

func (r routes) QueueDomain(account, stream string, from, to mail.Path) string {
	return r.app.delivery.QueueDomain(account, stream, from, to)
}
