package app

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A copy of the data directory is refused by another instance, until it is adopted; then by the first one.
func TestStoreOfAnotherInstanceIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	short, err := os.MkdirTemp("", "in")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(short) })
	start := func(instance string, options ...Option) error {
		d, err := Start(t.Context(), fmt.Sprintf("hostname = \"relay.example.com\"\ndata_dir = %q\ninstance = %q\n[admin]\naddress = \"\"\nsocket = %q\n[dns]\nservers = [\"127.0.0.1:9\"]\n",
			dir, instance, filepath.Join(short, "s")), options...)
		if err == nil {
			require.NoError(t, d.Close())
		}
		return err
	}
	require.NoError(t, start("a"), "the first one has it")
	require.NoError(t, start("a"))
	for range 2 { // a refusal changes nothing
		err := start("b")
		require.ErrorIs(t, err, ErrOtherInstance)
		require.ErrorContains(t, err, "relayd run --adopt")
		require.ErrorContains(t, err, dir)
	}
	require.ErrorIs(t, start(""), ErrOtherInstance, "the machine itself is another one")
	require.NoError(t, start("a"))
	require.NoError(t, start("b", Adopt()))
	require.NoError(t, start("b"), "once is enough")
	require.ErrorIs(t, start("a"), ErrOtherInstance)
	require.NoError(t, start("", Adopt()))
	require.NoError(t, start(""))
	require.NoError(t, start("", Adopt()), "adopting one's own changes nothing")
}

func TestInstanceMarkShowsNoID(t *testing.T) {
	t.Parallel()
	require.Len(t, instanceMark("shop"), 32)
	require.NotContains(t, instanceMark("shop"), "shop")
	require.NotEqual(t, instanceMark(""), instanceMark("shop"))
	require.NotEqual(t, instanceMark("a"), instanceMark("b"))
}
