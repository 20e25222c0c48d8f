package kv

import (
	"bytes"

	"github.com/tidwall/btree"
)

// entry is what was last said of one key: its value, or, with a nil value, that it is gone.
type entry struct{ key, value []byte }

// gone tells whether the key was deleted. Such an entry stands for a key that a layer below still has.
func (e entry) gone() bool { return e.value == nil }

// entryOverhead is about what an entry costs in memory beside its key and value, in bytes.
const entryOverhead = 96

func (e entry) size() int { return len(e.key) + len(e.value) + entryOverhead }

// A layer is what was committed and is not in the file yet, in order. One that is published is never changed: a batch
// writes to a copy, which shares with it all that the batch leaves alone.
type layer struct {
	tables []layerTable // few: a list beats a map
	bytes  int          // of memory, about
}

type layerTable struct {
	name Table
	tree *btree.BTreeG[entry]
	own  bool // made for this copy of the layer
}

func (l *layer) copy() *layer {
	c := &layer{tables: make([]layerTable, len(l.tables), len(l.tables)+4), bytes: l.bytes}
	for i, t := range l.tables {
		c.tables[i] = layerTable{name: t.name, tree: t.tree}
	}
	return c
}

// table is nil where the layer has nothing of it.
func (l *layer) table(name Table) *btree.BTreeG[entry] {
	if l == nil {
		return nil
	}
	for i := range l.tables {
		if l.tables[i].name == name {
			return l.tables[i].tree
		}
	}
	return nil
}

// writable is the table of a copy, made its own.
func (l *layer) writable(name Table) *btree.BTreeG[entry] {
	for i := range l.tables {
		if t := &l.tables[i]; t.name == name {
			if !t.own {
				t.tree, t.own = t.tree.Copy(), true
			}
			return t.tree
		}
	}
	tree := btree.NewBTreeGOptions(func(a, b entry) bool { return bytes.Compare(a.key, b.key) < 0 },
		btree.Options{NoLocks: true, Degree: 16})
	l.tables = append(l.tables, layerTable{name: name, tree: tree, own: true})
	return tree
}

func (l *layer) get(name Table, key []byte) (entry, bool) {
	if t := l.table(name); t != nil {
		return t.Get(entry{key: key})
	}
	return entry{}, false
}

// set keeps e and its slices.
func (l *layer) set(name Table, e entry) {
	old, replaced := l.writable(name).Set(e)
	l.bytes += e.size()
	if replaced {
		l.bytes -= old.size()
	}
}

func (l *layer) forget(name Table, key []byte) {
	if old, ok := l.writable(name).Delete(entry{key: key}); ok {
		l.bytes -= old.size()
	}
}

// cursor goes through one table of one layer, from a key on. It must not be copied.
type cursor struct {
	it btree.IterG[entry]
	ok bool
}

// start leaves the cursor at its end where the layer has nothing of the table.
func (c *cursor) start(l *layer, name Table, from []byte) {
	if t := l.table(name); t != nil {
		c.it.Init(t, false)
		c.ok = c.it.Seek(entry{key: from})
	}
}

func (c *cursor) next() { c.ok = c.it.Next() }

// key is nil at the end.
func (c *cursor) key() []byte {
	if !c.ok {
		return nil
	}
	return c.it.Item().key
}
