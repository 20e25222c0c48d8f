package spool

import (
	"context"
	"fmt"
	"io"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// chunkSize is the most of a body that one record holds; it is also what the spool buffers of a body that comes in.
// Bodies of one chunk become durable in the transaction of their message.
const chunkSize = 256 << 10

// maxChunks bounds a body, to 16 GiB.
const maxChunks = 1 << 16

// The first byte of a chunk: a record version, and whether it is the last.
const (
	chunkMore = 0x10
	chunkLast = 0x11
)

// BodyWriter is an io.Writer that stores a body under its queue ID. It keeps at most one chunk in memory. Not for
// concurrent use.
type BodyWriter struct {
	store  *Store
	ctx    context.Context //nolint:containedctx // io.Writer has no room for one
	id     mail.QueueID
	buf    []byte // a chunk record: its first byte, then data
	size   int64
	chunks uint32 // written ahead
	done   bool
	err    error
}

// NewBody returns a writer that stores a body under id, full chunks ahead of the message's commit. ctx bounds its writes.
func (s *Store) NewBody(ctx context.Context, id mail.QueueID) *BodyWriter {
	return &BodyWriter{store: s, ctx: ctx, id: id}
}

// Write appends p. A full chunk is durable before more is taken.
func (b *BodyWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 && b.err == nil {
		if len(b.buf) == chunkSize {
			if b.err = b.writeAhead(); b.err != nil {
				break
			}
		}
		if len(b.buf) == 0 {
			b.buf = append(b.buf, chunkMore)
		}
		n := min(len(p), chunkSize-len(b.buf))
		b.buf = append(b.buf, p[:n]...)
		p = p[n:]
		written += n
		b.size += int64(n)
	}
	return written, b.err
}

func (b *BodyWriter) writeAhead() error {
	if b.chunks == maxChunks-1 {
		return fmt.Errorf("write body %s: %w: more than %d chunks", b.id, ErrInvalid, maxChunks)
	}
	err := b.store.db.Update(b.ctx, func(tx kv.Tx) error {
		if b.chunks == 0 {
			if err := tx.Put(tableDraft, b.id[:], nil); err != nil {
				return err
			}
		}
		return tx.Put(tableBody, bodyKey(b.id, b.chunks), b.buf)
	})
	if err != nil {
		return fmt.Errorf("write body %s: %w", b.id, b.store.refusal(err))
	}
	b.chunks++
	b.buf = b.buf[:0] // the transaction is over: the engine has let go of it
	return nil
}

// Size is the number of octets written.
func (b *BodyWriter) Size() int64 { return b.size }

// WriteTo writes what has been written so far to w, chunk by chunk; no transaction is open while w writes. More may be
// written afterwards.
func (b *BodyWriter) WriteTo(w io.Writer) (size int64, err error) {
	if b.err != nil {
		return 0, b.err
	}
	var buf []byte
	for chunk := range b.chunks {
		err = b.store.db.View(b.ctx, func(tx kv.Tx) error {
			v, err := tx.Get(tableBody, bodyKey(b.id, chunk))
			buf = append(buf[:0], v...)
			return err
		})
		if err == nil && len(buf) == 0 {
			err = ErrCorrupt
		}
		if err != nil {
			return size, fmt.Errorf("read body %s: chunk %d: %w", b.id, chunk, err)
		}
		n, err := w.Write(buf[1:])
		size += int64(n)
		if err != nil {
			return size, err
		}
	}
	if len(b.buf) > 1 {
		n, err := w.Write(b.buf[1:])
		return size + int64(n), err
	}
	return size, nil
}

// last returns the final chunk record, as it goes into the message's own transaction.
func (b *BodyWriter) last() []byte {
	if len(b.buf) == 0 {
		b.buf = append(b.buf, chunkLast)
	}
	b.buf[0] = chunkLast
	return b.buf
}

// Abort removes what was written ahead. After Commit it does nothing. What it cannot remove, the next Open does.
func (b *BodyWriter) Abort() {
	if b.done {
		return
	}
	b.done = true
	b.err = fmt.Errorf("write body %s: aborted", b.id)
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

// putBody writes a body that is held in memory, and returns its number of chunks.
func putBody(tx kv.Tx, id mail.QueueID, body []byte) (uint32, error) {
	var n uint32
	for {
		part := body[:min(len(body), chunkSize-1)]
		body = body[len(part):]
		chunk := make([]byte, 1, 1+len(part))
		if chunk[0] = chunkMore; len(body) == 0 {
			chunk[0] = chunkLast
		}
		if err := tx.Put(tableBody, bodyKey(id, n), append(chunk, part...)); err != nil {
			return n, err
		}
		if n++; len(body) == 0 {
			return n, nil
		}
	}
}

// WriteBody streams the body of a message to w, chunk by chunk; no transaction is open while w writes. It returns the
// octets written. ErrNotFound when there is no such body.
func (s *Store) WriteBody(ctx context.Context, id mail.QueueID, w io.Writer) (int64, error) {
	var size int64
	var buf []byte
	for chunk := range uint32(maxChunks) {
		err := s.db.View(ctx, func(tx kv.Tx) error {
			v, err := tx.Get(tableBody, bodyKey(id, chunk))
			buf = append(buf[:0], v...)
			return err
		})
		switch {
		case err != nil:
			return size, fmt.Errorf("read body %s: %w", id, err)
		case len(buf) == 0 && chunk == 0:
			return 0, fmt.Errorf("read body %s: %w", id, ErrNotFound)
		case len(buf) == 0:
			return size, fmt.Errorf("read body %s: chunk %d: %w", id, chunk, ErrCorrupt)
		case buf[0] != chunkMore && buf[0] != chunkLast:
			return size, fmt.Errorf("read body %s: chunk %d: %w: %d", id, chunk, ErrVersion, buf[0])
		}
		n, err := w.Write(buf[1:])
		size += int64(n)
		if err != nil || buf[0] == chunkLast {
			return size, err
		}
	}
	return size, fmt.Errorf("read body %s: %w", id, ErrCorrupt)
}
