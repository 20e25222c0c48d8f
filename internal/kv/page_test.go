package kv_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
)

// TestDamagedPagesAreAnError writes random bytes into a store and opens it. The engine would panic in a goroutine of its
// own on what the walk lets pass, and end this test.
func TestDamagedPagesAreAnError(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("long, and of one goroutine")
	}
	path := filepath.Join(t.TempDir(), "kv.db")
	db, err := kv.OpenBolt(path, kv.BoltOptions{})
	require.NoError(t, err)
	for table := range 6 {
		require.NoError(t, db.Update(t.Context(), func(tx kv.Tx) error {
			for i := range 20 << table {
				if err := tx.Put(kv.Table(fmt.Sprintf("t%d", table)), fmt.Appendf(nil, "key %06d", i*7919%100_003), make([]byte, i%3000)); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	require.NoError(t, db.Close())
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	used := len(whole)
	for used > 0 && whole[used-1] == 0 {
		used--
	}
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test
	refused := 0
	for range 400 {
		c := append([]byte(nil), whole...)
		for range 1 + rnd.IntN(60) {
			at := rnd.IntN(used)
			if rnd.IntN(2) == 0 {
				at = at/4096*4096 + rnd.IntN(200) // headers and elements
			}
			c[min(at, used-1)] = byte(rnd.IntN(256))
		}
		file := filepath.Join(t.TempDir(), "damaged.db")
		require.NoError(t, os.WriteFile(file, c, 0o600))
		db, err := kv.OpenBolt(file, kv.BoltOptions{})
		if err != nil {
			require.ErrorIs(t, err, kv.ErrDamaged)
			require.NotContains(t, err.Error(), "runtime error")
			refused++
		} else {
			_ = db.Update(t.Context(), func(tx kv.Tx) error { return tx.Put("t0", []byte("new"), []byte("v")) })
			_ = db.Close() // the record may have no way into the damaged page
			_ = os.Remove(file + ".journal-0")
			_ = os.Remove(file + ".journal-1")
		}
		require.NoError(t, os.Remove(file))
	}
	require.Positive(t, refused)
	require.Less(t, refused, 400)
}
