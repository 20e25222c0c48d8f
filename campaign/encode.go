package campaign

import (
	"encoding/base64"
	"strings"
)

// encoding is how a part's text travels.
type encoding uint8

const (
	encodeNone   encoding = iota // as it is: subjects, previews, checks of length
	encodeQuoted                 // quoted-printable, RFC 2045 section 6.7
	encodeBase64                 // base64, RFC 2045 section 6.8
	encodeVoid                   // nothing is kept: to find out whether a rendering would fail
)

func (e encoding) String() string {
	switch e {
	case encodeQuoted:
		return "quoted-printable"
	case encodeBase64:
		return "base64"
	}
	return "8bit"
}

// lineLength bounds encoded lines, RFC 2045 sections 6.7 and 6.8.
const lineLength = 76

// chunk is static text in its transport form, made once. It begins on a line of its own, so that it is the same bytes
// whatever stands before it: both encodings allow a line break that means nothing.
type chunk struct {
	quoted    string
	quotedCol int       // column behind it
	base64    [3]string // by the number of bytes (0 to 2) that the text before it has left over: what follows them
	base64Col [3]int
}

// minChunk is the length of text below which encoding it anew is cheaper than a line break.
const minChunk = 48

func newChunk(text string, e encoding) *chunk {
	c := &chunk{}
	switch e {
	case encodeQuoted:
		q := encoder{enc: encodeQuoted}
		q.text(text)
		c.quoted, c.quotedCol = string(q.buf), q.col
	case encodeBase64:
		crlf := toCRLF(text)
		for left := range c.base64 {
			head := (3 - left) % 3
			if len(crlf) < head+3 {
				return nil
			}
			whole := crlf[head:]
			whole = whole[:len(whole)/3*3]
			b := encoder{enc: encodeBase64}
			b.bytes(whole)
			c.base64[left], c.base64Col[left] = string(b.buf), b.col
		}
	}
	return c
}

// encoder appends text in its transport form.
type encoder struct {
	buf  []byte
	enc  encoding
	col  int     // column of the present line
	left [2]byte // base64: bytes that do not make a group yet
	n    int     // how many
}

// static appends an operation's text.
func (e *encoder) static(o *op) {
	switch {
	case e.enc == encodeVoid:
	case o.chunk == nil:
		e.text(o.text)
	case e.enc == encodeQuoted:
		if e.col > 0 && !strings.HasPrefix(o.chunk.quoted, "\r\n") {
			e.buf = append(e.buf, "=\r\n"...)
		}
		e.buf = append(e.buf, o.chunk.quoted...)
		e.col = o.chunk.quotedCol
	case e.enc == encodeBase64:
		e.staticBase64(o)
	default:
		e.text(o.text)
	}
}

func (e *encoder) staticBase64(o *op) {
	left := e.n
	head := (3 - left) % 3
	text := o.text
	// What completes the group begun before, and what is left over behind, are counted in bytes with CRLF.
	var buf [8]byte
	first := appendCRLF(buf[:0], text[:min(len(text), head)])[:head]
	tail := (left + crlfLength(o)) % 3
	e.bytes(string(first))
	if e.col > 0 {
		e.buf = append(e.buf, "\r\n"...)
	}
	e.buf = append(e.buf, o.chunk.base64[left]...)
	e.col = o.chunk.base64Col[left]
	if tail > 0 {
		last := appendCRLF(buf[:0], text[len(text)-min(len(text), tail):])
		e.bytes(string(last[len(last)-tail:]))
	}
}

// crlfLength is the length of an operation's text with CRLF line ends.
func crlfLength(o *op) int { return len(o.text) + o.breaks }

// text appends text in lines that end in LF, CR or CRLF.
func (e *encoder) text(s string) {
	switch e.enc {
	case encodeVoid:
	case encodeQuoted:
		e.quoted(s)
	case encodeBase64:
		if strings.ContainsAny(s, "\r\n") {
			s = toCRLF(s)
		}
		e.bytes(s)
	default:
		e.buf = append(e.buf, s...)
	}
}

