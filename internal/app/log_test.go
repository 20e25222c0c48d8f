package app

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"relayd/internal/config"
)

func TestRecordsAreWrittenBehindInOrderAndAtClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		out := &counted{}
		w := NewLogWriter(out, config.Log{})
		log := NewLogger(w, config.Log{})
		for i := range 100 {
			log.Info("some.event", "count", i)
		}
		synctest.Wait()
		require.Zero(t, out.writes)
		log.Warn("bad.event")
		synctest.Wait()
		require.Equal(t, 1, out.writes, "they share a write, and a warning does not wait")
		log.Info("some.event", "count", 100)
		require.NoError(t, w.Close())
		require.Equal(t, 2, out.writes)
		require.Equal(t, 102, strings.Count(out.text.String(), "\n"))
		require.Contains(t, out.text.String(), "count=0\n")
		require.True(t, strings.HasSuffix(out.text.String(), "count=100\n"))
		log.Warn("late.event")
		require.Contains(t, out.text.String(), "late.event", "after Close at once")
	})
}

// counted counts writes.
type counted struct {
	text   bytes.Buffer
	writes int
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes++
	return c.text.Write(p)
}

func TestStuckReaderOfTheLogHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		out := stuck{freed: make(chan struct{}), text: &bytes.Buffer{}}
		w := NewLogWriter(out, config.Log{Format: "json"})
		log := slog.New(slog.NewJSONHandler(w, nil))
		long := strings.Repeat("x", 1<<20)
		for range 3 * logMost >> 20 {
			log.Info("long.event", "line", long) // would wait for ever if it waited
			synctest.Wait()
		}
		close(out.freed)
		require.NoError(t, w.Close())
		require.Contains(t, out.text.String(), `"msg":"log.dropped","count":9`)
		require.Equal(t, 3, strings.Count(out.text.String(), "long.event"))
	})
}

// stuck takes nothing until it is freed.
type stuck struct {
	freed chan struct{}
	text  *bytes.Buffer
}

func (s stuck) Write(p []byte) (int, error) {
	<-s.freed
	return s.text.Write(p)
}
