package kv

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"syscall"

	bolt "go.etcd.io/bbolt"
)

// walk follows every reference from the root of the store and compares each page with what the engine relies on: its
// number, its kind, its bounds, the order of its keys. The engine makes the same walk when it opens the file, in a
// goroutine of its own, where a damaged page would end the process beyond our reach: so ours comes first. It reads keys,
// not values.
func walk(db *bolt.DB) error {
	return undamaged(func() error {
		return db.View(func(tx *bolt.Tx) error {
			file, err := mapFile(db.Path())
			if err != nil {
				return err
			}
			defer syscall.Munmap(file) //nolint:errcheck // nothing was written
			size := db.Info().PageSize
			w := walker{file: file, size: uint64(size), seen: make([]bool, tx.Size()/int64(size))} //nolint:gosec // positive
			return w.tree(uint64(tx.Cursor().Bucket().Root()), nil, nil, 0, true)
		})
	})
}

// The layout of bbolt's pages. Numbers are in the byte order of the machine.
const (
	pageHeader   = 16 // number, kind, count, overflow
	pageElement  = 16
	bucketHeader = 16 // root page, sequence
	branchPage   = 0x01
	leafPage     = 0x02
	bucketFlag   = 0x01
	maxDepth     = 64
)

type walker struct {
	file []byte
	size uint64
	seen []bool
}

// page returns the bytes of a page with its overflow, once.
func (w *walker) page(id uint64) ([]byte, error) {
	if id < 2 || id >= uint64(len(w.seen)) || (id+1)*w.size > uint64(len(w.file)) {
		return nil, fmt.Errorf("%w: page %d is referred to and not there", ErrDamaged, id)
	}
	p := w.file[id*w.size:]
	overflow := uint64(binary.NativeEndian.Uint32(p[12:]))
	if got := binary.NativeEndian.Uint64(p); got != id {
		return nil, fmt.Errorf("%w: page %d says that it is page %d", ErrDamaged, id, got)
	}
	if id+overflow >= uint64(len(w.seen)) || (id+1+overflow)*w.size > uint64(len(w.file)) {
		return nil, fmt.Errorf("%w: page %d goes beyond the end", ErrDamaged, id)
	}
	for i := id; i <= id+overflow; i++ {
		if w.seen[i] {
			return nil, fmt.Errorf("%w: page %d is referred to twice", ErrDamaged, i)
		}
		w.seen[i] = true
	}
	return p[:(1+overflow)*w.size], nil
}

// tree walks the pages below id, whose keys are from low up to, not including, high; nil is no bound. In the root tree
// the values are tables.
func (w *walker) tree(id uint64, low, high []byte, depth int, root bool) error {
	p, err := w.page(id)
	if err != nil {
		return err
	}
	if depth > maxDepth {
		return fmt.Errorf("%w: page %d is too deep", ErrDamaged, id)
	}
	switch kind := binary.NativeEndian.Uint16(p[8:]); kind {
	case leafPage:
		return w.leaf(id, p, low, high, root)
	case branchPage:
		return w.branch(id, p, low, high, depth, root)
	default:
		return fmt.Errorf("%w: page %d is of kind %#x", ErrDamaged, id, kind)
	}
}

// branch: an element is position and length of the key, and the page below.
func (w *walker) branch(id uint64, p, low, high []byte, depth int, root bool) error {
	count := uint64(binary.NativeEndian.Uint16(p[10:]))
	var key, below []byte
	var page uint64
	for i := range count + 1 {
		var next []byte
		var nextPage uint64
		if i < count {
			e, ok := element(p, i)
			if ok {
				nextPage = binary.NativeEndian.Uint64(e[8:])
				next, ok = part(e, binary.NativeEndian.Uint32(e), binary.NativeEndian.Uint32(e[4:]))
			}
			if !ok || !ordered(key, next, low, high, i == 0) {
				return fmt.Errorf("%w: page %d: key %d", ErrDamaged, id, i)
			}
			below = next
		} else {
			below = high
		}
		if i > 0 {
			if err := w.tree(page, key, below, depth+1, root); err != nil {
				return err
			}
		}
		key, page = next, nextPage
	}
	if count == 0 {
		return fmt.Errorf("%w: page %d is an empty branch", ErrDamaged, id)
	}
	return nil
}

// leaf: an element is flags, position, and the lengths of key and value.
func (w *walker) leaf(id uint64, p, low, high []byte, root bool) error {
	var last []byte
	for i := range uint64(binary.NativeEndian.Uint16(p[10:])) {
		e, ok := element(p, i)
		if !ok {
			return fmt.Errorf("%w: page %d: element %d", ErrDamaged, id, i)
		}
		at, keyLen, valueLen := binary.NativeEndian.Uint32(e[4:]), binary.NativeEndian.Uint32(e[8:]), binary.NativeEndian.Uint32(e[12:])
		both, ok := part(e, at, keyLen, valueLen)
		if !ok || (binary.NativeEndian.Uint32(e)&bucketFlag != 0) != root || !ordered(last, both[:keyLen], low, high, i == 0) {
			return fmt.Errorf("%w: page %d: element %d", ErrDamaged, id, i)
		}
		if last = both[:keyLen]; root {
			if err := w.table(id, both[keyLen:]); err != nil {
				return err
			}
		}
	}
	return nil
}

// table walks one bucket: a tree, or a leaf page inside the value itself.
func (w *walker) table(id uint64, v []byte) error {
	if len(v) < bucketHeader {
		return fmt.Errorf("%w: page %d: a table without a root", ErrDamaged, id)
	}
	if top := binary.NativeEndian.Uint64(v); top != 0 {
		return w.tree(top, nil, nil, 0, false)
	}
	p := v[bucketHeader:]
	if len(p) < pageHeader || binary.NativeEndian.Uint16(p[8:]) != leafPage {
		return fmt.Errorf("%w: page %d: a table that is no page", ErrDamaged, id)
	}
	return w.leaf(id, p, nil, nil, false)
}

// element returns the page from its ith element on.
func element(p []byte, i uint64) ([]byte, bool) {
	at := pageHeader + i*pageElement
	if at+pageElement > uint64(len(p)) {
		return nil, false
	}
	return p[at:], true
}

// part returns what stands at a position behind an element.
func part(e []byte, at uint32, lengths ...uint32) ([]byte, bool) {
	n := uint64(0)
	for _, l := range lengths {
		n += uint64(l)
	}
	if uint64(at)+n > uint64(len(e)) {
		return nil, false
	}
	return e[at : uint64(at)+n], true
}

func ordered(last, key, low, high []byte, first bool) bool {
	return (first || bytes.Compare(last, key) < 0) && bytes.Compare(low, key) <= 0 && (high == nil || bytes.Compare(key, high) < 0)
}
