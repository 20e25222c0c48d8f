package contact

import (
	"cmp"
	"errors"
	"io"
	"slices"
	"strings"

	"relayd/internal/api"
	"relayd/internal/mail"
)

// window is a stretch of an upload in memory. Its rows are stored in the order of their mailboxes, in parts of one
// transaction each. Rows as they come fall on pages all over the index of mailboxes; those of a part fall on one stretch
// of it, so that far fewer pages are written for the same rows.
type window struct {
	rows     []Row
	places   []place    // of the rows
	keys     []string   // of the rows: their mailboxes
	order    []int32    // of the rows: by mailbox, and those of one as they came
	rejected []rejected // rows that could not be read
	read     int64      // rows, good and bad
	bytes    int64      // of the upload up to here
	last     bool
	err      error

	blocks [][]Attribute // memory of the rows
	block  int           // the one in use
}

type place struct {
	line, offset int64
	raw          string
}

// rowBytes is what a row takes in a window beside its texts: a Row, a place, a key and a number.
const rowBytes = 240

// fill reads rows until there are most of them, or until they take size bytes. It uses the memory of what the window held
// before.
func (w *window) fill(r *Reader, most int64, size int) {
	clear(w.rows)
	*w = window{
		rows: w.rows[:0], places: w.places[:0], keys: w.keys[:0], order: w.order[:0], rejected: w.rejected[:0], blocks: w.blocks,
	}
	for i := range w.blocks {
		clear(w.blocks[i])
		w.blocks[i] = w.blocks[i][:0]
	}
	for size > 0 && w.read < most {
		row, err := r.Next()
		if errors.Is(err, io.EOF) {
			w.last = true
			break
		}
		bad, isRow := errors.AsType[*RowError](err)
		if err != nil && !isRow {
			w.err = err
			break
		}
		w.read++
		line, offset := r.Place()
		at := place{line, offset, r.Raw()}
		size -= rowBytes + 2*len(at.raw) + 40*len(row.Attributes)
		if bad != nil {
			w.rejected = append(w.rejected, rejectedOf(bad, at))
			continue
		}
		row.Attributes = w.keep(row.Attributes)
		w.order = append(w.order, int32(len(w.rows))) //nolint:gosec // at most windowRows
		w.rows, w.places, w.keys = append(w.rows, row), append(w.places, at), append(w.keys, row.To.Key())
	}
	w.bytes = r.Read()
	slices.SortFunc(w.order, func(a, b int32) int { return cmp.Or(strings.Compare(w.keys[a], w.keys[b]), cmp.Compare(a, b)) })
}

// keep copies what the reader will use again.
func (w *window) keep(list []Attribute) []Attribute {
	const blockSize = 1024
	if len(list) > blockSize {
		return slices.Clone(list)
	}
	if w.block == len(w.blocks) {
		w.blocks = append(w.blocks, make([]Attribute, 0, blockSize))
	}
	b := w.blocks[w.block]
	if len(b)+len(list) > blockSize {
		w.block++
		return w.keep(list)
	}
	w.blocks[w.block] = append(b, list...)
	return w.blocks[w.block][len(b) : len(b)+len(list) : len(b)+len(list)]
}

// pass takes out the rows whose mailbox is not behind one that is stored already.
func (w *window) pass(through string) {
	w.order = slices.DeleteFunc(w.order, func(i int32) bool { return w.keys[i] <= through })
}

// part is what one transaction takes of a window.
type part struct {
	rows   []Row
	keys   []string
	places []place
	final  bool // there is no more
}

// cut moves the next part out of the window into p, and uses p's memory. All rows of one mailbox are in one part.
func (w *window) cut(p *part) {
	clear(p.rows)
	p.rows, p.keys, p.places = p.rows[:0], p.keys[:0], p.places[:0]
	size := 0
	for n, i := range w.order {
		key := w.keys[i]
		if (n >= importBatch || size >= importBytes) && key != p.keys[n-1] {
			w.order = w.order[n:]
			return
		}
		size += len(w.places[i].raw)
		p.rows, p.keys, p.places = append(p.rows, w.rows[i]), append(p.keys, key), append(p.places, w.places[i])
	}
	w.order, p.final = w.order[:0], true
}

// maxErrorText clips what a report shows of a value.
const maxErrorText = 200

func rejectedOf(e *RowError, p place) rejected {
	return rejected{api.ImportError{
		Line: p.line, ByteOffset: p.offset, Column: mail.CleanText(e.Column, maxErrorText), Value: mail.CleanText(e.Value, maxErrorText),
		Code: e.Code, Detail: mail.CleanText(e.Detail, 2*maxErrorText),
	}, p.raw}
}
