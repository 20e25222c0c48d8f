// Package kvtest is the conformance suite of kv.DB: every engine must pass it.
package kvtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
)

// Run runs the suite. open opens the store in dir, anew or again; the suite closes it. See Child for what survives
// the death of the process.
func Run(t *testing.T, open func(t *testing.T, dir string) kv.DB) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, *fixture){
		"get_returns_nil_for_missing_keys_and_tables": missing,
		"put_replaces_and_delete_removes":             putDelete,
		"empty_values_are_kept":                       emptyValues,
		"scan_is_ordered_and_bounded":                 scanOrder,
		"scan_stops_when_told_or_on_error":            scanStop,
		"writes_are_seen_by_later_reads_of_their_tx":  ownWrites,
		"a_table_can_be_emptied_and_filled_in_one_tx": emptied,
		"view_is_a_snapshot":                          snapshot,
		"failing_update_leaves_nothing":               failing,
		"failing_update_harms_no_other":               isolation,
		"panicking_update_harms_no_other":             panicking,
		"concurrent_updates_are_serial":               concurrent,
		"values_up_to_the_limit":                      bigValues,
		"keys_and_values_out_of_bounds_are_refused":   bounds,
		"cancelled_context_is_refused":                cancelled,
		"closed_store_refuses":                        closed,
		"everything_is_there_after_reopen":            reopen,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &fixture{dir: t.TempDir(), open: open}
			f.db = open(t, f.dir)
			t.Cleanup(func() { require.NoError(t, f.db.Close()) })
			test(t, f)
		})
	}
}

const table = kv.Table("kvtest")

type fixture struct {
	dir  string
	open func(t *testing.T, dir string) kv.DB
	db   kv.DB
}

func (f *fixture) update(t *testing.T, fn func(kv.Tx) error) {
	t.Helper()
	require.NoError(t, f.db.Update(t.Context(), fn))
}

func (f *fixture) put(t *testing.T, key, value string) {
	t.Helper()
	f.update(t, func(tx kv.Tx) error { return tx.Put(table, []byte(key), []byte(value)) })
}

// get returns a copy, nil when the key is missing.
func (f *fixture) get(t *testing.T, key string) []byte {
	t.Helper()
	var value []byte
	require.NoError(t, f.db.View(t.Context(), func(tx kv.Tx) error {
		v, err := tx.Get(table, []byte(key))
		value = bytes.Clone(v)
		return err
	}))
	return value
}

func keys(tx kv.Tx, from, to []byte) ([]string, error) {
	found := []string{}
	err := tx.Scan(table, from, to, func(k, _ []byte) (bool, error) {
		found = append(found, string(k))
		return true, nil
	})
	return found, err
}

func missing(t *testing.T, f *fixture) {
	check := func(tx kv.Tx) error {
		v, err := tx.Get("nowhere", []byte("k"))
		if err != nil || v != nil {
			return fmt.Errorf("missing table: %v %w", v, err)
		}
		vs, err := tx.GetMany("nowhere", [][]byte{[]byte("a"), []byte("b")})
		if err != nil || len(vs) != 2 || vs[0] != nil || vs[1] != nil {
			return fmt.Errorf("missing table: %v %w", vs, err)
		}
		if err := tx.Scan("nowhere", nil, nil, func(_, _ []byte) (bool, error) { return false, errors.New("found") }); err != nil {
			return err
		}
		v, err = tx.Get(table, []byte("other"))
		if v != nil {
			return fmt.Errorf("missing key: %v", v)
		}
		return err
	}
	f.put(t, "k", "v")
	require.NoError(t, f.db.View(t.Context(), check))
	f.update(t, check)
	f.update(t, func(tx kv.Tx) error { return tx.Delete("nowhere", []byte("k")) })
	f.update(t, func(tx kv.Tx) error { return tx.Delete(table, []byte("other")) })
}

func putDelete(t *testing.T, f *fixture) {
	f.put(t, "k", "1")
	f.put(t, "k", "2")
	require.Equal(t, "2", string(f.get(t, "k")))
	f.update(t, func(tx kv.Tx) error { return tx.Delete(table, []byte("k")) })
	require.Nil(t, f.get(t, "k"))
}

func emptyValues(t *testing.T, f *fixture) {
	f.update(t, func(tx kv.Tx) error {
		return errors.Join(tx.Put(table, []byte("empty"), []byte{}), tx.Put(table, []byte("nil"), nil))
	})
	require.NoError(t, f.db.View(t.Context(), func(tx kv.Tx) error {
		vs, err := tx.GetMany(table, [][]byte{[]byte("empty"), []byte("nil"), []byte("missing")})
		require.NoError(t, err)
		require.NotNil(t, vs[0])
		require.Empty(t, vs[0])
		require.NotNil(t, vs[1])
		require.Empty(t, vs[1])
		require.Nil(t, vs[2])
		return nil
	}))
}

