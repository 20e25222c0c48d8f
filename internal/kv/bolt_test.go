package kv_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"relayd/internal/kv"
	"relayd/internal/kv/kvtest"
)

func TestMain(m *testing.M) {
	kvtest.Child(func(dir string) (kv.DB, error) { return kv.OpenBolt(filepath.Join(dir, "kv.db"), kv.BoltOptions{}) })
	goleak.VerifyTestMain(m)
}

func openBolt(t *testing.T, dir string) kv.DB {
	t.Helper()
	db, err := kv.OpenBolt(filepath.Join(dir, "kv.db"), kv.BoltOptions{})
	require.NoError(t, err)
	return db
}

func TestBoltConforms(t *testing.T) {
	t.Parallel()
	kvtest.Run(t, openBolt)
}

func TestBoltKeepsAcknowledgedWritesThroughKill(t *testing.T) {
	t.Parallel()
	kvtest.Crash(t, openBolt)
}

func TestSecondOpenerIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kv.db")
	db, err := kv.OpenBolt(path, kv.BoltOptions{})
	require.NoError(t, err)
	_, err = kv.OpenBolt(path, kv.BoltOptions{})
	require.ErrorIs(t, err, kv.ErrInUse)
	require.ErrorContains(t, err, path)
	require.NoError(t, db.Close())
	db, err = kv.OpenBolt(path, kv.BoltOptions{})
	require.NoError(t, err)
	require.NoError(t, db.Close())
}

func TestForeignAndDamagedFilesAreRefused(t *testing.T) {
	t.Parallel()
	for name, content := range map[string][]byte{
		"zero_bytes": {},
		"text":       bytes.Repeat([]byte("this is a mailbox\n"), 5000),
		"short":      []byte("x"),
		"zeros":      make([]byte, 1<<16),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "kv.db")
			require.NoError(t, os.WriteFile(path, content, 0o600))
			_, err := kv.OpenBolt(path, kv.BoltOptions{})
			require.ErrorIs(t, err, kv.ErrDamaged)
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			require.True(t, bytes.Equal(content, after), "the file was changed")
		})
	}
}

func TestNewStoreLeavesNoOtherFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, openBolt(t, dir).Close())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	info, err := entries[0].Info()
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

// A damaged page must never look like an empty store: every read either answers rightly or fails.
func TestFlippedPagesAreErrors(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("long, and of one goroutine")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "kv.db")
	db := openBolt(t, dir)
	want := map[string]string{}
	require.NoError(t, db.Update(t.Context(), func(tx kv.Tx) error {
		for i := range 2000 {
			k, v := fmt.Sprintf("%05d", i), fmt.Sprintf("value of %05d", i)
			want[k] = v
			if err := tx.Put("t", []byte(k), []byte(v)); err != nil {
				return err
			}
		}
		return nil
	}))
	require.NoError(t, db.Close())
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	for page := 2; page*4096 < len(whole) && page < 40; page++ {
		broken := bytes.Clone(whole)
		clear(broken[page*4096 : page*4096+16]) // the page header
		other := filepath.Join(t.TempDir(), "kv.db")
		require.NoError(t, os.WriteFile(other, broken, 0o600))
		db, err := kv.OpenBolt(other, kv.BoltOptions{})
		if err != nil {
			require.ErrorIs(t, err, kv.ErrDamaged)
			continue
		}
		found := 0
		err = db.View(t.Context(), func(tx kv.Tx) error {
			return tx.Scan("t", nil, nil, func(k, v []byte) (bool, error) {
				require.Equal(t, want[string(k)], string(v))
				found++
				return true, nil
			})
		})
		require.True(t, err != nil || found == len(want), "page %d: %d keys and no error", page, found)
		require.NoError(t, db.Close())
	}
}

func TestWaitForAPlaceIsBoundedByContext(t *testing.T) {
	t.Parallel()
	db := openBolt(t, t.TempDir())
	entered, leave := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = db.Update(context.Background(), func(kv.Tx) error {
			close(entered)
			<-leave
			return nil
		})
	})
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	var ran atomic.Bool
	wg.Go(func() {
		require.ErrorIs(t, db.Update(ctx, func(kv.Tx) error { ran.Store(true); return nil }), context.Canceled)
		close(leave)
	})
	cancel()
	wg.Wait()
	require.NoError(t, db.Close())
	require.False(t, ran.Load())
}

func BenchmarkPut(b *testing.B) {
	for _, c := range []struct{ writers, size int }{{1, 1024}, {64, 1024}, {256, 1024}, {64, 4 << 10}, {64, 100 << 10}} {
		b.Run(fmt.Sprintf("writers=%d/size=%d", c.writers, c.size), func(b *testing.B) {
			db, err := kv.OpenBolt(filepath.Join(b.TempDir(), "kv.db"), kv.BoltOptions{})
			require.NoError(b, err)
			defer db.Close()
			value := bytes.Repeat([]byte("x"), c.size)
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range c.writers {
				wg.Go(func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						key := binary.BigEndian.AppendUint64(nil, uint64(i))
						if err := db.Update(context.Background(), func(tx kv.Tx) error { return tx.Put("bench", key, value) }); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}
