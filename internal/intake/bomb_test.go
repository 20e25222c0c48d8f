package intake

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestA15MIMEBombs: what would blow up a MIME parser passes as it is or is refused. What it costs is measured in e2e.
func TestA15MIMEBombs(t *testing.T) {
	t.Parallel()
	f := open(t)
	top := head + "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
	nested := func() io.Reader {
		var b strings.Builder
		for i := range 10_000 {
			fmt.Fprintf(&b, "--b%d\r\nContent-Type: multipart/mixed; boundary=b%d\r\n\r\n", i, i+1)
		}
		return strings.NewReader(top + b.String())
	}
	for name, c := range map[string]struct {
		message func() io.Reader
		refused string
	}{
		"nesting_of_10000": {nested, ""},
		"100000_parts":     {func() io.Reader { return strings.NewReader(top + strings.Repeat("--b\r\nA: b\r\n\r\nx\r\n", 100_000)) }, ""},
		"1_MB_boundary": {func() io.Reader {
			return strings.NewReader(head + "Content-Type: multipart/mixed; boundary=" + strings.Repeat("b", 1<<20) + "\r\n\r\nx\r\n")
		}, "5.6.0"},
		"1_MB_boundary_folded": {func() io.Reader {
			return strings.NewReader(head + "Content-Type: multipart/mixed; boundary=" + strings.Repeat("bbbbbbbb\r\n ", 1<<17) + "\r\n\r\nx\r\n")
		}, "5.3.4"},
		"million_header_lines": {func() io.Reader { return strings.NewReader(head + strings.Repeat("X: y\r\n", 1_000_000) + "\r\nx\r\n") }, "5.3.4"},
		"100_KB_header": {func() io.Reader {
			return strings.NewReader(head + strings.Repeat("X-Filler: yyyyyy\r\n", 5700) + "\r\nx\r\n")
		}, ""},
		"100_KB_field": {func() io.Reader {
			return strings.NewReader(head + "X-Filler:" + strings.Repeat(" yyyyyyyyyyyyyyyy\r\n", 5700) + "\r\nx\r\n")
		}, ""},
		"tag_bomb": {func() io.Reader {
			return strings.NewReader(head + "X-Relay-Tags: " + strings.ReplaceAll(strings.TrimSuffix(numbered(20_000), ","), ",", ",\r\n ") + "\r\n\r\nx\r\n")
		}, "5.6.0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := submission("")
			s.Body = c.message()
			_, err := f.Accept(t.Context(), s)
			if c.refused == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.refused)
			}
		})
	}
}
