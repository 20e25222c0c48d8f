package contact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Body is what a caller uploads.
type Body struct {
	ContentType string
	Digest      []byte // SHA-256 that it announces; nil: none, and the rows are stored while they arrive
	Reader      io.Reader
	Alive       func() // called after each batch, nil for nothing: the connection is used although nothing moves on it
}

// Upload streams a one-shot import: each batch of rows is durable with the import's progress before the next is read. The
// import ends as completed, or as failed with what was stored so far; sending all of it again doubles nothing. An error
// is returned only when the upload itself cannot be read.
func (s *Store) Upload(ctx context.Context, info *ImportInfo, b Body) (*ImportInfo, error) {
	end, err := s.active.begin(info.List, info.ID, 0)
	if err != nil {
		return nil, s.fail(ctx, info, "import_in_progress", err)
	}
	defer end()
	if b.Digest != nil {
		f, err := s.checked(b)
		if err != nil {
			return nil, s.fail(ctx, info, reasonUpload, err)
		}
		defer discardFile(f)
		b.Reader = f
	}
	if err := s.load(ctx, &info.Import, 0, b, 0); err != nil {
		return nil, s.fail(ctx, info, reasonOf(err), err)
	}
	return s.finish(ctx, info, ImportCompleted, "")
}

// reasonOf names why an upload failed.
func reasonOf(err error) string {
	if e, ok := errors.AsType[*InvalidError](err); ok && e.Code == reasonTooManyErrors {
		return reasonTooManyErrors
	} else if ok || errors.Is(err, ErrContentType) {
		return reasonInput
	}
	if errors.Is(err, ErrNotFound) {
		return reasonListGone
	}
	return reasonUpload
}

// fail ends an import and returns why.
func (s *Store) fail(ctx context.Context, info *ImportInfo, reason string, why error) error {
	if errors.Is(why, ErrState) { // it was cancelled
		return why
	}
	if _, err := s.finish(context.WithoutCancel(ctx), info, ImportFailed, reason); err != nil {
		return errors.Join(why, err)
	}
	return why
}

func (s *Store) finish(ctx context.Context, info *ImportInfo, state, reason string) (done *ImportInfo, err error) {
	err = s.DB.Update(ctx, func(tx kv.Tx) error {
		i, err := getImport(tx, info.Account, info.Name())
		if err != nil {
			return err
		}
		if i.State != ImportRunning && i.State != ImportOpen {
			done, err = progress(tx, i)
			return err
		}
		i.State, i.Reason, i.Finished = state, reason, s.now()
		if err := i.put(tx); err != nil {
			return err
		}
		if done, err = progress(tx, i); err != nil {
			return err
		}
		return s.tell(tx, done)
	})
	if err != nil {
		return nil, fmt.Errorf("end import: %w", err)
	}
	s.log.Info("contacts.imported", "account", done.Account, "import", done.Name(), "status", done.State, "reason", done.Reason,
		"count", done.Rows, "size", done.Bytes)
	return done, nil
}

// Chunk is what became of a chunk.
type Chunk struct {
	N        int
	Rows     int64
	Rejected int64
	Replayed bool // it was here before, and changed nothing
}

// UploadChunk stores chunk n of an import. The bytes are checked against the digest that they announce before anything is
// stored. A chunk that was stored before is answered as then; one that broke off goes on where it stopped; other bytes
// under the same number are ErrChunk.
func (s *Store) UploadChunk(ctx context.Context, account, ref string, n int, b Body) (out Chunk, err error) {
	if n < 1 || n > MaxChunks {
		return out, invalid("n", "chunks are numbered from 1 to %d", MaxChunks)
	}
	at := uint32(n) //nolint:gosec // checked
	info, err := s.Import(ctx, account, ref)
	if err != nil {
		return out, err
	}
	if !info.Chunked {
		return out, fmt.Errorf("%w: the import does not come in chunks", ErrState)
	}
	if want := info.Request.ExpectedChunks; want > 0 && n > want {
		return out, invalid("n", "%d chunks were announced", want)
	}
	end, err := s.active.begin(info.List, info.ID, at)
	if err != nil {
		return out, err
	}
	defer end()
	f, err := s.checked(b)
	if err != nil {
		return out, err
	}
	defer discardFile(f)
	b.Reader, b.Digest = f, f.digest
	var before chunk
	if err := s.DB.View(ctx, func(tx kv.Tx) (err error) {
		before, err = getChunk(tx, info.ID, at)
		return err
	}); err != nil {
		return out, err
	}
	switch {
	case before.Digest != nil && !bytes.Equal(before.Digest, f.digest):
		return out, ErrChunk
	case before.Done:
		return Chunk{n, before.Rows, before.Stats.Rejected, true}, nil
	case info.State != ImportOpen:
		return out, fmt.Errorf("%w: the import is %s", ErrState, info.State)
	}
	if err := s.load(ctx, &info.Import, at, b, before.Rows); err != nil {
		if reasonOf(err) == reasonTooManyErrors {
			return out, s.fail(ctx, info, reasonTooManyErrors, err)
		}
		return out, err
	}
	var after chunk
	err = s.DB.View(ctx, func(tx kv.Tx) (err error) {
		after, err = getChunk(tx, info.ID, at)
		return err
	})
	return Chunk{n, after.Rows, after.Stats.Rejected, false}, err
}

