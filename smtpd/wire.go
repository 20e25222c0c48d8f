package smtpd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"relayd/internal/mail"
)

const (
	lineBuffer = 4 << 10  // of an idle session
	wideBuffer = 16 << 10 // while a line is longer than that
	dataBuffer = 64 << 10 // while a message is read; pooled
	maxLine    = 12288    // of any line, AUTH's (RFC 4954 section 4); the other commands check their own
	maxSkip    = 64 << 10 // of an overlong line that is read over; a longer one ends the session
	flushAt    = 4 << 10  // replies that wait
	lingerFor  = 2 * time.Second
	lingerMost = 256 << 20
)

var (
	errLineTooLong = errors.New("line too long")
	errLineEndless = errors.New("line without end")
	errBareLF      = errors.New("bare LF in a command")
	errBareCR      = errors.New("bare CR in a command")
	errStopping    = errors.New("server is stopping")
	errTooSlow     = errors.New("slower than the minimum data rate")
)

// wire is the framing of one connection: it alone reads and writes it. Lines end in CRLF and in nothing else.
type wire struct {
	conn         net.Conn
	buf          []byte // buf[r:w] has been read and not yet been used
	r, w         int
	small        []byte     // the buffer of an idle session
	pool         *sync.Pool // of *[]byte with dataBuffer octets
	big          *[]byte    // taken from pool
	out          []byte     // replies not yet sent
	broken       error      // of a write: nothing can be said any more
	secure       bool       // conn is TLS: reading may have to write
	readBy       time.Time  // the deadlines in force, zero where nobody knows
	writeBy      time.Time
	writeTimeout time.Duration
	hurry        func() bool        // nil: never; an overloaded server does not wait for long
	hurryTimeout time.Duration      // for a line, then
	said         func(reply string) // nil, or told of every reply
}

func newWire(conn net.Conn, pool *sync.Pool, writeTimeout time.Duration) *wire {
	small := make([]byte, lineBuffer)
	return &wire{conn: conn, buf: small, small: small, pool: pool, writeTimeout: writeTimeout}
}

// upgrade goes on with conn. Octets read before are dropped: they came in plain text (RFC 3207 section 6). It tells
// how many there were.
func (c *wire) upgrade(conn net.Conn) (dropped int) {
	dropped = c.w - c.r
	c.conn, c.r, c.w = conn, 0, 0
	c.secure, c.readBy, c.writeBy = true, time.Time{}, time.Time{}
	return dropped
}

func (c *wire) unread() []byte { return c.buf[c.r:c.w] }

