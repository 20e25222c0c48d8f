package mail

import (
	"bytes"
	"errors"
	"fmt"
	"mime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestQueueID(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 20, 10, 0, 0, 123e6, time.UTC)
	a, b := NewQueueID(at), NewQueueID(at.Add(time.Millisecond))
	require.Len(t, a.String(), 20)
	require.Less(t, a.String(), b.String(), "text sorts by time")
	require.Equal(t, at, a.Time())
	back, err := ParseQueueID(strings.ToUpper(a.String()))
	require.NoError(t, err)
	require.Equal(t, a, back)
	for _, bad := range []string{"", "x", strings.Repeat("u", 20), a.String() + "0", a.String()[:19] + "z"} {
		_, err := ParseQueueID(bad)
		require.ErrorIs(t, err, ErrBadID, bad)
	}
}

func TestEnvelopeID(t *testing.T) {
	t.Parallel()
	for _, n := range []uint64{0, 7, 1<<64 - 1} {
		id := EnvelopeID{NewQueueID(time.Now()), n}
		back, err := ParseEnvelopeID(id.String())
		require.NoError(t, err)
		require.Equal(t, id, back)
		back, err = EnvelopeIDFromKey(id.AppendKey(nil))
		require.NoError(t, err)
		require.Equal(t, id, back)
	}
	_, err := ParseEnvelopeID("x.1")
	require.ErrorIs(t, err, ErrBadID)
}

func TestParseStatus(t *testing.T) {
	t.Parallel()
	st, rest, ok := ParseStatus("5.1.1 no such user")
	require.True(t, ok)
	require.Equal(t, Status{5, 1, 1}, st)
	require.Equal(t, "no such user", rest)
	for _, bad := range []string{"", "5.1", "3.1.1 x", "55.1.1 x", "5.1234.1 x", "5.a.1", "-5.1.1"} {
		_, rest, ok := ParseStatus(bad)
		require.False(t, ok, bad)
		require.Equal(t, bad, rest)
	}
}

func TestReplyOf(t *testing.T) {
	t.Parallel()
	e := Refuse(550, Status{5, 1, 1}, "No such user", errors.New("private"))
	require.Equal(t, e.Reply, ReplyOf(fmt.Errorf("wrapped: %w", e)))
	require.Equal(t, 451, ReplyOf(errors.New("disk")).Code, "an error without a reply is temporary")
	require.NotContains(t, ReplyOf(errors.New("secret path")).String(), "secret")
}

func TestReplyTextIsSafe(t *testing.T) {
	t.Parallel()
	require.Equal(t, "a?b?[31mred?한글", ReplyText("a\r\nb\x1b[31mred\u202e한글"))
	require.LessOrEqual(t, len(ReplyText(strings.Repeat("한", 1000))), 512)
	require.Equal(t, "?", ReplyText("\xff\xfe"))
}

func TestParseHeader(t *testing.T) {
	t.Parallel()
	h, err := ParseHeader([]byte("From: a@b.c\r\nSubject: one\r\n two\r\nX :y\r\n\r\nFrom: body@x\r\n"))
	require.NoError(t, err)
	require.Len(t, h, 3)
	require.Equal(t, "one two", h.Get("subject"))
	require.Equal(t, "X", h[2].Name)
	require.Equal(t, 1, h.Count("FROM"))
	_, err = ParseHeader([]byte("From: a@b.c\r\nno field\r\n"))
	require.ErrorIs(t, err, ErrBadHeader)
	require.ErrorContains(t, err, "line 2")
}

func TestAppendField(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("한국어 제목 emoji 🎉 ", 20)
	b, err := AppendField(nil, "Subject", long)
	require.NoError(t, err)
	for line := range bytes.SplitSeq(bytes.TrimSuffix(b, []byte("\r\n")), []byte("\r\n")) {
		require.LessOrEqual(t, len(line), 78)
	}
	h, err := ParseHeader(b)
	require.NoError(t, err)
	require.Len(t, h, 1)
	require.Equal(t, long, DecodeText(h[0].Value() + " ")[:len(long)-1]+" ")
	for _, bad := range []string{"a\r\nBcc: x", "a\nb", "a\x00b"} {
		_, err := AppendField(nil, "Subject", bad)
		require.ErrorIs(t, err, ErrBadHeader)
	}
}

func TestFormatAddress(t *testing.T) {
	t.Parallel()
	p := MustParsePath("ann@example.com")
	for in, want := range map[string]string{
		"":           "ann@example.com",
		"Ann":        `"Ann" <ann@example.com>`,
		`A "B" \ C`:  `"A \"B\" \\ C" <ann@example.com>`,
		"a@evil.com": `"a@evil.com" <ann@example.com>`,
	} {
		got, err := FormatAddress(in, p)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	got, err := FormatAddress("김철수", p)
	require.NoError(t, err)
	name, _, _ := strings.Cut(got, " <")
	dec, err := new(mime.WordDecoder).DecodeHeader(name)
	require.NoError(t, err)
	require.Equal(t, "김철수", dec)
	_, err = FormatAddress("a\r\nb", p)
	require.ErrorIs(t, err, ErrBadHeader)
}

func FuzzParseHeader(f *testing.F) {
	f.Add([]byte("A: b\r\n c\r\n\r\nbody"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err == nil && !bytes.HasPrefix(b, h.Bytes()) {
			t.Fatal("fields are not the bytes that were parsed")
		}
	})
}
