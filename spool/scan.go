package spool

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Bounds of one listing call: envelopes examined in one snapshot, and in all.
const (
	scanSlice  = 5_000
	scanBudget = 25_000
	maxPage    = 1_000
)

// scanner walks the live envelopes that a selector selects, in the order of their keys. A key never changes while its
// envelope lives, so that nothing is missed or met twice while mail flows.
type scanner struct {
	store  *Store
	sel    Selector
	now    time.Time
	ranges [][2][]byte     // from, to
	queues map[string]bool // by the bytes that begin an envelope record: whether the queue can match
	left   int             // of the budget
}

func (s *Store) newScanner(sel Selector, after []byte) (*scanner, error) {
	if err := sel.check(); err != nil {
		return nil, err
	}
	c := &scanner{store: s, sel: sel, now: s.now(), queues: map[string]bool{}, left: scanBudget}
	for _, id := range sel.Messages {
		c.ranges = append(c.ranges, [2][]byte{id[:], kv.PrefixEnd(id[:])})
	}
	for _, id := range sel.Envelopes {
		key := envelopeKey(id)
		c.ranges = append(c.ranges, [2][]byte{key, append(bytes.Clone(key), 0)})
	}
	slices.SortFunc(c.ranges, func(a, b [2][]byte) int { return bytes.Compare(a[0], b[0]) })
	switch {
	case len(c.ranges) > 0:
	case sel.ofQueues() && !s.queues.any(&sel):
	default:
		c.ranges = [][2][]byte{{nil, nil}}
	}
	if after != nil {
		c.skip(append(bytes.Clone(after), 0))
	}
	return c, nil
}

// skip leaves out what comes before from.
func (c *scanner) skip(from []byte) {
	for len(c.ranges) > 0 {
		r := &c.ranges[0]
		if r[1] != nil && bytes.Compare(r[1], from) <= 0 {
			c.ranges = c.ranges[1:]
			continue
		}
		for i := range c.ranges {
			if bytes.Compare(c.ranges[i][0], from) < 0 {
				c.ranges[i][0] = from
			}
		}
		return
	}
}

// next appends up to limit envelopes to page. It stops early when the budget is used up; more tells whether anything
// may be left, and last is the last key that was examined.
func (c *scanner) next(ctx context.Context, page []Info, limit int) (_ []Info, last []byte, more bool, err error) {
	for len(c.ranges) > 0 && len(page) < limit && c.left > 0 {
		err = c.store.db.View(ctx, func(tx kv.Tx) error {
			page, last, err = c.slice(tx, page, limit, last)
			return err
		})
		if err != nil {
			return nil, nil, false, err
		}
	}
	return page, last, len(c.ranges) > 0, nil
}

// slice examines up to scanSlice envelopes in one snapshot.
func (c *scanner) slice(tx kv.Tx, page []Info, limit int, last []byte) ([]Info, []byte, error) {
	cache := messageCache{tx: tx, messages: map[mail.QueueID]*Message{}}
	r := c.ranges[0]
	examined, ended := 0, true
	err := tx.Scan(tableEnvelope, r[0], r[1], func(k, v []byte) (bool, error) {
		last = append(last[:0], k...)
		examined++
		if info, ok := c.examine(&cache, k, v); ok {
			page = append(page, info)
		}
		ended = len(page) < limit && examined < scanSlice
		return ended, nil
	})
	c.left -= examined
	if ended {
		c.ranges = c.ranges[1:]
	} else {
		c.skip(append(bytes.Clone(last), 0))
	}
	return page, last, err
}

// examine decides about one envelope, cheap questions first.
func (c *scanner) examine(cache *messageCache, key, record []byte) (Info, bool) {
	if !c.queueMatches(record) {
		return Info{}, false
	}
	id, err := mail.EnvelopeIDFromKey(key)
	if err != nil {
		c.store.logCorrupt(id, err)
		return Info{}, false
	}
	e, err := decodeEnvelope(id, record)
	if err != nil {
		c.store.logCorrupt(id, err)
		return Info{}, false
	}
	if !c.sel.matchQueue(e.Queue) || !c.sel.matchEnvelope(e, c.now) { // long names were let through
		return Info{}, false
	}
	state := c.store.stateOf(e)
	if c.sel.State != "" && state.String() != c.sel.State {
		return Info{}, false
	}
	m, err := cache.get(id.Message)
	if err != nil {
		c.store.logCorrupt(id, err)
		m = &Message{ID: id.Message}
	}
	if !c.sel.matchMessage(m) {
		return Info{}, false
	}
	return newInfo(m, e, state), true
}

// queueMatches looks at the bytes of the queue at the head of the record, and decodes each queue only once.
func (c *scanner) queueMatches(record []byte) bool {
	if !c.sel.ofQueues() || len(record) == 0 {
		return true
	}
	rest := record[1:]
	for range 3 {
		if len(rest) == 0 || int(rest[0]) >= len(rest) || rest[0] >= 0x80 {
			return true // a long name, or a broken record: let the decoder judge
		}
		rest = rest[1+int(rest[0]):]
	}
	head := record[:len(record)-len(rest)]
	ok, known := c.queues[string(head)]
	if !known {
		d := decode("envelope", head)
		q := d.queue()
		ok = d.err != nil || c.sel.matchQueue(q)
		if len(c.queues) < scanSlice {
			c.queues[string(head)] = ok
		}
	}
	return ok
}

// encodeCursor makes the opaque text of a position.
func encodeCursor(last []byte) string { return base64.RawURLEncoding.EncodeToString(last) }

func decodeCursor(cursor string) ([]byte, error) {
	if cursor == "" {
		return nil, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil || len(b) != mail.EnvelopeKeySize {
		return nil, fmt.Errorf("%w: %.60q", ErrCursor, cursor)
	}
	return b, nil
}
