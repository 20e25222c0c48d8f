package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "relayd/"

// source is one Go file and what it imports.
type source struct {
	pkg     string // folder below the root
	file    string
	test    bool
	imports []string
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	require.NoError(t, err)
	return dir
}

func sources(t *testing.T) []source {
	t.Helper()
	top := root(t)
	var all []source
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && (strings.HasPrefix(name, ".") && path != top || name == "tools" || name == "testdata" || name == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, filepath.Dir(path))
		if err != nil {
			return err
		}
		s := source{pkg: filepath.ToSlash(rel), file: name, test: strings.HasSuffix(name, "_test.go")}
		for _, i := range f.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, p)
		}
		all = append(all, s)
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, len(all), 20, "the walk found the source")
	return all
}

func floorOf(pkg string) int {
	return slices.IndexFunc(Floors, func(f []string) bool { return slices.Contains(f, pkg) })
}

func TestImportsGoDown(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		_, helper := Helpers[s.pkg]
		here := floorOf(s.pkg)
		if here < 0 && !helper {
			t.Errorf("%s stands on no floor: add it to Floors", s.pkg)
		}
		for _, imp := range s.imports {
			dep, ours := strings.CutPrefix(imp, module)
			if !ours || dep == s.pkg {
				continue
			}
			if users, ok := Helpers[dep]; ok {
				if !s.test && !helper && !slices.Contains(users, s.pkg) {
					t.Errorf("%s/%s imports the test helper %s", s.pkg, s.file, dep)
				}
				continue
			}
			if s.test || helper {
				continue // tests may wire what the program wires elsewhere; the compiler forbids cycles
			}
			if floorOf(dep) >= here {
				t.Errorf("%s/%s (floor %d) imports %s (floor %d): imports go down only", s.pkg, s.file, here, dep, floorOf(dep))
			}
		}
	}
}

func TestLibrariesBehindOneDoor(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for _, imp := range s.imports {
			for lib, users := range OnlyUsers {
				if imp != lib && !strings.HasPrefix(imp, lib+"/") || lib == "math/rand" && imp != lib {
					continue
				}
				if !slices.Contains(users, s.pkg) {
					t.Errorf("%s/%s imports %s, which only %v may", s.pkg, s.file, imp, users)
				}
			}
		}
	}
}

func TestTopLevelIsFixed(t *testing.T) {
	t.Parallel()
	entries, err := os.ReadDir(root(t))
	require.NoError(t, err)
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || name == "bin" || name == "relayd-data" || slices.Contains(TopLevel, name) {
			continue
		}
		t.Errorf("%s does not belong in the root folder", name)
	}
}
