package smtpd

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestReadLine: whatever pieces a stream comes in, its lines are the same.
func TestReadLine(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxLine)
	tests := []struct {
		name, stream string
		want         []string // a line, or "!" and an error
	}{
		{"lines", "NOOP\r\n\r\nQUIT\r\n", []string{"NOOP", "", "QUIT", "!EOF"}},
		{"bare_CR", "NO\rOP\r\nQUIT\r\n", []string{"!" + errBareCR.Error(), "QUIT"}},
		{"stray_CR_before_CRLF", "NOOP\r\r\nQUIT\r\n", []string{"!" + errBareCR.Error(), "QUIT"}},
		{"bare_LF", "NOOP\nQUIT\r\n", []string{"!" + errBareLF.Error()}},
		{"only_LF", "\n", []string{"!" + errBareLF.Error()}},
		{"longest", long[2:] + "\r\nQUIT\r\n", []string{long[2:], "QUIT"}},
		{"too_long", long[1:] + "\r\nQUIT\r\n", []string{"!" + errLineTooLong.Error(), "QUIT"}},
		{"far_too_long", long + long + "\r\nQUIT\r\n", []string{"!" + errLineTooLong.Error(), "QUIT"}},
		{"far_too_long_with_bare_LF", long + long + "\nQUIT\r\n", []string{"!" + errBareLF.Error()}},
		{"endless", strings.Repeat(long, 8), []string{"!" + errLineEndless.Error()}},
		{"no_end", "NOOP", []string{"!EOF"}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			for _, piece := range []int{1, 2, 3, 4095, 4096, 4097, 1 << 20} {
				w := newWire(streamConn{Reader: pieces{strings.NewReader(tc.stream), piece}}, testPool, time.Second)
				for _, want := range tc.want {
					line, err := w.readLine(time.Minute, nil)
					got := string(line)
					if err != nil {
						got = "!" + err.Error()
					}
					require.Equal(t, want, got, "in pieces of %d", piece)
					w.shrink()
				}
				require.LessOrEqual(t, len(w.buf), dataBuffer)
			}
		})
	}
}

// stalled returns nothing, again and again.
type stalled struct{}

func (stalled) Read([]byte) (int, error) { return 0, nil }

func TestReaderWithoutProgressIsGivenUp(t *testing.T) {
	t.Parallel()
	w := newWire(streamConn{Reader: stalled{}}, testPool, time.Second)
	_, err := w.readLine(time.Minute, nil)
	require.ErrorIs(t, err, io.ErrNoProgress)
}

func TestXtext(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{
		"a": true, "a+2B": true, "+20": true, "": false, "+": false, "+2": false, "+2b": false, "+0A": false, "a=b": false,
		"+7F": false, "+FF": false, "+2G": false,
	} {
		require.Equal(t, want, isXtext(s), s)
	}
}
