package kvtest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
)

// crashDir names the directory in the environment of the child.
const crashDir = "KVTEST_CRASH_DIR"

// Child is called first by TestMain of an engine. In the child process of Crash it opens the store, writes until it is
// killed, and never returns; otherwise it does nothing.
func Child(open func(dir string) (kv.DB, error)) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		return
	}
	db, err := open(dir)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("%d.%d.%d", os.Getpid(), w, i)
				err := db.Update(context.Background(), func(tx kv.Tx) error {
					if err := tx.Put(table, []byte(key), []byte(strings.Repeat(key, 1+i%500))); err != nil {
						return err
					}
					return tx.Put("twin", []byte(key), nil)
				})
				if err != nil {
					return
				}
				mu.Lock()
				fmt.Println("acked", key) // one write to the pipe: it is out before the next step
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	os.Exit(1)
}

// Crash starts the test binary again as a child that writes, kills it with SIGKILL under load, several times on one
// store, and requires every key that the child had acknowledged, whole transactions only.
func Crash(t *testing.T, open func(t *testing.T, dir string) kv.DB) {
	t.Helper()
	dir := t.TempDir()
	acked := map[string]bool{}
	for round := range 5 {
		crashOnce(t, dir, 300+round*211, acked)
		db := open(t, dir)
		require.NoError(t, db.View(t.Context(), func(tx kv.Tx) error {
			for key := range acked {
				v, err := tx.Get(table, []byte(key))
				require.NoError(t, err)
				require.NotNil(t, v, "acknowledged key %s is lost", key)
				require.Equal(t, key, string(v[:len(key)]))
			}
			all, err := keys(tx, nil, nil)
			require.NoError(t, err)
			for _, key := range all {
				twin, err := tx.Get("twin", []byte(key))
				require.NoError(t, err)
				require.NotNil(t, twin, "half of the transaction of %s", key)
			}
			return nil
		}))
		require.NoError(t, db.Close())
	}
}

// crashOnce kills a child after it has acknowledged some keys, and collects them.
func crashOnce(t *testing.T, dir string, after int, acked map[string]bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // ourselves
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	n := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		key, ok := strings.CutPrefix(lines.Text(), "acked ")
		require.True(t, ok, lines.Text())
		acked[key] = true
		if n++; n == after {
			require.NoError(t, cmd.Process.Signal(syscall.SIGKILL))
		}
	}
	require.Error(t, cmd.Wait(), "the child was killed")
	require.GreaterOrEqual(t, n, after)
}
