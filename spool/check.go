package spool

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// CheckReport is what Check counted and what it found wrong.
type CheckReport struct {
	Messages  int64    `json:"messages"`
	Envelopes int64    `json:"envelopes"`
	Waiting   int64    `json:"waiting"` // in their queues
	Held      int64    `json:"held"`
	Leased    int64    `json:"leased"` // when the daemon ended: in doubt at the next start
	Outcomes  int64    `json:"outcomes"`
	Notes     int64    `json:"notes"`
	Accepted  int64    `json:"accepted"` // ever
	Finished  int64    `json:"finished"` // ever
	Findings  []string `json:"findings"` // the first maxFindings
	Problems  int64    `json:"problems"` // findings in all
}

const maxFindings = 100

// Check reads every record of the store and compares what must agree: envelopes with their messages and with the one
// place where each stands, bodies with their messages, the counters with what is there. It changes nothing, and wants a
// store that nobody writes to. The error is for what kept it from reading.
func Check(ctx context.Context, db kv.DB) (*CheckReport, error) {
	c := &checker{report: &CheckReport{Findings: []string{}}, leased: map[mail.EnvelopeID]bool{}}
	err := db.View(ctx, func(tx kv.Tx) error {
		c.tx = tx
		for _, step := range []func() error{
			c.schema, c.leases, c.envelopes, c.places, c.messages, c.bodies, c.finished, c.counters,
		} {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return c.report, fmt.Errorf("check spool: %w", err)
	}
	return c.report, nil
}

type checker struct {
	tx     kv.Tx
	report *CheckReport
	leased map[mail.EnvelopeID]bool
}

func (c *checker) found(format string, args ...any) {
	if c.report.Problems++; len(c.report.Findings) < maxFindings {
		c.report.Findings = append(c.report.Findings, fmt.Sprintf(format, args...))
	}
}

// each calls fn with every record of a table. A record that fn cannot read is a finding.
func (c *checker) each(table kv.Table, fn func(k, v []byte) error) error {
	return c.tx.Scan(table, nil, nil, func(k, v []byte) (bool, error) {
		if err := fn(k, v); err != nil {
			c.found("%s %x: %v", table, k, err)
		}
		return true, nil
	})
}

func (c *checker) has(table kv.Table, key []byte) bool {
	v, err := c.tx.Get(table, key)
	return err == nil && v != nil
}

func (c *checker) schema() error {
	v, err := c.tx.Get(tableSpool, keySchema)
	if err != nil {
		return err
	}
	_, err = schemaOf(v)
	return err
}

func (c *checker) leases() error {
	return c.each(tableLease, func(_, v []byte) error {
		rec, err := checkLease(v)
		if err != nil {
			return err
		}
		for i := range rec.len() {
			id := rec.id(i)
			switch {
			case !rec.live(i):
			case c.leased[id]:
				c.found("envelope %s is under two leases", id)
			case !c.has(tableEnvelope, envelopeKey(id)):
				c.found("lease of envelope %s, which is not there", id)
			default:
				c.leased[id] = true
			}
		}
		return nil
	})
}

func (c *checker) envelopes() error {
	var last mail.QueueID // envelopes of a message stand together
	return c.each(tableEnvelope, func(k, v []byte) error {
		c.report.Envelopes++
		id, err := mail.EnvelopeIDFromKey(k)
		if err != nil {
			return err
		}
		e, err := decodeEnvelope(id, v)
		if err != nil {
			return err
		}
		if id.Message != last && !c.has(tableMessage, id.Message[:]) {
			c.found("envelope %s has no message", id)
		}
		last = id.Message
		places := 0
		for _, at := range []struct {
			is bool
			n  *int64
		}{
			{c.has(tableDue, dueKeyOf(e)), &c.report.Waiting},
			{c.has(tableHeld, heldKeyOf(e)), &c.report.Held},
			{c.leased[id], &c.report.Leased},
		} {
			if at.is {
				places++
				*at.n++
			}
		}
		if places != 1 {
			c.found("envelope %s stands in %d places instead of one: it is in no queue, or in two", id, places)
		}
		if c.has(tableOutcome, k) {
			c.found("envelope %s is live and finished at once", id)
		}
		return nil
	})
}

// places looks for entries of queues without an envelope.
func (c *checker) places() error {
	for _, t := range []struct {
		table kv.Table
		tail  int
		key   func(*Envelope) []byte
	}{{tableDue, dueTail, dueKeyOf}, {tableHeld, mail.EnvelopeKeySize, heldKeyOf}} {
		err := c.each(t.table, func(k, _ []byte) error {
			text, _, err := parseQueueKey(k, t.tail)
			if err != nil {
				return err
			}
			if _, err := parseQueue(string(text)); err != nil {
				return err
			}
			id, err := mail.EnvelopeIDFromKey(k[len(k)-mail.EnvelopeKeySize:])
			if err != nil {
				return err
			}
			v, err := c.tx.Get(tableEnvelope, envelopeKey(id))
			if err != nil {
				return err
			}
			if v == nil {
				return fmt.Errorf("envelope %s: %w", id, errMissing)
			}
			e, err := decodeEnvelope(id, v)
			if err == nil && !bytes.Equal(t.key(e), k) {
				err = fmt.Errorf("envelope %s belongs elsewhere: %w", id, ErrCorrupt)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) messages() error {
	return c.each(tableMessage, func(k, v []byte) error {
		c.report.Messages++
		if len(k) != len(mail.QueueID{}) {
			return ErrCorrupt
		}
		m, err := decodeMessage(mail.QueueID(k), v)
		if err != nil {
			return err
		}
		for n := range m.chunks {
			chunk, err := c.tx.Get(tableBody, bodyKey(m.ID, n))
			want := byte(chunkMore)
			if n == m.chunks-1 {
				want = chunkLast
			}
			if err != nil || len(chunk) == 0 || chunk[0] != want {
				c.found("message %s: chunk %d of %d of its body is missing or wrong", m.ID, n, m.chunks)
				break
			}
		}
		if m.Keep {
			return nil
		}
		live := false
		err = c.tx.Scan(tableEnvelope, k, kv.PrefixEnd(k), func(_, _ []byte) (bool, error) {
			live = true
			return false, nil
		})
		if err == nil && !live {
			c.found("message %s has no envelope left", m.ID)
		}
		return err
	})
}

// bodies looks for chunks that belong to nothing. Those of a message that never came are swept at the next start.
func (c *checker) bodies() error {
	var last mail.QueueID
	return c.each(tableBody, func(k, _ []byte) error {
		if len(k) != len(last)+4 {
			return ErrCorrupt
		}
		id := mail.QueueID(k[:len(last)])
		if id == last {
			return nil
		}
		last = id
		if !c.has(tableMessage, id[:]) && !c.has(tableDraft, id[:]) {
			c.found("body of %s has no message", id)
		}
		return nil
	})
}

func (c *checker) finished() error {
	err := c.each(tableOutcome, func(k, v []byte) error {
		c.report.Outcomes++
		id, err := mail.EnvelopeIDFromKey(k)
		if err == nil {
			_, err = decodeOutcome(id, v)
		}
		return err
	})
	if err != nil {
		return err
	}
	err = c.each(tableSettled, func(k, v []byte) error {
		if len(k) != 16 {
			return ErrCorrupt
		}
		_, err := checkSettled(v)
		return err
	})
	if err != nil {
		return err
	}
	return c.each(tableNote, func(k, v []byte) error {
		c.report.Notes++
		if len(k) != mail.EnvelopeKeySize+12 {
			return ErrCorrupt
		}
		if e := k[:mail.EnvelopeKeySize]; !c.has(tableEnvelope, e) && !c.has(tableOutcome, e) {
			c.found("note %x: %v", k, errMissing)
		}
		_, err := decodeNote(v)
		return err
	})
}

// counters compares what was ever accepted with what is live and what was ever finished.
func (c *checker) counters() error {
	var sum counts
	err := c.each(tableCounter, func(k, v []byte) error {
		if len(k) != 4 {
			return fmt.Errorf("counter key: %w", ErrCorrupt)
		}
		n, err := decodeCounts(v)
		for i := range n {
			sum[i] += n[i]
		}
		return err
	})
	c.report.Accepted = int64(sum[0]) //nolint:gosec // a count
	for _, n := range sum[1:] {
		c.report.Finished += int64(n) //nolint:gosec // a count
	}
	if c.report.Accepted != c.report.Envelopes+c.report.Finished {
		c.found("%d envelopes were accepted, but %d are live and %d finished", c.report.Accepted, c.report.Envelopes, c.report.Finished)
	}
	if v, _ := c.tx.Get(tableSpool, keyOwner); v != nil && (len(v) != 8 || binary.BigEndian.Uint64(v) == 0) {
		c.found("owner %v", ErrCorrupt)
	}
	return err
}