// checkedFile is an upload on disk, with its digest.
type checkedFile struct {
	*os.File
	digest []byte
}

func discardFile(f *checkedFile) { _ = f.Close() }

// checked stores an upload in a file without a name and compares its digest with the one that it announces.
func (s *Store) checked(b Body) (*checkedFile, error) {
	f, err := os.CreateTemp(s.TempDir, "relayd-import-*")
	if err != nil {
		return nil, fmt.Errorf("make file for upload: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("make file for upload: %w", err)
	}
	h := sha256.New()
	if _, err = io.Copy(io.MultiWriter(f, h), b.Reader); err != nil {
		_ = f.Close()
		return nil, readError(err)
	}
	digest := h.Sum(nil)
	if b.Digest != nil && !bytes.Equal(b.Digest, digest) {
		_ = f.Close()
		return nil, ErrDigest
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("read upload again: %w", err)
	}
	return &checkedFile{f, digest}, nil
}

// slice is one batch of an upload.
type slice struct {
	rows     []Row
	places   []place // of the rows
	rejected []rejected
	read     int64 // rows, good and bad
	bytes    int64 // up to here
	last     bool
	err      error
}

type place struct {
	line, offset int64
	raw          string
}

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
}

// load reads rows and stores them in batches, passing over the first skip, which are stored.
func (s *Store) load(ctx context.Context, i *Import, n uint32, b Body, skip int64) error {
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
	for ; skip > 0; skip-- {
		if _, err := l.reader.Next(); err != nil {
			if _, bad := errors.AsType[*RowError](err); !bad {
				return err
			}
		}
	}
	// While one batch is made durable, the next is read.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slices, done := make(chan slice, 1), make(chan struct{})
	go func() {
		defer close(done)
		defer close(slices)
		for {
			sl := l.fill()
			select {
			case slices <- sl:
			case <-ctx.Done():
				return
			}
			if sl.last || sl.err != nil {
				return
			}
		}
	}()
	err = l.storeAll(ctx, slices, b.Alive)
	cancel()
	if c, ok := b.Reader.(io.Closer); ok && err != nil {
		_ = c.Close() // wakes a reader that waits for its peer
	}
	<-done
	return err
}

func (l *loader) storeAll(ctx context.Context, slices <-chan slice, alive func()) error {
	for sl := range slices {
		if sl.err != nil && len(sl.rows) == 0 && len(sl.rejected) == 0 {
			return sl.err
		}
		if err := l.store(ctx, &sl); err != nil {
			return err
		}
		if sl.err != nil {
			return sl.err
		}
		if alive != nil {
			alive()
		}
	}
	return ctx.Err()
}

// fill reads one batch. Its rows share nothing with the reader.
func (l *loader) fill() slice {
	sl := slice{rows: make([]Row, 0, importBatch), places: make([]place, 0, importBatch)}
	var arena []Attribute
	for size := 0; sl.read < importBatch && size < importBytes; {
		row, err := l.reader.Next()
		if errors.Is(err, io.EOF) {
			sl.last = true
			break
		}
		bad, isRow := errors.AsType[*RowError](err)
		if err != nil && !isRow {
			sl.err = err
			break
		}
		sl.read++
		line, offset := l.reader.Place()
		at := place{line, offset, l.reader.Raw()}
		size += len(at.raw)
		if bad != nil {
			sl.rejected = append(sl.rejected, rejectedOf(bad, at))
			continue
		}
		if cap(arena)-len(arena) < len(row.Attributes) {
			arena = make([]Attribute, 0, max(len(row.Attributes)*256, 256))
		}
		from := len(arena)
		arena = append(arena, row.Attributes...)
		row.Attributes = arena[from:len(arena):len(arena)]
		sl.rows = append(sl.rows, row)
		sl.places = append(sl.places, at)
	}
	sl.bytes = l.reader.Read()
	return sl
}