// fill sends the waiting replies and reads more octets, at least one. There must be room: a full buffer is the
// caller's to grow. With stop set it gives up when stop becomes true; the read deadline of another goroutine wakes it.
func (c *wire) fill(deadline time.Time, stop *atomic.Bool) error {
	if err := c.flush(); err != nil {
		return err
	}
	if c.r > 0 {
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
	for empty := 0; ; {
		if err := c.readUntil(deadline); err != nil {
			return err
		}
		if stop != nil && stop.Load() {
			return errStopping
		}
		n, err := c.conn.Read(c.buf[c.w:])
		c.w += n
		switch {
		case n > 0:
			return nil
		case err == nil:
			if empty++; empty > 100 {
				return io.ErrNoProgress
			}
		case !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(deadline):
			return err
		} // else a Shutdown woke it although it was not idle, or the deadline was that of a wait before
		c.readBy = time.Time{}
	}
}

// readUntil sets the deadline of reads. One in force that is earlier is left as it is, since fill waits on when it comes
// too early: a busy client costs no timer for each command.
func (c *wire) readUntil(deadline time.Time) error {
	if c.secure { // of writes too: TLS may have to answer while it reads
		c.writeBy = time.Time{}
		return c.conn.SetDeadline(deadline)
	}
	if !c.readBy.IsZero() && !c.readBy.After(deadline) {
		return nil
	}
	c.readBy = deadline
	return c.conn.SetReadDeadline(deadline)
}

// writeSoon sets the deadline of writes, where less than nine tenths of writeTimeout are left.
func (c *wire) writeSoon() error {
	now := time.Now()
	if c.writeBy.Sub(now) > c.writeTimeout/10*9 {
		return nil
	}
	c.writeBy = now.Add(c.writeTimeout)
	return c.conn.SetWriteDeadline(c.writeBy)
}

// readLine returns the next line without its CRLF. The slice is valid until the next call. errLineTooLong and
// errBareCR leave the stream behind the line; every other error ends the session.
func (c *wire) readLine(timeout time.Duration, stop *atomic.Bool) ([]byte, error) {
	var began, deadline time.Time
	for seen := 0; ; {
		if i := bytes.IndexByte(c.buf[c.r+seen:c.w], '\n'); i >= 0 {
			line := c.buf[c.r : c.r+seen+i+1]
			c.r += len(line)
			line, err := cutLine(line)
			if err == nil && len(line)+2 > maxLine {
				err = errLineTooLong
			}
			return line, err
		}
		seen = c.w - c.r
		if deadline.IsZero() {
			began = time.Now()
			deadline = began.Add(timeout)
		}
		if seen > maxLine {
			return nil, c.skipLine(deadline, stop)
		}
		if seen == len(c.buf) {
			c.widen()
		}
		if err := c.fillPatiently(began, deadline, stop); err != nil {
			return nil, err
		}
	}
}

// fillPatiently is fill with a wait that ends sooner when the server gets into a hurry meanwhile.
func (c *wire) fillPatiently(began, deadline time.Time, stop *atomic.Bool) error {
	for c.hurry != nil {
		short := began.Add(c.hurryTimeout)
		if !short.Before(deadline) {
			break
		}
		now := time.Now()
		if c.hurry() && !now.Before(short) {
			return os.ErrDeadlineExceeded
		}
		look := now.Add(c.hurryTimeout)
		if now.Before(short) {
			look = short
		}
		if !look.Before(deadline) {
			break
		}
		err := c.fill(look, stop)
		if c.broken != nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return c.fill(deadline, stop)
}

func cutLine(line []byte) ([]byte, error) {
	n := len(line)
	if n < 2 || line[n-2] != '\r' {
		return nil, errBareLF
	}
	if bytes.IndexByte(line[:n-2], '\r') >= 0 {
		return nil, errBareCR
	}
	return line[:n-2], nil
}

// skipLine reads over the rest of a line.
func (c *wire) skipLine(deadline time.Time, stop *atomic.Bool) error {
	for skipped := 0; skipped < maxSkip; {
		b := c.unread()
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			c.r += i + 1
			if i == 0 || b[i-1] != '\r' {
				return errBareLF
			}
			return errLineTooLong
		}
		skipped += len(b)
		if c.r = c.w; len(b) > 0 && b[len(b)-1] == '\r' {
			c.r--
			skipped--
		}
		if err := c.fill(deadline, stop); err != nil {
			return err
		}
	}
	return errLineEndless
}

// widen makes room for the longest line, and for no more: strangers may send one and never end it.
func (c *wire) widen() {
	wide := make([]byte, wideBuffer)
	c.w = copy(wide, c.buf[c.r:c.w])
	c.buf, c.r = wide, 0
}

// grow takes a larger buffer from the pool.
func (c *wire) grow() {
	if c.big != nil {
		return
	}
	c.big, _ = c.pool.Get().(*[]byte)
	c.w = copy(*c.big, c.buf[c.r:c.w])
	c.buf, c.r = *c.big, 0
}

// shrink gives the larger buffer back, as soon as what is left in it fits the small one.
func (c *wire) shrink() {
	if len(c.buf) == len(c.small) || c.w-c.r > len(c.small) {
		return
	}
	c.w = copy(c.small, c.buf[c.r:c.w])
	c.buf, c.r = c.small, 0
	if c.big != nil {
		c.pool.Put(c.big)
		c.big = nil
	}
}

// reply queues r. It is sent before the next read, so that pipelined commands get their replies in one segment
// (RFC 2920 section 3.2).
func (c *wire) reply(r mail.Reply) {
	had := len(c.out)
	if c.out = appendReply(c.out, r); c.said != nil {
		c.said(string(c.out[had:]))
	}
}

// write queues text as it is.
func (c *wire) write(text string) {
	if c.out = append(c.out, text...); c.said != nil {
		c.said(text)
	}
}

// flush sends the waiting replies.
func (c *wire) flush() error {
	if c.broken != nil || len(c.out) == 0 {
		return c.broken
	}
	if err := c.writeSoon(); err != nil {
		return err
	}
	_, c.broken = c.conn.Write(c.out)
	if c.out = c.out[:0]; cap(c.out) > 2*flushAt {
		c.out = nil
	}
	return c.broken
}

// close sends the waiting replies and closes the connection. With linger it reads over what the client still sends,
// for a short while: closing at once would reset the connection, and the reply could be lost on its way.
func (c *wire) close(linger bool) {
	if err := c.flush(); err == nil && linger {
		c.linger()
	}
	_ = c.conn.Close()
	c.r, c.w = 0, 0
	c.shrink()
}

func (c *wire) linger() {
	if half, ok := c.conn.(interface{ CloseWrite() error }); ok {
		if half.CloseWrite() != nil {
			return
		}
	}
	deadline := time.Now().Add(lingerFor)
	for read := 0; read < lingerMost; read += c.w {
		if c.r, c.w = 0, 0; c.fill(deadline, nil) != nil {
			return
		}
	}
}

// rate bounds how slowly a message may come in.
type rate struct {
	timeout   time.Duration // for each piece, and before perSecond counts
	perSecond int
	got       int64
	waited    time.Duration
}

// next is the deadline of the next read. Only time that was spent waiting for the client counts.
func (r *rate) next(now time.Time) (time.Time, error) {
	left := r.timeout - r.waited + time.Duration(r.got/int64(r.perSecond))*time.Second
	if left <= 0 {
		return time.Time{}, errTooSlow
	}
	return now.Add(min(left, r.timeout)), nil
}

// add counts n octets and the wait for them. Octets of the past do not pay for more than timeout: who has sent much at once
// must not hold what it has sent for hours.
func (r *rate) add(n int, waited time.Duration) {
	r.got += int64(n)
	r.waited = max(r.waited+waited, time.Duration(r.got/int64(r.perSecond))*time.Second)
}
