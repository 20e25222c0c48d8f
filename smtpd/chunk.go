package smtpd

import (
	"bytes"
	"context"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"relayd/internal/mail"
)

var (
	errChunkSyntax = refuse(501, 5, 4, "Syntax: BDAT <octets> [LAST]")
	errMixed       = refuse(503, 5, 1, "The message is under way in chunks: BDAT or RSET")
	errAborted     = errors.New("client gave the message up")
	errEnded       = errors.New("session has ended")
)

// parseChunk reads the argument of BDAT (RFC 3030 section 2: chunk-size = 1*DIGIT): how many octets follow the line, and
// whether they are the last of the message.
func parseChunk(arg string) (size int64, last bool, err *mail.Error) {
	number, word, more := strings.Cut(arg, " ")
	if more {
		if !strings.EqualFold(word, "LAST") {
			return 0, false, errChunkSyntax
		}
		last = true
	}
	if number == "" || strings.Trim(number, "0123456789") != "" {
		return 0, false, errChunkSyntax
	}
	n, perr := strconv.ParseInt(number, 10, 64)
	if perr != nil { // more than anybody can send: as large as can be, and so too large
		n = math.MaxInt64
	}
	return n, last, nil
}

// chunk reads one BDAT command, of which nothing but the line has been read. Octets that follow a command that nobody
// can understand, or that are too many to be read over, are never looked at: the session ends.
func (s *session) chunk(arg string) (size int64, last, ok bool) {
	size, last, err := parseChunk(arg)
	if err == nil && size > mostUnread(s.lis.maxBytes) {
		s.end(errDataTooLong, "size")
		return 0, false, false
	}
	if err != nil {
		s.end(err, "protocol")
		return 0, false, false
	}
	return size, last, true
}

// bdat takes a message that begins with this chunk. The octets of a chunk that is refused are read over before the
// refusal is sent.
func (s *session) bdat(ctx context.Context, arg string) {
	size, last, ok := s.chunk(arg)
	if !ok {
		return
	}
	d := s.newDataReader()
	d.chunks = &chunks{session: s, ctx: ctx, left: size, last: last, binary: s.tx != nil && s.tx.mail.binary}
	var err *mail.Error
	switch {
	case s.tx == nil:
		err = errMailFirst
	case len(s.tx.rcpts) == 0:
		err = refuse(503, 5, 1, "No valid recipients")
	}
	if err == nil {
		s.take(ctx, d)
		return
	}
	if lost := d.drain(false); lost != nil {
		s.lost(lost)
		return
	}
	s.tx = nil
	s.refuse(err)
}

// chunks are the chunks of one message on its way: how much of the current one has not been read. It is what a
// dataReader has in place of an end mark.
type chunks struct {
	session *session
	ctx     context.Context
	left    int64
	last    bool
	size    int64 // of the current chunk, as far as it was read
	cr      bool  // the last octet was a CR
	binary  bool  // BINARYMIME: any octets; the door knows where
	pending command
}

// step returns a block of the current chunk. Behind its last octet it answers, and reads the next command.
func (c *chunks) step(d *dataReader) []byte {
	switch {
	case c.left == 0 && !c.last:
		d.lost = c.next(d)
		return nil
	case c.left == 0:
		if c.cr && d.frame.bad == nil {
			d.frame.bad = errDataBareCR
		}
		if d.ended = true; d.atEnd != nil {
			d.atEnd()
		}
		return nil
	}
	b := d.wire.unread()
	if len(b) == 0 {
		d.lost = d.fill()
		return nil
	}
	b = b[:min(int64(len(b)), c.left)]
	d.wire.r += len(b)
	c.left -= int64(len(b))
	c.size += int64(len(b))
	if !c.binary {
		c.check(&d.frame, b)
	}
	return b
}

// check holds a chunk to lines that end in CRLF.
func (c *chunks) check(f *framer, b []byte) {
	if f.bad != nil || len(b) == 0 {
		return
	}
	lines := 0
	if c.cr && b[0] != '\n' {
		f.bad = errDataBareCR
	}
	if c.cr {
		lines++
	}
	for n := 0; ; {
		i := bytes.IndexByte(b[n:], '\r')
		if i < 0 {
			break
		}
		if n += i + 1; n == len(b) {
			break
		}
		if b[n] != '\n' {
			f.bad = errDataBareCR
			return
		}
		lines++
	}
	c.cr = b[len(b)-1] == '\r'
	if f.bad == nil && bytes.Count(b, []byte{'\n'}) != lines {
		f.bad = errDataBareLF
	}
}

// next answers a chunk and waits for the one behind it. Other commands may come between; those that end the transaction
// end the message, and are kept in pending.
func (c *chunks) next(d *dataReader) error {
	s := c.session
	if c.size == 0 && !s.countJunk() {
		return errEnded
	}
	s.wire.reply(ok(0, 0, strconv.FormatInt(c.size, 10)+" octets received"))
	c.size = 0
	for {
		s.wire.shrink()
		began := time.Now()
		deadline, err := d.rate.next(began) // many small chunks are no way around the minimum rate
		if err != nil {
			return err
		}
		line, ok := s.readCommand(min(time.Until(deadline), s.srv.cfg.CommandTimeout), nil)
		d.rate.add(0, time.Since(began))
		if s.closing {
			return errEnded
		}
		if !ok {
			continue
		}
		cmd, refusal := parseCommand(line)
		if refusal != nil {
			s.refuse(refusal)
			continue
		}
		s.trace(cmd)
		switch cmd.verb {
		case "BDAT":
			var ok bool
			if c.left, c.last, ok = s.chunk(cmd.arg); !ok {
				return errEnded
			}
			d.wire.grow()
			return nil
		case "RSET", "EHLO", "HELO", "QUIT":
			c.pending = cmd
			return errAborted
		case "MAIL", "RCPT", "DATA", "AUTH", "STARTTLS":
			s.refuse(errMixed)
		default:
			s.dispatch(c.ctx, cmd)
		}
		if s.closing {
			return errEnded
		}
	}
}
