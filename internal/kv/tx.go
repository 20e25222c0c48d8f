package kv

import (
	"bytes"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// tx is a transaction on the layers and the file below them. One that writes has a copy of the active layer of its own,
// and the record of the journal that says the same.
type tx struct {
	active, frozen *layer
	db             *bolt.DB
	file           *boltTx // nil until it is needed
	record         *record
	writes         int // Puts and Deletes
	bytes          int // of Puts
}

// below is the transaction on the file. A layer that is frozen may be half in the file: it is above the file here, too.
func (t *tx) below() (*boltTx, error) {
	if t.file == nil {
		file, err := t.db.Begin(false)
		if err != nil {
			return nil, fmt.Errorf("begin: %w", err)
		}
		t.file = &boltTx{tx: file}
	}
	return t.file, nil
}

func (t *tx) end() {
	if t.file != nil {
		_ = t.file.tx.Rollback() // it only reads
		t.file = nil
	}
}

// layered looks for what the layers say of a key.
func (t *tx) layered(table Table, key []byte) (entry, bool) {
	if e, ok := t.active.get(table, key); ok {
		return e, true
	}
	return t.frozen.get(table, key)
}

func (t *tx) Get(table Table, key []byte) ([]byte, error) {
	if e, ok := t.layered(table, key); ok {
		return e.value, nil
	}
	file, err := t.below()
	if err != nil {
		return nil, err
	}
	return file.Get(table, key)
}

func (t *tx) GetMany(table Table, keys [][]byte) ([][]byte, error) {
	file, err := t.below()
	if err != nil {
		return nil, err
	}
	values, err := file.GetMany(table, keys)
	if err != nil || t.active.table(table) == nil && t.frozen.table(table) == nil {
		return values, err
	}
	for i, key := range keys {
		if e, ok := t.layered(table, key); ok {
			values[i] = e.value
		}
	}
	return values, nil
}

func (t *tx) Put(table Table, key, value []byte) error {
	if len(key) == 0 || len(key) > MaxKey || len(value) > MaxValue {
		return fmt.Errorf("put to %s: %w: key %d bytes, value %d bytes", table, ErrSize, len(key), len(value))
	}
	t.writes++
	t.bytes += len(key) + len(value)
	e := entry{key: bytes.Clone(key), value: append([]byte{}, value...)} // never nil: that is a deleted one
	t.record.add(opPut, table, e.key, e.value)
	t.active.set(table, e)
	return nil
}

// Delete leaves an entry only for what is below the layer: what came and went between two checkpoints leaves nothing.
func (t *tx) Delete(table Table, key []byte) error {
	if len(key) == 0 {
		return nil
	}
	old, held := t.active.get(table, key)
	if held && old.gone() {
		return nil
	}
	lower, err := t.isBelow(table, key)
	if err != nil || !held && !lower {
		return err
	}
	t.writes++
	t.record.add(opDelete, table, key, nil)
	if lower {
		t.active.set(table, entry{key: bytes.Clone(key)})
	} else {
		t.active.forget(table, key)
	}
	return nil
}

// isBelow tells whether a key is below the active layer, or may come to be: what is frozen goes to the file.
func (t *tx) isBelow(table Table, key []byte) (bool, error) {
	if _, ok := t.frozen.get(table, key); ok {
		return true, nil
	}
	file, err := t.below()
	if err != nil {
		return false, err
	}
	v, err := file.Get(table, key)
	return v != nil, err
}

// Scan goes through the layers and the file at once. Of one key the newest says what it is.
func (t *tx) Scan(table Table, from, to []byte, fn func(key, value []byte) (bool, error)) error {
	file, err := t.below()
	if err != nil {
		return err
	}
	if t.active.table(table) == nil && t.frozen.table(table) == nil {
		return file.Scan(table, from, to, fn)
	}
	var active, frozen cursor
	active.start(t.active, table, from)
	frozen.start(t.frozen, table, from)
	var lowest fileCursor
	lowest.start(file, table, from)
	for {
		key := least(least(lowest.key, frozen.key()), active.key())
		if key == nil || to != nil && bytes.Compare(key, to) >= 0 {
			return nil
		}
		var value []byte
		if bytes.Equal(lowest.key, key) {
			value = lowest.value
			lowest.next()
		}
		for _, c := range []*cursor{&frozen, &active} {
			if c.ok && bytes.Equal(c.key(), key) {
				value = c.it.Item().value
				c.next()
			}
		}
		if value == nil {
			continue
		}
		if more, err := fn(key, value); err != nil || !more {
			return err
		}
	}
}

// least is the lower one of two keys; nil is none.
func least(a, b []byte) []byte {
	if a == nil || b != nil && bytes.Compare(b, a) < 0 {
		return b
	}
	return a
}
