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

// logged returns the events that the program's own source logs, sorted, each once, and the beginnings of those whose
// name is put together ("attempt."+outcome).
func logged(t *testing.T) (names, beginnings []string) {
	t.Helper()
	top := root(t)
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
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !slices.Contains(logMethods, sel.Sel.Name) {
				return true
			}
			for _, a := range call.Args {
				if sum, ok := a.(*ast.BinaryExpr); ok {
					if v := text(sum.X); strings.HasSuffix(v, ".") {
						beginnings = append(beginnings, v)
					}
				}
				if v := text(a); eventName.MatchString(v) {
					names = append(names, v)
					break
				}
			}
			return true
		})
	}
	slices.Sort(names)
	return slices.Compact(names), beginnings
}

var (
	logMethods = []string{"Debug", "Info", "Warn", "Error", "DebugContext", "InfoContext", "WarnContext", "ErrorContext", "Log", "LogAttrs"}
	eventName  = regexp.MustCompile(`^[a-z_]+\.[a-z_]+$`)
)

// text is the value of a string literal, "" for any other expression.
func text(e ast.Expr) string {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	v, err := strconv.Unquote(lit.Value)
	if err != nil {
		return ""
	}
	return v
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
	got, beginnings := logged(t)
	require.NotEmpty(t, got)
	documented := slices.DeleteFunc(rows(t, "log-events.md", eventName), func(v string) bool {
		return slices.ContainsFunc(beginnings, func(b string) bool { return strings.HasPrefix(v, b) && !slices.Contains(got, v) })
	})
	require.Equal(t, got, documented, "docs/log-events.md lists every log event, and no other")
}