// quoted appends s as quoted-printable.
func (e *encoder) quoted(s string) {
	b, col := e.buf, e.col
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '\r' || c == '\n' {
			if c == '\r' && i+1 < len(s) && s[i+1] == '\n' {
				i++
			}
			b, col = append(b, "\r\n"...), 0
			continue
		}
		plain := c > ' ' && c < 0x7f && c != '='
		if (c == ' ' || c == '\t') && i+1 < len(s) && s[i+1] != '\r' && s[i+1] != '\n' {
			plain = true // a blank at the end of a line or of a value is encoded
		}
		if plain && col == 0 && (c == '.' || c == 'F' && strings.HasPrefix(s[i:], "From ")) {
			plain = false // hosts on the way add to such lines
		}
		width := 3
		if plain {
			width = 1
		}
		if col+width > lineLength-1 {
			b, col = append(b, "=\r\n"...), 0
		}
		if plain {
			b = append(b, c)
		} else {
			b = append(b, '=', hexDigits[c>>4], hexDigits[c&15])
		}
		col += width
	}
	e.buf, e.col = b, col
}

// bytes appends s as base64 and keeps what does not make a group of three.
func (e *encoder) bytes(s string) {
	for len(s) > 0 && (e.n > 0 || len(s) < 3) {
		if e.n < 2 {
			e.left[e.n] = s[0]
			e.n++
		} else {
			e.groups(string([]byte{e.left[0], e.left[1], s[0]}))
			e.n = 0
		}
		s = s[1:]
	}
	whole := len(s) / 3 * 3
	e.groups(s[:whole])
	for i := whole; i < len(s); i++ {
		e.left[e.n] = s[i]
		e.n++
	}
}

const base64Digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

// groups appends whole groups of three bytes, line by line.
func (e *encoder) groups(s string) {
	for len(s) > 0 {
		if e.col == lineLength {
			e.buf, e.col = append(e.buf, "\r\n"...), 0
		}
		n := min(len(s)/3, (lineLength-e.col)/4)
		at := len(e.buf)
		e.buf = append(e.buf, blankLine[:4*n]...)
		line := e.buf[at:]
		for i := range n {
			x, y, z := s[3*i], s[3*i+1], s[3*i+2]
			out := line[4*i : 4*i+4 : 4*i+4]
			out[0], out[1] = base64Digits[x>>2], base64Digits[x&3<<4|y>>4]
			out[2], out[3] = base64Digits[y&15<<2|z>>6], base64Digits[z&63]
		}
		e.col += 4 * n
		s = s[3*n:]
	}
}

// blankLine is room for one line.
const blankLine = "                                                                            "

// finish writes what is left over.
func (e *encoder) finish() {
	if e.enc == encodeBase64 && e.n > 0 {
		if e.col == lineLength {
			e.buf = append(e.buf, "\r\n"...)
		}
		e.buf = base64.StdEncoding.AppendEncode(e.buf, e.left[:e.n])
		e.n = 0
	}
	e.col = 0
}

func toCRLF(s string) string { return string(appendCRLF(make([]byte, 0, len(s)+len(s)/32), s)) }

func appendCRLF(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '\r':
			if i+1 < len(s) && s[i+1] == '\n' {
				i++
			}
			b = append(b, "\r\n"...)
		case '\n':
			b = append(b, "\r\n"...)
		default:
			b = append(b, c)
		}
	}
	return b
}

// number gives the same slot to operations that show the same value of the root in the same way, so that a message makes
// its form once.
func (p *program) number() {
	type shown struct {
		path string
		esc  escape
	}
	slots := map[shown]int{}
	for i := range p.ops {
		o := &p.ops[i]
		if o.code != opOut || o.e.path == nil || o.e.path.frame > 0 || o.e.path.meta != "" {
			continue
		}
		key := shown{strings.Join(o.e.path.segs, "\x00"), o.esc}
		if slots[key] == 0 {
			slots[key] = len(slots) + 1
		}
		o.slot = slots[key]
	}
	p.slots = len(slots)
}

// prepare encodes the static text of a program once, in the encoding that makes it shorter.
func (p *program) prepare() {
	p.number()
	quoted, based := 0, 0
	for _, o := range p.ops {
		if o.code != opText {
			continue
		}
		for i := range len(o.text) {
			if c := o.text[i]; c >= 0x7f || c == '=' {
				quoted += 2
			}
		}
		quoted += len(o.text) + len(o.text)/lineLength*3
		based += len(o.text) * 4 / 3
	}
	if p.enc = encodeQuoted; based < quoted {
		p.enc = encodeBase64
	}
	for i := range p.ops {
		if o := &p.ops[i]; o.code == opText {
			o.breaks = strings.Count(o.text, "\n")
			if len(o.text) >= minChunk {
				o.chunk = newChunk(o.text, p.enc)
			}
		}
	}
}
