package kv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// abandon leaves the store as a process that was killed would: what is not on the disk is gone.
func abandon(t *testing.T, b *Bolt) {
	t.Helper()
	b.mu.Lock()
	b.failed = errors.New("killed") // nothing more is written
	b.mu.Unlock()
	require.NoError(t, b.Close())
}

func put(t *testing.T, db DB, key, value string) {
	t.Helper()
	require.NoError(t, db.Update(t.Context(), func(tx Tx) error { return tx.Put("t", []byte(key), []byte(value)) }))
}

func remove(t *testing.T, db DB, key string) {
	t.Helper()
	require.NoError(t, db.Update(t.Context(), func(tx Tx) error { return tx.Delete("t", []byte(key)) }))
}

func content(t *testing.T, db DB) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, db.View(t.Context(), func(tx Tx) error {
		return tx.Scan("t", nil, nil, func(k, v []byte) (bool, error) {
			got, err := tx.Get("t", k)
			require.NoError(t, err)
			require.Equal(t, string(v), string(got))
			all[string(k)] = string(v)
			return true, nil
		})
	}))
	return all
}

func openStore(t *testing.T, path string) *Bolt {
	t.Helper()
	b, err := OpenBolt(path, BoltOptions{})
	require.NoError(t, err)
	return b
}

// TestModel compares the store with a map through random batches, checkpoints, kills and reopens.
func TestModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test
			path := filepath.Join(t.TempDir(), "db")
			db := openStore(t, path)
			want := map[string]string{}
			for range 400 {
				switch n := rnd.IntN(100); {
				case n < 3:
					abandon(t, db)
					db = openStore(t, path)
				case n < 5:
					require.NoError(t, db.Close())
					require.NoFileExists(t, path+".journal-0")
					db = openStore(t, path)
				case n < 12:
					require.NoError(t, db.still(t.Context(), func() error { return nil }))
				case n < 22:
					db.aged.Store(db.layers.Load().epoch) // a checkpoint goes on beside what follows
				default:
					batch := maps.Clone(want)
					require.NoError(t, db.Update(t.Context(), func(tx Tx) error {
						batch = maps.Clone(want)
						for range rnd.IntN(30) {
							key := fmt.Sprintf("%03d", rnd.IntN(300))
							if rnd.IntN(2) == 0 {
								batch[key] = fmt.Sprint(rnd.Uint64())
								if err := tx.Put("t", []byte(key), []byte(batch[key])); err != nil {
									return err
								}
							} else {
								delete(batch, key)
								if err := tx.Delete("t", []byte(key)); err != nil {
									return err
								}
							}
							from, to := fmt.Sprintf("%03d", rnd.IntN(300)), fmt.Sprintf("%03d", rnd.IntN(300))
							require.Equal(t, between(batch, from, to), scanned(t, tx, from, to))
						}
						return nil
					}))
					want = batch
				}
				if rnd.IntN(5) == 0 {
					require.Equal(t, want, content(t, db))
				}
			}
			require.NoError(t, db.Close())
			db = openStore(t, path)
			require.Equal(t, want, content(t, db))
			require.NoError(t, db.Close())
		})
	}
}

