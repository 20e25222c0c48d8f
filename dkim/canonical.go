package dkim

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
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

// Write never fails and does not keep p. Its time is linear in the length of p whatever p holds.
func (h *BodyHasher) Write(p []byte) (int, error) {
	length := len(p)
	for len(p) > 0 {
		if !h.cr {
			if n := len(p) - len(bytes.TrimLeft(p, " \t")); n > 0 {
				h.blank = true
				p = p[n:]
				continue
			}
			if h.blank && p[0] != '\r' && p[0] != '\n' {
				h.lineEnds()
				h.put([]byte{' '})
				h.blank, h.some = false, true
			}
			if !h.blank {
				if n := h.cleanLines(p); n > 0 {
					p = p[n:]
					continue
				}
			}
		}
		end := bytes.IndexByte(p, '\n') + 1
		if end == 0 {
			end = len(p)
		}
		h.piece(p[:end])
		p = p[end:]
	}
	return length, nil
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

// cleanLines hashes the lines at the start of p that are whole and canonical as they stand and returns their length. No
// blank may be pending; p may start within a line.
func (h *BodyHasher) cleanLines(p []byte) int {
	start, end, pos := 0, 0, 0 // p[start:end] is clean; p[end:pos] holds line ends only
	for {
		n := bytes.IndexByte(p[pos:], '\n')
		if n < 1 || p[pos+n-1] != '\r' {
			break
		}
		line := p[pos : pos+n-1]
		if len(line) == 0 {
			h.crlfs++
			pos += n + 1
			continue
		}
		if !isClean(line) {
			break
		}
		if end == start {
			h.lineEnds()
			start = pos
		}
		end = pos + len(line)
		pos += n + 1
		h.crlfs = 1
	}
	if end > start {
		h.put(p[start:end])
		h.some = true
	}
	return pos
}

// isClean tells that a line without its end is canonical as it stands: no control character, as a tab or a CR, no two
// blanks in a row and none at the end. It looks at eight bytes at once, and may say no where they hold " !".
func isClean(line []byte) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	if line[len(line)-1] <= ' ' {
		return false
	}
	blank := uint64(0) // not 0: the byte before is a blank
	for len(line) >= 8 {
		x := binary.LittleEndian.Uint64(line)
		y := x ^ ones*' '
		blanks := (y - ones) &^ y & tops // the top bit of each byte that is a blank
		if (x-ones*' ')&^x&tops != 0 || blanks&(blanks<<8|blank) != 0 {
			return false
		}
		blank = blanks >> 63 << 7
		line = line[8:]
	}
	for _, c := range line {
		if c < ' ' || c == ' ' && blank != 0 {
			return false
		}
		blank = 0
		if c == ' ' {
			blank = 1
		}
	}
	return true
}

// piece hashes p, a line or part of one, byte by byte.
func (h *BodyHasher) piece(p []byte) {
	for len(p) > 0 {
		switch p[0] {
		case '\n':
			h.crlfs++
			h.cr, h.blank = false, false
			p = p[1:]
		case '\r':
			h.bareCR()
			h.cr, h.blank = true, false
			p = p[1:]
		case ' ', '\t':
			h.bareCR()
			h.blank = true
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
	h.blank, h.some = blank, true
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
	start := len(b)
	for len(raw) > 0 {
		n := 0 // of what is neither blank nor line end
		for n < len(raw) && !isSpace(raw[n]) {
			n++
		}
		if n > 0 && len(b) > start {
			b = append(b, ' ')
		}
		b = append(b, raw[:n]...)
		for n < len(raw) && isSpace(raw[n]) {
			n++
		}
		raw = raw[n:]
	}
	return b
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }
