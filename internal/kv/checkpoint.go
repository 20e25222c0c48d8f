package kv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/tidwall/btree"
	bolt "go.etcd.io/bbolt"
)

// A checkpoint brings what was committed into the store file. The committer freezes the active layer and goes on with an
// empty one, and with the other file of the journal; a goroutine writes the frozen one to the file, in transactions of the
// engine that are bounded, in the order of the keys. Most of what a busy relay commits is gone before: it is in the
// journal and never in the file.
const (
	maxLayer   = 12 << 20    // of memory in the active layer, in bytes
	maxJournal = 64 << 20    // of one file of the journal, in bytes
	maxAge     = time.Second // of what is in the journal only, on a store that little is written to
	flushChunk = 4 << 20     // of one transaction of the engine
	leastChunk = 64 << 10    // on a full disk
	flushAgain = time.Second // after one that found no room
)

// mark is what the file says of its journal: the store's salt, the last epoch that is wholly in the file, and whether
// the store was open when that was written, so that there must be a journal.
type mark struct {
	salt, epoch uint64
	open        bool
}

// The table of the mark, of which nothing outside knows.
const (
	markTable = Table("\x00kv")
	markSize  = 18
)

var markKey = []byte("journal")

func (m mark) encode() []byte {
	b := []byte{1} // version
	b = binary.LittleEndian.AppendUint64(b, m.salt)
	b = binary.LittleEndian.AppendUint64(b, m.epoch)
	if m.open {
		return append(b, 1)
	}
	return append(b, 0)
}

// readMark returns the zero mark for a file that has none yet.
func readMark(db *bolt.DB) (m mark, err error) {
	err = undamaged(func() error {
		return db.View(func(file *bolt.Tx) error {
			v, err := (&boltTx{tx: file}).Get(markTable, markKey)
			switch {
			case err != nil || v == nil:
				return err
			case len(v) != markSize || v[0] != 1:
				return fmt.Errorf("%w: what it says of its journal is unreadable, or of a later version", ErrDamaged)
			}
			m = mark{salt: binary.LittleEndian.Uint64(v[1:]), epoch: binary.LittleEndian.Uint64(v[9:]), open: v[17] == 1}
			return nil
		})
	})
	return m, err
}

// flush writes a layer to the file, and m with its last part.
func (b *Bolt) flush(l *layer, m mark) error {
	at, chunk := position{}, flushChunk
	for done := false; !done; {
		next, end, err := b.flushPart(l, at, chunk, m)
		switch {
		case errors.Is(err, ErrNoSpace) && chunk > leastChunk:
			chunk /= 2 // needs fewer free pages, and may leave some for the rest
		case err != nil:
			return err
		default:
			at, done = next, end
		}
	}
	return nil
}

// position is where a flush has come to in a layer.
type position struct {
	table int
	key   []byte // the first that is still to be written; nil: the first of all
}

// flushPart writes entries from at on, up to about chunk bytes, in one transaction.
func (b *Bolt) flushPart(l *layer, at position, chunk int, m mark) (position, bool, error) {
	file, err := b.db.Begin(true)
	if err != nil {
		return at, false, fmt.Errorf("begin checkpoint: %w", err)
	}
	t := &boltTx{tx: file}
	defer func() { _ = protect(file.Rollback) }() // nothing is left of it after Commit
	err = protect(func() error {
		for ; at.table < len(l.tables); at = (position{table: at.table + 1}) {
			next, err := flushTable(t, l.tables[at.table].name, l.tables[at.table].tree, at.key, chunk)
			if err != nil || next != nil {
				at.key = next
				return err
			}
		}
		return t.Put(markTable, markKey, m.encode())
	})
	if err != nil {
		return at, false, b.failure(err)
	}
	t.pack(b.ends)
	if err := protect(file.Commit); err != nil {
		return at, false, b.failure(err)
	}
	return at, at.table == len(l.tables), nil
}

// flushTable writes the entries from a key on to t until that is full; the key is where it then stopped, else nil.
func flushTable(t *boltTx, name Table, tree *btree.BTreeG[entry], from []byte, chunk int) ([]byte, error) {
	var it btree.IterG[entry]
	it.Init(tree, false)
	for ok := it.Seek(entry{key: from}); ok; ok = it.Next() {
		e := it.Item()
		if t.bytes >= chunk {
			return e.key, nil
		}
		var err error
		if e.gone() {
			t.bytes += len(e.key)
			err = t.Delete(name, e.key)
		} else {
			err = t.Put(name, e.key, e.value)
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// checkpoint is what the committer knows of the one that runs.
type checkpoint struct {
	done  chan struct{} // closed when it has ended; nil: nothing is frozen
	err   error         // read after done
	tried time.Time     // when one that had failed was begun again
}

// freeze makes the active layer the frozen one and begins to write it to the file. There must be no frozen one.
func (b *Bolt) freeze() {
	b.mu.Lock()
	l := b.layers.Load()
	b.layers.Store(&layers{epoch: l.epoch + 1, active: &layer{}, frozen: l.active})
	b.mu.Unlock()
	b.journal.turn()
	b.begin()
}

// begin starts to write the frozen layer to the file, or starts anew after an error.
func (b *Bolt) begin() {
	l := b.layers.Load()
	done := make(chan struct{})
	b.checkpoint.done = done
	m := mark{salt: b.journal.salt, epoch: l.epoch - 1, open: true}
	go func() {
		defer b.signal() // behind the close, or the committer might look too early
		defer close(done)
		start := time.Now()
		err := b.flush(l.frozen, m)
		b.metrics.checkpoint(time.Since(start), err)
		b.checkpoint.err = err
		if err != nil {
			time.AfterFunc(flushAgain, b.signal)
			return
		}
		b.mu.Lock()
		now := *b.layers.Load()
		now.frozen = nil
		b.layers.Store(&now)
		b.mu.Unlock()
	}()
}

// age lets the journal's records of this epoch be brought into the file when they are old enough.
func (b *Bolt) age(epoch uint64) {
	time.AfterFunc(maxAge, func() {
		for old := b.aged.Load(); old < epoch && !b.aged.CompareAndSwap(old, epoch); old = b.aged.Load() {
		} // an older one may come late, and must not hide this one
		b.signal()
	})
}

// settled tells whether nothing is frozen. It waits for the checkpoint that runs if wait is set, and begins one that
// failed again: at once if wait is set.
func (b *Bolt) settled(wait bool) (bool, error) {
	c := &b.checkpoint
	for again := false; c.done != nil; again = true {
		if wait {
			<-c.done
		}
		select {
		case <-c.done:
		default:
			return false, nil
		}
		if c.err == nil {
			c.done = nil
			break
		}
		if again || b.Err() != nil {
			return false, c.err
		}
		if !wait && time.Since(c.tried) < flushAgain {
			return false, nil
		}
		c.tried = time.Now()
		b.begin()
	}
	return true, nil
}

// keepUp begins a checkpoint when it is due, and waits for one where the next batch would have no room. The error says
// why there is none.
func (b *Bolt) keepUp() error {
	if err := b.Err(); err != nil {
		return err
	}
	l := b.layers.Load()
	full := l.active.bytes >= maxLayer || b.journal.at >= maxJournal
	settled, err := b.settled(full)
	if settled && (full || b.aged.Load() == l.epoch) {
		b.freeze()
	}
	if full {
		return err
	}
	return nil
}

// empty brings everything into the file, and says in it whether the store goes on to be open. Nothing may be committed
// meanwhile: it is for the committer, and for what comes after it.
func (b *Bolt) empty(open bool) error {
	if err := b.Err(); err != nil {
		return err
	}
	if _, err := b.settled(true); err != nil {
		return err
	}
	l := b.layers.Load()
	if err := b.flush(l.active, mark{salt: b.journal.salt, epoch: l.epoch, open: open}); err != nil {
		return err
	}
	b.mu.Lock()
	b.layers.Store(&layers{epoch: l.epoch + 1, active: &layer{}})
	b.mu.Unlock()
	b.journal.turn()
	return nil
}

// still is a function for the committer to run between two batches.
type still struct {
	fn   func() error
	done chan error
}

// still runs fn while the store file has all that was committed, and says so, as if it were closed.
func (b *Bolt) still(ctx context.Context, fn func() error) error {
	s := still{fn: fn, done: make(chan error, 1)}
	select {
	case b.stills <- s:
		return <-s.done
	case <-ctx.Done():
		return ctx.Err()
	case <-b.done:
		return ErrClosed
	}
}

func (b *Bolt) stand(s still) {
	err := b.empty(false)
	if err == nil {
		err = errors.Join(s.fn(), b.flush(&layer{}, mark{salt: b.journal.salt, epoch: b.layers.Load().epoch - 1, open: true}))
	}
	s.done <- err
}
