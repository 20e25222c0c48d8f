package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

// TestCareOfTheSpool walks through what an operator does with the spool's file: why, backup, check, compact, restore.
func TestCareOfTheSpool(t *testing.T) {
	t.Parallel()
	r := newRelay(t, options{domains: []string{"dest.example"}, mxPort: freePort(t)}) // nobody answers there
	conf := filepath.Join(r.dir, "relayd.toml")
	l := r.domain("shop.example")
	for i := range 5 {
		r.submit(l, "news@shop.example", []string{fmt.Sprintf("c%d@dest.example", i)}, plain("news@shop.example", "c@dest.example", "x"))
	}
	wait(t, "the first attempt", 20*time.Second, func() bool { return r.stats().Deferred == 5 })
	var list api.Page[api.QueueItem]
	r.json(&list, "queue", "list", "to=c0@dest.example")
	require.Len(t, list.Data, 1)
	var why api.QueueWhy
	r.json(&why, "why", list.Data[0].ID)
	require.Contains(t, []string{"suspended", "turn", "attempt", "window", "retry"}, why.Envelopes[0].Reason, "pauses are short here")
	require.NotEmpty(t, why.Envelopes[0].Replies)
	wait(t, "the hold", 20*time.Second, func() bool {
		r.json(nil, "queue", "hold", list.Data[0].ID, "--reason", "ticket 1") // passes over what is in flight
		r.json(&why, "why", list.Data[0].ID)
		return why.Envelopes[0].Reason == "held"
	})
	require.Contains(t, why.Envelopes[0].Text, "ticket 1")
	r.json(nil, "queue", "fail", list.Data[0].ID, "--reason", "wrong address")
	var history api.Page[api.QueueItem]
	r.json(&history, "queue", "history", "to=C0@dest.example")
	require.Len(t, history.Data, 1)
	require.Equal(t, "failed", history.Data[0].State)

	backup := filepath.Join(t.TempDir(), "relayd.tar")
	_, stderr, code := r.ctl("backup", backup)
	require.Zero(t, code, stderr)
	info, err := os.Stat(backup)
	require.NoError(t, err)
	require.EqualValues(t, 0o600, info.Mode().Perm())
	_, stderr, code = r.tool("relayd", "spool", "check", "--config", conf)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "stop it first")
	_, _, code = r.tool("relayd", "restore", "--config", conf, backup)
	require.Equal(t, 1, code, "never over a spool")

	r.stop()
	out, stderr, code := r.tool("relayd", "spool", "check", "--config", conf)
	require.Zero(t, code, "%s%s", out, stderr)
	_, stderr, code = r.tool("relayd", "spool", "compact", "--config", conf)
	require.Zero(t, code, stderr)
	out, stderr, code = r.tool("relayd", "spool", "check", "--config", conf)
	require.Zero(t, code, "%s%s", out, stderr)
	r.start()
	require.Equal(t, 4, r.stats().Queued)
	r.stop()

	require.NoError(t, os.RemoveAll(r.data)) // the disk is lost
	_, stderr, code = r.tool("relayd", "restore", "--config", conf, backup)
	require.Zero(t, code, stderr)
	r.start()
	require.Equal(t, 4, r.stats().Queued)
	r.submit(l, "news@shop.example", []string{"late@dest.example"}, plain("news@shop.example", "late@dest.example", "signed again"))
}
