package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	netmail "net/mail"
	"path/filepath"
	"strings"
	"time"

	"relayd/campaign"
	"relayd/internal/bounce"
	"relayd/internal/event"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/suppression"
	"relayd/smtpd"
	"relayd/spool"
)

// returnPathKeys is the key file of return paths, in the data directory.
const returnPathKeys = "return-path.keys"

// inbound takes over what comes in for addresses that relayd issued (smtpd.InboundHandler), and issues return paths.
type inbound struct {
	host      string // of the return paths; "": none are issued
	hostname  string
	operator  mail.Path // null: nobody
	paths     *mail.VERP
	db        kv.DB
	spool     *spool.Store
	events    *event.Log
	intake    *intake.Intake
	campaigns *campaign.Service
	list      *suppression.List
	classify  func() bounce.Classifier
	log       *slog.Logger

	forwards *allowance // octets of mail for the operator
	repeats  *allowance // events that nothing of ours asks for, or that come again
}

// returnPathHost is the domain of return paths, "" where none are issued.
func (a *App) returnPathHost() string {
	switch {
	case a.cfg.SMTP.ReturnPathHost != "":
		return strings.ToLower(a.cfg.SMTP.ReturnPathHost)
	case a.cfg.SMTP.HasInbound():
		return strings.ToLower(a.cfg.Hostname)
	}
	return ""
}

// buildInbound opens the keys of return paths.
func (a *App) buildInbound() (*inbound, error) {
	in := &inbound{
		host: a.returnPathHost(), hostname: a.cfg.Hostname, db: a.db, spool: a.spool, events: a.events, intake: a.intake,
		campaigns: a.campaigns, log: a.log, list: a.list,
		forwards: newAllowance(operatorPerHour), repeats: newAllowance(eventsPerHour),
		classify: func() bounce.Classifier { return a.delivery.Classifier().Bounce },
	}
	if in.host == "" {
		return in, nil
	}
	var err error
	if in.paths, err = mail.OpenVERP(filepath.Join(a.cfg.DataDir, returnPathKeys)); err != nil {
		return nil, err
	}
	if a.cfg.SMTP.OperatorAddress != "" {
		if in.operator, err = mail.ParsePath(a.cfg.SMTP.OperatorAddress); err != nil {
			return nil, fmt.Errorf("operator address: %w", err)
		}
	}
	return in, nil
}

// returnPath is delivery.Deps.ReturnPath.
func (in *inbound) returnPath(m *spool.Message, e *spool.Envelope) mail.Path {
	if in.paths == nil || m.ReversePath.IsNull() {
		return m.ReversePath
	}
	return in.paths.Path(e.ID, time.Now(), in.host)
}

// deps are those of inbound listeners, nil where relayd issues no addresses.
func (in *inbound) deps(a *App) *smtpd.InboundDeps {
	if in.paths == nil {
		return nil
	}
	return &smtpd.InboundDeps{
		Handler: in, ReturnPaths: in.paths, Host: in.host, Domains: a.accounts, HasOperator: !in.operator.IsNull(),
		Resolver: a.resolver,
	}
}

