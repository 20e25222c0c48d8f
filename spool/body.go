package spool

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// chunkSize is the most of a body that one record holds, its first byte included. The engine keeps two records on a page
// at least, and writes a page anew when a neighbour comes or goes: larger records would be written several times.
const chunkSize = 32 << 10

// aheadChunks is how many chunks the spool buffers of a body that comes in. Bodies of no more become durable in the
// transaction of their message.
const aheadChunks = 8

// maxChunks bounds a body, to 16 GiB.
const maxChunks = 1 << 19

// The first byte of a chunk: a record version, and whether it is the last.
const (
	chunkMore = 0x10
	chunkLast = 0x11
)

// BodyWriter is an io.Writer that stores a body under its queue ID. It keeps a few chunks in memory at most. Not for
// concurrent use.
type BodyWriter struct {
	store  *Store
	ctx    context.Context //nolint:containedctx // io.Writer has no room for one
	id     mail.QueueID
	buf    []byte // chunk records, one behind the other: all but the last are full
	size   int64
	chunks uint32 // written ahead
	done   bool
	err    error
}

// NewBody returns a writer that stores a body under id, full chunks ahead of the message's commit. ctx bounds its writes.
func (s *Store) NewBody(ctx context.Context, id mail.QueueID) *BodyWriter {
	return &BodyWriter{store: s, ctx: ctx, id: id, buf: s.buffers.take()}
}

// bufferPool holds the buffers of bodies on their way in and out, of at most aheadChunks chunks.
type bufferPool struct{ pool sync.Pool }

func (p *bufferPool) take() []byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return nil
}

func (p *bufferPool) give(b []byte) {
	if cap(b) > 0 {
		p.pool.Put(&b)
	}
}

// Write appends p. Where more is buffered than may be, that is durable before more is taken.
func (b *BodyWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 && b.err == nil {
		if len(b.buf) == aheadChunks*chunkSize {
			if b.err = b.writeAhead(); b.err != nil {
				break
			}
		}
		if len(b.buf)%chunkSize == 0 {
			b.buf = append(b.buf, chunkMore)
		}
		n := min(len(p), chunkSize-len(b.buf)%chunkSize)
		b.buf = append(b.buf, p[:n]...)
		p = p[n:]
		written += n
		b.size += int64(n)
	}
	return written, b.err
}

func (b *BodyWriter) writeAhead() error {
	if b.chunks >= maxChunks-2*aheadChunks {
		return fmt.Errorf("write body %s: %w: more than %d chunks", b.id, ErrInvalid, maxChunks)
	}
	err := b.store.db.Update(b.ctx, func(tx kv.Tx) error {
		if b.chunks == 0 {
			if err := tx.Put(tableDraft, b.id[:], nil); err != nil {
				return err
			}
		}
		return b.put(tx)
	})
	if err != nil {
		return fmt.Errorf("write body %s: %w", b.id, b.store.refusal(err))
	}
	b.chunks += b.buffered()
	b.buf = b.buf[:0] // the transaction is over: the engine has let go of it
	return nil
}

// buffered is the number of chunks in memory.
func (b *BodyWriter) buffered() uint32 {
	return uint32((len(b.buf) + chunkSize - 1) / chunkSize) //nolint:gosec // at most aheadChunks
}

// put writes the buffered chunks.
func (b *BodyWriter) put(tx kv.Tx) error {
	n := b.chunks
	for chunk := range slices.Chunk(b.buf, chunkSize) {
		if err := tx.Put(tableBody, bodyKey(b.id, n), chunk); err != nil {
			return err
		}
		n++
	}
	return nil
}

// Size is the number of octets written.
func (b *BodyWriter) Size() int64 { return b.size }

// WriteTo writes what has been written so far to w, some chunks at a time; no transaction is open while w writes. More
// may be written afterwards.
func (b *BodyWriter) WriteTo(w io.Writer) (size int64, err error) {
	if b.err != nil {
		return 0, b.err
	}
	r := bodyReader{id: b.id, most: b.chunks, buf: b.store.buffers.take()}
	defer func() { b.store.buffers.give(r.buf) }()
	for r.next < b.chunks {
		if err := b.store.db.View(b.ctx, r.read); err != nil {
			return size, fmt.Errorf("read body %s: %w", b.id, err)
		}
		n, err := w.Write(r.buf)
		if size += int64(n); err != nil {
			return size, err
		}
	}
	for chunk := range slices.Chunk(b.buf, chunkSize) {
		n, err := w.Write(chunk[1:])
		if size += int64(n); err != nil {
			return size, err
		}
	}
	return size, nil
}