func scanOrder(t *testing.T, f *fixture) {
	f.update(t, func(tx kv.Tx) error {
		for _, k := range []string{"b", "a", "ab", "\xff", "\x00", "c", "a\x00"} {
			if err := tx.Put(table, []byte(k), []byte("v"+k)); err != nil {
				return err
			}
		}
		return tx.Put("neighbour", []byte("a"), nil)
	})
	require.NoError(t, f.db.View(t.Context(), func(tx kv.Tx) error {
		for _, c := range []struct {
			from, to []byte
			want     []string
		}{
			{nil, nil, []string{"\x00", "a", "a\x00", "ab", "b", "c", "\xff"}},
			{[]byte("a"), []byte("b"), []string{"a", "a\x00", "ab"}},
			{[]byte("aa"), nil, []string{"ab", "b", "c", "\xff"}},
			{[]byte("a"), kv.PrefixEnd([]byte("a")), []string{"a", "a\x00", "ab"}},
			{[]byte("\xff"), kv.PrefixEnd([]byte("\xff")), []string{"\xff"}},
			{[]byte("b"), []byte("b"), []string{}},
			{[]byte("c"), []byte("a"), []string{}},
		} {
			got, err := keys(tx, c.from, c.to)
			require.NoError(t, err)
			require.Equal(t, c.want, got, "%q to %q", c.from, c.to)
		}
		return tx.Scan(table, []byte("b"), nil, func(k, v []byte) (bool, error) {
			require.Equal(t, "b", string(k))
			require.Equal(t, "vb", string(v))
			return false, nil
		})
	}))
}

func scanStop(t *testing.T, f *fixture) {
	f.put(t, "a", "")
	f.put(t, "b", "")
	stop := errors.New("stop")
	n := 0
	err := f.db.View(t.Context(), func(tx kv.Tx) error {
		return tx.Scan(table, nil, nil, func(_, _ []byte) (bool, error) {
			n++
			return true, stop
		})
	})
	require.ErrorIs(t, err, stop)
	require.Equal(t, 1, n)
}

func ownWrites(t *testing.T, f *fixture) {
	f.put(t, "a", "old")
	f.put(t, "gone", "old")
	f.update(t, func(tx kv.Tx) error {
		err := errors.Join(tx.Put(table, []byte("a"), []byte("new")), tx.Put(table, []byte("b"), []byte("new")),
			tx.Delete(table, []byte("gone")))
		if err != nil {
			return err
		}
		v, err := tx.Get(table, []byte("a"))
		require.NoError(t, err)
		require.Equal(t, "new", string(v))
		vs, err := tx.GetMany(table, [][]byte{[]byte("b"), []byte("gone")})
		require.NoError(t, err)
		require.Equal(t, "new", string(vs[0]))
		require.Nil(t, vs[1])
		got, err := keys(tx, nil, nil)
		require.NoError(t, err)
		require.Equal(t, []string{"a", "b"}, got)
		return nil
	})
}

func emptied(t *testing.T, f *fixture) {
	const n = 1000 // several pages
	key := func(i int) []byte { return fmt.Appendf(nil, "%05d", i) }
	for range 3 {
		f.update(t, func(tx kv.Tx) error {
			for i := range n {
				if err := tx.Put(table, key(i), []byte("some value to fill the page")); err != nil {
					return err
				}
			}
			return nil
		})
		f.update(t, func(tx kv.Tx) error {
			for i := range n {
				if err := tx.Delete(table, key(i)); err != nil {
					return err
				}
			}
			got, err := keys(tx, nil, nil)
			require.NoError(t, err)
			require.Empty(t, got)
			v, err := tx.Get(table, key(7))
			require.NoError(t, err)
			require.Nil(t, v)
			require.NoError(t, tx.Put(table, []byte("x"), nil))
			got, err = keys(tx, []byte("00500"), nil)
			require.Equal(t, []string{"x"}, got)
			return err
		})
		f.update(t, func(tx kv.Tx) error { return tx.Delete(table, []byte("x")) })
	}
}

func snapshot(t *testing.T, f *fixture) {
	f.put(t, "a", "1")
	require.NoError(t, f.db.View(t.Context(), func(tx kv.Tx) error {
		done := make(chan error)
		go func() {
			done <- f.db.Update(context.Background(), func(tx kv.Tx) error {
				return errors.Join(tx.Put(table, []byte("a"), []byte("2")), tx.Put(table, []byte("b"), []byte("2")))
			})
		}()
		require.NoError(t, <-done)
		v, err := tx.Get(table, []byte("a"))
		require.NoError(t, err)
		require.Equal(t, "1", string(v))
		got, err := keys(tx, nil, nil)
		require.Equal(t, []string{"a"}, got)
		return err
	}))
	require.Equal(t, "2", string(f.get(t, "a")))
}

