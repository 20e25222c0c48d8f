package dkim

import (
	"bytes"
	"crypto/sha256"
	"hash"
)

// BodyHasher is an io.Writer that hashes a body in its relaxed form (RFC 6376 section 3.4.4) with SHA-256. Writes may cut
// the body anywhere. A bare LF counts as a line end; a bare CR stays as it is, so that it also costs memory when it
// stands among line ends. It is not safe for concurrent use; many messages may share one sum.
//
// It looks for what the canonical form changes in whole lines and hands clean stretches to the hash as they are, so that
// it costs little more than SHA-256 itself.
type BodyHasher struct {
	hash    hash.Hash
	scratch []byte // to be hashed, so that short pieces reach the hash together
	crlfs   int    // line ends not hashed yet: those at the end of the body do not count
	odd     []byte // what stands before them when a bare CR is among it
	cr      bool   // the last byte was CR and is not yet in crlfs or odd
	blank   bool   // blanks seen and not hashed yet
	line    bool   // inside a line: something of it was read
	some    bool   // the body has something but line ends
}

const scratchSize = 2048

var crlf = []byte("\r\n")

// NewBodyHasher returns a hasher of an empty body.
func NewBodyHasher() *BodyHasher {
	return &BodyHasher{hash: sha256.New(), scratch: make([]byte, 0, scratchSize)}
}

// Reset makes it a hasher of an empty body again.
func (h *BodyHasher) Reset() {
	h.hash.Reset()
	*h = BodyHasher{hash: h.hash, scratch: h.scratch[:0]}
}

// Write never fails and does not keep p.
func (h *BodyHasher) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if !h.line && !h.cr && !h.blank {
			if p = p[h.cleanLines(p):]; len(p) == 0 {
				break
			}
		}
		end := bytes.IndexByte(p, '\n') + 1
		if end == 0 {
			end = len(p)
		}
		h.piece(p[:end])
		p = p[end:]
	}
	return n, nil
}

// Sum returns the hash of what was written so far.
func (h *BodyHasher) Sum() [sha256.Size]byte {
	h.flush()
	c := h.hash
	if h.some {
		// Every body ends in a line end, but for the empty one.
		if cl, ok := c.(hash.Cloner); ok {
			if d, err := cl.Clone(); err == nil {
				c = d
			}
		}
		c.Write(crlf)
	}
	return [sha256.Size]byte(c.Sum(nil))
}

// cleanLines hashes the whole lines at the start of p that are canonical as they stand and returns their length. It must
// be called at the start of a line.
func (h *BodyHasher) cleanLines(p []byte) int {
	tab, double := -1, -1      // where the next one stands, known to be before that: nothing
	start, end, pos := 0, 0, 0 // p[start:end] is clean; p[end:pos] holds line ends only
	for {
		n := bytes.IndexByte(p[pos:], '\r')
		if n < 0 || pos+n+1 >= len(p) || p[pos+n+1] != '\n' {
			break
		}
		eol := pos + n
		if n == 0 {
			h.crlfs++
			pos = eol + 2
			continue
		}
		tab, double = next(p, pos, tab, "\t"), next(p, pos, double, "  ")
		if p[eol-1] == ' ' || tab < eol || double < eol || bytes.IndexByte(p[pos:eol], '\n') >= 0 {
			break
		}
		if end == start {
			h.lineEnds()
			start = pos
		}
		end, pos = eol, eol+2
		h.crlfs = 1
	}
	if end > start {
		h.put(p[start:end])
		h.some = true
	}
	return pos
}

// next returns where sep next stands at or after pos, len(p) when nowhere; known is an earlier answer.
func next(p []byte, pos, known int, sep string) int {
	if known >= pos {
		return known
	}
	if i := bytes.Index(p[pos:], []byte(sep)); i >= 0 {
		return pos + i
	}
	return len(p)
}

// piece hashes p, a line or part of one, byte by byte.
func (h *BodyHasher) piece(p []byte) {
	for len(p) > 0 {
		switch p[0] {
		case '\n':
			h.crlfs++
			h.cr, h.blank, h.line = false, false, false
			p = p[1:]
		case '\r':
			h.bareCR()
			h.cr, h.blank, h.line = true, false, true
			p = p[1:]
		case ' ', '\t':
			h.bareCR()
			h.blank, h.line = true, true
			p = p[1:]
		default:
			h.bareCR()
			h.lineEnds()
			p = p[h.text(p[:min(len(p), scratchSize/2)]):]
		}
	}
}

// text hashes the text at the start of p with one blank in place of many, up to a CR or LF, and returns the length of
// what it took. p has at most half of the scratch.
func (h *BodyHasher) text(p []byte) int {
	if len(h.scratch)+len(p) >= scratchSize {
		h.flush()
	}
	out, n, blank := h.scratch[:scratchSize], len(h.scratch), h.blank
	taken := len(p)
	for i, c := range p {
		if c <= ' ' {
			if c == ' ' || c == '\t' {
				blank = true
				continue
			}
			if c == '\r' || c == '\n' {
				taken = i
				break
			}
		}
		if blank {
			out[n] = ' '
			n++
			blank = false
		}
		out[n] = c
		n++
	}
	h.scratch = out[:n]
	h.blank, h.line, h.some = blank, true, true
	return taken
}

// bareCR keeps a CR that no LF followed.
func (h *BodyHasher) bareCR() {
	if !h.cr {
		return
	}
	for ; h.crlfs > 0; h.crlfs-- {
		h.odd = append(h.odd, crlf...)
	}
	h.odd = append(h.odd, '\r')
	h.cr = false
}

// lineEnds hashes the line ends that stand before text.
func (h *BodyHasher) lineEnds() {
	if len(h.odd) > 0 {
		h.put(h.odd)
		h.odd = h.odd[:0]
	}
	for ; h.crlfs > 0; h.crlfs-- {
		h.put(crlf)
	}
}

func (h *BodyHasher) put(b []byte) {
	if len(h.scratch)+len(b) > scratchSize {
		h.flush()
	}
	if len(b) > scratchSize {
		h.hash.Write(b)
		return
	}
	h.scratch = append(h.scratch, b...)
}

func (h *BodyHasher) flush() {
	h.hash.Write(h.scratch)
	h.scratch = h.scratch[:0]
}

// appendRelaxed appends a header field in its relaxed form (RFC 6376 section 3.4.2) without its line end. raw is what
// stands behind the colon.
func appendRelaxed(b []byte, name string, raw []byte) []byte {
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	b = append(b, ':')
	sep := false
	start := len(b)
	for _, c := range raw {
		switch c {
		case ' ', '\t', '\r', '\n':
			sep = true
		default:
			if sep && len(b) > start {
				b = append(b, ' ')
			}
			sep = false
			b = append(b, c)
		}
	}
	return b
}
