package dkim

import (
	"bytes"
	"crypto/sha256"
	"math/rand"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// relaxedBody is the canonical form byte by byte, as slow and plain as it can be.
func relaxedBody(body []byte) []byte {
	var fixed []byte
	for i, c := range body {
		if c == '\n' && (i == 0 || body[i-1] != '\r') {
			fixed = append(fixed, '\r')
		}
		fixed = append(fixed, c)
	}
	var out, ends []byte
	blank := false
	for _, c := range fixed {
		switch c {
		case ' ', '\t':
			blank = true
		case '\r', '\n':
			blank = false
			ends = append(ends, c)
		default:
			out = append(out, ends...)
			ends = nil
			if blank {
				out = append(out, ' ')
			}
			blank = false
			out = append(out, c)
		}
	}
	if len(out) > 0 {
		out = append(out, "\r\n"...)
	}
	return out
}

// hashIn hashes body in pieces whose lengths cut tells, and then in full ones.
func hashIn(body, cut []byte) [sha256.Size]byte {
	h := NewBodyHasher()
	for _, n := range cut {
		n := min(int(n), len(body))
		h.Write(body[:n])
		body = body[n:]
	}
	h.Write(body)
	return h.Sum()
}

var oddBodies = []string{
	"", "\r\n", "\r\n\r\n\r\n", "a", "a\r\n", "a\r\n\r\n\r\n", " \t \r\n\t\r\n", " a\r\n", "a \r\n", "a\t\r\n b  c\t\td \r\n",
	"a\r\n \r\nb\r\n", "\r\n\r\na\r\n\r\nb\r\n\r\n", "a\nb\n\n", "a\rb", "a\r\rb\r\r\n", "\r", "\n", "a\r", "a \rb", "a\r b", "a \r", "\r\r\n\r\nx",
	"\xff\xfe \xed\x95\x9c\xea\xb8\x80  \xeb\xa9\x94\xec\x9d\xbc\r\n", "a\x00b\r\n", ".\r\n..\r\n", strings.Repeat("x", 5000) + "  y\r\n",
	strings.Repeat("line of text\r\n", 400) + "\r\n\r\n", strings.Repeat("\r\n", 3000) + "end", strings.Repeat("  indented\r\n", 300), strings.Repeat(" ", 5000) + "x",
}

func TestBodyHasherEqualsReference(t *testing.T) {
	t.Parallel()
	for _, body := range oddBodies {
		want := sha256.Sum256(relaxedBody([]byte(body)))
		require.Equal(t, want, hashIn([]byte(body), nil), "%.60q", body)
		for _, size := range []byte{1, 2, 3, 7, 255} {
			cut := bytes.Repeat([]byte{size}, len(body)/int(size))
			require.Equal(t, want, hashIn([]byte(body), cut), "%.60q in pieces of %d", body, size)
		}
	}
}

func TestBodyHasherOfEmptyBodyIsHashOfNothing(t *testing.T) {
	t.Parallel()
	require.Equal(t, sha256.Sum256(nil), NewBodyHasher().Sum()) // RFC 6376 section 3.4.4
}

func TestBodyHasherSumMayBeFollowedByWrites(t *testing.T) {
	t.Parallel()
	h := NewBodyHasher()
	h.Write([]byte("a\r\n"))
	require.Equal(t, sha256.Sum256([]byte("a\r\n")), h.Sum())
	require.Equal(t, sha256.Sum256([]byte("a\r\n")), h.Sum())
	h.Write([]byte("b"))
	require.Equal(t, sha256.Sum256([]byte("a\r\nb\r\n")), h.Sum())
	h.Reset()
	require.Equal(t, sha256.Sum256(nil), h.Sum())
}

func TestIsClean(t *testing.T) {
	t.Parallel()
	clean := regexp.MustCompile(`^[^\x00-\x20]+( [^\x00-\x20]+)*$`)
	for n := 1; n < 30; n++ {
		for i := range n {
			for j := range n {
				for _, c := range []byte{' ', '\t', '\r', '\n', 0, 'a', 0xff, 0x80, 0xa0} {
					line := bytes.Repeat([]byte{'x'}, n)
					line[i], line[j] = ' ', c
					want := clean.Match(append([]byte("x"), line...)) // a single blank at the start is as it must be
					require.Equal(t, want, isClean(line), "%q", line)
				}
			}
		}
	}
}

func FuzzBodyHasher(f *testing.F) {
	for _, body := range oddBodies {
		f.Add([]byte(body), []byte{1, 2, 3})
	}
	// The fuzzer alone seldom writes line ends next to blanks: make bodies of few letters as well.
	rnd := rand.New(rand.NewSource(1))
	for range 200 {
		body := make([]byte, rnd.Intn(60))
		for i := range body {
			body[i] = " \t\r\n\r\nab"[rnd.Intn(8)]
		}
		f.Add(body, []byte{byte(rnd.Intn(9)), byte(rnd.Intn(9))})
	}
	f.Fuzz(func(t *testing.T, body, cut []byte) {
		if want := sha256.Sum256(relaxedBody(body)); want != hashIn(body, cut) {
			t.Fatalf("hash of %q in pieces of %v differs", body, cut)
		}
		letters := bytes.Map(func(r rune) rune { return rune(" \t\r\n\r\nab"[r&7]) }, body)
		if want := sha256.Sum256(relaxedBody(letters)); want != hashIn(letters, cut) {
			t.Fatalf("hash of %q in pieces of %v differs", letters, cut)
		}
	})
}

func TestRelaxedHeader(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, raw, want string }{
		{"SUBJECT", " a\r\n", "subject:a"},
		{"B", "\t Z\t\r\n\tY \r\n", "b:Z Y"},
		{"a", "\r\n x\r\n", "a:x"},
		{"empty", "\r\n", "empty:"},
		{"blank", "  \t\r\n", "blank:"},
		{"eight-bit", " \xff\xc2\xa0x \r\n", "eight-bit:\xff\xc2\xa0x"},
	} {
		require.Equal(t, c.want, string(appendRelaxed(nil, c.name, []byte(c.raw))))
	}
}