func between(m map[string]string, from, to string) []string {
	var keys []string
	for k := range m {
		if k >= from && k < to {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func scanned(t *testing.T, tx Tx, from, to string) (keys []string) {
	t.Helper()
	require.NoError(t, tx.Scan("t", []byte(from), []byte(to), func(k, _ []byte) (bool, error) {
		keys = append(keys, string(k))
		return true, nil
	}))
	return keys
}

// A View keeps seeing one moment, whatever is committed and brought into the file meanwhile: by checkpoints, or by backups,
// which bring the active layer there.
func TestViewIsOneMoment(t *testing.T) {
	t.Parallel()
	for name, bring := range map[string]func(*Bolt) error{
		"checkpoint": func(db *Bolt) error {
			db.aged.Store(db.layers.Load().epoch)
			return nil
		},
		"backup": func(db *Bolt) error {
			return db.Backup(t.Context(), func(int64) (io.Writer, error) { return io.Discard, nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			viewIsOneMoment(t, bring)
		})
	}
}

func viewIsOneMoment(t *testing.T, bring func(*Bolt) error) {
	t.Helper()
	db := openStore(t, filepath.Join(t.TempDir(), "db"))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { // each commit makes all keys say the same
		for i := 0; ctx.Err() == nil; i++ {
			_ = db.Update(ctx, func(tx Tx) error {
				for k := range 20 {
					if err := tx.Put("t", fmt.Appendf(nil, "%02d", k), fmt.Append(nil, i)); err != nil {
						return err
					}
				}
				return nil
			})
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := bring(db); err != nil {
				t.Error(err)
				return
			}
			runtime.Gosched()
		}
	})
	for range 2000 {
		require.NoError(t, db.View(ctx, func(tx Tx) error {
			var first []byte
			return tx.Scan("t", nil, nil, func(_, v []byte) (bool, error) {
				if first == nil {
					first = v
				}
				require.Equal(t, string(first), string(v))
				return true, nil
			})
		}))
	}
	cancel()
	wg.Wait()
	require.NoError(t, db.Close())
}

// What came and went between two checkpoints leaves nothing in memory, and nothing in the file.
func TestShortLivedLeavesNothing(t *testing.T) {
	t.Parallel()
	db := openStore(t, filepath.Join(t.TempDir(), "db"))
	for i := range 100 {
		put(t, db, fmt.Sprint(i), "v")
		remove(t, db, fmt.Sprint(i))
	}
	require.Less(t, db.layers.Load().active.bytes, 2*entryOverhead, "at most the one that was frozen meanwhile")
	require.NoError(t, db.Close())
}

// A key that is on its way to the file while it is deleted must not come back from there.
func TestDeletedWhileFrozenStaysDeleted(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	db := openStore(t, path)
	for i := range 300 {
		key := fmt.Sprint(i)
		put(t, db, key, "v")
		db.aged.Store(db.layers.Load().epoch)
		remove(t, db, key)
		require.Empty(t, content(t, db))
	}
	abandon(t, db)
	db = openStore(t, path)
	require.Empty(t, content(t, db))
	require.NoError(t, db.Close())
}

func TestLargeLayersAreWrittenInParts(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	db := openStore(t, path)
	want := map[string]string{}
	for i := range 40 {
		require.NoError(t, db.Update(t.Context(), func(tx Tx) error {
			for k := range 30 {
				key, value := fmt.Sprintf("%d.%d", i, k), bytes.Repeat([]byte{byte('a' + i%26)}, 32<<10)
				want[key] = string(value)
				if err := tx.Put("t", []byte(key), value); err != nil {
					return err
				}
			}
			return nil
		}))
		l := db.layers.Load()
		require.Less(t, l.active.bytes, 2*maxLayer)
	}
	require.Equal(t, want, content(t, db))
	abandon(t, db)
	db = openStore(t, path)
	require.Equal(t, want, content(t, db))
	require.NoError(t, db.Close())
}

// killed makes a store with some acknowledged records in its journal only, and says in which file and where they end.
func killed(t *testing.T, records int) (path string, want map[string]string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "db")
	db := openStore(t, path)
	put(t, db, "in the file", "v")
	require.NoError(t, db.still(t.Context(), func() error { return nil }))
	want = map[string]string{"in the file": "v"}
	for i := range records {
		key := fmt.Sprint(i)
		want[key] = string(bytes.Repeat([]byte(key), 5000))
		put(t, db, key, want[key])
	}
	abandon(t, db)
	return path, want
}

func newerFile(t *testing.T, path string) string {
	t.Helper()
	for _, name := range JournalNames(path) {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		if bytes.Contains(b, []byte("0000000000")) {
			return name
		}
	}
	t.Fatal("no journal has the records")
	return ""
}

// Whatever is cut off or damaged at the end of the journal was never acknowledged; whatever is damaged before a whole
// record was.
func TestDamagedJournals(t *testing.T) {
	t.Parallel()
	path, want := killed(t, 10)
	name := newerFile(t, path)
	whole, err := os.ReadFile(name)
	require.NoError(t, err)
	starts := []int{}
	for at := 0; at+recordBlock <= len(whole); at += recordBlock {
		if bytes.Equal(whole[at:at+4], []byte("RLJ1")) {
			starts = append(starts, at)
		}
	}
	require.Len(t, starts, 10)
	try := func(b []byte) (map[string]string, error) {
		require.NoError(t, os.WriteFile(name, b, 0o600))
		ro, err := OpenReadOnly(path) // changes nothing
		if err != nil {
			return nil, err
		}
		defer ro.Close()
		return content(t, ro), nil
	}
	got, err := try(whole)
	require.NoError(t, err)
	require.Equal(t, want, got)
	for i, at := range starts {
		for _, off := range []int{0, 5, 9, 17, 25, 33, 40, 4000} {
			broken := bytes.Clone(whole)
			broken[at+off] ^= 0x40
			got, err := try(broken)
			if i < len(starts)-1 || off == 9 && i == 0 {
				require.ErrorIs(t, err, ErrDamaged, "record %d, byte %d", i, off)
				continue
			}
			require.NoError(t, err)
			require.Len(t, got, len(want)-1, "the last one was half written")
		}
		got, err = try(whole[:at]) // cut off
		require.NoError(t, err)
		require.Len(t, got, i+1)
	}
	require.NoError(t, os.WriteFile(name, whole, 0o600))
	db := openStore(t, path)
	require.Equal(t, want, content(t, db))
	require.NoError(t, db.Close())
}

func TestJournalOfAnotherTimeOrStoreIsRefused(t *testing.T) {
	t.Parallel()
	path, _ := killed(t, 3)
	other, _ := killed(t, 3)
	t.Run("missing", func(t *testing.T) {
		for _, name := range JournalNames(path) {
			require.NoError(t, os.Rename(name, name+"~"))
			_, err := OpenBolt(path, BoltOptions{})
			require.ErrorIs(t, err, ErrDamaged)
			require.ErrorContains(t, err, "journal")
			require.NoError(t, os.Rename(name+"~", name))
		}
	})
	t.Run("another_store", func(t *testing.T) {
		name := newerFile(t, path)
		mine, err := os.ReadFile(name)
		require.NoError(t, err)
		theirs, err := os.ReadFile(newerFile(t, other))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(name, theirs, 0o600))
		_, err = OpenBolt(path, BoltOptions{})
		require.ErrorIs(t, err, ErrDamaged)
		require.ErrorContains(t, err, "another store")
		require.NoError(t, os.WriteFile(name, mine, 0o600))
	})
	t.Run("no_store", func(t *testing.T) {
		require.NoError(t, os.Rename(other, other+"~"))
		_, err := OpenBolt(other, BoltOptions{})
		require.ErrorIs(t, err, ErrDamaged, "an empty store must not hide what the journal has")
		require.NoFileExists(t, other)
		require.NoError(t, os.Rename(other+"~", other))
	})
	t.Run("older_copy", func(t *testing.T) {
		db := openStore(t, path)
		backup := filepath.Join(t.TempDir(), "copy")
		f, err := os.Create(backup) //nolint:gosec // a test
		require.NoError(t, err)
		require.NoError(t, db.Backup(t.Context(), func(int64) (io.Writer, error) { return f, nil }))
		require.NoError(t, f.Close())
		for range 3 {
			put(t, db, "later", "v")
			require.NoError(t, db.still(t.Context(), func() error { return nil }))
		}
		put(t, db, "later", "v")
		abandon(t, db)
		b, err := os.ReadFile(backup)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, b, 0o600))
		_, err = OpenBolt(path, BoltOptions{})
		require.ErrorIs(t, err, ErrDamaged)
		require.ErrorContains(t, err, "take away the files db.journal-*")
		require.NoError(t, removeJournal(path))
		db = openStore(t, path)
		require.NotContains(t, content(t, db), "later")
		require.NoError(t, db.Close())
	})
}