// HandleInbound makes durable what follows from a message: an unsubscribe by its token, mail to the operator, a
// suppression where a bounce or a complaint asks for it, and an event for each recipient. What it does may be repeated:
// unsubscribing twice is once, and a bounce that comes again is no second event.
func (in *inbound) HandleInbound(ctx context.Context, m *smtpd.InboundMail) error {
	subject, err := subjectOf(m.Message)
	if err != nil {
		return err
	}
	rep, err := in.report(m)
	if err != nil {
		return err
	}
	var effects []effect
	events := make([]event.Event, 0, len(m.Recipients))
	forward := false
	token := ""
	for _, r := range m.Recipients {
		ev := in.eventOf(m, r)
		switch r.Kind {
		case smtpd.Bounce:
			to, err := in.identify(ctx, r.Envelope, &ev)
			if err != nil {
				return err
			}
			effects = append(effects, in.bounced(rep, to, ev))
			continue
		case smtpd.Complaint:
			e := in.complained(rep, ev)
			if e.about == "" && !in.repeats.pass(m.Source, 1, m.Trace.At) {
				return errTooMuch
			}
			effects = append(effects, e)
			continue
		case smtpd.Unsubscribe:
			token = lastWord(subject)
			u, err := in.campaigns.ParseToken(token)
			if err != nil {
				return mail.Refuse(550, mail.Status{Class: 5, Subject: 7, Detail: 1}, "The subject holds no unsubscribe token of ours", err)
			}
			if ev.Account, ev.Campaign = u.Account, u.Campaign; !in.repeats.pass(m.Source, 1, m.Trace.At) {
				continue // the wish is heard, and told as contact.unsubscribed; only that it came again is not
			}
		case smtpd.Operator:
			forward = true
		}
		events = append(events, ev)
	}
	if forward && !in.forwards.pass(m.Source, max(m.Size, leastForward), m.Trace.At) {
		return errTooMuch
	}
	if token != "" {
		if _, err := in.campaigns.Unsubscribe(ctx, token); err != nil {
			return err
		}
	}
	if forward {
		if err := in.forward(ctx, m, subject); err != nil {
			return err
		}
	}
	err = in.db.Update(ctx, func(tx kv.Tx) error {
		for i := range effects {
			if err := in.applyTx(tx, &effects[i]); err != nil {
				return err
			}
		}
		for _, ev := range events {
			if err := in.events.Append(tx, ev); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store inbound events: %w", err)
	}
	return nil
}

var errTooMuch = mail.Refuse(452, mail.Status{Class: 4, Subject: 7}, "Too much mail of this kind comes in, please come back in an hour", nil)

func (in *inbound) eventOf(m *smtpd.InboundMail, r smtpd.InboundRecipient) event.Event {
	return event.Event{
		Type: "inbound." + string(r.Kind), At: m.Trace.At, From: m.From.String(), To: r.To.String(), Host: m.Trace.ClientIP,
		Data: map[string]any{
			"id": m.ID.String(), "size": m.Size, "spf": string(m.Auth.SPF.Result), "dmarc": string(m.Auth.DMARC.Result),
			"author_domain": m.Auth.DMARC.From, "signatures": len(m.Auth.DKIM),
		},
	}
}

// identify adds what is known of the envelope that a return path names, and returns its recipient, null when that is
// forgotten.
func (in *inbound) identify(ctx context.Context, id mail.EnvelopeID, ev *event.Event) (to mail.Path, err error) {
	ev.Envelope = id.String()
	_, infos, err := in.spool.GetEnvelope(ctx, id)
	if errors.Is(err, spool.ErrNotFound) {
		return to, nil
	}
	if err != nil {
		return to, err
	}
	e := &infos[0].Envelope
	ev.Account, ev.Campaign = e.Queue.Account, e.Queue.Stream // return paths are issued for campaigns alone
	return e.To, nil
}

func subjectOf(r io.ReadSeeker) (string, error) {
	m, err := netmail.ReadMessage(r)
	if _, back := r.Seek(0, io.SeekStart); back != nil {
		return "", back
	}
	if err != nil {
		return "", nil //nolint:nilerr // a header that cannot be read has no subject
	}
	return mail.CleanText(mail.DecodeText(m.Header.Get("Subject")), 998), nil
}

func lastWord(s string) string {
	words := strings.Fields(s)
	if len(words) == 0 {
		return ""
	}
	return words[len(words)-1]
}

// forward sends mail for postmaster or abuse to the operator as an attachment of a message of ours: resent as it is, its
// author's DMARC policy would have it refused.
func (in *inbound) forward(ctx context.Context, m *smtpd.InboundMail, subject string) error {
	if in.operator.IsNull() {
		return errors.New("no operator address")
	}
	to := ""
	for _, r := range m.Recipients {
		if r.Kind == smtpd.Operator {
			to = r.To.String()
			break
		}
	}
	boundary := "=_" + m.ID.String()
	var head []byte
	var err error
	for _, f := range [][2]string{
		{"From", "relayd <postmaster@" + in.hostname + ">"},
		{"To", in.operator.String()},
		{"Auto-Submitted", "auto-forwarded"},
		{"MIME-Version", "1.0"},
		{"Content-Type", `multipart/mixed; boundary="` + boundary + `"`},
	} {
		if head, err = mail.AppendRawField(head, f[0], f[1]); err != nil {
			return err
		}
	}
	if head, err = mail.AppendField(head, "Subject", mail.CleanText("Mail for "+to+": "+subject, 500)); err != nil {
		return err
	}
	var b bytes.Buffer
	b.Write(head)
	fmt.Fprintf(&b, "\r\n--%s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n", boundary)
	fmt.Fprintf(&b, "This came in for %s from %s (reverse-path <%s>).\r\n", to, m.Trace.ClientIP, m.From)
	fmt.Fprintf(&b, "SPF: %s. DMARC of %s: %s.\r\n", m.Auth.SPF.Result, m.Auth.DMARC.From, m.Auth.DMARC.Result)
	fmt.Fprintf(&b, "\r\n--%s\r\nContent-Type: message/rfc822\r\nContent-Disposition: attachment\r\n\r\n", boundary)
	end := "\r\n--" + boundary + "--\r\n"
	id, err := in.intake.Accept(ctx, &intake.Submission{
		Internal: true, Class: spool.Transactional, Recipients: []intake.Recipient{{To: in.operator, Notify: "NEVER"}}, RequireTLS: m.RequireTLS,
		Trace: intake.Trace{At: m.Trace.At, With: "LOCAL"}, Body: io.MultiReader(&b, m.Message, strings.NewReader(end)),
	})
	if err != nil {
		return fmt.Errorf("forward to the operator: %w", err)
	}
	in.log.Info("inbound.forwarded", "queue_id", id.String(), "from", m.From.String(), "to", in.operator.String())
	return nil
}
