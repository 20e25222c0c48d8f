package smtpd

import (
	"bytes"
	"errors"
	"io"
	"time"

	"relayd/internal/mail"
)

var (
	errDataBareLF  = mail.Refuse(554, mail.Status{Class: 5, Subject: 6}, "Message has a bare LF: every line must end in CRLF", nil)
	errDataBareCR  = mail.Refuse(554, mail.Status{Class: 5, Subject: 6}, "Message has a bare CR: every line must end in CRLF", nil)
	errDataTooLong = mail.Refuse(552, mail.Status{Class: 5, Subject: 3, Detail: 4}, "Message is larger than this server accepts", nil)
	errDataEndless = errors.New("message far beyond the advertised size")
)

// framer finds the lines and the end of a message, block by block (RFC 5321 sections 4.1.1.4 and 4.5.2). The end is a
// dot alone between two CRLF, and nothing else is: not with a bare CR or a bare LF in any place.
type framer struct {
	lineStart bool        // the next octet begins a line
	bad       *mail.Error // first violation. From there on only the end is looked for
}

// scan looks at a block of the stream: skip octets are to be dropped, then come n octets of the message. With end the
// message is complete and skip covers the end mark. With more nothing can be said before more octets are there.
func (f *framer) scan(b []byte) (skip, n int, end, more bool) {
	if len(b) == 0 {
		return 0, 0, false, true
	}
	if f.lineStart && b[0] == '.' {
		switch {
		case len(b) == 1, len(b) == 2 && b[1] == '\r':
			return 0, 0, false, true
		case b[1] == '\r' && b[2] == '\n':
			return 3, 0, true, false
		}
		skip, b = 1, b[1:]
	}
	f.lineStart = false
	lines := 0
	for n < len(b) {
		i := bytes.IndexByte(b[n:], '\r')
		if i < 0 {
			n = len(b)
			break
		}
		n += i
		if n+1 == len(b) { // its LF may follow
			more = skip == 0 && n == 0
			break
		}
		if b[n+1] != '\n' {
			if n++; f.bad == nil {
				f.bad = errDataBareCR
			}
			continue
		}
		n += 2
		lines++
		if n == len(b) || b[n] == '.' {
			f.lineStart = true
			break
		}
	}
	if f.bad == nil && bytes.Count(b[:n], []byte{'\n'}) != lines {
		f.bad = errDataBareLF
	}
	return skip, n, false, more
}

// dataReader reads one message up to its end, dots unstuffed. It reads from the wire in blocks and hands them out
// without copying to who uses WriteTo.
type dataReader struct {
	wire   *wire
	frame  framer
	chunks *chunks // BDAT; nil for DATA
	rate   rate
	limit  int64
	size   int64
	chunk  []byte // handed out in part
	ended  bool   // the end mark was read
	err    error  // of every further read
	lost   error  // the connection is of no more use
	atEnd  func() // called once, when the end mark was read
}

// newDataReader begins a message of at most limit octets. In a hurry it waits for no longer than an overloaded server can.
func newDataReader(w *wire, cfg *Config, limit int64, hurry bool) *dataReader {
	w.grow()
	timeout := cfg.DataTimeout
	if hurry {
		timeout = min(timeout, cfg.StressTimeout)
	}
	return &dataReader{
		wire:  w,
		frame: framer{lineStart: true}, // the CRLF of the DATA command counts
		rate:  rate{timeout: timeout, perSecond: cfg.MinDataRate},
		limit: limit,
	}
}

// Read returns octets of the message, then io.EOF. A *mail.Error tells why the message is refused; the rest of it is
// for drain.
func (d *dataReader) Read(p []byte) (int, error) {
	if len(d.chunk) == 0 {
		if d.chunk = d.next(); d.chunk == nil {
			return 0, d.err
		}
	}
	n := copy(p, d.chunk)
	d.chunk = d.chunk[n:]
	return n, nil
}

// WriteTo writes the rest of the message to w in blocks.
func (d *dataReader) WriteTo(w io.Writer) (n int64, err error) {
	for b := d.chunk; ; b = d.next() {
		d.chunk = nil
		if len(b) > 0 {
			m, err := w.Write(b)
			if n += int64(m); err != nil {
				return n, err
			}
			continue
		}
		if d.err != nil {
			break
		}
	}
	if d.err == io.EOF { //nolint:errorlint // set by next, never wrapped
		return n, nil
	}
	return n, d.err
}

// next returns a block that is valid until the next call, nil with d.err set.
func (d *dataReader) next() []byte {
	for d.err == nil {
		b := d.step()
		if d.lost != nil {
			d.err = d.lost
			break
		}
		if d.size += int64(len(b)); d.frame.bad != nil {
			d.err = d.frame.bad
		} else if d.size > d.limit {
			d.err = errDataTooLong
		} else if d.ended {
			d.err = io.EOF
		} else if len(b) > 0 {
			return b
		}
	}
	return nil
}

// step scans what has been read, or reads more.
func (d *dataReader) step() []byte {
	if d.chunks != nil {
		return d.chunks.step(d)
	}
	b := d.wire.unread()
	skip, n, end, more := d.frame.scan(b)
	d.wire.r += skip + n
	if d.ended = end; end && d.atEnd != nil {
		d.atEnd()
	}
	if more {
		d.lost = d.fill()
	}
	return b[skip : skip+n]
}

func (d *dataReader) fill() error {
	now := time.Now()
	deadline, err := d.rate.next(now)
	if err != nil {
		return err
	}
	had := d.wire.w - d.wire.r
	err = d.wire.fillPatiently(now, deadline, nil)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	d.rate.add(d.wire.w-d.wire.r-had, time.Since(now))
	return err
}

// mostUnread bounds what is read over of a message that is not taken, where one may have limit octets.
func mostUnread(limit int64) int64 { return 4*limit + dataBuffer }

// drain reads over the rest of the message, so that none of it can be taken for a command: of one that comes in chunks
// the rest of the current chunk, and with whole set of all. An error means that its end was not found: the session must
// end.
func (d *dataReader) drain(whole bool) error {
	d.chunk = nil
	for most := mostUnread(d.limit); !d.ended && d.lost == nil; {
		if d.chunks != nil && d.chunks.left == 0 && !whole {
			break
		}
		d.size += int64(len(d.step()))
		if d.size > most {
			d.lost = errDataEndless
		}
	}
	return d.lost
}

// refusal is why the message cannot be taken, nil where its framing and size are right.
func (d *dataReader) refusal() *mail.Error {
	switch {
	case d.frame.bad != nil:
		return d.frame.bad
	case d.size > d.limit:
		return errDataTooLong
	}
	return nil
}
