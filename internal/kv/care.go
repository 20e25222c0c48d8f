package kv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	bolt "go.etcd.io/bbolt"
)

// This file is the care of a store's file. All of it but Backup and Space is for a store that no daemon has open.

// ErrReadOnly is returned by Update on a store that OpenReadOnly opened.
var ErrReadOnly = errors.New("store is open for reading only")

// ErrNoSpace says that there is too little room on the file system for what was asked.
var ErrNoSpace = errors.New("too little free space")

// OpenReadOnly opens the store at path to look at it. It makes nothing and changes nothing; ErrInUse while a daemon has
// it, ErrDamaged as for OpenBolt.
func OpenReadOnly(path string) (*Bolt, error) {
	db, err := openBolt(path, bolt.Options{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	if err := walk(db); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), db.Close())
	}
	l, err := journalOf(db)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), db.Close())
	}
	b := &Bolt{db: db, failed: ErrReadOnly, wake: make(chan struct{}, 1), done: make(chan struct{})}
	b.layers.Store(&layers{active: l})
	close(b.done)
	return b, nil
}

// journalOf is what only the journal has of a store that no daemon has open.
func journalOf(db *bolt.DB) (*layer, error) {
	m, err := readMark(db)
	if err != nil {
		return nil, err
	}
	l, _, err := replay(db.Path(), m)
	return l, err
}

// CheckPages examines every page of the store at path and tells what is wrong with each. The error is for what kept it
// from looking; ErrDamaged where the file cannot be read at all.
func CheckPages(ctx context.Context, path string, found func(string)) error {
	db, file, err := openLocked(path, bolt.Options{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("check store %s: %w", path, err)
	}
	err = walk(db) // the engine's own check runs in a goroutine, where a fault in the mapped file would end the process
	if err == nil {
		_, err = journalOf(db)
	}
	if err == nil {
		err = checkPages(ctx, db, found)
	}
	if closeErr := closeLocked(db, file); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("check store %s: %w", path, err)
	}
	return nil
}

func checkPages(ctx context.Context, db *bolt.DB, found func(string)) error {
	tx, err := db.Begin(false)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // a read-only transaction
	for problem := range tx.Check() {
		if ctx.Err() == nil {
			found(problem.Error())
		}
	}
	return ctx.Err()
}

// compactBytes is what one transaction of Compact copies.
const compactBytes = 32 << 20

// Compact writes the store at path anew without its free pages and puts the new file in place of the old one. The new
// file is durable before it gets the name: a crash leaves the old store or the new one, and beside it at most a file that
// the next Compact removes. ErrInUse while a daemon has the store, ErrNoSpace when the copy might not fit.
func Compact(ctx context.Context, path string) (before, after int64, err error) {
	before, after, err = compact(ctx, path)
	if err != nil {
		return before, after, fmt.Errorf("compact store %s: %w", path, err)
	}
	return before, after, nil
}

func compact(ctx context.Context, path string) (before, after int64, err error) {
	whole, err := OpenBolt(path, BoltOptions{}) // a journal that was left is brought into the file
	if err != nil {
		return 0, 0, err
	}
	if err := whole.Close(); err != nil {
		return 0, 0, err
	}
	src, err := openFile(path, BoltOptions{}) // for writing: nobody else may look at it, or begin the same
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	info, err := os.Stat(path)
	if err != nil {
		return 0, 0, err
	}
	before = info.Size()
	dir, pattern := filepath.Dir(path), "."+filepath.Base(path)+".compact-*"
	left, _ := filepath.Glob(filepath.Join(dir, pattern)) // the pattern is ours
	for _, name := range left {
		if err := os.Remove(name); err != nil {
			return before, 0, err
		}
	}
	free, _, err := fileSystem(dir)
	if err != nil {
		return before, 0, err
	}
	if used := before - freeBytes(src); free < used+used/10+compactBytes {
		return before, 0, fmt.Errorf("%w: %d bytes for a copy of %d", ErrNoSpace, free, used)
	}
	f, err := os.CreateTemp(dir, pattern)
	if err != nil {
		return before, 0, err
	}
	temp := f.Name()
	defer os.Remove(temp) //nolint:errcheck // a left-over name, or none after the rename
	if err := f.Close(); err != nil {
		return before, 0, err
	}
	if err := copyStore(ctx, temp, src); err != nil {
		return before, 0, err
	}
	if info, err = os.Stat(temp); err != nil {
		return before, 0, err
	}
	if err := os.Rename(temp, path); err != nil {
		return before, 0, err
	}
	return before, info.Size(), syncDir(dir)
}

// copyStore makes a dense and durable copy of src in the empty file at path, and reads it once.
func copyStore(ctx context.Context, path string, src *bolt.DB) error {
	dst, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: true, FreelistType: bolt.FreelistMapType, NoSync: true})
	if err != nil {
		return err
	}
	err = undamaged(func() error { return bolt.Compact(dst, src, compactBytes) })
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = dst.Sync()
	}
	if err == nil {
		err = walk(dst)
	}
	return errors.Join(err, dst.Close())
}

// Backup streams one snapshot of the store, as a whole file that needs no journal, to what to returns for its size.
// Updates wait until all before them is in the file, then they go on; the pages that they free are not used again before
// the end, so a slow reader makes the file grow.
func (b *Bolt) Backup(ctx context.Context, to func(size int64) (io.Writer, error)) error {
	var tx *bolt.Tx
	err := b.still(ctx, func() (err error) {
		tx, err = b.db.Begin(false)
		return err
	})
	if tx != nil {
		defer tx.Rollback() //nolint:errcheck // a read-only transaction
	}
	if err != nil {
		return fmt.Errorf("begin backup: %w", err)
	}
	w, err := to(tx.Size())
	if err != nil {
		return err
	}
	if _, err := tx.WriteTo(contextWriter{ctx, w}); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	return nil
}

// contextWriter ends writing with its context.
type contextWriter struct {
	ctx context.Context //nolint:containedctx // io.Writer has no room for one
	w   io.Writer
}

func (c contextWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// Space is the room of a store, in bytes.
type Space struct {
	Disk   int64 // free on the file system
	Total  int64 // of the file system
	Inside int64 // free inside the store's file
}

// Space measures what the store can still write.
func (b *Bolt) Space() (Space, error) {
	s := Space{Inside: freeBytes(b.db)}
	var err error
	s.Disk, s.Total, err = fileSystem(filepath.Dir(b.db.Path()))
	return s, err
}

func freeBytes(db *bolt.DB) int64 {
	st := db.Stats()
	return int64(st.FreePageN+st.PendingPageN) * int64(db.Info().PageSize)
}

// fileSystem is what an ordinary process can still write to the file system of dir, and its size, in bytes.
func fileSystem(dir string) (free, total int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("ask for free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil //nolint:gosec,unconvert // far below 63 bits; the type differs between systems
}
