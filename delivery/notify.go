package delivery

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
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
	expires  func(m *spool.Message) time.Time
	body     func(ctx context.Context, id mail.QueueID, w io.Writer) (int64, error)
	delay    atomic.Int64 // a sender is told after it that a message waits; 0: never
}

// notices are what goes out with some results.
type notices struct {
	prepared []*intake.Prepared
	tell     []func() // log and count, once they are durable
	err      error    // of the first notice that could not be made
}

// about is what one notice is about: notices of one kind about one message are one.
type about struct {
	message *spool.Message
	kind    dsn.Kind
}

// prepare makes one notice per message and kind that needs one; they become durable with the results. A notice that
// cannot be made is logged and counted, and does not hold the results up.
func (n *notifier) prepare(ctx context.Context, done []settlement) notices {
	var out notices
	if n.door == nil {
		return out
	}
	grouped := map[mail.QueueID]map[dsn.Kind][]*settlement{}
	var order []about
	for i := range done {
		d := &done[i]
		kind, verdict := n.judge(d)
		switch verdict {
		case noticeSend:
			of := grouped[d.message.ID]
			if of == nil {
				of = map[dsn.Kind][]*settlement{}
				grouped[d.message.ID] = of
			}
			if of[kind] == nil {
				order = append(order, about{d.message, kind})
			}
			of[kind] = append(of[kind], d)
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
	room := int64(maxReturnedAtOnce)
	for _, a := range order {
		of := grouped[a.message.ID][a.kind]
		p, err := n.compose(ctx, a, of, &room)
		if err != nil {
			out.err = cmp.Or(out.err, err)
			n.metrics.notices.WithLabelValues("failed").Inc()
			n.log.Warn("notice.failed", "queue_id", a.message.ID.String(), "to", a.message.ReversePath.String(), "err", err)
			continue
		}
		out.prepared = append(out.prepared, p)
		out.tell = append(out.tell, func() {
			n.metrics.notices.WithLabelValues(noticeResults[a.kind]).Inc()
			n.log.Info("notice.queued", "queue_id", a.message.ID.String(), "to", a.message.ReversePath.String(), "count", len(of),
				"reason", noticeResults[a.kind])
		})
	}
	return out
}

// noticeResults are the names of notices that were sent, by kind.
var noticeResults = [...]string{dsn.Failed: "sent", dsn.Delayed: "delayed", dsn.Relayed: "relayed"}

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

// judge tells whether a result is worth a notice, and of which kind: never one to `<>` (RFC 5321 section 6.1), never one
// about mail that machines or lists send (RFC 3834 section 2), and none against NOTIFY (RFC 3461 section 4.1).
func (n *notifier) judge(d *settlement) (dsn.Kind, noticeVerdict) {
	kind, asked := dsn.Failed, "FAILURE"
	switch d.result.Outcome {
	case spool.Bounced, spool.Failed, spool.Expired:
	case spool.Delivered:
		if !d.relayed || !asksFor(d.envelope.Notify, "SUCCESS") {
			return 0, noticeNone
		}
		kind, asked = dsn.Relayed, "SUCCESS"
	case spool.Deferred:
		if !n.late(d) {
			return 0, noticeNone
		}
		kind, asked = dsn.Delayed, "DELAY"
	default:
		return 0, noticeNone
	}
	switch {
	case d.message.ReversePath.IsNull() && kind == dsn.Failed:
		return kind, noticeDouble
	case d.message.ReversePath.IsNull():
		return kind, noticeNone
	case d.message.Campaign != "" || d.message.Class == spool.Bulk:
		return kind, noticeUnwanted
	case d.envelope.Notify != "" && !asksFor(d.envelope.Notify, asked):
		return kind, noticeUnwanted
	case isAutomatic(d.message.Header):
		return kind, noticeUnwanted
	}
	return kind, noticeSend
}

// late tells that a deferral is the first one after the time at which the sender wants to hear of a delay. What was
// said before is not stored: the time of the last failure tells it.
func (n *notifier) late(d *settlement) bool {
	after := time.Duration(n.delay.Load())
	if after == 0 || d.result.Reply.IsZero() {
		return false
	}
	from := d.message.AcceptedAt
	if e := d.envelope; e.LastAt.IsZero() && e.NextAttempt.After(from) && e.NextAttempt.Before(d.result.At) { // it was scheduled
		from = e.NextAttempt
	}
	at := from.Add(after)
	return !d.result.At.Before(at) && d.envelope.LastAt.Before(at)
}

// asksFor tells whether NOTIFY names a condition. Without NOTIFY failures and delays are told (RFC 3461 section 4.1).
func asksFor(notify, condition string) bool {
	for word := range strings.SplitSeq(notify, ",") {
		if strings.EqualFold(strings.TrimSpace(word), condition) {
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

// Bounds of the messages that go back in full, in octets: of one, and of all in the notices of one settlement.
const (
	maxReturned       = 256 << 10
	maxReturnedAtOnce = 4 << 20
)

// returned puts the message into a notice of failure where RET=FULL asks for it (RFC 3461 section 4.3), or why it is not
// there. Without RET its header goes back, as with RET=HDRS.
func (n *notifier) returned(ctx context.Context, notice *dsn.Notice, m *spool.Message, room *int64) {
	switch {
	case notice.Kind != dsn.Failed || !m.RetFull:
	case m.Size > maxReturned || m.Size > *room:
		notice.Omitted = dsn.TooLarge
	case m.EightBit && !m.UTF8: // message/rfc822 would need a way of 8 bits back (RFC 2046 section 5.2.1)
		notice.Omitted = dsn.EightBit
	default:
		b := bytes.NewBuffer(make([]byte, 0, m.Size))
		b.Write(m.Header)
		b.Write(crlf)
		if _, err := n.body(ctx, m.ID, b); err != nil {
			n.log.Warn("notice.cut", "queue_id", m.ID.String(), "err", err)
			notice.Omitted = dsn.Unreadable
			return
		}
		*room -= m.Size
		notice.Message = b.Bytes()
	}
}

func (n *notifier) compose(ctx context.Context, a about, of []*settlement, room *int64) (*intake.Prepared, error) {
	m := a.message
	notice := dsn.Notice{
		Kind: a.kind, Hostname: n.hostname, To: m.ReversePath, EnvelopeID: m.EnvelopeID, QueueID: m.ID.String(), AcceptedAt: m.AcceptedAt,
		At: n.now(), Subject: m.Subject, Header: m.Header, UTF8: m.UTF8,
	}
	n.returned(ctx, &notice, m, room)
	for _, d := range of {
		notice.Recipients = append(notice.Recipients, dsn.Recipient{
			To: d.envelope.To, ORCPT: d.envelope.ORCPT, Reply: d.result.Reply, Host: d.result.Host,
			Expired: d.result.Outcome == spool.Expired, Attempts: d.envelope.Attempts + boolInt(d.result.Presented), LastAt: d.result.At,
			Until: n.expires(m),
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