// end marks the last chunk and returns the number of all.
func (b *BodyWriter) end() uint32 {
	if len(b.buf) == 0 {
		b.buf = append(b.buf, chunkLast)
	}
	n := b.buffered()
	b.buf[(n-1)*chunkSize] = chunkLast
	return b.chunks + n
}

// stored ends the work of the writer with its message durable.
func (b *BodyWriter) stored() {
	b.done = true
	b.release()
}

func (b *BodyWriter) release() {
	b.store.buffers.give(b.buf)
	b.buf = nil
}

// Abort removes what was written ahead. After Commit it does nothing. What it cannot remove, the next Open does.
func (b *BodyWriter) Abort() {
	if b.done {
		return
	}
	b.done = true
	b.err = fmt.Errorf("write body %s: aborted", b.id)
	b.release()
	if b.chunks == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), 10*time.Second)
	defer cancel()
	_ = b.store.removeDraft(ctx, b.id)
}

// removeDraft removes the chunks of a body, unless its message was committed after all.
func (s *Store) removeDraft(ctx context.Context, id mail.QueueID) error {
	return s.db.Update(ctx, func(tx kv.Tx) error {
		m, err := tx.Get(tableMessage, id[:])
		if err != nil {
			return err
		}
		if m == nil {
			var keys [][]byte
			err := tx.Scan(tableBody, id[:], kv.PrefixEnd(id[:]), func(k, _ []byte) (bool, error) {
				keys = append(keys, append([]byte(nil), k...))
				return true, nil
			})
			if err != nil {
				return err
			}
			for _, k := range keys {
				if err := tx.Delete(tableBody, k); err != nil {
					return err
				}
			}
		}
		return tx.Delete(tableDraft, id[:])
	})
}

// chunksOf is the number of chunks of a body that is held in memory.
func chunksOf(body []byte) uint32 {
	return uint32(max(1, (len(body)+chunkSize-2)/(chunkSize-1))) //nolint:gosec // few
}

// putBody writes a body that is held in memory.
func putBody(tx kv.Tx, id mail.QueueID, body []byte) error {
	last := chunksOf(body) - 1
	for n := range last + 1 {
		part := body[:min(len(body), chunkSize-1)]
		body = body[len(part):]
		chunk := make([]byte, 1, 1+len(part))
		if chunk[0] = chunkMore; n == last {
			chunk[0] = chunkLast
		}
		if err := tx.Put(tableBody, bodyKey(id, n), append(chunk, part...)); err != nil {
			return err
		}
	}
	return nil
}

// WriteBody streams the body of a message to w, some chunks at a time; no transaction is open while w writes. It returns
// the octets written. ErrNotFound when there is no such body.
func (s *Store) WriteBody(ctx context.Context, id mail.QueueID, w io.Writer) (int64, error) {
	r := bodyReader{id: id, most: maxChunks, buf: s.buffers.take()}
	defer func() { s.buffers.give(r.buf) }()
	var size int64
	for !r.ended {
		if err := s.db.View(ctx, r.read); err != nil {
			return size, fmt.Errorf("read body %s: %w", id, err)
		}
		n, err := w.Write(r.buf)
		if size += int64(n); err != nil {
			return size, err
		}
	}
	return size, nil
}

// bodyReader reads a body in order.
type bodyReader struct {
	id    mail.QueueID
	next  uint32 // chunk
	most  uint32 // chunks
	buf   []byte // what was read last
	ended bool
}

// read gathers chunks until there are enough for one write.
func (r *bodyReader) read(tx kv.Tx) error {
	r.buf = r.buf[:0]
	for !r.ended && r.next < r.most && len(r.buf) < (aheadChunks-1)*chunkSize {
		v, err := tx.Get(tableBody, bodyKey(r.id, r.next))
		switch {
		case err != nil:
			return err
		case len(v) == 0 && r.next == 0:
			return ErrNotFound
		case len(v) == 0:
			return fmt.Errorf("chunk %d: %w", r.next, ErrCorrupt)
		case v[0] != chunkMore && v[0] != chunkLast:
			return fmt.Errorf("chunk %d: %w: %d", r.next, ErrVersion, v[0])
		}
		r.buf = append(r.buf, v[1:]...)
		r.ended = v[0] == chunkLast
		if r.next++; r.next == maxChunks && !r.ended {
			return fmt.Errorf("%w: it has no end", ErrCorrupt)
		}
	}
	return nil
}
