package sevenbit

import (
	"bytes"
	"fmt"
	"strings"

	"relayd/internal/mail"
)

// Bounds of what is looked into.
const (
	maxParts      = 2000
	maxDepth      = 30
	maxPartHeader = 64 << 10
	maxPadding    = 100 // blanks behind a boundary (RFC 2046 section 5.1.1)
	maxDelimiter  = 2 + maxBoundary + 2 + maxPadding
)

// visitor is told of a body, all its octets in their order.
type visitor interface {
	// part begins: its header section raw, with the empty line. It has what the walker made of it.
	part(p part, h mail.Header, raw []byte)
	// content are octets of the leaf that began last.
	content(b []byte) error
	// end of that leaf; last tells that the body ends with it.
	end(last bool) error
	// other are octets of no leaf: delimiter lines, and what stands before and behind parts. part is whose.
	other(part int, b []byte) error
}

// level is a multipart that is open.
type level struct {
	boundary string
	part     int
	digest   bool
}

// walker finds the parts of a body. It is an io.Writer.
type walker struct {
	visit visitor
	buf   []byte // not yet looked at, or not yet decided
	seen  int    // octets of a header section in buf that have no end of it
	parts []part // of the current path; only the scanner keeps all
	count int
	open  []level
	at    int // the part that content or other belongs to
	up    int // the parent of the part whose header comes

	state     state
	digest    bool   // the part whose header comes is one of a digest
	bol       bool   // buf begins a line
	irregular string // why the structure cannot be relied on
}

type state uint8

const (
	inHeader state = iota
	inLeaf
	between
)

// newWalker begins a body whose header section is h.
func newWalker(v visitor, h mail.Header) *walker {
	w := &walker{visit: v}
	w.begin(h, nil, part{depth: -1})
	return w
}

// begin enters a part.
func (w *walker) begin(h mail.Header, raw []byte, parent part) {
	p, boundary, irregular := newPart(h, parent, w.up, w.digest)
	at := w.count
	w.count++
	w.parts = append(w.parts, p)
	switch {
	case irregular != "":
		w.give(at, irregular)
	case w.count > maxParts:
		w.give(at, fmt.Sprintf("it is one of more than %d parts", maxParts))
	case p.depth > maxDepth:
		w.give(at, fmt.Sprintf("it lies deeper than %d levels", maxDepth))
	}
	w.at, w.bol, w.digest = at, true, false
	w.visit.part(p, h, raw)
	switch p.kind {
	case leaf:
		w.state = inLeaf
	case whole:
		w.state, w.up, w.seen = inHeader, at, 0
	case multi:
		for _, l := range w.open {
			if l.boundary == boundary {
				w.give(at, "its boundary is that of a part around it")
			}
		}
		w.open = append(w.open, level{boundary, at, isDigest(h)})
		w.state = between
	}
}

func isDigest(h mail.Header) bool {
	kind, _, _ := strings.Cut(strings.ToLower(h.Get("Content-Type")), ";")
	return strings.TrimSpace(kind) == "multipart/digest"
}

// give up: what follows is not looked at.
func (w *walker) give(at int, why string) {
	if w.irregular == "" {
		w.irregular = fmt.Sprintf("part %d: %s", at+1, why)
	}
}

// Write takes the next octets of the body.
func (w *walker) Write(p []byte) (int, error) {
	if w.irregular != "" {
		return len(p), nil
	}
	w.buf = append(w.buf, p...)
	return len(p), w.run(false)
}

// finish ends the body.
func (w *walker) finish() error {
	if w.irregular != "" {
		return nil
	}
	if err := w.run(true); err != nil || w.irregular != "" {
		return err
	}
	switch w.state {
	case inHeader:
		w.give(w.count, "its header has no end")
	case inLeaf:
		return w.visit.end(true)
	case between:
	}
	return nil
}

// run looks at what is held, as far as it can be decided.
func (w *walker) run(final bool) error {
	for more := true; more && w.irregular == ""; {
		var err error
		if w.state == inHeader {
			more = w.header()
		} else if more, err = w.body(final); err != nil {
			return err
		}
	}
	return nil
}

// drop forgets the first n octets of buf.
func (w *walker) drop(n int) { w.buf = w.buf[:copy(w.buf, w.buf[n:])] }

