package event

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"relayd/internal/kv"
)

// Filter selects events. Fields that are empty select all.
type Filter struct {
	Type     string // prefix: "message." or "message.bounced"; a final * is allowed and means nothing
	Account  string // exact
	Envelope string // a queue ID selects the message and all its envelopes, queueID.n one envelope
	Campaign string // exact
	Since    time.Time
	Until    time.Time // exclusive
}

const (
	// listSlice is how many records one snapshot of List looks at: a long reader pins free pages of the store.
	listSlice = 2000
	// listBudget is how many records one List looks at before it returns what it has, with a cursor to go on.
	listBudget = 100_000
)

// List returns up to limit events in the order of their keys, and the cursor of the next page, "" at the end. A narrow
// filter over a long log may give a short page, even an empty one, with a cursor: the caller goes on with it.
func (l *Log) List(ctx context.Context, f Filter, cursor string, limit int) ([]Event, string, error) {
	m := newMatcher(f)
	from, end := m.from, m.end
	if cursor != "" {
		key, err := base64.RawURLEncoding.DecodeString(cursor)
		if err != nil || len(key) != keySize {
			return nil, "", ErrBadCursor
		}
		if key = append(key, 0); bytes.Compare(key, from) > 0 { // the first key after the last one shown
			from = key
		}
	}
	var events []Event
	for seen := 0; ; {
		var n int
		var last []byte
		size := len(events)
		err := l.db.View(ctx, func(tx kv.Tx) error {
			n, events = 0, events[:size]
			return tx.Scan(table, from, end, func(key, value []byte) (bool, error) {
				n++
				last = append(last[:0], key...)
				if m.quick(value) {
					e, err := decode(value)
					if err != nil {
						return false, err
					}
					if m.match(&e) {
						events = append(events, e)
					}
				}
				return n < listSlice && len(events) < limit, nil
			})
		})
		if err != nil {
			return nil, "", fmt.Errorf("list events: %w", err)
		}
		seen += n
		if n < listSlice && len(events) < limit {
			return events, "", nil
		}
		if len(events) >= limit || seen >= listBudget {
			return events, base64.RawURLEncoding.EncodeToString(last), nil
		}
		from = append(last, 0)
	}
}

// matcher is a Filter made ready.
type matcher struct {
	Filter
	from, end []byte
	needles   [][]byte
}

func newMatcher(f Filter) *matcher {
	f.Type = strings.TrimSuffix(f.Type, "*")
	m := &matcher{Filter: f}
	if !f.Since.IsZero() {
		m.from = keyAt(f.Since)
	}
	if !f.Until.IsZero() {
		m.end = keyAt(f.Until)
	}
	if f.Type != "" {
		needle := appendString([]byte(`","type":`), f.Type)
		m.needles = append(m.needles, needle[:len(needle)-1])
	}
	if f.Envelope != "" {
		needle := appendField(nil, "envelope", f.Envelope)
		m.needles = append(m.needles, needle[:len(needle)-1])
	}
	for name, value := range map[string]string{"account": f.Account, "campaign": f.Campaign} {
		if value != "" {
			m.needles = append(m.needles, appendField(nil, name, value))
		}
	}
	return m
}

// quick tells whether a record can match, without decoding it: it is what makes a scan of 100,000 records a matter of
// milliseconds. It may be wrong in favour of the record.
func (m *matcher) quick(value []byte) bool {
	for _, needle := range m.needles {
		if !bytes.Contains(value, needle) {
			return false
		}
	}
	return true
}

func (m *matcher) match(e *Event) bool {
	return strings.HasPrefix(e.Type, m.Type) &&
		(m.Account == "" || e.Account == m.Account) &&
		(m.Campaign == "" || e.Campaign == m.Campaign) &&
		(m.Envelope == "" || e.Envelope == m.Envelope || strings.HasPrefix(e.Envelope, m.Envelope+"."))
}
