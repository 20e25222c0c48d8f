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
	page, err := os.ReadFile(filepath.Join(top, "docs", "security.md"))
	require.NoError(t, err)
	row, name := regexp.MustCompile(`^\| ([AB]\d+) \|`), regexp.MustCompile("`(Test\\w+)`")
	rows := map[string]bool{}
	for line := range strings.SplitSeq(string(page), "\n") {
		m := row.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		rows[m[1]] = true
		named := name.FindAllStringSubmatch(line, -1)
		require.NotEmpty(t, named, line)
		for _, n := range named {
			require.True(t, tests[n[1]], "%s: there is no test %s", m[1], n[1])
		}
	}
	for letter, last := range map[string]int{"A": 16, "B": 10} {
		for i := 1; i <= last; i++ {
			require.True(t, rows[letter+strconv.Itoa(i)], "row %s%d is missing in docs/security.md", letter, i)
		}
	}
}
