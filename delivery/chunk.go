package delivery

import (
	"bytes"
	"context"
	"fmt"
	"strconv"

	"relayd/internal/mail"
)

// chunkSize is the most that one BDAT carries. A message up to it takes one round trip less than with DATA.
const chunkSize = 256 << 10

// sendChunked sends a transaction whose message goes with BDAT (RFC 3030). Its octets leave only when a recipient was
// taken: some hosts read the chunk of a refused BDAT as commands.
func (s *Session) sendChunked(ctx context.Context, t *Transaction, answers []Answer, reset bool) error {
	taken, err := s.recipients(t, answers, reset)
	if err != nil || taken == 0 {
		return err
	}
	c := &chunkWriter{s: s}
	body := &localReader{w: c}
	if err := t.Body(ctx, body); err != nil && body.err == nil {
		return &fault{kind: faultLocal, err: fmt.Errorf("read message: %w", err)}
	}
	if c.err == nil && c.reply.IsZero() {
		c.close()
	}
	switch {
	case !c.reply.IsZero():
		return decideOpen(answers, 0, c.reply, PhaseData, c.err)
	case c.err != nil:
		return c.err
	}
	return s.chunksDone(answers)
}

// recipients says MAIL and RCPT, whose command for MAIL is in the buffer already, and tells how many were taken.
func (s *Session) recipients(t *Transaction, answers []Answer, reset bool) (taken int, err error) {
	if s.ext.pipelining {
		for _, r := range t.Recipients {
			s.rcptTo(r)
		}
		if err := s.flush(); err != nil {
			return 0, err
		}
		if reset {
			if err := s.finish(s.timeouts.Command); err != nil {
				return 0, err
			}
		}
	}
	from, err := s.roundTrip(s.timeouts.Command)
	if err != nil {
		return 0, decideAll(answers, from, PhaseMail, err)
	}
	if !from.Positive() {
		_ = decideAll(answers, from, PhaseMail, nil)
		if !s.ext.pipelining {
			s.dirty = false
			return 0, nil
		}
	}
	for i, r := range t.Recipients {
		if !s.ext.pipelining {
			s.rcptTo(r)
		}
		reply, err := s.roundTrip(s.timeouts.Command)
		switch {
		case err != nil:
			return 0, decideOpen(answers, i, reply, PhaseRcpt, err)
		case !from.Positive(): // decided by MAIL
		case reply.Positive():
			taken++
		default:
			answers[i] = Answer{reply, PhaseRcpt}
		}
	}
	return taken, nil
}

// chunksDone reads the reply to the last chunk.
func (s *Session) chunksDone(answers []Answer) error {
	done, err := s.read(s.timeouts.DataDone)
	if err != nil && done.IsZero() {
		return &fault{kind: faultInDoubt, err: fmt.Errorf("read reply to the last chunk: %w", err)}
	}
	s.dirty = !done.Positive() // after a refused chunk only RSET ends the transaction (RFC 3030 section 2)
	if done.Code/100 < 4 && !done.Positive() {
		return &fault{kind: faultInDoubt, err: fmt.Errorf("%w: %d to the last chunk", errReply, done.Code)}
	}
	if s.r.buffered() { // more than was asked for: who knows what the next one would belong to
		s.broken = true
	}
	return decideOpen(answers, 0, done, PhaseData, err)
}

// chunkWriter sends a message in chunks and waits for the reply to each but the last.
type chunkWriter struct {
	s       *Session
	buf     []byte
	pending bool       // a CR at the end of the last block waits for its LF
	reply   mail.Reply // that refused a chunk
	err     error      // a *fault: the session is of no further use
}

// errChunkRefused ends the reading of a message that nobody wants any more.
var errChunkRefused = fmt.Errorf("%w: chunk refused", errReply)

// Write takes blocks cut anywhere. What must never leave is mended as dotWriter does.
func (c *chunkWriter) Write(p []byte) (int, error) {
	n := len(p)
	if c.pending && n > 0 {
		c.pending = false
		if p[0] == '\n' {
			p = p[1:]
		}
		c.buf = append(c.buf, crlf...)
	}
	if len(p) > 0 && p[len(p)-1] == '\r' {
		c.pending = true
		p = p[:len(p)-1]
	}
	if ends := bytes.Count(p, crlf); bytes.Count(p, crlf[:1]) != ends || bytes.Count(p, crlf[1:]) != ends || bytes.IndexByte(p, 0) >= 0 {
		p = mend(p)
	}
	for len(p) > 0 {
		k := min(len(p), chunkSize-min(len(c.buf), chunkSize))
		c.buf = append(c.buf, p[:k]...)
		if p = p[k:]; len(p) > 0 {
			if err := c.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// flush sends a chunk that is not the last.
func (c *chunkWriter) flush() error {
	if err := c.send("", c.s.connKind); err != nil {
		return err
	}
	reply, err := c.s.read(c.s.timeouts.DataDone)
	switch {
	case err != nil:
		c.reply, c.err = reply, err
		return err
	case !reply.Positive() && reply.Code < 400:
		c.err = &fault{kind: faultProtocol, err: fmt.Errorf("%w: %d to a chunk", errReply, reply.Code)}
		return c.err
	case !reply.Positive():
		c.reply = reply
		return errChunkRefused
	}
	return nil
}

// close sends the last chunk, whose reply is still to be read.
func (c *chunkWriter) close() {
	if c.pending || len(c.buf) > 0 && !bytes.HasSuffix(c.buf, crlf) {
		c.buf = append(c.buf, crlf...)
	}
	_ = c.send(" LAST", func() faultKind { return faultInDoubt }) // it may or may not have left
}

// send sends what is in the buffer. Its error is kept; broken tells its kind when the connection breaks.
func (c *chunkWriter) send(last string, broken func() faultKind) error {
	if c.err = c.s.inStep(); c.err != nil {
		return c.err
	}
	c.s.command("BDAT " + strconv.Itoa(len(c.buf)) + last)
	_, _ = c.s.w.Write(c.buf)
	c.buf = c.buf[:0]
	if err := c.s.w.Flush(); err != nil {
		c.err = &fault{kind: broken(), err: fmt.Errorf("send chunk: %w", err)}
	}
	return c.err
}
