package contact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"relayd/internal/kv"
)

// loader takes one upload, or one chunk, into a list.
type loader struct {
	s       *Store
	i       *Import
	n       uint32
	o       ApplyOptions
	digest  []byte
	reader  *Reader
	started time.Time
	others  int64 // rows that other chunks have rejected
	kept    int64 // of which so many are stored
	dry     *dryRun
	header  []string
	delim   byte
	part    part
}

// load reads rows and stores them in parts of windows. It goes on behind what before, its chunk as it is stored, says.
func (s *Store) load(ctx context.Context, i *Import, n uint32, b Body, before *chunk) error {
	l := &loader{s: s, i: i, n: n, o: i.applyOptions(), digest: b.Digest, started: time.Now()}
	if i.Request.DryRun {
		l.dry = newDryRun()
	}
	info, err := s.Import(ctx, i.Account, i.Name())
	if err != nil {
		return err
	}
	l.others, l.kept = info.Rejected, info.Kept
	o := ReadOptions{ColumnMap: columnsOf(i.Request.Options.ColumnMap), Delimiter: i.Request.Options.Delimiter}
	if l.reader, err = NewReader(b.ContentType, b.Reader, o); err != nil {
		return err
	}
	l.header, l.delim = l.reader.Header()
	for skip := before.Rows - before.Ahead.Stored; skip > 0; skip-- {
		if _, err := l.reader.Next(); err != nil {
			if _, bad := errors.AsType[*RowError](err); !bad {
				return err
			}
		}
	}
	// While one window is made durable, the next is read.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	windows, free, done := make(chan *window, 1), make(chan *window, 2), make(chan struct{})
	free <- &window{}
	free <- &window{}
	go func() {
		defer close(done)
		defer close(windows)
		l.readAll(ctx, before.Ahead, free, windows)
	}()
	err = l.storeAll(ctx, windows, free, b.Alive)
	cancel()
	if c, ok := b.Reader.(io.Closer); ok && err != nil {
		_ = c.Close() // wakes a reader that waits for its peer
	}
	<-done
	return err
}

// readAll fills windows up to the end of the upload. The first is the one that was left half stored, if there is one.
func (l *loader) readAll(ctx context.Context, left ahead, free <-chan *window, windows chan<- *window) {
	for {
		var w *window
		select {
		case w = <-free:
		case <-ctx.Done():
			return
		}
		if left.Read > 0 {
			w.fill(l.reader, left.Read, math.MaxInt)
			w.pass(left.Through)
			left = ahead{}
		} else {
			w.fill(l.reader, windowRows, l.s.active.share(windowBytes))
		}
		select {
		case windows <- w:
		case <-ctx.Done():
			return
		}
		if w.last || w.err != nil {
			return
		}
	}
}

func (l *loader) storeAll(ctx context.Context, windows <-chan *window, free chan<- *window, alive func()) error {
	for w := range windows {
		if w.err != nil && w.read == 0 {
			return w.err
		}
		for l.part.final = false; !l.part.final; {
			w.cut(&l.part)
			if err := l.store(ctx, w, &l.part); err != nil {
				return err
			}
			if alive != nil {
				alive()
			}
		}
		if w.err != nil {
			return w.err
		}
		free <- w
	}
	return ctx.Err()
}

// store makes a part of a window durable with the progress of its upload. With the last part of a window come the rows of
// it that could not be read.
func (l *loader) store(ctx context.Context, w *window, p *part) error {
	tooMany := false
	err := l.s.DB.Update(ctx, func(tx kv.Tx) error {
		i, err := getImport(tx, l.i.Account, l.i.Name())
		if err != nil {
			return err
		}
		if i.State != ImportRunning && i.State != ImportOpen {
			return fmt.Errorf("%w: the import is %s", ErrState, i.State)
		}
		c, err := getChunk(tx, l.i.ID, l.n)
		if err != nil {
			return err
		}
		if l.dry != nil {
			tx = l.dry.over(tx)
		}
		done, err := l.s.applyTx(tx, l.i.List, p.rows, p.keys, l.o)
		if err != nil {
			return err
		}
		if l.dry != nil {
			tx = l.dry.under(tx)
			l.dry.again(&done, p.rows)
		}
		var bad []rejected
		for k := range p.rows {
			if e := done.Errors[k]; e != nil {
				bad = append(bad, rejectedOf(e, p.places[k]))
			}
		}
		for k, v := range done.Verdicts {
			if v != Rejected && IsRole(p.rows[k].To) {
				c.Roles++
			}
		}
		rows := int64(len(p.rows))
		c.Ahead.Read, c.Ahead.Stored = w.read, c.Ahead.Stored+rows
		if p.final {
			bad = append(bad, w.rejected...)
			rows += int64(len(w.rejected))
			done.Rejected += int64(len(w.rejected))
			c.Ahead, c.Bytes, c.Done = ahead{}, w.bytes, w.last
		} else {
			c.Ahead.Through = p.keys[len(p.keys)-1]
		}
		c.Stats.Add(done.Stats)
		c.Rows += rows
		c.Took = time.Since(l.started)
		c.Encoding, c.Header, c.Delim, c.Digest = l.reader.Encoding(), l.header, l.delim, l.digest
		if err := l.keep(tx, &c, bad); err != nil {
			return err
		}
		most := l.i.Request.MaxErrors
		tooMany = most > 0 && l.others+c.Stats.Rejected > most
		return c.put(tx, l.i.ID, l.n)
	})
	if err != nil {
		return fmt.Errorf("store contacts: %w", err)
	}
	if l.dry != nil {
		l.dry.commit()
	}
	if tooMany {
		return &InvalidError{Code: reasonTooManyErrors, Detail: fmt.Sprintf(
			"more than %d rows were rejected: the import has ended, and what was stored stays", l.i.Request.MaxErrors)}
	}
	return nil
}

// keep stores rejected rows, as far as there is room.
func (l *loader) keep(tx kv.Tx, c *chunk, bad []rejected) error {
	for k := range bad {
		size := int64(len(bad[k].Raw) + len(bad[k].Value) + 200)
		if l.kept+c.Kept >= maxKept || c.KeptSize+size > maxKeptBytes {
			return nil
		}
		if err := putJSON(tx, tableImportError, importErrorKey(l.i.ID, l.n, bad[k].ByteOffset), &bad[k]); err != nil {
			return err
		}
		c.Kept++
		c.KeptSize += size
	}
	return nil
}
