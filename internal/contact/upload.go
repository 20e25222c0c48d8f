package contact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"relayd/internal/kv"
)

// Body is what a caller uploads.
type Body struct {
	ContentType string
	Digest      []byte // SHA-256 that it announces; nil: none, and the rows are stored while they arrive
	Reader      io.Reader
	Alive       func() // called after each part that is stored, nil for nothing: the connection is used although nothing moves on it
}

// Upload streams a one-shot import: rows are durable, with the import's progress, while the upload arrives. The import
// ends as completed, or as failed with what was stored so far; sending all of it again doubles nothing. An error is
// returned only when the upload itself cannot be read.
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
	if err := s.load(ctx, &info.Import, 0, b, &chunk{}); err != nil {
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
	if err := s.load(ctx, &info.Import, at, b, &before); err != nil {
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
