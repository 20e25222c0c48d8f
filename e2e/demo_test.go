package e2e

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDemoSummary(t *testing.T) {
	t.Parallel()
	r := &relay{t: t}
	out, stderr, code := r.tool("relayd", "demo", "--exit", "--json", "--recipients", "60", "--size", "100KB")
	require.Zero(t, code, stderr)
	var s struct {
		Recipients        int     `json:"recipients"`
		Delivered         int     `json:"delivered"`
		DKIMVerified      int     `json:"dkim_verified"`
		ElapsedSeconds    float64 `json:"elapsed_seconds"`
		MessagesPerSecond float64 `json:"messages_per_second"`
		PeakRSSBytes      int64   `json:"peak_rss_bytes"`
	}
	require.NoError(t, json.Unmarshal([]byte(out), &s), out)
	require.Equal(t, 60, s.Recipients)
	require.Equal(t, 60, s.Delivered)
	require.Equal(t, 60, s.DKIMVerified)
	require.Positive(t, s.ElapsedSeconds)
	require.Positive(t, s.MessagesPerSecond)
	require.Positive(t, s.PeakRSSBytes)
}
