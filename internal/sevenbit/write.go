package sevenbit

import (
	"encoding/base64"
	"io"
	"mime/quotedprintable"

	"relayd/internal/mail"
)

// NewWriter returns a writer that takes the body that was scanned, and writes it to w as planned. Close ends it; it does
// not close w. Every line that it makes has at most 76 octets; those that it lets through are as they came.
func (p *Plan) NewWriter(w io.Writer) io.WriteCloser {
	r := &rewriter{plan: p, w: w}
	r.walker = newWalker(r, p.header)
	return r
}

// rewriter is the second walk over a body.
type rewriter struct {
	plan    *Plan
	walker  *walker
	w       io.Writer
	n       int            // parts that have begun
	encoder io.WriteCloser // of the current leaf; nil: none
	err     error          // of a part's header
}

func (r *rewriter) Write(b []byte) (int, error) {
	n, err := r.walker.Write(b)
	if r.err != nil {
		err = r.err
	}
	return n, err
}

func (r *rewriter) Close() error {
	if err := r.walker.finish(); err != nil {
		return err
	}
	return r.err
}

func (r *rewriter) part(_ part, h mail.Header, raw []byte) {
	p := &r.plan.parts[r.n]
	r.n++
	r.encoder = nil
	if p.changed {
		switch out := r.w; p.binding {
		case quotedPrintable:
			r.encoder = &qpEncoder{w: out}
		case base64Encoding:
			r.encoder = base64.NewEncoder(base64.StdEncoding, &liner{w: out})
		default: // a label alone
		}
	}
	if r.n == 1 || r.err != nil { // the first header is the message's: Plan.Header
		return
	}
	if p.changed {
		raw = append(p.rewrite(h).Bytes(), crlf...)
	}
	_, r.err = r.w.Write(raw)
}

func (r *rewriter) content(b []byte) (err error) {
	if r.encoder != nil {
		_, err = r.encoder.Write(b)
	} else {
		_, err = r.w.Write(b)
	}
	return err
}

// end completes what was encoded. Before a delimiter stands a CRLF that is the delimiter's; at the end of the body a line
// must end, and its end must not count.
func (r *rewriter) end(last bool) error {
	if r.encoder == nil {
		return nil
	}
	err := r.encoder.Close()
	if err != nil || !last {
		return err
	}
	if q, ok := r.encoder.(*qpEncoder); ok {
		return q.endLine()
	}
	_, err = r.w.Write(crlf)
	return err
}

func (r *rewriter) other(_ int, b []byte) error {
	_, err := r.w.Write(b)
	return err
}

// qpEncoder is quoted-printable for text: its CRLFs stay line ends.
type qpEncoder struct {
	w    io.Writer
	qp   *quotedprintable.Writer
	tail [2]byte // the last octets
}

func (q *qpEncoder) Write(b []byte) (int, error) {
	if q.qp == nil {
		q.qp = quotedprintable.NewWriter(q.w)
	}
	switch n := len(b); {
	case n >= 2:
		q.tail = [2]byte{b[n-2], b[n-1]}
	case n == 1:
		q.tail = [2]byte{q.tail[1], b[0]}
	}
	return q.qp.Write(b)
}

func (q *qpEncoder) Close() error {
	if q.qp == nil {
		return nil
	}
	return q.qp.Close()
}

// endLine ends a last line that has no end, with a soft break.
func (q *qpEncoder) endLine() error {
	if q.qp == nil || string(q.tail[:]) == "\r\n" {
		return nil
	}
	_, err := io.WriteString(q.w, "=\r\n")
	return err
}

// liner breaks base64 into lines (RFC 2045 section 6.8). It does not end the last one.
type liner struct {
	w   io.Writer
	buf []byte
	col int
}

const base64Line = 76

func (l *liner) Write(b []byte) (int, error) {
	l.buf = l.buf[:0]
	for rest := b; len(rest) > 0; {
		if l.col == base64Line {
			l.buf = append(l.buf, crlf...)
			l.col = 0
		}
		n := min(len(rest), base64Line-l.col)
		l.buf = append(l.buf, rest[:n]...)
		l.col += n
		rest = rest[n:]
	}
	if _, err := l.w.Write(l.buf); err != nil {
		return 0, err
	}
	return len(b), nil
}