// maxErrorText clips what a report shows of a value.
const maxErrorText = 200

func rejectedOf(e *RowError, p place) rejected {
	return rejected{api.ImportError{
		Line: p.line, ByteOffset: p.offset, Column: mail.CleanText(e.Column, maxErrorText), Value: mail.CleanText(e.Value, maxErrorText),
		Code: e.Code, Detail: mail.CleanText(e.Detail, 2*maxErrorText),
	}, p.raw}
}

// store makes a batch durable with the progress of its upload.
func (l *loader) store(ctx context.Context, sl *slice) error {
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
		done, err := l.s.ApplyTx(tx, l.i.List, sl.rows, l.o)
		if err != nil {
			return err
		}
		if l.dry != nil {
			tx = l.dry.under(tx)
			l.dry.again(&done, sl.rows)
		}
		bad := append([]rejected(nil), sl.rejected...)
		for k := range sl.rows {
			if e := done.Errors[k]; e != nil {
				bad = append(bad, rejectedOf(e, sl.places[k]))
			}
		}
		for k, v := range done.Verdicts {
			if v != Rejected && IsRole(sl.rows[k].To) {
				c.Roles++
			}
		}
		done.Rejected += int64(len(sl.rejected))
		c.Stats.Add(done.Stats)
		c.Rows += sl.read
		c.Bytes, c.Took = sl.bytes, time.Since(l.started)
		c.Encoding, c.Header, c.Delim = l.reader.Encoding(), l.header, l.delim
		c.Digest, c.Done = l.digest, sl.last
		if err := l.keep(tx, &c, bad); err != nil {
			return err
		}
		most := l.i.Request.MaxErrors
		tooMany = most > 0 && l.others+c.Stats.Rejected > most
		return putJSON(tx, tableChunk, chunkKey(l.i.ID, l.n), &c)
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

// dryRun lets ApplyTx say what it would do. It remembers the mailboxes that it would have made, with a hash of what their
// last row said, so that later rows are judged as if it had.
type dryRun struct {
	seen   map[uint64]uint64
	staged map[uint64]uint64
}

// mostDry bounds the memory of a dry run. Of mailboxes beyond it duplicates are told as created.
const mostDry = 2_000_000

func newDryRun() *dryRun { return &dryRun{seen: map[uint64]uint64{}} }

// dryTx drops the writes to the tables of contacts.
type dryTx struct{ kv.Tx }

func (d dryTx) Put(kv.Table, []byte, []byte) error { return nil }
func (d dryTx) Delete(kv.Table, []byte) error      { return nil }

func (d *dryRun) over(tx kv.Tx) kv.Tx { return dryTx{tx} }

func (d *dryRun) under(tx kv.Tx) kv.Tx { return tx.(dryTx).Tx } //nolint:forcetypeassert // of over

// again mends the verdicts on mailboxes that an earlier batch would have made.
func (d *dryRun) again(done *Applied, rows []Row) {
	d.staged = map[uint64]uint64{}
	for i, v := range done.Verdicts {
		if v != Created {
			continue
		}
		h := fnv.New64a()
		_, _ = io.WriteString(h, rows[i].To.Key())
		key := h.Sum64()
		_, _ = h.Write(AppendAttributes([]byte{byte(rows[i].Status)}, rows[i].Attributes))
		_, _ = io.WriteString(h, rows[i].To.String())
		what := h.Sum64()
		was, known := d.seen[key]
		d.staged[key] = what
		if !known {
			continue
		}
		done.Created--
		done.Duplicates++
		if done.Verdicts[i] = Updated; was == what {
			done.Verdicts[i] = Unchanged
		}
		done.count(done.Verdicts[i])
	}
}

func (d *dryRun) commit() {
	for k, v := range d.staged {
		if len(d.seen) < mostDry {
			d.seen[k] = v
		}
	}
}
