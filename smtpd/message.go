package smtpd

import (
	"context"
	"errors"
	"io"
	"time"

	"relayd/internal/intake"
	"relayd/internal/mail"
	"relayd/spool"
)

// data takes one message. Whatever becomes of it, its end is found before the next command is read.
func (s *session) data(ctx context.Context, arg string) {
	switch {
	case arg != "":
		s.refuse(errNoArgument)
		return
	case s.tx == nil:
		s.refuse(errMailFirst)
		return
	case len(s.tx.rcpts) == 0:
		s.refuse(refuse(554, 5, 1, "No valid recipients"))
		return
	case s.tx.mail.binary: // RFC 3030 section 3
		s.refuse(refuse(503, 5, 1, "A message with BODY=BINARYMIME comes with BDAT"))
		return
	}
	if s.outOfSync() {
		return
	}
	s.wire.write("354 End data with <CR><LF>.<CR><LF>\r\n")
	s.take(ctx, s.newDataReader())
}

// newDataReader begins the message of this session's transaction.
func (s *session) newDataReader() *dataReader {
	return newDataReader(s.wire, &s.srv.cfg, s.lis.maxBytes, s.stressed())
}

// take hands the message of the transaction over, and answers when it is stored or refused.
func (s *session) take(ctx context.Context, d *dataReader) {
	tx := s.tx
	s.tx = nil
	s.messages++
	sub := s.submission(tx, d)
	began := time.Now()
	id, err := s.accept(ctx, sub, d)
	lost := d.drain(err == nil)
	if refusal := d.refusal(); refusal != nil {
		err = refusal
	}
	s.srv.metrics.accept.Observe(time.Since(began).Seconds())
	if errors.Is(lost, errAborted) {
		s.dispatch(ctx, d.chunks.pending)
		return
	}
	if lost != nil {
		s.logMessage(sub, d.size, mail.QueueID{}, lost)
		s.lost(lost)
		return
	}
	s.logMessage(sub, d.size, id, err)
	if err != nil {
		r := replyOf(err)
		if !r.Temporary() { // the next MAIL, and not this message, pays for one too many
			s.errors++
		}
		s.wire.reply(r)
		return
	}
	s.errors, s.junk = 0, 0
	s.wire.reply(ok(0, 0, "Ok: queued as "+id.String()))
}

// submission describes the message to the door.
func (s *session) submission(tx *transaction, body io.Reader) *intake.Submission {
	sub := &intake.Submission{
		Class:       spool.Transactional,
		ReversePath: tx.mail.from,
		Recipients:  tx.rcpts,
		EnvelopeID:  tx.mail.envID,
		RetHeaders:  tx.mail.retHeaders,
		RetFull:     tx.mail.retFull,
		UTF8:        tx.mail.utf8,
		RequireTLS:  tx.mail.requireTLS,
		Binary:      tx.mail.binary,
		SendAt:      tx.mail.holdUntil,
		Trace:       intake.Trace{Helo: s.helo, ClientIP: s.client, With: "SMTP", TLS: s.tls, At: s.srv.deps.Now()},
		Body:        body,
	}
	if tx.mail.holdFor > 0 {
		sub.SendAt = sub.Trace.At.Add(tx.mail.holdFor)
	}
	if s.esmtp { // RFC 3848, RFC 6531 section 4.3
		sub.Trace.With = "ESMTP"
		if tx.mail.utf8 {
			sub.Trace.With = "UTF8SMTP"
		}
		if s.tls != "" {
			sub.Trace.With += "S"
		}
		if s.cred != nil {
			sub.Trace.With += "A"
		}
	}
	if s.cred != nil {
		sub.Account, sub.Credential = s.cred.Account, s.cred.Username
		if len(s.cred.Domains) > 0 {
			sub.Domains = s.cred.Domains
		}
	}
	return sub
}

// accept hands the message over. Reading it has the wire's deadlines; what comes behind its end has AcceptTimeout.
func (s *session) accept(ctx context.Context, sub *intake.Submission, d *dataReader) (mail.QueueID, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var timer *time.Timer
	d.atEnd = func() { timer = time.AfterFunc(s.srv.cfg.AcceptTimeout, cancel) }
	id, err := s.lis.accept.Accept(ctx, sub)
	d.atEnd = nil
	if timer != nil {
		timer.Stop()
	}
	return id, err
}

func (s *session) logMessage(sub *intake.Submission, size int64, id mail.QueueID, err error) {
	attrs := []any{
		"session", s.id, "from", sub.ReversePath.String(), "count", len(sub.Recipients), "size", size,
		"account", sub.Account, "ip", s.client,
	}
	if err == nil {
		s.srv.metrics.bytes.Add(float64(size))
		s.srv.metrics.messages.WithLabelValues(s.lis.kind, s.lis.label, "accepted").Inc()
		s.srv.log.Info("message.accepted", append(attrs, "queue_id", id.String())...)
		return
	}
	r := replyOf(err)
	attrs = append(attrs, "code", r.Code, "status", r.Status.String(), "err", err)
	if r.Temporary() {
		s.srv.metrics.messages.WithLabelValues(s.lis.kind, s.lis.label, "deferred").Inc()
		s.srv.log.Info("message.deferred", attrs...)
		return
	}
	s.srv.metrics.messages.WithLabelValues(s.lis.kind, s.lis.label, "refused").Inc()
	s.srv.log.Info("message.refused", attrs...)
}
