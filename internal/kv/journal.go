package kv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// The journal is where a commit becomes durable: one write and one fdatasync at the end of a file, instead of the two
// rounds of pages that the engine needs. It has two files. Records go to one of them while the layer is brought into the
// store file that holds what the other one has; then they change places. Each use of a file is an epoch.
//
// A record takes whole blocks, so that no write touches a block of one that was acknowledged:
//
//	magic 4 | CRC-32C 4, of all behind it | salt 8 | epoch 8 | number in the epoch 8 | length 4 | operations | zeros
//
// The salt is the store's own, drawn once: nobody who sends us mail can forge a record in a body. Old records behind the
// end of a file have an older epoch. A record that was half written when the power went was never acknowledged; one that
// is damaged with a whole one behind it was, and is an error.
type journal struct {
	files [2]*os.File
	sizes [2]int64 // bytes that were ever written: writing there again changes no block map
	now   int      // the file that takes records
	at    int64    // where the next one goes
	epoch uint64
	next  uint64 // number of the next record
	salt  uint64
	sync  bool
}

const (
	recordMagic  = 0x314a4c52 // "RLJ1"
	recordHeader = 36
	recordBlock  = 4096
	largeValue   = 8 << 10 // of this size a value is written from where it stands, not copied into its record
)

// zeros fill the journal where it has no records yet; by as much it grows.
var zeros [1 << 20]byte

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// JournalNames are the files of the journal of the store at path. They stand beside it while a process has it open, and
// after one that was killed.
func JournalNames(path string) [2]string {
	return [2]string{path + ".journal-0", path + ".journal-1"}
}

// createJournal makes the files, empty of records, beside the store at path.
func createJournal(path string, salt, epoch uint64, sync bool) (_ *journal, err error) {
	j := &journal{epoch: epoch, salt: salt, sync: sync}
	defer func() {
		if err != nil {
			j.close()
		}
	}()
	for i, name := range JournalNames(path) {
		if j.files[i], err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600); err != nil { //nolint:gosec // beside the store
			return nil, err
		}
		info, err := j.files[i].Stat()
		if err != nil {
			return nil, err
		}
		if j.sizes[i] = info.Size() / recordBlock * recordBlock; j.sizes[i] > 0 {
			continue
		}
		if _, err := j.files[i].WriteAt(zeros[:], 0); err != nil { // a full disk still takes this much
			return nil, err
		}
		j.sizes[i] = int64(len(zeros))
		if err := j.flush(j.files[i]); err != nil {
			return nil, err
		}
	}
	if !sync {
		return j, nil
	}
	return j, syncDir(filepath.Dir(path))
}

func (j *journal) flush(f *os.File) error {
	if !j.sync {
		return nil
	}
	return fdatasync(f)
}

// append makes one record durable. After an error that isNoSpace nothing has happened; after any other the record may be
// there or not.
func (j *journal) append(r *record) error {
	parts := r.parts()
	length := 0
	for _, p := range parts {
		length += len(p)
	}
	h := r.ops[:recordHeader]
	binary.LittleEndian.PutUint32(h, recordMagic)
	binary.LittleEndian.PutUint64(h[8:], j.salt)
	binary.LittleEndian.PutUint64(h[16:], j.epoch)
	binary.LittleEndian.PutUint64(h[24:], j.next)
	binary.LittleEndian.PutUint32(h[32:], uint32(length-recordHeader)) //nolint:gosec // a batch is far smaller
	sum := crc32.Checksum(parts[0][8:], castagnoli)
	for _, p := range parts[1:] {
		sum = crc32.Update(sum, castagnoli, p)
	}
	binary.LittleEndian.PutUint32(h[4:], sum)

	f := j.files[j.now]
	end := (j.at + int64(length) + recordBlock - 1) / recordBlock * recordBlock
	if err := j.grow(f, end); err != nil {
		return err
	}
	if err := writeParts(f, append(parts, zeros[:end-j.at-int64(length)]), j.at); err != nil {
		return err
	}
	if err := j.flush(f); err != nil {
		return err
	}
	j.at = end
	j.next++
	return nil
}

// grow writes zeros at the end of f, so that the record that goes up to end changes no block map; they are flushed with it.
func (j *journal) grow(f *os.File, end int64) error {
	for j.sizes[j.now] < end {
		if _, err := f.WriteAt(zeros[:], j.sizes[j.now]); err != nil {
			return err
		}
		j.sizes[j.now] += int64(len(zeros))
	}
	return nil
}

// turn begins the next epoch at the start of the other file, whose records must be in the store by now.
func (j *journal) turn() {
	j.now, j.at, j.next = 1-j.now, 0, 0
	j.epoch++
}

func (j *journal) close() {
	for _, f := range j.files {
		if f != nil {
			_ = f.Close() // what counts was flushed
		}
	}
}