func failing(t *testing.T, f *fixture) {
	f.put(t, "a", "1")
	refused := errors.New("refused")
	err := f.db.Update(t.Context(), func(tx kv.Tx) error {
		return errors.Join(tx.Put(table, []byte("a"), []byte("2")), tx.Put(table, []byte("b"), nil),
			tx.Put("fresh", []byte("b"), nil), refused)
	})
	require.ErrorIs(t, err, refused)
	require.Equal(t, "1", string(f.get(t, "a")))
	require.Nil(t, f.get(t, "b"))
}

// spoiled runs good and bad Updates together, bad ones before and after they write.
func spoiled(t *testing.T, f *fixture, fail func() error) {
	const n = 200
	var wg sync.WaitGroup
	results := make([]error, n)
	for i := range n {
		wg.Go(func() {
			results[i] = f.db.Update(context.Background(), func(tx kv.Tx) error {
				if i%5 == 1 {
					return fail()
				}
				if err := tx.Put(table, fmt.Appendf(nil, "%03d", i), []byte("v")); err != nil || i%5 != 2 {
					return err
				}
				return fail()
			})
		})
	}
	wg.Wait()
	for i, err := range results {
		bad := i%5 == 1 || i%5 == 2
		require.Equal(t, bad, err != nil, "%d: %v", i, err)
		require.Equal(t, !bad, f.get(t, fmt.Sprintf("%03d", i)) != nil, "%d", i)
	}
}

func isolation(t *testing.T, f *fixture) {
	spoiled(t, f, func() error { return errors.New("refused") })
}

func panicking(t *testing.T, f *fixture) {
	spoiled(t, f, func() error { panic("on purpose") })
	err := f.db.Update(t.Context(), func(kv.Tx) error { panic("on purpose") })
	require.ErrorIs(t, err, kv.ErrPanicked)
	require.ErrorContains(t, err, "on purpose")
}

func concurrent(t *testing.T, f *fixture) {
	const writers, rounds = 32, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for r := range rounds {
				err := f.db.Update(context.Background(), func(tx kv.Tx) error {
					v, err := tx.Get(table, []byte("sum"))
					if err != nil {
						return err
					}
					var n uint64
					if v != nil {
						n = binary.BigEndian.Uint64(v)
					}
					return errors.Join(tx.Put(table, []byte("sum"), binary.BigEndian.AppendUint64(nil, n+1)),
						tx.Put(table, fmt.Appendf(nil, "w%d.%d", w, r), nil))
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.Equal(t, uint64(writers*rounds), binary.BigEndian.Uint64(f.get(t, "sum")))
	require.NoError(t, f.db.View(t.Context(), func(tx kv.Tx) error {
		got, err := keys(tx, []byte("w"), []byte("x"))
		require.Len(t, got, writers*rounds)
		return err
	}))
}

func bigValues(t *testing.T, f *fixture) {
	for _, size := range []int{1, 4095, 4096, 100_000, kv.MaxValue} {
		f.put(t, fmt.Sprint(size), string(bytes.Repeat([]byte{byte(size)}, size)))
	}
	for _, size := range []int{1, 4095, 4096, 100_000, kv.MaxValue} {
		require.True(t, bytes.Equal(bytes.Repeat([]byte{byte(size)}, size), f.get(t, fmt.Sprint(size))), "%d", size)
	}
	key := string(bytes.Repeat([]byte("k"), kv.MaxKey))
	f.put(t, key, "v")
	require.Equal(t, "v", string(f.get(t, key)))
}

func bounds(t *testing.T, f *fixture) {
	for _, c := range []struct{ key, value int }{{0, 1}, {kv.MaxKey + 1, 1}, {1, kv.MaxValue + 1}} {
		err := f.db.Update(t.Context(), func(tx kv.Tx) error { return tx.Put(table, make([]byte, c.key), make([]byte, c.value)) })
		require.ErrorIs(t, err, kv.ErrSize)
	}
}

func cancelled(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	never := func(kv.Tx) error { panic("not reached") }
	require.ErrorIs(t, f.db.Update(ctx, never), context.Canceled)
	require.ErrorIs(t, f.db.View(ctx, never), context.Canceled)
}

func closed(t *testing.T, f *fixture) {
	require.NoError(t, f.db.Close())
	require.NoError(t, f.db.Close())
	nothing := func(kv.Tx) error { return nil }
	require.ErrorIs(t, f.db.Update(t.Context(), nothing), kv.ErrClosed)
	require.ErrorIs(t, f.db.View(t.Context(), nothing), kv.ErrClosed)
}

func reopen(t *testing.T, f *fixture) {
	for i := range 300 {
		f.put(t, fmt.Sprintf("%03d", i), fmt.Sprint(i))
	}
	f.update(t, func(tx kv.Tx) error { return tx.Delete(table, []byte("007")) })
	require.NoError(t, f.db.Close())
	f.db = f.open(t, f.dir)
	for i := range 300 {
		if v := f.get(t, fmt.Sprintf("%03d", i)); i == 7 {
			require.Nil(t, v)
		} else {
			require.Equal(t, fmt.Sprint(i), string(v))
		}
	}
}
