package smtpd

import (
	"bytes"
	"io"
	"net/netip"
	"sync"

	"relayd/internal/mail"
)

const (
	// inboundShare is how many times the size of the largest message all inbound messages together may take of memory.
	inboundShare = 16
	// sourceShare is what one source may take, as a part of what is then still free: a quarter of all where it is alone, and
	// less the more there are, so that there is always room for one more.
	sourceShare = 3
	// copies is how many octets one octet of a message takes while it is judged: its own, and that of the copy which
	// InboundHandler reads as a report.
	copies    = 2
	leastHeld = 16 << 10 // octets that a message takes at first
	blockSize = 64 << 10 // octets by which it grows behind its head
)

// maxInboundHeader bounds the header section of one inbound message, in octets: it is taken apart into its fields, which
// costs many times its length.
const maxInboundHeader = 256 << 10

var errInboundHeader = mail.Refuse(552, mail.Status{Class: 5, Subject: 3, Detail: 4}, "The message's header has more than 256 KiB", nil)

// memory holds one message, within the bounds of its source and of all together. What it has is never copied: the header
// is looked at in head, and behind it stands one block after another.
type memory struct {
	holding  *holding
	source   netip.Prefix
	most     int64    // octets of the largest message
	head     []byte   // the first octets, at most maxInboundHeader
	blocks   [][]byte // the others, each full but the last
	reserved int64    // octets of messages, of which each takes copies
}

// Write implements io.Writer. A header section that is too large is refused as soon as it can be told.
func (m *memory) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		var part int
		if part, err = m.add(p); err != nil {
			return n, err
		}
		n, p = n+part, p[part:]
	}
	return n, nil
}

// add takes the octets for which there is room in one place, at least one.
func (m *memory) add(p []byte) (n int, err error) {
	if had := len(m.head); had < maxInboundHeader {
		p = p[:min(len(p), maxInboundHeader-had)]
		if need := had + len(p); need > cap(m.head) {
			room := min(max(need, 2*had, leastHeld), maxInboundHeader)
			if err := m.reserve(room - cap(m.head)); err != nil {
				return 0, err
			}
			m.head = append(make([]byte, 0, room), m.head...)
		}
		m.head = append(m.head, p...)
		return len(p), nil
	}
	last := len(m.blocks) - 1
	if last < 0 && !headerEnds(m.head) {
		return 0, errInboundHeader
	}
	if last < 0 || len(m.blocks[last]) == blockSize {
		if err := m.reserve(blockSize); err != nil {
			return 0, err
		}
		m.blocks = append(m.blocks, make([]byte, 0, blockSize))
		last++
	}
	n = min(len(p), blockSize-len(m.blocks[last]))
	m.blocks[last] = append(m.blocks[last], p[:n]...)
	return n, nil
}

// headerEnds tells whether the header section ends within b.
func headerEnds(b []byte) bool {
	return bytes.HasPrefix(b, []byte("\r\n")) || bytes.Contains(b, []byte("\r\n\r\n"))
}

func (m *memory) reserve(n int) error {
	if !m.holding.take(m.source, copies*int64(n), m.most) {
		return errInboundFull
	}
	m.reserved += int64(n)
	return nil
}

func (m *memory) free() {
	m.head, m.blocks = nil, nil
	m.holding.free(m.source, copies*m.reserved)
}

// message reads what is held, with other octets in the place of head.
func (m *memory) message(head ...[]byte) *io.SectionReader {
	p := append(segments(head), m.blocks...)
	size := 0
	for _, b := range p {
		size += len(b)
	}
	return io.NewSectionReader(p, 0, int64(size))
}

// segments are octets that stand in several places, read as one.
type segments [][]byte

// ReadAt implements io.ReaderAt.
func (p segments) ReadAt(b []byte, off int64) (n int, err error) {
	for _, piece := range p {
		if skip := min(off, int64(len(piece))); skip > 0 {
			piece, off = piece[skip:], off-skip
		}
		if n += copy(b[n:], piece); n == len(b) {
			return n, nil
		}
	}
	return n, io.EOF
}

// holding counts the octets that inbound messages take, in all and by source.
type holding struct {
	mu     sync.Mutex
	all    int64
	source map[netip.Prefix]int64
}

// take counts n more where the largest message has most octets; false when they are too many.
func (h *holding) take(p netip.Prefix, n, most int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	free := inboundShare*max(most, leastHeld) - h.all - n
	if free < 0 || h.source[p]+n > free/sourceShare {
		return false
	}
	h.all += n
	h.source[p] += n
	return true
}

func (h *holding) free(p netip.Prefix, n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all -= n
	if h.source[p] -= n; h.source[p] <= 0 {
		delete(h.source, p)
	}
}
