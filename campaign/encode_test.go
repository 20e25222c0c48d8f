package campaign

import (
	"encoding/base64"
	"io"
	"mime/quotedprintable"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

type failer interface {
	require.TestingT
	Helper()
}

func decode(t failer, e encoding, b []byte) string {
	t.Helper()
	for line := range strings.SplitSeq(string(b), "\r\n") {
		require.LessOrEqual(t, len(line), lineLength)
		require.NotContains(t, line, "\n")
		require.NotContains(t, line, "\r")
		require.False(t, e == encodeQuoted && (strings.HasSuffix(line, " ") || strings.HasSuffix(line, "\t")), "%q ends in a blank", line)
	}
	var r io.Reader = strings.NewReader(string(b))
	if e == encodeQuoted {
		r = quotedprintable.NewReader(r)
	} else {
		r = base64.NewDecoder(base64.StdEncoding, r)
	}
	out, err := io.ReadAll(r)
	require.NoError(t, err)
	return string(out)
}

func TestEncodedPiecesAreTheWhole(t *testing.T) {
	t.Parallel()
	alphabet := rapid.SampledFrom([]rune("ab =.\tF\n\n가é😀<>From "))
	rapid.Check(t, func(t *rapid.T) {
		enc := rapid.SampledFrom([]encoding{encodeQuoted, encodeBase64}).Draw(t, "encoding")
		pieces := rapid.SliceOfN(rapid.StringOfN(alphabet, 0, 200, -1), 1, 8).Draw(t, "pieces")
		e := encoder{enc: enc}
		for _, p := range pieces {
			if rapid.Bool().Draw(t, "static") && len(p) >= 8 {
				e.static(&op{text: p, breaks: strings.Count(p, "\n"), chunk: newChunk(p, enc)})
			} else {
				e.text(p)
			}
		}
		e.finish()
		require.Equal(t, toCRLF(strings.Join(pieces, "")), decode(t, enc, e.buf))
	})
}
