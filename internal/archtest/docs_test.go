package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// literals returns the string literals of the program's own source that match, sorted, each once.
func literals(t *testing.T, match *regexp.Regexp, in func(call *ast.CallExpr) ast.Expr) []string {
	t.Helper()
	top := root(t)
	seen := map[string]bool{}
	for _, s := range sources(t) {
		if s.test || Helpers[s.pkg] != nil {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(top, s.pkg, s.file), nil, 0)
		require.NoError(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if lit, ok := in(call).(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if v, err := strconv.Unquote(lit.Value); err == nil && match.MatchString(v) {
					seen[v] = true
				}
			}
			return true
		})
	}
	var all []string
	for v := range seen {
		all = append(all, v)
	}
	slices.Sort(all)
	return all
}

// rows returns the first column of a page's tables.
func rows(t *testing.T, page string, match *regexp.Regexp) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(t), "docs", page))
	require.NoError(t, err)
	var all []string
	for line := range strings.SplitSeq(string(b), "\n") {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "| `"), "`")
		if strings.HasPrefix(line, "| `") && match.MatchString(cell) {
			all = append(all, cell)
		}
	}
	slices.Sort(all)
	return all
}

func TestLogEventsAreDocumented(t *testing.T) {
	t.Parallel()
	name := regexp.MustCompile(`^[a-z_]+\.[a-z_]+$`)
	levels := []string{"Debug", "Info", "Warn", "Error", "DebugContext", "InfoContext", "WarnContext", "ErrorContext", "Log", "LogAttrs"}
	got := literals(t, name, func(call *ast.CallExpr) ast.Expr {
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !slices.Contains(levels, sel.Sel.Name) {
			return nil
		}
		for _, a := range call.Args {
			if lit, ok := a.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				return lit
			}
		}
		return nil
	})
	require.NotEmpty(t, got)
	require.Equal(t, got, rows(t, "log-events.md", name), "docs/log-events.md lists every log event, and no other")
}
