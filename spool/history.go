package spool

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// tableSettled finds outcomes by recipient and Message-ID: <time><node><seq> of a settling transaction. The value is the
// version, the number of outcomes, for each of them four bytes of a hash of the recipient and four of the Message-ID,
// and then the keys of the outcomes. An index by recipient would write one page somewhere in the file for each outcome;
// this one only appends, thirty bytes for each, and a look-up reads the hashes one after the other: some tens of
// milliseconds for a million outcomes.
const tableSettled = kv.Table("settled")

// settledEntry is the length of one outcome's part of a value.
const settledEntry = 8 + mail.EnvelopeKeySize

// hashText is four bytes of a hash that does not change; letters count as lower case. 0 stands for no text.
func hashText(s string) uint32 {
	if s == "" {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(strings.ToLower(s)))
	return max(1, h.Sum32())
}

// indexed is one outcome as the index knows it.
type indexed struct {
	to        uint32
	messageID uint32
	key       []byte
}

func appendSettled(entries []indexed) []byte {
	b := make([]byte, 0, 5+len(entries)*settledEntry)
	b = append(b, recordVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(entries))) //nolint:gosec // at most maxLease
	for _, e := range entries {
		b = binary.BigEndian.AppendUint32(b, e.to)
		b = binary.BigEndian.AppendUint32(b, e.messageID)
	}
	for _, e := range entries {
		b = append(b, e.key...)
	}
	return b
}

// checkSettled returns the number of outcomes in a record of the index.
func checkSettled(v []byte) (int, error) {
	if len(v) > 0 && v[0] != recordVersion {
		return 0, fmt.Errorf("settled record: %w: %d", ErrVersion, v[0])
	}
	if len(v) < 5 {
		return 0, fmt.Errorf("settled record: %w", ErrCorrupt)
	}
	n := uint64(binary.BigEndian.Uint32(v[1:]))
	if uint64(len(v)) != 5+n*settledEntry {
		return 0, fmt.Errorf("settled record: %w", ErrCorrupt)
	}
	return int(n), nil //nolint:gosec // at most the length of v
}

// settledKey is the next key of the index. Repeating a transaction writes a second record that says the same.
func (s *Store) settledKey(at time.Time) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16), dueTime(at))
	b = binary.BigEndian.AppendUint32(b, node)
	return binary.BigEndian.AppendUint32(b, s.notes.Add(1))
}

// putIndex makes outcomes findable.
func (s *Store) putIndex(tx kv.Tx, settled []indexed) error {
	if len(settled) == 0 {
		return nil
	}
	return tx.Put(tableSettled, s.settledKey(s.now()), appendSettled(settled))
}

// HistoryQuery asks for outcomes. One of the first three is given.
type HistoryQuery struct {
	Recipient string       // forward-path, letters of any case
	MessageID string       // with or without angle brackets
	Message   mail.QueueID //
	Account   string       // "": of any account
}

// Bounds of one look-up: the part of the index that is read in one snapshot, and the outcomes that are looked at in all.
const (
	historyWindow = time.Hour
	historyBudget = 20_000_000
)

// History returns outcomes, those settled last first (of one queue ID: in the order of its envelopes), and a cursor for
// what follows, "" at the end. A page may be short, and may hold a few more than limit, which is 1 to 1,000. Outcomes are
// kept until Purge. ErrNotFound is for a query that asks for nothing.
func (s *Store) History(ctx context.Context, q HistoryQuery, cursor string, limit int) ([]OutcomeRecord, string, error) {
	limit = min(max(limit, 1), maxPage)
	if q.MessageID != "" {
		q.MessageID = "<" + strings.Trim(q.MessageID, "<> ") + ">"
		local, _, _ := strings.Cut(q.MessageID[1:], "@")
		if id, err := mail.ParseEnvelopeID(local); err == nil { // a campaign's: it is made of the envelope's ID
			out, err := s.ListOutcomes(ctx, id.Message, id.N-1, 1)
			out = slices.DeleteFunc(out, func(o OutcomeRecord) bool { return o.ID != id || q.Account != "" && o.Queue.Account != q.Account })
			if err != nil || len(out) > 0 {
				return out, "", err
			}
		}
	}
	switch {
	case !q.Message.IsZero():
		return s.messageHistory(ctx, q, cursor, limit)
	case q.Recipient == "" && q.MessageID == "":
		return nil, "", fmt.Errorf("find outcomes: %w", ErrNotFound)
	}
	h := &historyReader{query: q, limit: limit, left: historyBudget}
	h.to, h.messageID = hashText(q.Recipient), hashText(q.MessageID)
	if cursor != "" {
		end, err := base64.RawURLEncoding.DecodeString(cursor)
		if err != nil || len(end) != 16 {
			return nil, "", fmt.Errorf("%w: %.60q", ErrCursor, cursor)
		}
		h.end = end
	}
	next, err := h.run(ctx, s.db, s.now())
	if err != nil {
		return nil, "", fmt.Errorf("find outcomes: %w", err)
	}
	return h.found, next, nil
}

// messageHistory returns the outcomes of one message; the cursor is the key of the last one.
func (s *Store) messageHistory(ctx context.Context, q HistoryQuery, cursor string, limit int) ([]OutcomeRecord, string, error) {
	after := ^uint64(0)
	last, err := decodeCursor(cursor)
	if err != nil {
		return nil, "", err
	}
	if last != nil {
		id, err := mail.EnvelopeIDFromKey(last)
		if err != nil || id.Message != q.Message {
			return nil, "", fmt.Errorf("%w: %.60q", ErrCursor, cursor)
		}
		after = id.N
	}
	out, err := s.ListOutcomes(ctx, q.Message, after, limit)
	if err != nil {
		return nil, "", err
	}
	next := ""
	if len(out) == limit && out[len(out)-1].ID.N != ^uint64(0) {
		next = encodeCursor(envelopeKey(out[len(out)-1].ID))
	}
	return slices.DeleteFunc(out, func(o OutcomeRecord) bool { return q.Account != "" && o.Queue.Account != q.Account }), next, nil
}