// removeJournal ends with a store that needs none.
func removeJournal(path string) error {
	for _, name := range JournalNames(path) {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// replay tells what the journal of the store at path has that the file, whose mark is m, has not, and the last epoch of
// that. It changes nothing.
func replay(path string, m mark) (*layer, uint64, error) {
	l, last := &layer{}, m.epoch
	found := 0
	var parts [2]epochRecords
	for i, name := range JournalNames(path) {
		err := undamaged(func() (err error) {
			parts[i], err = readJournal(name, m)
			return err
		})
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, 0, fmt.Errorf("journal %s: %w", name, err)
		}
		defer parts[i].unmap()
		found++
	}
	if m.open && found < len(parts) {
		return nil, 0, fmt.Errorf("%w: it was not closed, and its journal %s is missing", ErrDamaged, filepath.Base(path)+".journal-*")
	}
	if parts[1].epoch < parts[0].epoch {
		parts[0], parts[1] = parts[1], parts[0]
	}
	for _, p := range parts {
		if p.epoch == 0 {
			continue
		}
		if p.epoch != last+1 {
			return nil, 0, fmt.Errorf("%w: its journal goes on at epoch %d and the file ends at %d: one of them is not of this time (to open an older copy of the file, take away the files %s)",
				ErrDamaged, p.epoch, last, filepath.Base(path)+".journal-*")
		}
		last = p.epoch
		for _, ops := range p.records {
			if err := l.apply(ops); err != nil {
				return nil, 0, err
			}
		}
	}
	return l, last, nil
}

// epochRecords are the operations of the records of one epoch, in order, in a mapped file.
type epochRecords struct {
	epoch   uint64 // 0: there are none
	records [][]byte
	file    []byte
}

func (e *epochRecords) unmap() {
	if e.file != nil {
		_ = syscall.Munmap(e.file) // it was only read
		e.file, e.records = nil, nil
	}
}

// readJournal finds the records of one file that are newer than the store.
func readJournal(name string, m mark) (e epochRecords, err error) {
	if e.file, err = mapFile(name); err != nil {
		return e, err
	}
	if len(e.file) >= recordBlock && binary.LittleEndian.Uint32(e.file) == recordMagic && binary.LittleEndian.Uint64(e.file[8:]) != m.salt {
		e.unmap()
		return e, fmt.Errorf("%w: it belongs to another store: put that one's file back, or take the journal away", ErrDamaged)
	}
	starts := false
	for at := 0; at+recordBlock <= len(e.file); {
		epoch, number, ops := recordAt(e.file[at:], m.salt)
		if ops == nil || epoch <= m.epoch {
			at += recordBlock // also into what follows a damaged one: a whole one there tells that it was acknowledged
			continue
		}
		if e.epoch == 0 {
			e.epoch, starts = epoch, at == 0
		}
		if !starts || epoch != e.epoch || number != uint64(len(e.records)) {
			e.unmap()
			return e, fmt.Errorf("%w: the record before byte %d is damaged", ErrDamaged, at)
		}
		e.records = append(e.records, ops)
		at += (recordHeader + len(ops) + recordBlock - 1) / recordBlock * recordBlock
	}
	return e, nil
}

// recordAt returns the operations of the record that b begins with, nil if there is no whole one of this store.
func recordAt(b []byte, salt uint64) (epoch, number uint64, ops []byte) {
	if binary.LittleEndian.Uint32(b) != recordMagic || binary.LittleEndian.Uint64(b[8:]) != salt {
		return 0, 0, nil
	}
	n := uint64(binary.LittleEndian.Uint32(b[32:]))
	if recordHeader+n > uint64(len(b)) || crc32.Checksum(b[8:recordHeader+n], castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return 0, 0, nil
	}
	return binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:]), b[recordHeader : recordHeader+n]
}

// The operations in a record: kind, table, key, and a value behind a put, each with its length before it.
const (
	opPut    = 1
	opDelete = 2
)

// record is what one transaction did, on its way to the journal.
type record struct {
	ops   []byte // begins with room for the header
	large []largePart
}

// largePart is a value that stands behind ops[:at].
type largePart struct {
	at    int
	value []byte
}

// reset begins a record, in the memory of the one before.
func (r *record) reset() {
	clear(r.large)
	*r = record{ops: append(r.ops[:0], zeros[:recordHeader]...), large: r.large[:0]}
}

// add keeps a large value until the next reset.
func (r *record) add(kind byte, table Table, key, value []byte) {
	r.ops = append(r.ops, kind)
	r.ops = binary.AppendUvarint(r.ops, uint64(len(table)))
	r.ops = append(r.ops, table...)
	r.ops = binary.AppendUvarint(r.ops, uint64(len(key)))
	r.ops = append(r.ops, key...)
	if kind != opPut {
		return
	}
	r.ops = binary.AppendUvarint(r.ops, uint64(len(value)))
	if len(value) >= largeValue {
		r.large = append(r.large, largePart{len(r.ops), value})
		return
	}
	r.ops = append(r.ops, value...)
}

// parts are the bytes of the record, in order.
func (r *record) parts() [][]byte {
	parts := make([][]byte, 0, 2*len(r.large)+2)
	at := 0
	for _, l := range r.large {
		parts = append(parts, r.ops[at:l.at], l.value)
		at = l.at
	}
	return append(parts, r.ops[at:])
}

// apply brings the operations of a record into l, in copies.
func (l *layer) apply(ops []byte) error {
	field := func() (f []byte, ok bool) {
		n, width := binary.Uvarint(ops)
		if width <= 0 || n > uint64(len(ops)-width) {
			return nil, false
		}
		f, ops = ops[width:width+int(n)], ops[width+int(n):] //nolint:gosec // bounded above
		return f, true
	}
	for len(ops) > 0 {
		kind := ops[0]
		ops = ops[1:]
		table, ok := field()
		key, ok2 := field()
		if !ok || !ok2 || len(table) == 0 || len(key) == 0 || kind != opPut && kind != opDelete {
			return fmt.Errorf("%w: a record of its journal holds no operations", ErrDamaged)
		}
		e := entry{key: append([]byte(nil), key...)}
		if kind == opPut {
			value, ok := field()
			if !ok {
				return fmt.Errorf("%w: a record of its journal ends early", ErrDamaged)
			}
			e.value = append([]byte{}, value...)
		}
		l.set(Table(table), e)
	}
	return nil
}

// mapFile maps a file for reading; nil for an empty one.
func mapFile(name string) ([]byte, error) {
	f, err := os.Open(name) //nolint:gosec // beside the store
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return nil, err
	}
	b, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map file: %w", err)
	}
	return b, nil
}
