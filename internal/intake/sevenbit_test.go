package intake

import (
	"encoding/base64"
	"io"
	"mime/quotedprintable"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

const (
	korean = "From: App <a@example.com>\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
	image  = "From: App <a@example.com>\r\nMIME-Version: 1.0\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: binary\r\n\r\n"
)

// TestEightBitLeavesAs7Bit: what is signed and stored has no octet above 127, whatever its size, and reads as before.
func TestEightBitLeavesAs7Bit(t *testing.T) {
	t.Parallel()
	f := open(t)
	for _, lines := range []int{1, 1000, 20_000} { // the last is written ahead, in chunks
		text := strings.Repeat("안녕하세요 \r\n", lines)
		id, err := f.Accept(t.Context(), submission(korean+text))
		require.NoError(t, err)
		m, stored := f.stored(t, id)
		require.False(t, m.EightBit)
		require.Contains(t, stored, "\tid "+id.String()+"\r\n")
		require.Equal(t, "<"+id.String()+"@relay.example.com>", m.MessageID)
		header, body, _ := strings.Cut(stored, "\r\n\r\n")
		require.Equal(t, 1, strings.Count(header, "Content-Transfer-Encoding: quoted-printable\r\n"))
		require.Equal(t, 1, strings.Count(header, "Content-Transfer-Encoding:"))
		require.Equal(t, 1, strings.Count(header, "Received:"))
		decoded, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(body)))
		require.NoError(t, err)
		require.Equal(t, text, string(decoded))
		v := f.verify(t, stored)
		require.Len(t, v, 2)
		for _, r := range v {
			require.Equal(t, "pass", r.Result, r)
		}
	}
	require.Equal(t, 3, f.queued(t))
	f.noDrafts(t)
}

// noDrafts requires that no chunk of a body is left without its message.
func (f *fixture) noDrafts(t *testing.T) {
	t.Helper()
	require.NoError(t, f.db.View(t.Context(), func(tx kv.Tx) error {
		return tx.Scan("draft", nil, nil, func(k, _ []byte) (bool, error) {
			t.Errorf("draft %x", k)
			return true, nil
		})
	}))
}

func TestBodiesThatStay8Bit(t *testing.T) {
	t.Parallel()
	f := open(t)
	for name, message := range map[string]string{
		"signed_by_others":     "DKIM-Signature: v=1; d=elsewhere.example; s=x; b=x\r\n" + korean + "é\r\n",
		"signed_part":          "From: a@example.com\r\nContent-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\né\r\n--b--\r\n",
		"irregular":            "From: a@example.com\r\nContent-Type: multipart/mixed\r\n\r\n--b\r\n\r\né\r\n--b--\r\n",
		"encoded_part_with_it": "From: a@example.com\r\nContent-Transfer-Encoding: base64\r\n\r\né\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id, err := f.Accept(t.Context(), submission(message))
			require.NoError(t, err)
			m, stored := f.stored(t, id)
			require.True(t, m.EightBit)
			_, want, _ := strings.Cut(message, "\r\n\r\n")
			_, got, _ := strings.Cut(stored, "\r\n\r\n")
			require.Equal(t, want, got)
			passed := 0
			for _, r := range f.verify(t, stored) {
				if r.Domain == "example.com" && r.Result == "pass" {
					passed++
				}
			}
			require.Equal(t, 2, passed)
		})
	}
}

// TestPreparedBodyThatWouldNotFitStays8Bit: quoted-printable is longer, and a prepared body has its bound.
func TestPreparedBodyThatWouldNotFitStays8Bit(t *testing.T) {
	t.Parallel()
	f := open(t)
	for _, tc := range []struct {
		octets int
		eight  bool
	}{{1000, false}, {900_000, true}} {
		p, err := f.Prepare(t.Context(), submission(korean+strings.Repeat("안녕\r\n", tc.octets/8)))
		require.NoError(t, err)
		require.NoError(t, f.db.Update(t.Context(), p.PutTx))
		p.Added()
		m, stored := f.stored(t, p.ID)
		require.Equal(t, tc.eight, m.EightBit)
		require.Contains(t, stored, "\tid "+p.ID.String()+"\r\n")
		require.Equal(t, 1, strings.Count(stored, "Content-Transfer-Encoding:"))
		for _, r := range f.verify(t, stored) {
			require.Equal(t, "pass", r.Result, r)
		}
	}
}