// The timer of an older epoch may come after that of the epoch that has waited: it must not hide it from a committer that was
// busy meanwhile, who would leave the records in the journal for as long as nothing more comes.
func TestLateTimerOfAnOlderEpochHidesNothing(t *testing.T) {
	t.Parallel()
	db := openStore(t, filepath.Join(t.TempDir(), "db"))
	put(t, db, "k", "v") // begins to wait
	epoch := db.layers.Load().epoch
	db.age(epoch - 1)
	busy, over := make(chan struct{}), make(chan error, 1)
	go func() {
		over <- db.Update(t.Context(), func(Tx) error {
			<-busy
			return nil
		})
	}()
	<-time.After(maxAge + maxAge/2)
	close(busy)
	require.NoError(t, <-over)
	require.Eventually(t, func() bool { return db.layers.Load().epoch > epoch }, time.Minute, time.Millisecond)
	require.NoError(t, db.Close())
}

// On a quiet store, what was committed is in the file a second later.
func TestAgedRecordsAreBroughtIntoTheFile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := openStore(t, filepath.Join(t.TempDir(), "db"))
		put(t, db, "k", "v")
		require.Positive(t, db.layers.Load().active.bytes)
		for i := 0; i < 100 && !(db.layers.Load().active.bytes == 0 && db.layers.Load().frozen == nil); i++ {
			synctest.Wait()
			time.Sleep(maxAge / 10)
		}
		require.Zero(t, db.layers.Load().active.bytes)
		require.Nil(t, db.layers.Load().frozen)
		require.Equal(t, map[string]string{"k": "v"}, content(t, db))
		require.NoError(t, db.Close())
	})
}

func FuzzRecords(f *testing.F) {
	var r record
	r.add(opPut, "table", []byte("key"), []byte("value"))
	r.add(opDelete, "t", []byte("k"), nil)
	f.Add(r.ops)
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		l := &layer{}
		if err := l.apply(ops); err != nil {
			require.ErrorIs(t, err, ErrDamaged)
		}
	})
}
