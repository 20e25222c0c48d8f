package kv

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Errors of the embedded engine.
var (
	ErrInUse         = errors.New("store is in use by another process")
	ErrDamaged       = errors.New("store file is damaged or not a store")
	ErrStorageFailed = errors.New("storage failed, no further writes until restart")
	ErrPanicked      = errors.New("transaction panicked")
	ErrSize          = errors.New("key or value size out of bounds")
)

// Limits of keys and values, in bytes.
const (
	MaxKey   = 1024
	MaxValue = 1 << 20
)

// What one commit takes at most. A batch is whatever waits when the committer comes back from the one before; the
// bounds keep the latency of a commit and the memory of its dirty pages within reason.
const (
	maxBatchCalls = 1024
	maxBatchBytes = 16 << 20
)

// mapSize is the address space set aside for the file. As long as the file is smaller, it is never mapped anew, and a
// long View never stalls the committer. It costs no memory.
const mapSize = 16 << 30

// BoltOptions tune the embedded engine; the zero value is right for the daemon.
type BoltOptions struct {
	NoSync  bool // tests only: a commit is not made durable
	Metrics *Metrics
	// Failed is called once, with an error that wraps ErrStorageFailed, when the store ends writing for good.
	Failed func(error)
}

// Bolt is the embedded engine: one bbolt file with a journal, one process. Updates are group-committed: one committer
// goroutine takes whatever waits, runs it in one transaction, makes that durable in the journal, and answers all, without a
// timer. Checkpoints bring it into the file.
type Bolt struct {
	db      *bolt.DB
	metrics *Metrics
	onFail  func(error)
	layers  atomic.Pointer[layers] // changed under mu

	journal    *journal      // of the committer; nil: read-only
	checkpoint checkpoint    // of the committer
	aged       atomic.Uint64 // the epoch that has waited long enough for a checkpoint
	stills     chan still
	record     record // of the committer

	mu      sync.Mutex
	waiting []*call
	closed  bool
	failed  error // sticky: wraps ErrStorageFailed

	ends map[Table][]byte // of the checkpoint: see pack

	wake      chan struct{}
	done      chan struct{} // closed when the committer has ended
	closeOnce sync.Once
	closeErr  error
}

// layers are what is newer than the file: the active layer takes what is committed, the frozen one is on its way to the
// file. epoch counts how often one was frozen.
type layers struct {
	epoch          uint64
	active, frozen *layer
}

// OpenBolt opens or creates the store at path. The file is locked: while another process has it, the error is ErrInUse,
// at once. A file that is not a store, or whose pages are damaged, gives ErrDamaged; it is never taken for an empty
// store. A new file and its directory entry are durable before OpenBolt returns.
func OpenBolt(path string, opts BoltOptions) (b *Bolt, err error) {
	if err := createBolt(path); err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	db, err := openFile(path, opts)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	b = &Bolt{db: db, metrics: opts.Metrics, onFail: opts.Failed, ends: map[Table][]byte{}, stills: make(chan still), wake: make(chan struct{}, 1), done: make(chan struct{})}
	if err := b.recover(!opts.NoSync); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), db.Close())
	}
	go b.run()
	return b, nil
}

// recover brings into the file what only the journal has, and begins a new epoch of it.
func (b *Bolt) recover(sync bool) error {
	m, err := readMark(b.db)
	if err != nil {
		return err
	}
	left, last, err := replay(b.db.Path(), m)
	if err != nil {
		return err
	}
	for m.salt == 0 {
		var salt [8]byte
		_, _ = rand.Read(salt[:]) // it never fails
		m.salt = binary.LittleEndian.Uint64(salt[:])
	}
	if b.journal, err = createJournal(b.db.Path(), m.salt, last+1, sync); err != nil {
		return err
	}
	b.layers.Store(&layers{epoch: last + 1, active: &layer{}})
	if err := b.flush(left, mark{salt: m.salt, epoch: last, open: true}); err != nil { // the journal is there before the file says so
		b.journal.close()
		return err
	}
	return nil
}

// openFile opens an existing file. bbolt collects the free pages by walking all pages in a goroutine of its own, where
// a damaged one panics beyond our reach: so the same walk comes first, read-only and here.
func openFile(path string, opts BoltOptions) (*bolt.DB, error) {
	db, file, err := openLocked(path, bolt.Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	if !opts.NoSync { // one that was never synced may be shorter than the pages that it has given out
		err = whole(db)
	}
	if err == nil {
		err = walk(db)
	}
	if closeErr := closeLocked(db, file); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, err
	}
	return openBolt(path, bolt.Options{
		NoFreelistSync:  true,
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: mapSize,
		NoSync:          opts.NoSync,
		NoGrowSync:      opts.NoSync,
	})
}

// whole tells whether the file has every page that it has given out.
func whole(db *bolt.DB) error {
	return undamaged(func() error {
		info, err := os.Stat(db.Path())
		if err != nil {
			return err
		}
		return db.View(func(tx *bolt.Tx) error {
			if info.Size() < tx.Size() {
				return fmt.Errorf("%w: it has %d bytes and should have %d", ErrDamaged, info.Size(), tx.Size())
			}
			return nil
		})
	})
}

