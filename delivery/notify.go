package delivery

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"strings"
	"time"

	"relayd/internal/dsn"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// notifier writes to senders whose message did not arrive.
type notifier struct {
	door     Door // nil: no notices
	hostname string
	log      *slog.Logger
	metrics  *metrics
	now      func() time.Time
}

// notices are what goes out with some results.
type notices struct {
	prepared []*intake.Prepared
	tell     []func() // log and count, once they are durable
	err      error    // of the first notice that could not be made
}

// prepare makes one notice per message that needs one; they become durable with the results. A notice that cannot be
// made is logged and counted, and does not hold the results up.
func (n *notifier) prepare(ctx context.Context, done []settlement) notices {
	var out notices
	if n.door == nil {
		return out
	}
	byMessage := map[mail.QueueID][]*settlement{}
	var order []*spool.Message
	for i := range done {
		d := &done[i]
		switch n.judge(d) {
		case noticeSend:
			if byMessage[d.message.ID] == nil {
				order = append(order, d.message)
			}
			byMessage[d.message.ID] = append(byMessage[d.message.ID], d)
		case noticeDouble:
			out.tell = append(out.tell, func() {
				n.metrics.notices.WithLabelValues("double_bounce").Inc()
				n.log.Warn("notice.dropped", "envelope", d.envelope.ID.String(), "to", d.envelope.To.String(), "reason", "double_bounce")
			})
		case noticeUnwanted:
			out.tell = append(out.tell, n.metrics.notices.WithLabelValues("not_wanted").Inc)
		case noticeNone:
		}
	}
	for _, m := range order {
		p, err := n.compose(ctx, m, byMessage[m.ID])
		if err != nil {
			out.err = cmp.Or(out.err, err)
			n.metrics.notices.WithLabelValues("failed").Inc()
			n.log.Warn("notice.failed", "queue_id", m.ID.String(), "to", m.ReversePath.String(), "err", err)
			continue
		}
		out.prepared = append(out.prepared, p)
		out.tell = append(out.tell, func() {
			n.metrics.notices.WithLabelValues("sent").Inc()
			n.log.Info("notice.queued", "queue_id", m.ID.String(), "to", m.ReversePath.String(), "count", len(byMessage[m.ID]))
		})
	}
	return out
}

// put returns what stores the notices in the settling transaction.
func (n *notices) put() []func(kv.Tx) error {
	put := make([]func(kv.Tx) error, len(n.prepared))
	for i, p := range n.prepared {
		put[i] = p.PutTx
	}
	return put
}

// added wakes the queues of the notices and tells of them.
func (n *notices) added() {
	for _, p := range n.prepared {
		p.Added()
	}
	for _, tell := range n.tell {
		tell()
	}
}

type noticeVerdict uint8

const (
	noticeNone     noticeVerdict = iota // nothing to tell
	noticeSend                          //
	noticeUnwanted                      // the sender, or the kind of message, does not want one
	noticeDouble                        // about a notice
)

// judge tells whether a result is worth a notice: only failures of submitted mail, never to `<>` (RFC 5321 section
// 6.1), never about mail that machines or lists send (RFC 3834 section 2), and not against NOTIFY (RFC 3461 section 4.1).
func (n *notifier) judge(d *settlement) noticeVerdict {
	switch d.result.Outcome {
	case spool.Bounced, spool.Failed, spool.Expired:
	default:
		return noticeNone
	}
	switch {
	case d.message.ReversePath.IsNull():
		return noticeDouble
	case d.message.Campaign != "" || d.message.Class == spool.Bulk:
		return noticeUnwanted
	case d.envelope.Notify != "" && !asksForFailure(d.envelope.Notify):
		return noticeUnwanted
	case isAutomatic(d.message.Header):
		return noticeUnwanted
	}
	return noticeSend
}

func asksForFailure(notify string) bool {
	for word := range strings.SplitSeq(notify, ",") {
		if strings.EqualFold(strings.TrimSpace(word), "FAILURE") {
			return true
		}
	}
	return false
}

// isAutomatic tells mail that no person reads the answer to.
func isAutomatic(header []byte) bool {
	h, err := mail.ParseHeader(header)
	if err != nil {
		return false
	}
	auto, _, _ := strings.Cut(h.Get("Auto-Submitted"), ";")
	if auto = strings.TrimSpace(auto); auto != "" && !strings.EqualFold(auto, "no") {
		return true
	}
	switch strings.ToLower(h.Get("Precedence")) {
	case "bulk", "list", "junk":
		return true
	}
	return h.Count("List-Id")+h.Count("List-Unsubscribe") > 0
}

func (n *notifier) compose(ctx context.Context, m *spool.Message, failed []*settlement) (*intake.Prepared, error) {
	notice := dsn.Notice{
		Hostname: n.hostname, To: m.ReversePath, EnvelopeID: m.EnvelopeID, QueueID: m.ID.String(), AcceptedAt: m.AcceptedAt,
		At: n.now(), Subject: m.Subject, Header: m.Header,
	}
	for _, d := range failed {
		notice.Recipients = append(notice.Recipients, dsn.Recipient{
			To: d.envelope.To, ORCPT: d.envelope.ORCPT, Reply: d.result.Reply, Host: d.result.Host,
			Expired: d.result.Outcome == spool.Expired, Attempts: d.envelope.Attempts + boolInt(d.result.Presented), LastAt: d.result.At,
		})
	}
	raw, err := dsn.Compose(notice)
	if err != nil {
		return nil, err
	}
	return n.door.Prepare(ctx, &intake.Submission{
		Account: m.Account, Class: spool.Transactional, Recipients: []intake.Recipient{{To: m.ReversePath, Notify: "NEVER"}},
		Internal: true, RequireTLS: m.RequireTLS, UTF8: m.ReversePath.NeedsUTF8(), Body: bytes.NewReader(raw), Trace: intake.Trace{With: "LOCAL", At: notice.At},
	})
}