func TestPreparedMessageWithoutBody(t *testing.T) {
	t.Parallel()
	f := open(t)
	p, err := f.Prepare(t.Context(), submission("From: a@example.com\r\n"))
	require.NoError(t, err)
	require.NoError(t, f.db.Update(t.Context(), p.PutTx))
	_, stored := f.stored(t, p.ID)
	require.True(t, strings.HasSuffix(stored, "\r\n\r\n"))
}

func TestBinaryMIME(t *testing.T) {
	t.Parallel()
	f := open(t)
	content := "\x89PNG\r\n\x1a\n\x00\r\r\n.\r\n" + strings.Repeat("\xff\x00", 300_000)
	for _, end := range []string{"", "\r\n", "\r"} {
		s := submission(image + content + end)
		s.Binary = true
		id, err := f.Accept(t.Context(), s)
		require.NoError(t, err)
		m, stored := f.stored(t, id)
		require.False(t, m.EightBit)
		header, body, _ := strings.Cut(stored, "\r\n\r\n")
		require.Contains(t, header, "\r\nContent-Transfer-Encoding: base64")
		got, err := base64.StdEncoding.DecodeString(body)
		require.NoError(t, err)
		require.Equal(t, content+end, string(got))
		for _, r := range f.verify(t, stored) {
			require.Equal(t, "pass", r.Result, r)
		}
	}
	for _, tc := range []struct{ name, message, want string }{
		{"header_with_bare_LF", "From: a@example.com\nX: y\r\n\r\nx", "554 5.6.0 Message has a bare LF"},
		{"header_with_NUL", "From: a@example.com\r\nX: \x00\r\n\r\nx", "554 5.6.0 Line 2 holds a NUL"},
		{"header_alone_with_bare_CR", "From: a@example.com\r\nX: y\r", "554 5.6.0 Message has a bare CR"},
		{"header_without_end", "From: a@example.com\n\n\x00" + strings.Repeat("x", 300_000), "552 5.3.4"},
		{"part_that_is_not_binary", strings.Replace(image, "binary", "8bit", 1) + "\x00", "554 5.6.0 Part 1 has a NUL, and its Content-Transfer-Encoding is not binary"},
		{"preamble", strings.Replace(image, "image/png", "multipart/mixed; boundary=b", 1) + "x\n--b\r\n\r\n--b--", "554 5.6.0 Message has a bare LF"},
		{"preamble_with_NUL", strings.Replace(image, "image/png", "multipart/mixed; boundary=b", 1) + "\r\n\x00--b\r\n\r\n--b--", "554 5.6.0 Line 7 holds a NUL"},
		{"signed", strings.Replace(image, "image/png", "multipart/signed; boundary=b", 1) + "--b\r\nContent-Transfer-Encoding: binary\r\n\r\n\x00\r\n--b--", "554 5.6.1 Binary message cannot be sent on: part 2 is binary inside"},
		{"irregular", strings.Replace(image, "image/png", "multipart/mixed", 1) + "\x00", "554 5.6.1 Binary message cannot be sent on: its MIME structure"},
		{"other_domain", strings.Replace(image, "a@example.com", "a@victim.example", 1) + "\x00", "550 5.7.1 From domain victim.example"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := submission(tc.message)
			s.Binary = true
			_, err := f.Accept(t.Context(), s)
			require.Error(t, err)
			require.True(t, strings.HasPrefix(mail.ReplyOf(err).String(), tc.want), mail.ReplyOf(err).String())
		})
	}
	require.Equal(t, 3, f.queued(t))
	f.noDrafts(t)
}

// TestIdempotencyKeyOf8BitMessages: what a repeated message becomes is the same each time.
func TestIdempotencyKeyOf8BitMessages(t *testing.T) {
	t.Parallel()
	f := open(t)
	first, err := f.Accept(t.Context(), submission("X-Relay-Idempotency-Key: k\r\n"+korean+"é\r\n"))
	require.NoError(t, err)
	second, err := f.Accept(t.Context(), submission("X-Relay-Idempotency-Key: k\r\n"+korean+"é\r\n"))
	require.NoError(t, err)
	require.Equal(t, first, second)
	_, err = f.Accept(t.Context(), submission("X-Relay-Idempotency-Key: k\r\n"+korean+"è\r\n"))
	require.Error(t, err)
	require.Equal(t, 1, f.queued(t))
}
