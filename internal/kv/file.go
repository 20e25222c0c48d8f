package kv

import (
	"bytes"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// boltTx is one transaction of kv on one of bbolt: the file alone.
type boltTx struct {
	tx      *bolt.Tx
	buckets []openBucket // few tables: a list beats a map
	bytes   int          // of Puts
}

type openBucket struct {
	table  Table
	bucket *bolt.Bucket
	first  []byte // lowest and highest key that was put
	last   []byte
}

// dense is how full pages are made where a transaction only appends to a table: nothing will be inserted into them
// later. Elsewhere bbolt's half leaves room.
const dense = 0.9

// pack tells bbolt how full to make the new pages of each table. ends holds the highest key that was ever put into each
// table since the store was opened, and is brought up to date. (bbolt's own Cursor.Last would tell the true end, but it
// never returns in a transaction that has emptied the table.)
func (t *boltTx) pack(ends map[Table][]byte) {
	for i := range t.buckets {
		b := &t.buckets[i]
		if b.first == nil {
			continue
		}
		end, known := ends[b.table]
		if known && bytes.Compare(b.first, end) > 0 {
			b.bucket.FillPercent = dense
		}
		if bytes.Compare(b.last, end) > 0 {
			ends[b.table] = append(end[:0], b.last...)
		}
	}
}

// open returns nil where the table was never written and create is false.
func (t *boltTx) open(table Table, create bool) (*openBucket, error) {
	for i := range t.buckets {
		if t.buckets[i].table == table {
			return &t.buckets[i], nil
		}
	}
	bk := t.tx.Bucket([]byte(table))
	if bk == nil && create {
		var err error
		if bk, err = t.tx.CreateBucket([]byte(table)); err != nil {
			return nil, fmt.Errorf("create table %s: %w", table, err)
		}
	}
	if bk == nil {
		return nil, nil //nolint:nilnil // documented
	}
	t.buckets = append(t.buckets, openBucket{table: table, bucket: bk})
	return &t.buckets[len(t.buckets)-1], nil
}

// bucket is open for reading.
func (t *boltTx) bucket(table Table) *bolt.Bucket {
	if b, err := t.open(table, false); b != nil && err == nil {
		return b.bucket
	}
	return nil
}

func (t *boltTx) Get(table Table, key []byte) ([]byte, error) {
	bk := t.bucket(table)
	if bk == nil {
		return nil, nil
	}
	return bk.Get(key), nil
}

func (t *boltTx) GetMany(table Table, keys [][]byte) ([][]byte, error) {
	values := make([][]byte, len(keys))
	bk := t.bucket(table)
	if bk == nil {
		return values, nil
	}
	c := bk.Cursor() // one for all: its stack is made once
	for i, k := range keys {
		if found, v := c.Seek(k); bytes.Equal(found, k) {
			values[i] = v
		}
	}
	return values, nil
}

func (t *boltTx) Put(table Table, key, value []byte) error {
	b, err := t.open(table, true)
	if err != nil {
		return err
	}
	if b.first == nil || bytes.Compare(key, b.first) < 0 {
		b.first = append(b.first[:0], key...)
	}
	if bytes.Compare(key, b.last) > 0 {
		b.last = append(b.last[:0], key...)
	}
	t.bytes += len(key) + len(value)
	return b.bucket.Put(key, value)
}

func (t *boltTx) Delete(table Table, key []byte) error {
	bk := t.bucket(table)
	if bk == nil {
		return nil
	}
	return bk.Delete(key)
}

func (t *boltTx) Scan(table Table, from, to []byte, fn func(key, value []byte) (bool, error)) error {
	var c fileCursor
	for c.start(t, table, from); c.key != nil && (to == nil || bytes.Compare(c.key, to) < 0); c.next() {
		if more, err := fn(c.key, c.value); err != nil || !more {
			return err
		}
	}
	return nil
}

// fileCursor goes through one table of the file. Its key is nil at the end.
type fileCursor struct {
	c          *bolt.Cursor
	key, value []byte
}

func (f *fileCursor) start(file *boltTx, table Table, from []byte) {
	bk := file.bucket(table)
	if bk == nil {
		return
	}
	f.c = bk.Cursor()
	if len(from) == 0 {
		f.key, f.value = f.c.First()
	} else {
		f.key, f.value = f.c.Seek(from)
	}
}

func (f *fileCursor) next() { f.key, f.value = f.c.Next() }
