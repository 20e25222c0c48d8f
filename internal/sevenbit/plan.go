package sevenbit

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"relayd/internal/mail"
)

// maxTextLine bounds a line without its CRLF (RFC 5322 section 2.1.1).
const maxTextLine = 998

// Scanner reads a body and notes what of it is not 7-bit. It is an io.Writer.
type Scanner struct {
	walker *walker
	header mail.Header
	binary bool
	eight  bool // some octet is above 127
	line   line // of the current leaf, where binary
}

// NewScanner begins a body; header is its section, CRLF line ends. binaryMIME tells that it came with BODY=BINARYMIME
// (RFC 3030 section 3): parts that say so may hold any octets. Else every line of the body must be one that
// RFC 5322 section 2.1.1 allows.
func NewScanner(header mail.Header, binaryMIME bool) *Scanner {
	s := &Scanner{header: header, binary: binaryMIME}
	s.walker = newWalker(s, header)
	return s
}

// Write takes the next octets. It never fails.
func (s *Scanner) Write(p []byte) (int, error) {
	s.eight = s.eight || hasEight(p)
	return s.walker.Write(p)
}

func (s *Scanner) part(_ part, _ mail.Header, raw []byte) {
	s.line = line{}
	if hasEight(raw) {
		s.last().stuck = true
	}
}

func (s *Scanner) last() *part { return &s.walker.parts[len(s.walker.parts)-1] }

func (s *Scanner) content(b []byte) error {
	p := s.last()
	p.eight = p.eight || hasEight(b)
	if s.binary && p.rough == "" {
		p.rough = s.line.check(b)
	}
	return nil
}

func (s *Scanner) end(bool) error {
	if p := s.last(); s.binary && p.rough == "" && s.line.cr {
		p.rough = "a bare CR"
	}
	return nil
}

func (s *Scanner) other(at int, b []byte) error {
	if hasEight(b) {
		s.walker.parts[at].stuck = true
	}
	return nil
}

// Plan says how a body becomes 7-bit. It is read only.
type Plan struct {
	header mail.Header
	parts  []part
}

// Plan is called once, behind the last octet. It is nil where the body is to be left as it is: because all of it is
// 7-bit, because it cannot become so, or because its structure is irregular. A binary message always has a plan, or a
// *mail.Error that refuses it: what came as BINARYMIME must leave as something else.
func (s *Scanner) Plan() (*Plan, error) {
	_ = s.walker.finish() // a scanner never fails
	p := &Plan{s.header, s.walker.parts}
	if why := s.walker.irregular; why != "" {
		if s.binary {
			return nil, cannot("its MIME structure cannot be relied on: " + why)
		}
		return nil, nil //nolint:nilnil // documented
	}
	if s.binary {
		if err := p.checkBinary(); err != nil {
			return nil, err
		}
	}
	encoded := p.bind(s.binary)
	if !s.binary && (!encoded || p.parts[0].stuck) {
		return nil, nil //nolint:nilnil // documented
	}
	return p, nil
}

// cannot is the refusal of RFC 3030 section 3: the message cannot be converted (RFC 3463, X.6.1).
func cannot(why string) *mail.Error {
	return mail.Refuse(554, mail.Status{Class: 5, Subject: 6, Detail: 1}, "Binary message cannot be sent on: "+why, nil)
}

// checkBinary refuses what BINARYMIME does not allow, or what cannot be converted.
func (p *Plan) checkBinary() error {
	for i, part := range p.parts {
		switch {
		case part.fixed && part.enc == binaryLabel:
			return cannot(fmt.Sprintf("part %d is binary inside something signed or encrypted", i+1))
		case part.rough != "" && part.enc != binaryLabel:
			return mail.Refuse(554, mail.Status{Class: 5, Subject: 6}, fmt.Sprintf(
				"Part %d has %s, and its Content-Transfer-Encoding is not binary", i+1, part.rough), nil)
		}
	}
	return nil
}

// bind gives each part its new label. It tells whether a leaf gets an encoding.
func (p *Plan) bind(binaryMIME bool) (encoded bool) {
	for i := len(p.parts) - 1; i >= 0; i-- { // what is inside a part stands behind it
		q := &p.parts[i]
		switch {
		case q.kind != leaf:
			q.label(q.enc > sevenBit && !q.fixed, q.stuck)
		case q.fixed || !q.enc.plain():
			q.stuck = q.stuck || q.eight
		case q.eight || binaryMIME && q.enc == binaryLabel && q.rough != "":
			encoded = true
			if q.changed, q.binding = true, base64Encoding; q.text && q.rough == "" {
				q.binding = quotedPrintable
			}
		default:
			q.label(q.enc > sevenBit, false)
		}
		if i > 0 && q.stuck {
			p.parts[q.parent].stuck = true
		}
	}
	return encoded
}

func (p *part) label(change, eight bool) {
	if !change {
		return
	}
	if p.binding = sevenBit; eight {
		p.binding = eightBit
	}
	p.changed = p.binding != p.enc
}

// Header returns the header section that goes with the body as planned. It shares memory with the one given.
func (p *Plan) Header() mail.Header {
	h := p.parts[0].rewrite(p.header)
	if p.parts[0].changed && h.Count("MIME-Version") == 0 {
		h = append(h, mail.Field{Name: "MIME-Version", Raw: []byte("MIME-Version: 1.0\r\n")})
	}
	return h
}

// rewrite returns a section with the new label.
func (p *part) rewrite(h mail.Header) mail.Header {
	if !p.changed {
		return h
	}
	field := mail.Field{Name: encodingField, Raw: []byte(encodingField + ": " + p.binding.String() + "\r\n")}
	var out mail.Header
	done := false
	for _, f := range h {
		if f.Is(encodingField) {
			f, done = field, true
		}
		out = append(out, f)
	}
	if !done {
		out = append(out, field)
	}
	return out
}

// hasEight tells whether an octet is above 127.
func hasEight(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b)&0x8080808080808080 != 0 {
			return true
		}
		b = b[8:]
	}
	for _, c := range b {
		if c >= 0x80 {
			return true
		}
	}
	return false
}

// line is the current line of a leaf.
type line struct {
	col int
	cr  bool // the last octet was a CR
}

// check tells the first thing in b that no line may hold, "" for none.
func (l *line) check(b []byte) string {
	if bytes.IndexByte(b, 0) >= 0 {
		return "a NUL"
	}
	for len(b) > 0 {
		if l.cr {
			if l.cr = false; b[0] != '\n' {
				return "a bare CR"
			}
			l.col, b = 0, b[1:]
			continue
		}
		text, rest, found := bytes.Cut(b, []byte{'\r'})
		if bytes.IndexByte(text, '\n') >= 0 {
			return "a bare LF"
		}
		if l.col += len(text); l.col > maxTextLine {
			return fmt.Sprintf("a line of more than %d octets", maxTextLine)
		}
		l.cr, b = found, rest
	}
	return ""
}
