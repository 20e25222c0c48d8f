// Package kv is the one ordered, transactional key-value store of relayd. DB and Tx are the contract, Bolt is the
// embedded engine, kvtest is the suite that every engine must pass. Nothing else in relayd knows the engine.
//
// In the embedded engine an Update goes this way: the committer (commit.go) runs it with others in a transaction (tx.go) on a
// copy of the active layer (layer.go), makes their record durable in the journal (journal.go), and publishes the copy. A
// checkpoint (checkpoint.go) brings layers into the bbolt file (bolt.go), which care.go looks after.
package kv

import (
	"context"
	"errors"
)

// Table names a key space. Packages own their tables and the encoding of their records.
type Table string

// ErrClosed is returned by every call on a closed DB.
var ErrClosed = errors.New("store is closed")

// DB is an ordered key-value store. All methods may be called from many goroutines.
type DB interface {
	// Update runs fn in a read-write transaction; nil means durable. Concurrent Updates share one commit. fn may run
	// more than once: it may only read and write through tx, and must reset what it sets outside. An error of fn is
	// returned as it is and harms no other Update. When the commit itself fails the outcome may be unknown: every
	// Update must be safe to repeat. ctx bounds the wait for a place in a batch, not a commit that has begun.
	Update(ctx context.Context, fn func(Tx) error) error
	// View runs fn in a read-only transaction over one snapshot. Keep it short: it pins free pages.
	View(ctx context.Context, fn func(Tx) error) error
	// Close waits for running transactions. It is idempotent.
	Close() error
}

// Tx is one transaction. It is valid, as are the slices that it returns, until fn returns, and must not be shared
// between goroutines; slices must not be modified. A later read in the same transaction sees its writes.
type Tx interface {
	// Get returns nil when there is no such key.
	Get(t Table, key []byte) ([]byte, error)
	// GetMany returns one value per key, nil where there is none. One round trip on a networked engine.
	GetMany(t Table, keys [][]byte) ([][]byte, error)
	// Put stores value under key. Keys are 1 to 1,024 bytes, values at most 1 MiB. An empty value is stored as such.
	// The engine may keep the slices until the transaction ends: do not change them meanwhile.
	Put(t Table, key, value []byte) error
	// Delete removes key; a missing key is no error.
	Delete(t Table, key []byte) error
	// Scan calls fn for each key with from <= key < to in order, until fn returns false; nil to means no end. fn must
	// not write to the table that it scans.
	Scan(t Table, from, to []byte, fn func(key, value []byte) (more bool, err error)) error
}

// PrefixEnd returns the first key after all keys that begin with prefix, for Scan's to; nil when there is none.
func PrefixEnd(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}
