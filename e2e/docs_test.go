package e2e

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	r := newRelay(t, options{mxPort: freePort(t)})
	res, err := http.Get("http://127.0.0.1:" + itoa(r.http) + "/metrics")
	require.NoError(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	names := func(re, text string) []string {
		var all []string
		for _, m := range regexp.MustCompile(re).FindAllStringSubmatch(text, -1) {
			all = append(all, m[1])
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	page, err := os.ReadFile("../docs/metrics.md")
	require.NoError(t, err)
	got := names(`(?m)^# TYPE (relayd_[a-z0-9_]+) `, string(body))
	require.NotEmpty(t, got)
	require.Equal(t, got, names("(?m)^\\| `(relayd_[a-z0-9_]+)`", string(page)), "docs/metrics.md lists every metric, and no other")
}