// historyReader walks the index backwards, one window of time in one snapshot.
type historyReader struct {
	query         HistoryQuery
	to, messageID uint32
	limit, left   int
	end           []byte // of the next window, nil for the end of the table
	found         []OutcomeRecord
	seen          map[mail.EnvelopeID]bool
}

// run returns the cursor of what follows.
func (h *historyReader) run(ctx context.Context, db kv.DB, now time.Time) (string, error) {
	h.seen = map[mail.EnvelopeID]bool{}
	from := now.Add(-historyWindow)
	if h.end != nil {
		from = fromNanos(int64(binary.BigEndian.Uint64(h.end))).Add(-historyWindow) //nolint:gosec // written from 63 bits
	}
	for {
		start := binary.BigEndian.AppendUint64(nil, dueTime(from))
		older := false
		err := db.View(ctx, func(tx kv.Tx) error {
			cut, err := h.window(tx, start)
			if err != nil {
				return err
			}
			if h.end = start; cut != nil {
				h.end = cut
			}
			return tx.Scan(tableSettled, nil, h.end, func(_, _ []byte) (bool, error) {
				older = true
				return false, nil
			})
		})
		switch {
		case err != nil:
			return "", err
		case !older:
			return "", nil
		case len(h.found) >= h.limit || h.left <= 0:
			return base64.RawURLEncoding.EncodeToString(append(h.end, make([]byte, 16-len(h.end))...)), nil
		}
		from = from.Add(-historyWindow)
	}
}

// hit is a record of the index with outcomes that may match.
type hit struct {
	key  []byte
	keys [][]byte
}

// window reads the records from start to h.end and adds what they lead to, last first. When the page is full before
// the window ends it returns the key of the last record that was used.
func (h *historyReader) window(tx kv.Tx, start []byte) (cut []byte, err error) {
	var hits []hit
	err = tx.Scan(tableSettled, start, h.end, func(k, v []byte) (bool, error) {
		n, err := checkSettled(v)
		if err != nil {
			return false, err
		}
		h.left -= n
		var keys [][]byte
		for i := range n {
			to, messageID := binary.BigEndian.Uint32(v[5+8*i:]), binary.BigEndian.Uint32(v[9+8*i:])
			if (h.to == 0 || h.to == to) && (h.messageID == 0 || h.messageID == messageID) {
				at := 5 + 8*n + mail.EnvelopeKeySize*i
				keys = append(keys, v[at:at+mail.EnvelopeKeySize])
			}
		}
		if keys != nil {
			hits = append(hits, hit{bytes.Clone(k), keys})
		}
		return true, nil
	})
	for i := len(hits) - 1; i >= 0 && err == nil; i-- {
		if len(h.found) >= h.limit {
			return hits[i+1].key, nil
		}
		err = h.load(tx, hits[i].keys)
	}
	return nil, err
}

// load reads outcomes and keeps those that match indeed.
func (h *historyReader) load(tx kv.Tx, keys [][]byte) error {
	records, err := tx.GetMany(tableOutcome, keys)
	if err != nil {
		return err
	}
	for i, v := range records {
		id, err := mail.EnvelopeIDFromKey(keys[i])
		if err != nil {
			return err
		}
		if v == nil || h.seen[id] { // purged
			continue
		}
		o, err := decodeOutcome(id, v)
		if err != nil {
			return err
		}
		h.seen[id] = true
		if h.match(o) {
			h.found = append(h.found, *o)
		}
	}
	return nil
}

func (h *historyReader) match(o *OutcomeRecord) bool {
	return (h.query.Account == "" || o.Queue.Account == h.query.Account) &&
		(h.query.Recipient == "" || strings.EqualFold(o.To.String(), h.query.Recipient)) &&
		(h.query.MessageID == "" || strings.EqualFold(o.MessageID, h.query.MessageID))
}

// Purge removes outcomes settled before a time with their notes, and what finds them, at most most of them (10,000),
// and tells how many it removed. Fewer than most means that none is left. Outcomes stand in the order of acceptance:
// those accepted before the time but settled after it are passed over.
func (s *Store) Purge(ctx context.Context, before time.Time, most int) (int, error) {
	most = min(most, maxLease)
	var keys, index [][]byte
	end := mail.NewQueueID(before)
	clear(end[6:])
	err := s.db.View(ctx, func(tx kv.Tx) error {
		err := tx.Scan(tableOutcome, nil, end[:], func(k, v []byte) (bool, error) {
			settled, err := settledAt(v)
			if err != nil {
				return false, err
			}
			if settled.Before(before) {
				keys = append(keys, bytes.Clone(k))
			}
			return len(keys) < most, nil
		})
		if err != nil {
			return err
		}
		return tx.Scan(tableSettled, nil, binary.BigEndian.AppendUint64(nil, dueTime(before)), func(k, _ []byte) (bool, error) {
			index = append(index, bytes.Clone(k))
			return len(index) < most, nil
		})
	})
	if err == nil && len(keys)+len(index) > 0 {
		err = s.db.Update(ctx, func(tx kv.Tx) error {
			if err := removeNotes(tx, keys); err != nil {
				return err
			}
			for _, k := range keys {
				if err := tx.Delete(tableOutcome, k); err != nil {
					return err
				}
			}
			for _, k := range index {
				if err := tx.Delete(tableSettled, k); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return 0, fmt.Errorf("purge outcomes: %w", err)
	}
	return max(len(keys), len(index)), nil
}
