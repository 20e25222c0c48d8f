package kv_test

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

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

func TestFullDiskHarmsOnlyItsBatch(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kv.db")
	db, err := kv.OpenBolt(path, kv.BoltOptions{})
	require.NoError(t, err)
	put := func(key string) error {
		return db.Update(t.Context(), func(tx kv.Tx) error { return tx.Put("t", []byte(key), []byte("v")) })
	}
	require.NoError(t, put("before"))
	undo := replaceFile(t, path, "/dev/full") // every write says ENOSPC
	err = put("full")
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorIs(t, err, kv.ErrNoSpace)
	require.NoError(t, db.Err())
	undo()
	require.NoError(t, put("after"))
	require.NoError(t, db.Close())
	db, err = kv.OpenBolt(path, kv.BoltOptions{})
	require.NoError(t, err)
	require.NoError(t, db.View(t.Context(), func(tx kv.Tx) error {
		vs, err := tx.GetMany("t", [][]byte{[]byte("before"), []byte("full"), []byte("after")})
		require.NotNil(t, vs[0])
		require.Nil(t, vs[1])
		require.NotNil(t, vs[2])
		return err
	}))
	require.NoError(t, db.Close())
}

func TestFailedSyncEndsWriting(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kv.db")
	var told []error
	db, err := kv.OpenBolt(path, kv.BoltOptions{Failed: func(err error) { told = append(told, err) }})
	require.NoError(t, err)
	put := func(key string) error {
		return db.Update(t.Context(), func(tx kv.Tx) error { return tx.Put("t", []byte(key), []byte("v")) })
	}
	require.NoError(t, put("before"))
	undo := replaceFile(t, path, "/dev/null") // takes writes, fails fdatasync
	require.ErrorIs(t, put("lost"), kv.ErrStorageFailed)
	undo()
	require.ErrorIs(t, put("after"), kv.ErrStorageFailed, "it must not carry on as if the data were safe")
	require.ErrorIs(t, db.Err(), kv.ErrStorageFailed)
	require.Len(t, told, 1)
	require.ErrorIs(t, told[0], kv.ErrStorageFailed)
	require.NoError(t, db.View(t.Context(), func(tx kv.Tx) error {
		v, err := tx.Get("t", []byte("before"))
		require.NotNil(t, v)
		return err
	}))
	require.NoError(t, db.Close())
}
