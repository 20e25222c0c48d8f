package kv

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// filled makes a store of n records of which only every tenth is left.
func filled(t *testing.T, n int) (path string, db *Bolt) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "db")
	db, err := OpenBolt(path, BoltOptions{NoSync: true})
	require.NoError(t, err)
	key := func(i int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(i)) }
	require.NoError(t, db.Update(t.Context(), func(tx Tx) error {
		for i := range n {
			if err := tx.Put("t", key(i), bytes.Repeat([]byte{byte(i)}, 1000)); err != nil {
				return err
			}
		}
		return nil
	}))
	require.NoError(t, db.still(t.Context(), func() error { return nil })) // all of them were in the file
	require.NoError(t, db.Update(t.Context(), func(tx Tx) error {
		for i := range n {
			if i%10 != 0 {
				if err := tx.Delete("t", key(i)); err != nil {
					return err
				}
			}
		}
		return nil
	}))
	return path, db
}

func countRecords(t *testing.T, db DB) (n int) {
	t.Helper()
	require.NoError(t, db.View(t.Context(), func(tx Tx) error {
		return tx.Scan("t", nil, nil, func(_, _ []byte) (bool, error) { n++; return true, nil })
	}))
	return n
}

func TestCompactKeepsTheRecords(t *testing.T) {
	t.Parallel()
	path, db := filled(t, 10_000)
	space, err := db.Space()
	require.NoError(t, err)
	require.Positive(t, space.Inside)
	require.Greater(t, space.Total, space.Disk)
	_, _, err = Compact(t.Context(), path)
	require.ErrorIs(t, err, ErrInUse)
	require.NoError(t, db.Close())
	left := filepath.Join(filepath.Dir(path), ".db.compact-1") // of one that was killed
	require.NoError(t, os.WriteFile(left, []byte("half"), 0o600))
	before, after, err := Compact(t.Context(), path)
	require.NoError(t, err)
	require.Less(t, after, before/2)
	require.NoFileExists(t, left)
	db, err = OpenBolt(path, BoltOptions{NoSync: true})
	require.NoError(t, err)
	require.Equal(t, 1000, countRecords(t, db))
	require.NoError(t, db.Close())
}

// A child of this process has the descriptors of its parent between fork and exec: what was opened for reading and closed is
// free to be opened for writing all the same.
func TestAForkedDescriptorKeepsNoLock(t *testing.T) {
	t.Parallel()
	path, db := filled(t, 1)
	require.NoError(t, db.Close())
	read, file, err := openLocked(path, bolt.Options{ReadOnly: true})
	require.NoError(t, err)
	child, err := syscall.Dup(int(file.Fd()))
	require.NoError(t, err)
	defer syscall.Close(child) //nolint:errcheck // a test
	require.NoError(t, closeLocked(read, file))
	db, err = OpenBolt(path, BoltOptions{NoSync: true})
	require.NoError(t, err)
	require.NoError(t, db.Close())
}

func TestSoundPagesPassAndDamagedOnesDoNot(t *testing.T) {
	t.Parallel()
	path, db := filled(t, 200)
	require.ErrorIs(t, CheckPages(t.Context(), path, nil), ErrInUse)
	require.NoError(t, db.Close())
	require.NoError(t, CheckPages(t.Context(), path, func(p string) { t.Error(p) }))
	ro, err := OpenReadOnly(path)
	require.NoError(t, err)
	require.Equal(t, 20, countRecords(t, ro))
	require.ErrorIs(t, ro.Update(t.Context(), func(Tx) error { return nil }), ErrReadOnly)
	require.NoError(t, ro.Close())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	page := os.Getpagesize()
	damaged := 0
	for at := 2 * page; at+page <= len(b); at += page {
		broken := bytes.Clone(b)
		for i := range 64 {
			broken[at+i] ^= 0xa5
		}
		p := filepath.Join(t.TempDir(), "broken")
		require.NoError(t, os.WriteFile(p, broken, 0o600))
		n := 0
		if err := CheckPages(t.Context(), p, func(string) { n++ }); err != nil || n > 0 {
			damaged++
		}
		if damaged > 2 {
			break
		}
	}
	require.Positive(t, damaged)
}

func TestBackupIsAWholeStore(t *testing.T) {
	t.Parallel()
	_, db := filled(t, 1000)
	copied := filepath.Join(t.TempDir(), "copy")
	f, err := os.Create(copied)
	require.NoError(t, err)
	size := int64(0)
	err = db.Backup(t.Context(), func(n int64) (io.Writer, error) {
		size = n
		return f, db.Update(t.Context(), func(tx Tx) error { return tx.Put("t", []byte("later"), nil) })
	})
	require.NoError(t, err)
	require.NoError(t, f.Close())
	info, err := os.Stat(copied)
	require.NoError(t, err)
	require.Equal(t, size, info.Size())
	require.NoError(t, CheckPages(t.Context(), copied, func(p string) { t.Error(p) }))
	other, err := OpenBolt(copied, BoltOptions{NoSync: true})
	require.NoError(t, err)
	require.Equal(t, 100, countRecords(t, other), "the snapshot does not have the later record")
	require.NoError(t, other.Close())
	require.Equal(t, 101, countRecords(t, db))
	require.NoError(t, db.Close())
}
