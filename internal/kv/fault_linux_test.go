package kv_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
)

// replaceFile puts another file behind the descriptor with which the store has path open, and returns a function that
// undoes it.
func replaceFile(t *testing.T, path, by string) func() {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, e := range entries {
		if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err != nil || name != path {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		require.NoError(t, err)
		saved, err := syscall.Dup(fd)
		require.NoError(t, err)
		other, err := os.OpenFile(by, os.O_RDWR, 0)
		require.NoError(t, err)
		require.NoError(t, syscall.Dup3(int(other.Fd()), fd, syscall.O_CLOEXEC))
		require.NoError(t, other.Close())
		return func() {
			require.NoError(t, syscall.Dup3(saved, fd, syscall.O_CLOEXEC))
			require.NoError(t, syscall.Close(saved))
		}
	}
	t.Fatal("the store's file is not open")
	return nil
}

// faulty is a store of which a test lets files fail.
type faulty struct {
	*kv.Bolt
	t    *testing.T
	path string
}

func openFaulty(t *testing.T, failed func(error)) *faulty {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kv.db")
	db, err := kv.OpenBolt(path, kv.BoltOptions{Failed: failed})
	require.NoError(t, err)
	return &faulty{db, t, path}
}

func (f *faulty) put(key string) error {
	return f.Update(f.t.Context(), func(tx kv.Tx) error { return tx.Put("t", []byte(key), []byte("v")) })
}

// journal replaces both files of the journal.
func (f *faulty) journal(by string) (undo func()) {
	undo0, undo1 := replaceFile(f.t, f.path+".journal-0", by), replaceFile(f.t, f.path+".journal-1", by)
	return func() { undo0(); undo1() }
}

func (f *faulty) requireKeys(want ...string) {
	f.t.Helper()
	require.NoError(f.t, f.View(f.t.Context(), func(tx kv.Tx) error {
		var got []string
		err := tx.Scan("t", nil, nil, func(k, _ []byte) (bool, error) { got = append(got, string(k)); return true, nil })
		require.Equal(f.t, want, got)
		return err
	}))
}

func (f *faulty) reopen() {
	f.t.Helper()
	require.NoError(f.t, f.Close())
	var err error
	f.Bolt, err = kv.OpenBolt(f.path, kv.BoltOptions{})
	require.NoError(f.t, err)
}

// writtenTo tells which files of the journal, 1 and 2 or both, have a put of the key.
func (f *faulty) writtenTo(key string) (files int) {
	for i, name := range kv.JournalNames(f.path) {
		text, err := os.ReadFile(name)
		require.NoError(f.t, err)
		if bytes.Contains(text, append([]byte{1, 't', byte(len(key))}, key...)) {
			files |= 1 << i
		}
	}
	return files
}

func (f *faulty) backup() error {
	return f.Backup(f.t.Context(), func(int64) (io.Writer, error) { return io.Discard, nil })
}

func TestFullDiskHarmsOnlyItsBatch(t *testing.T) {
	t.Parallel()
	db := openFaulty(t, nil)
	require.NoError(t, db.put("a before"))
	undo := db.journal("/dev/full") // every write says ENOSPC
	err := db.put("full")
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorIs(t, err, kv.ErrNoSpace)
	require.NoError(t, db.Err())
	undo()
	require.NoError(t, db.put("b after"))
	db.requireKeys("a before", "b after")
	db.reopen()
	db.requireKeys("a before", "b after")
	require.NoError(t, db.Close())
}

// A journal that cannot grow is brought into the store file: then there is room at its start.
func TestFullDiskTurnsToTheOtherJournal(t *testing.T) {
	t.Parallel()
	db := openFaulty(t, nil)
	require.NoError(t, db.put("a"))
	undo := replaceFile(t, db.path+".journal-0", "/dev/full")
	require.NoError(t, db.put("b"))
	undo()
	db.reopen()
	db.requireKeys("a", "b")
	require.NoError(t, db.Close())
}

func TestFailedSyncEndsWriting(t *testing.T) {
	t.Parallel()
	var told []error
	db := openFaulty(t, func(err error) { told = append(told, err) })
	require.NoError(t, db.put("before"))
	undo := db.journal("/dev/null") // takes writes, fails fdatasync
	require.ErrorIs(t, db.put("lost"), kv.ErrStorageFailed)
	undo()
	require.ErrorIs(t, db.put("after"), kv.ErrStorageFailed, "it must not carry on as if the data were safe")
	require.ErrorIs(t, db.Err(), kv.ErrStorageFailed)
	require.Len(t, told, 1)
	require.ErrorIs(t, told[0], kv.ErrStorageFailed)
	db.requireKeys("before")
	db.reopen()
	db.requireKeys("before")
	require.NoError(t, db.Close())
}

// A checkpoint that fails loses nothing: the journal has it all.
func TestFullDiskUnderTheStoreFile(t *testing.T) {
	t.Parallel()
	db := openFaulty(t, nil)
	require.NoError(t, db.put("a"))
	undo := replaceFile(t, db.path, "/dev/full")
	require.ErrorIs(t, db.backup(), kv.ErrNoSpace)
	require.NoError(t, db.put("b"), "the journal still takes it")
	require.ErrorIs(t, db.backup(), kv.ErrNoSpace)
	require.NoError(t, db.put("c"))
	require.NoError(t, db.Err())
	db.requireKeys("a", "b", "c")
	undo()
	require.NoError(t, db.put("d"))
	require.NoError(t, db.backup())
	db.requireKeys("a", "b", "c", "d")
	db.reopen()
	db.requireKeys("a", "b", "c", "d")
	require.NoError(t, db.Close())
}

func TestFailedSyncOfTheStoreFile(t *testing.T) {
	t.Parallel()
	db := openFaulty(t, nil)
	require.NoError(t, db.put("a"))
	undo := replaceFile(t, db.path, "/dev/null")
	require.ErrorIs(t, db.backup(), kv.ErrStorageFailed)
	undo()
	require.ErrorIs(t, db.put("b"), kv.ErrStorageFailed)
	db.requireKeys("a")
	db.reopen()
	db.requireKeys("a")
	require.NoError(t, db.Close())
}

// A store that could not bring its journal into the file comes back from both files of it.
func TestBothJournalsAreReplayed(t *testing.T) {
	t.Parallel()
	db := openFaulty(t, nil)
	require.NoError(t, db.put("a"))
	require.NoError(t, db.backup())
	undo := replaceFile(t, db.path, "/dev/full")
	require.NoError(t, db.put("b"))
	first := db.writtenTo("b")
	require.Eventually(t, func() bool { // the checkpoint of "b" fails after a second, and what comes then goes to the other file
		return db.put("c") == nil && db.writtenTo("c")&^first != 0
	}, 20*time.Second, 20*time.Millisecond)
	require.NoError(t, db.Update(t.Context(), func(tx kv.Tx) error { return tx.Delete("t", []byte("b")) }))
	require.NoError(t, db.put("d"))
	db.requireKeys("a", "c", "d")
	copied := filepath.Join(t.TempDir(), "kv.db") // as after a loss of power
	for i, name := range kv.JournalNames(db.path) {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(kv.JournalNames(copied)[i], text, 0o600))
	}
	text, err := os.ReadFile(db.path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(copied, text, 0o600))
	undo()
	require.NoError(t, db.Close())
	db.path = copied
	db.Bolt, err = kv.OpenBolt(copied, kv.BoltOptions{})
	require.NoError(t, err)
	db.requireKeys("a", "c", "d")
	require.NoError(t, db.Close())
}
