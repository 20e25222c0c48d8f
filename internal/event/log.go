package event

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"relayd/internal/kv"
)

// ErrBadCursor is returned by List for a cursor that it did not give out.
var ErrBadCursor = errors.New("not a cursor of the event log")

const (
	table = kv.Table("event")
	// keySize is the time in nanoseconds, big endian, and four bytes of the process.
	keySize = 8 + 4
	// recordVersion is the version that Append writes; an unknown one is an error, never ignored.
	recordVersion = 1
)

// idText keeps the order of the keys in the text of the IDs, as queue IDs do.
var idText = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// Log appends events in transactions of others and reads them back in order. Its methods may be called from many
// goroutines.
type Log struct {
	db      kv.DB
	now     func() time.Time
	last    atomic.Int64
	process [keySize - 8]byte
}

// Open returns the log in db. now is the clock, nil for time.Now.
func Open(db kv.DB, now func() time.Time) (*Log, error) {
	if now == nil {
		now = time.Now
	}
	l := &Log{db: db, now: now}
	_, _ = rand.Read(l.process[:]) // never fails since Go 1.24
	return l, nil
}

// Append writes e in tx, so that it becomes durable with what it tells of. ID, Version and, where zero, At are set.
// The key is the time in nanoseconds (never before an earlier one's of this process) and four bytes that differ from
// process to process: Append reads nothing and never overwrites. Safe to run again.
func (l *Log) Append(tx kv.Tx, e Event) error {
	now := l.now()
	if e.At.IsZero() {
		e.At = now
	}
	record := make([]byte, 0, keySize+e.size())
	record = l.appendKey(record, now)
	record, err := appendRecord(record, record[:keySize], &e)
	if err != nil {
		return fmt.Errorf("encode event %s: %w", e.Type, err)
	}
	if err := tx.Put(table, record[:keySize:keySize], record[keySize:]); err != nil {
		return fmt.Errorf("put event %s: %w", e.Type, err)
	}
	return nil
}

// appendKey appends a key that no other Append of this or another process uses.
func (l *Log) appendKey(b []byte, now time.Time) []byte {
	at := now.UnixNano()
	for {
		last := l.last.Load()
		if at <= last {
			at = last + 1
		}
		if l.last.CompareAndSwap(last, at) {
			break
		}
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at)) //nolint:gosec // times before 1970 do not occur
	return append(b, l.process[:]...)
}

// keyAt returns the first key at or after t.
func keyAt(t time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(max(0, t.UnixNano()))) //nolint:gosec // not negative
}

func decode(value []byte) (Event, error) {
	var e Event
	if err := json.Unmarshal(value, &e); err != nil {
		return e, fmt.Errorf("decode event: %w", err)
	}
	if e.Version != recordVersion {
		return e, fmt.Errorf("decode event %s: unknown version %d", e.ID, e.Version)
	}
	return e, nil
}

// purgeSlice is how many events one transaction of Purge removes: a longer one would hold up the commits behind it.
const purgeSlice = 1000

// Purge removes events older than before, at most that many, oldest first, in short transactions. It returns how many
// are gone, also beside an error.
func (l *Log) Purge(ctx context.Context, before time.Time, most int) (int, error) {
	end, gone := keyAt(before), 0
	for gone < most {
		var n int
		err := l.db.Update(ctx, func(tx kv.Tx) error {
			var keys [][]byte
			err := tx.Scan(table, nil, end, func(key, _ []byte) (bool, error) {
				keys = append(keys, append([]byte(nil), key...))
				return len(keys) < min(purgeSlice, most-gone), nil
			})
			if err != nil {
				return err
			}
			for _, key := range keys {
				if err := tx.Delete(table, key); err != nil {
					return err
				}
			}
			n = len(keys)
			return nil
		})
		if err != nil {
			return gone, fmt.Errorf("purge events: %w", err)
		}
		gone += n
		if n < purgeSlice {
			break
		}
	}
	return gone, nil
}
