package bounce_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"relayd/delivery"
	"relayd/internal/bounce"
)

// sample is one message of testdata/corpus with what it means.
type sample struct {
	name string
	text []byte
	kind bounce.Kind
	to   map[string]bool // recipients: whether hard
}

// corpus reads testdata/corpus: the samples that its index names, which are all that are there.
func corpus(t testing.TB) []sample {
	t.Helper()
	const dir = "testdata/corpus"
	index, err := os.ReadFile(filepath.Join(dir, "index.txt"))
	require.NoError(t, err)
	var all []sample
	for line := range strings.Lines(string(index)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		require.GreaterOrEqual(t, len(f), 2, line)
		s := sample{name: f[0], kind: bounce.Kind(f[1]), to: map[string]bool{}}
		s.text, err = os.ReadFile(filepath.Join(dir, s.name+".eml"))
		require.NoError(t, err)
		for _, word := range f[2:] {
			how, to, marked := strings.Cut(word, ":")
			if !marked {
				how, to = "", word
			}
			require.Equal(t, s.kind == bounce.Bounce, how == "hard" || how == "soft", line)
			s.to[to] = how == "hard"
		}
		all = append(all, s)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.eml"))
	require.NoError(t, err)
	require.Len(t, all, len(files), "each file stands in the index once")
	return all
}

// TestCorpus measures Parse, with the rules that delivery asks, on what many systems send back: as files, as they come, and
// all of it with a reverse-path, as few systems send their reports. A recipient counts as hard where the report calls it so;
// the share of exact recipients is over the reports on delivery.
func TestCorpus(t *testing.T) {
	t.Parallel()
	for name, origin := range map[string]func(bounce.Kind) bounce.Origin{
		"as_files": func(bounce.Kind) bounce.Origin { return bounce.UnknownPath },
		"as_they_come": func(k bounce.Kind) bounce.Origin {
			switch k {
			case bounce.Bounce, bounce.Delay, bounce.Delivered, bounce.AutoReply:
				return bounce.NullPath
			}
			return bounce.OtherPath
		},
		"with_a_reverse_path": func(bounce.Kind) bounce.Origin { return bounce.OtherPath },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			measure(t, origin)
		})
	}
}

func measure(t *testing.T, origin func(bounce.Kind) bounce.Origin) {
	rules, err := delivery.NewClassifier("")
	require.NoError(t, err)
	samples := corpus(t)
	require.GreaterOrEqual(t, len(samples), 80)
	var hard, called, both, named, exact int
	kinds := map[bounce.Kind]int{}
	right := map[bounce.Kind]int{}
	for _, s := range samples {
		var first *bounce.Report
		for _, end := range []string{"\n", "\r\n", "\r"} { // one report, and so one event, whatever ends the lines
			rep, err := bounce.Parse(bytes.NewReader(bytes.ReplaceAll(s.text, []byte("\n"), []byte(end))), origin(s.kind), rules.Bounce)
			require.NoError(t, err)
			if first == nil {
				first = rep
			}
			require.Equal(t, first, rep, "%s with %q", s.name, end)
		}
		kinds[s.kind]++
		if first.Kind == s.kind {
			right[s.kind]++
		} else {
			t.Logf("%s: kind %s, and it is %s", s.name, first.Kind, s.kind)
		}
		var got []string
		for _, r := range first.Recipients {
			got = append(got, r.Address)
			if r.Hard {
				called++
				if s.to[r.Address] {
					both++
				} else {
					t.Logf("%s: %s is called hard, and is not: %s %s", s.name, r.Address, r.Class, r.Diagnostic)
				}
			} else if s.to[r.Address] {
				t.Logf("%s: %s is hard, and not called so: %s %s", s.name, r.Address, r.Class, r.Diagnostic)
			}
			if r.Suppress { // the one thing that must never be wrong
				assert.True(t, s.to[r.Address], "%s suppresses %s: %s %s", s.name, r.Address, r.Class, r.Diagnostic)
				assert.Equal(t, bounce.Bounce, s.kind, s.name)
			}
		}
		var want []string
		for to, isHard := range s.to {
			want = append(want, to)
			if isHard {
				hard++
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		switch same := slices.Equal(got, want); s.kind {
		case bounce.Bounce, bounce.Delay, bounce.Delivered:
			if named++; same {
				exact++
				continue
			}
			fallthrough
		default:
			if !same {
				t.Logf("%s: recipients %q, and they are %q", s.name, got, want)
			}
		}
	}
	t.Logf("samples %v, of the right kind %v", kinds, right)
	t.Logf("hard %d, called hard %d, rightly %d; reports on delivery %d, recipients exact in %d", hard, called, both, named, exact)
	require.GreaterOrEqual(t, float64(both), 0.99*float64(called), "precision of hard")
	require.GreaterOrEqual(t, float64(both), 0.92*float64(hard), "recall of hard")
	require.GreaterOrEqual(t, float64(exact), 0.95*float64(named), "recipients exact")
}

// TestCorpusNamesNobody: no address of the corpus can be anybody's.
func TestCorpusNamesNobody(t *testing.T) {
	t.Parallel()
	addresses := regexp.MustCompile(`[^\s<>@:;,"]+@([A-Za-z0-9.-]+)`)
	for _, s := range corpus(t) {
		for _, m := range addresses.FindAllSubmatch(s.text, -1) {
			require.True(t, bytes.HasSuffix(bytes.Trim(m[1], "."), []byte(".example")), "%s: %s", s.name, m[0])
		}
	}
}
