package spool_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/spool"
)

// openStore opens a spool in the file at path; fast leaves out the syncing to disk.
func openStore(tb testing.TB, path string, fast bool) (*spool.Store, *kv.Bolt) {
	tb.Helper()
	db, err := kv.OpenBolt(path, kv.BoltOptions{NoSync: fast})
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, db.Close()) })
	log, err := event.Open(db, nil)
	require.NoError(tb, err)
	s, err := spool.Open(tb.Context(), db, log, spool.DefaultConfig())
	require.NoError(tb, err)
	return s, db
}
