package app

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/kv"
)

// startIn runs a daemon with its data in dir. Its socket stands elsewhere: paths of sockets are short.
func startIn(t *testing.T, dir string) (*Daemon, *api.Client) {
	t.Helper()
	short, err := os.MkdirTemp("", "bk")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(short) })
	d, err := Start(t.Context(), fmt.Sprintf(`hostname = "relay.example.com"
data_dir = %q
[admin]
address = ""
socket = %q
[dns]
servers = ["127.0.0.1:9"]
`, dir, filepath.Join(short, "s")))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d, api.NewUnixClient(d.SocketPath())
}

func TestBackupOfARunningDaemonIsRestored(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d, c := startIn(t, dir)
	_, err := c.CreateDomain(t.Context(), api.CreateDomain{Name: "shop.example"})
	require.NoError(t, err)
	_, err = c.AddSuppression(t.Context(), api.Suppression{Email: "ann@example.com", Scope: "global", Reason: "manual"})
	require.NoError(t, err)
	var backup bytes.Buffer
	_, err = c.Backup(t.Context(), &backup)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "backup.tar")
	require.NoError(t, os.WriteFile(file, backup.Bytes(), 0o600))

	_, err = Restore(t.Context(), file, dir)
	require.ErrorContains(t, err, "is there already")

	to := filepath.Join(t.TempDir(), "data")
	for _, cut := range []int{0, 100, backup.Len() / 2, backup.Len() - 3000} { // cut short
		short := filepath.Join(t.TempDir(), "short.tar")
		require.NoError(t, os.WriteFile(short, backup.Bytes()[:cut], 0o600))
		_, err = Restore(t.Context(), short, to)
		require.ErrorIs(t, err, errIncomplete, "%d of %d bytes", cut, backup.Len())
	}
	flipped := bytes.Clone(backup.Bytes())
	flipped[9000] ^= 1
	bad := filepath.Join(t.TempDir(), "flipped.tar")
	require.NoError(t, os.WriteFile(bad, flipped, 0o600))
	_, err = Restore(t.Context(), bad, to)
	require.ErrorContains(t, err, "damaged")
	left, err := os.ReadDir(to)
	require.NoError(t, err)
	require.Empty(t, left, "nothing of a bad backup stays")

	got, err := Restore(t.Context(), file, to)
	require.NoError(t, err)
	require.GreaterOrEqual(t, got.KeyFiles, 2)
	_, c2 := startIn(t, to)
	domain, err := c2.Domain(t.Context(), "shop.example")
	require.NoError(t, err)
	require.NotEmpty(t, domain.Keys)
	check, err := c2.CheckSuppression(t.Context(), "", "ann@example.com")
	require.NoError(t, err)
	require.Len(t, check.Entries, 1)
	info, err := os.Stat(StorePath(to))
	require.NoError(t, err)
	require.EqualValues(t, 0o600, info.Mode().Perm())

	_, err = CheckStore(t.Context(), StorePath(dir))
	require.ErrorIs(t, err, kv.ErrInUse)
	_, _, err = kv.Compact(t.Context(), StorePath(dir))
	require.ErrorIs(t, err, kv.ErrInUse)
	require.NoError(t, d.Close())
	_, _, err = kv.Compact(t.Context(), StorePath(dir))
	require.NoError(t, err)
	report, err := CheckStore(t.Context(), StorePath(dir))
	require.NoError(t, err)
	require.Zero(t, report.Problems, report.Findings)
}

func TestBackupEndsWithItsReader(t *testing.T) {
	t.Parallel()
	_, c := startIn(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.Backup(ctx, io.Discard)
	require.ErrorIs(t, err, context.Canceled)
}
