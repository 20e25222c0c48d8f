package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestThreatRowsHaveTheirTests: each row of the table in docs/security.md names tests that exist, and none is missing.
func TestThreatRowsHaveTheirTests(t *testing.T) {
	t.Parallel()
	requireTests(t, "security.md", map[string]int{"A": 16, "B": 10, "D": 13})
}

// TestDeliverabilityRowsHaveTheirTests: so does each row in docs/deliverability.md.
func TestDeliverabilityRowsHaveTheirTests(t *testing.T) {
	t.Parallel()
	requireTests(t, "deliverability.md", map[string]int{"T": 10})
}

// TestComplaintsHaveTheirTests: so does each row in docs/complaints.md.
func TestComplaintsHaveTheirTests(t *testing.T) {
	t.Parallel()
	requireTests(t, "complaints.md", map[string]int{"C": 29})
}

// requireTests compares the table of a page, of rows from 1 to the last of each letter, with the source.
func requireTests(t *testing.T, name string, last map[string]int) {
	t.Helper()
	top := root(t)
	tests := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	for _, s := range sources(t) {
		if !s.test {
			continue
		}
		text, err := os.ReadFile(filepath.Join(top, s.pkg, s.file))
		require.NoError(t, err)
		for _, m := range declared.FindAllSubmatch(text, -1) {
			tests[string(m[1])] = true
		}
	}
	page, err := os.ReadFile(filepath.Join(top, "docs", name))
	require.NoError(t, err)
	row, quoted := regexp.MustCompile(`^\| ([A-Z])0?(\d+) \|`), regexp.MustCompile("`(Test\\w+)`")
	rows := map[string]bool{}
	for line := range strings.SplitSeq(string(page), "\n") {
		m := row.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		rows[m[1]+m[2]] = true
		named := quoted.FindAllStringSubmatch(line, -1)
		require.NotEmpty(t, named, line)
		for _, n := range named {
			require.True(t, tests[n[1]], "%s%s: there is no test %s", m[1], m[2], n[1])
		}
	}
	for letter, n := range last {
		for i := 1; i <= n; i++ {
			require.True(t, rows[letter+strconv.Itoa(i)], "row %s%d is missing in docs/%s", letter, i, name)
		}
	}
}