// undamaged turns a panic of the engine, or a fault in the mapped file, into ErrDamaged.
func undamaged(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch p := recover().(type) {
		case nil:
		case runtime.Error: // a nil pointer, an index or an address that a page led to
			err = fmt.Errorf("%w: a page refers to what is not there", ErrDamaged)
		default:
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	return fn()
}

// closeLocked closes a file opened for reading and gives its lock back. bbolt leaves that to the last descriptor of it,
// which a child of this process may have, between fork and exec, when the file is opened for writing next.
func closeLocked(db *bolt.DB, file *os.File) error {
	return errors.Join(syscall.Flock(int(file.Fd()), syscall.LOCK_UN), db.Close())
}

// openBolt opens the file with names of ours for the errors of bbolt. It creates nothing.
func openBolt(path string, opts bolt.Options) (*bolt.DB, error) {
	db, _, err := openLocked(path, opts)
	return db, err
}

// openLocked is openBolt with the descriptor, which has the lock.
func openLocked(path string, opts bolt.Options) (db *bolt.DB, file *os.File, err error) {
	opts.Timeout = 120 * time.Millisecond // three tries: between fork and exec a child holds the locks of its parent
	opts.OpenFile = func(name string, flag int, perm os.FileMode) (_ *os.File, err error) {
		file, err = os.OpenFile(name, flag&^os.O_CREATE, perm) //nolint:gosec // the operator's path
		return file, err
	}
	err = undamaged(func() (err error) {
		db, err = bolt.Open(path, 0o600, &opts)
		return err
	})
	if err == nil && !stillNamed(file, path) { // Compact has put another file in its place before it was locked
		return nil, nil, errors.Join(ErrInUse, db.Close())
	}
	switch {
	case err == nil:
		return db, file, nil
	case errors.Is(err, berrors.ErrTimeout):
		return nil, nil, ErrInUse
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if _, ok := errors.AsType[*fs.PathError](err); !ok && !errors.Is(err, ErrDamaged) && !isErrno(err) {
		return nil, nil, fmt.Errorf("%w: %w", ErrDamaged, err) // bbolt has no name for it: "file size too small"
	}
	return nil, nil, err
}

func isErrno(err error) bool {
	_, ok := errors.AsType[syscall.Errno](err)
	return ok
}

// stillNamed tells whether path names the open file.
func stillNamed(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(mine, named)
}

// createBolt makes an empty store where there is none. It is built beside path and linked into place, so that a file
// at path is always whole: one of zero bytes is a damaged store, not a new one.
func createBolt(path string) error {
	info, err := os.Stat(path)
	if err == nil {
		if info.Size() == 0 {
			return fmt.Errorf("%w: zero bytes long", ErrDamaged)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range JournalNames(path) {
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: it is not there, and its journal %s is: put it back, or take the journal away", ErrDamaged, filepath.Base(name))
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	temp := f.Name()
	defer os.Remove(temp) //nolint:errcheck // only a left-over name
	if err := f.Close(); err != nil {
		return err
	}
	db, err := bolt.Open(temp, 0o600, &bolt.Options{NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return err
	}
	if err := errors.Join(db.Sync(), db.Close()); err != nil {
		return err
	}
	if err := os.Link(temp, path); err != nil && !errors.Is(err, fs.ErrExist) { // another process may have won
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // the operator's path
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Err is nil while the store takes writes; after a failed fdatasync it tells why it no longer does.
func (b *Bolt) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed
}

// Path is the name of the file.
func (b *Bolt) Path() string { return b.db.Path() }

// View runs fn on a snapshot.
func (b *Bolt) View(ctx context.Context, fn func(Tx) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	t, err := b.snapshot()
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	if err != nil {
		return fmt.Errorf("begin view: %w", err)
	}
	defer t.end()
	return protect(func() error { return fn(t) })
}

// snapshot takes the layers and the file as they were at one moment. The file may be ahead with parts of these layers, which
// say the same. Had something been committed meanwhile, it might be ahead with that: then it is taken anew.
func (b *Bolt) snapshot() (*tx, error) {
	for {
		l := b.layers.Load()
		file, err := b.db.Begin(false)
		if err != nil {
			return nil, err
		}
		if b.layers.Load().active == l.active {
			return &tx{active: l.active, frozen: l.frozen, db: b.db, file: &boltTx{tx: file}}, nil
		}
		if err := file.Rollback(); err != nil {
			return nil, err
		}
	}
}

// protect turns a panic of fn, or of the engine on a damaged page, into an error.
func protect(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v\n%s", ErrPanicked, p, debug.Stack())
		}
	}()
	return fn()
}

// Close answers what waits with ErrClosed, waits for running transactions, and releases the file.
func (b *Bolt) Close() error {
	b.closeOnce.Do(func() {
		b.mu.Lock()
		b.closed = true
		b.mu.Unlock()
		b.signal()
		<-b.done
		b.closeErr = errors.Join(b.leave(), b.db.Close())
	})
	return b.closeErr
}

// leave brings everything into the file, which then needs no journal.
func (b *Bolt) leave() error {
	if b.journal == nil {
		return nil
	}
	defer b.journal.close()
	if b.checkpoint.done != nil {
		<-b.checkpoint.done
	}
	if b.Err() != nil { // it has been told; what was acknowledged is in the journal
		return nil
	}
	if err := b.empty(false); err != nil {
		return err
	}
	return removeJournal(b.db.Path())
}
