package kv_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
	"relayd/internal/kv/kvtest"
)

func TestTwiceRunsEachUpdateTwiceAndKeepsOne(t *testing.T) {
	t.Parallel()
	bolt, err := kv.OpenBolt(filepath.Join(t.TempDir(), "db"), kv.BoltOptions{NoSync: true})
	require.NoError(t, err)
	db := kvtest.Twice(bolt)
	runs, seen := 0, []byte("x")
	require.NoError(t, db.Update(t.Context(), func(tx kv.Tx) (err error) {
		runs++
		if seen, err = tx.Get("t", []byte("k")); err != nil {
			return err
		}
		return tx.Put("t", []byte("k"), []byte("v"))
	}))
	require.Equal(t, 2, runs)
	require.Nil(t, seen, "the first run left nothing")
	runs = 0
	require.ErrorIs(t, db.Update(t.Context(), func(kv.Tx) error { runs++; return kv.ErrNoSpace }), kv.ErrNoSpace)
	require.Equal(t, 1, runs, "a function that refuses has its answer")
	require.NoError(t, db.Close())
}