// header looks for the end of a header section.
func (w *walker) header() (more bool) {
	for {
		i := bytes.Index(w.buf[w.seen:], crlf)
		if w.seen+max(i, 0) > maxPartHeader || i < 0 && len(w.buf) > maxPartHeader+1 {
			w.give(w.count, fmt.Sprintf("its header is larger than %d octets", maxPartHeader))
			return false
		}
		if i < 0 {
			return false
		}
		line := w.buf[w.seen : w.seen+i]
		if len(line) == 0 {
			break
		}
		if l, _ := w.match(line); l >= 0 {
			w.give(w.count, "its header has no end")
			return false
		}
		w.seen += i + 2
	}
	section := w.seen
	h, err := mail.ParseHeader(w.buf[:section])
	if err != nil || w.buf[0] == ' ' || w.buf[0] == '\t' {
		w.give(w.count, "its header is none")
		return false
	}
	w.begin(h, w.buf[:section+2], w.parts[w.up])
	w.drop(section + 2)
	return true
}

var (
	crlf  = []byte("\r\n")
	begin = []byte("\r\n--")
)

// body hands out octets up to the next delimiter line, and what it can of those behind. It tells whether more of buf
// can be looked at.
func (w *walker) body(final bool) (more bool, err error) {
	if len(w.open) == 0 {
		b := w.buf
		w.buf = w.buf[:0]
		return false, w.emit(b)
	}
	for from := 0; ; {
		start, lead, found := w.candidate(from, final)
		if !found {
			return false, w.emitTo(start)
		}
		line := w.buf[start:]
		end := bytes.Index(line, crlf)
		if end < 0 && !final && len(line) <= maxDelimiter {
			return false, w.emitTo(start - lead)
		}
		next := len(w.buf)
		if end >= 0 {
			line, next = line[:end], start+end+2
		}
		if l, closing := w.match(line); l >= 0 {
			return true, w.delimiter(l, closing, start-lead, next)
		}
		from, w.bol = start, false
	}
}

// candidate finds the next "--" that begins a line, with the CRLF before it. Where there is none start is how many
// octets are surely before one.
func (w *walker) candidate(from int, final bool) (start, lead int, found bool) {
	b := w.buf
	if w.bol && from == 0 {
		if len(b) < 2 && !final {
			return 0, 0, false
		}
		if bytes.HasPrefix(b, begin[2:]) {
			return 0, 0, true
		}
	}
	if i := bytes.Index(b[from:], begin); i >= 0 {
		return from + i + 2, 2, true
	}
	if final {
		return len(b), 0, false
	}
	for n := min(len(begin)-1, len(b)); n > 0; n-- {
		if bytes.HasPrefix(begin, b[len(b)-n:]) {
			return len(b) - n, 0, false
		}
	}
	return len(b), 0, false
}

// emitTo hands out the first n octets of buf.
func (w *walker) emitTo(n int) error {
	if n == 0 {
		return nil
	}
	w.bol = false
	err := w.emit(w.buf[:n])
	w.drop(n)
	return err
}

func (w *walker) emit(b []byte) error {
	switch {
	case len(b) == 0:
		return nil
	case w.state == inLeaf:
		return w.visit.content(b)
	}
	return w.visit.other(w.at, b)
}

// delimiter ends what is open down to level l. Its line with the CRLF before it is buf[from:next].
func (w *walker) delimiter(l int, closing bool, from, next int) error {
	if err := w.emit(w.buf[:from]); err != nil {
		return err
	}
	if w.state == inLeaf {
		if err := w.visit.end(false); err != nil {
			return err
		}
	}
	owner := w.open[l]
	if err := w.visit.other(owner.part, w.buf[from:next]); err != nil {
		return err
	}
	w.drop(next)
	w.bol = true
	if closing {
		w.open, w.at, w.state = w.open[:l], owner.part, between
		return nil
	}
	w.open, w.up, w.digest, w.state, w.seen = w.open[:l+1], owner.part, owner.digest, inHeader, 0
	return nil
}

// match tells whose delimiter a line is, the innermost first; -1 for nobody's.
func (w *walker) match(line []byte) (l int, closing bool) {
	if !bytes.HasPrefix(line, begin[2:]) {
		return -1, false
	}
	long := len(line) > maxDelimiter
	line = bytes.TrimRight(line[2:min(len(line), maxDelimiter+1)], " \t")
	defer func() {
		if long && l >= 0 {
			w.give(w.open[l].part, "a boundary has too many blanks behind it")
		}
	}()
	for l = len(w.open) - 1; l >= 0; l-- {
		switch rest, found := bytes.CutPrefix(line, []byte(w.open[l].boundary)); {
		case found && len(rest) == 0:
			return l, false
		case found && string(rest) == "--":
			return l, true
		}
	}
	return -1, false
}
