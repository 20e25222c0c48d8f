package app

import (
	"cmp"
	"io"
	"strings"

	"relayd/internal/bounce"
	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/suppression"
	"relayd/smtpd"
)

// This file is what follows from bounces and complaints that come in. Nothing that they say is believed but what our own
// tokens confirm: the address that is suppressed is the one that we wrote to.

// effect is an event with the suppression that it causes, if any.
type effect struct {
	event    event.Event
	about    string // what is counted once; "" for an event each time
	suppress *suppression.Entry
}

// report reads a message that came to a return path or to the address for complaints; nil for any other.
func (in *inbound) report(m *smtpd.InboundMail) (*bounce.Report, error) {
	for _, r := range m.Recipients {
		if r.Kind != smtpd.Bounce && r.Kind != smtpd.Complaint {
			continue
		}
		from := bounce.OtherPath
		if m.From.IsNull() {
			from = bounce.NullPath
		}
		rep, err := bounce.Parse(m.Message, from, in.classify())
		if _, back := m.Message.Seek(0, io.SeekStart); err == nil {
			err = back
		}
		return rep, err
	}
	return nil, nil //nolint:nilnil // nothing to read
}

// bounced is what follows from a message to the return path of an envelope to an address, null when it is not known any
// more. It can suppress that address alone, and does so only where the mailbox does not exist, or calls our mail spam.
func (in *inbound) bounced(rep *bounce.Report, to mail.Path, ev event.Event) effect {
	e := effect{event: ev, about: ev.Envelope + "/" + string(rep.Kind)}
	e.event.Data["kind"] = string(rep.Kind)
	verdict := verdictOn(rep, to)
	if verdict != nil {
		e.event.Reason = verdict.Class
		e.event.Data["status"], e.event.Data["hard"] = verdict.Status, verdict.Hard
		e.event.Data["diagnostic"] = verdict.Diagnostic
		e.about += "/" + statusKey(verdict.Status)
	}
	if to.IsNull() {
		return e
	}
	e.event.Data["recipient"] = to.String()
	entry := suppression.Entry{Account: ev.Account, Address: to.String(), Scope: suppression.Global, Source: ev.Envelope}
	switch {
	case rep.Kind == bounce.Bounce && verdict != nil && verdict.Suppress:
		entry.Reason, entry.Note = suppression.HardBounce, mail.CleanText(strings.TrimSpace(verdict.Status+" "+verdict.Diagnostic), 500)
		e.suppress = &entry
	case rep.Kind == bounce.Complaint:
		entry.Reason, entry.Note = suppression.Complaint, rep.Reporter
		e.suppress = &entry
	}
	return e
}

// statusKey is a status as far as reports are told apart by it: not by numbers that no registry has, of which there are
// millions to choose from.
func statusKey(status string) string {
	st, _, ok := mail.ParseStatus(status)
	if !ok || st.Subject > 7 || st.Detail > 99 {
		return status[:min(len(status), 1)]
	}
	return st.String()
}

// verdictOn picks what a report says of the address that we wrote to. Where it names one address only, and another one,
// ours was forwarded there: what became of the one became of the other.
func verdictOn(rep *bounce.Report, to mail.Path) *bounce.Recipient {
	for i := range rep.Recipients {
		if p, err := mail.ParsePath(rep.Recipients[i].Address); err == nil && !to.IsNull() && p.Domain == to.Domain && strings.EqualFold(p.Local, to.Local) {
			return &rep.Recipients[i]
		}
	}
	if len(rep.Recipients) == 1 {
		return &rep.Recipients[0]
	}
	return nil
}

// complained is what follows from a feedback report. Whom it is about is told by the unsubscribe link of the mail that it
// holds, which carries our token: providers take the address out.
func (in *inbound) complained(rep *bounce.Report, ev event.Event) effect {
	e := effect{event: ev}
	e.event.Data["kind"] = string(rep.Kind)
	e.event.Data["reporter"] = rep.Reporter
	token := tokenIn(rep.ListUnsubscribe)
	if token == "" || rep.Kind != bounce.Complaint && rep.Kind != bounce.Unsubscribe {
		return e
	}
	u, err := in.campaigns.ParseToken(token)
	if err != nil {
		return e
	}
	e.event.Account, e.event.Campaign = u.Account, u.Campaign
	e.event.Data["recipient"] = u.Address
	e.about = u.Account + "/" + u.Campaign + "/" + u.Address + "/" + string(rep.Kind)
	e.suppress = &suppression.Entry{
		Account: u.Account, Address: u.Address, Scope: suppression.Global, Reason: suppression.Complaint, Source: u.Campaign,
		Note: cmp.Or(rep.Reporter, "feedback report"),
	}
	if rep.Kind == bounce.Unsubscribe {
		e.suppress.Scope, e.suppress.Reason = suppression.Broadcast, suppression.Unsubscribe
	}
	return e
}

// tokenIn takes the token out of a List-Unsubscribe field of ours: the last part of its https link.
func tokenIn(list string) string {
	for uri := range strings.SplitSeq(list, ",") {
		uri = strings.Trim(strings.TrimSpace(uri), "<>")
		if i := strings.LastIndex(uri, "/u/"); i >= 0 && strings.HasPrefix(uri, "http") && len(uri) < 2000 {
			return uri[i+len("/u/"):]
		}
	}
	return ""
}

// applyTx stores an effect, unless it was counted before.
func (in *inbound) applyTx(tx kv.Tx, e *effect) error {
	if e.about != "" {
		before, err := bounce.SeenTx(tx, e.about, e.event.At)
		if err != nil || before {
			return err
		}
	}
	if e.suppress != nil {
		if err := in.list.AddTx(tx, *e.suppress); err != nil {
			return err
		}
		if e.suppress.Reason == suppression.Complaint { // its guard looks at it
			if err := in.campaigns.ComplainedTx(tx, e.event.Campaign, 1); err != nil {
				return err
			}
		}
	}
	return in.events.Append(tx, e.event)
}
