package main

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCleanWriter(t *testing.T) {
	t.Parallel()
	in := "a\x1b[31m,\u009b31m,\u00e9\u00a9,조\x7f\r\n\tb\x00"
	for size := 1; size <= len(in); size++ { // however the stream is cut
		var out bytes.Buffer
		w := &cleanWriter{out: &out}
		for rest := in; rest != ""; {
			n := min(size, len(rest))
			m, err := w.Write([]byte(rest[:n]))
			require.NoError(t, err)
			require.Equal(t, n, m)
			rest = rest[n:]
		}
		require.Equal(t, "a?[31m,?31m,\u00e9\u00a9,조?\r\n\tb?", out.String())
	}
}

func FuzzEscapeControls(f *testing.F) {
	f.Add("plain \u009b \u202e \x7f 조")
	f.Fuzz(func(t *testing.T, s string) {
		b, err := json.Marshal(s)
		require.NoError(t, err)
		got := escapeControls(b)
		require.False(t, bytes.ContainsFunc(got, dangerous))
		var want, back string
		require.NoError(t, json.Unmarshal(b, &want))
		require.NoError(t, json.Unmarshal(got, &back))
		require.Equal(t, want, back)
	})
}

func FuzzParseSelection(f *testing.F) {
	f.Add("domain=example.com", "state=held")
	f.Add("0hzx3k9m2q7v5c8d1f40", "age>2h")
	f.Fuzz(func(t *testing.T, a, b string) {
		_, _, err := parseSelection([]string{a, b})
		if err != nil {
			var u *usageError
			require.ErrorAs(t, err, &u)
		}
	})
}
