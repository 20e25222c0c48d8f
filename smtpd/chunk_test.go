package smtpd

import (
	"crypto/tls"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func bdat(message string, last bool) string {
	line := "BDAT " + strconv.Itoa(len(message))
	if last {
		line += " LAST"
	}
	return line + "\r\n" + message
}

// envelope is a client whose next command may be BDAT or DATA.
func (f *fixture) envelope(t testing.TB, i int) *client {
	t.Helper()
	c := f.ready(t, i)
	c.cmd("MAIL FROM:<a@example.com>", "250 2.1.0")
	c.cmd("RCPT TO:<b@example.net>", "250 2.1.5")
	return c
}

// TestA12_Chunking: each step is what is sent, as it is, and the begins of the replies to it.
func TestA12_Chunking(t *testing.T) {
	t.Parallel()
	const envelope = "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\n"
	const binaryEnvelope = "MAIL FROM:<a@example.com> BODY=binarymime\r\nRCPT TO:<b@example.net>\r\n"
	tests := []struct {
		name   string
		send   string
		want   []string
		bodies []string
		closes bool
	}{
		{"one_chunk", envelope + bdat("x\r\n", true), []string{"250", "250", "250 2.0.0 Ok: queued"}, []string{"x\r\n"}, false},
		{"pipelined_chunks", envelope + bdat("x\r", false) + bdat("\ny", false) + bdat("\r\n", true), []string{"250", "250", "250 2.0.0 2 octets", "250 2.0.0 2 octets", "250 2.0.0 Ok"}, []string{"x\r\ny\r\n"}, false},
		{"empty_last_chunk", envelope + bdat("x\r\n", false) + "BDAT 0 LAST\r\n", []string{"250", "250", "250 2.0.0 3 octets", "250 2.0.0 Ok"}, []string{"x\r\n"}, false},
		{"dots_are_no_end", envelope + bdat("x\r\n.\r\nRSET\r\n", true), []string{"250", "250", "250 2.0.0 Ok"}, []string{"x\r\n.\r\nRSET\r\n"}, false},
		{"commands_inside_are_octets", envelope + bdat(smuggled+".\r\n", true), []string{"250", "250", "250 2.0.0 Ok"}, []string{smuggled + ".\r\n"}, false},
		{"without_mail", bdat("RSET\r\nQUIT\r\n", true), []string{"503 5.5.1"}, nil, false},
		{"without_recipients", "MAIL FROM:<a@example.com>\r\n" + bdat("RSET\r\nQUIT\r\n", true), []string{"250", "503 5.5.1"}, nil, false},
		{"bare_LF", envelope + bdat("a\nb\r\n", true), []string{"250", "250", "554 5.6.0"}, nil, false},
		{"bare_CR", envelope + bdat("a\rb\r\n", true), []string{"250", "250", "554 5.6.0"}, nil, false},
		{"CR_at_the_end", envelope + bdat("a\r", true), []string{"250", "250", "554 5.6.0"}, nil, false},
		{"CR_across_chunks", envelope + bdat("a\r", false) + bdat("b\r\n", true), []string{"250", "250", "250", "554 5.6.0"}, nil, false},
		{"refused_chunk_and_those_behind_it", envelope + bdat("a\nb\r\n", false) + bdat("QUIT\r\n", false) + bdat("QUIT\r\n", true), []string{"250", "250", "554 5.6.0", "503 5.5.1", "503 5.5.1"}, nil, false},
		{"data_is_refused_between", envelope + bdat("x\r\n", false) + "DATA\r\nMAIL FROM:<c@example.com>\r\nNOOP\r\nFOO\r\n" + bdat("y\r\n", true), []string{"250", "250", "250", "503 5.5.1", "503 5.5.1", "250 2.0.0 Ok", "500 5.5.1", "250 2.0.0 Ok: queued"}, []string{"x\r\ny\r\n"}, false},
		{"rset_ends_it", envelope + bdat("x\r\n", false) + "RSET\r\n" + bdat("QUIT\r\n", true), []string{"250", "250", "250", "250 2.0.0 Ok\r\n", "503 5.5.1"}, nil, false},
		{"quit_ends_it", envelope + bdat("x\r\n", false) + "QUIT\r\n", []string{"250", "250", "250", "221"}, nil, true},
		{"two_messages", envelope + bdat("x\r\n", true) + envelope + bdat("y\r\n", true), []string{"250", "250", "250 2.0.0 Ok: q", "250", "250", "250 2.0.0 Ok: q"}, []string{"x\r\n", "y\r\n"}, false},
		{"size_that_is_no_number", envelope + "BDAT x LAST\r\nNOOP\r\n", []string{"250", "250", "501 5.5.4"}, nil, true},
		{"size_is_missing", envelope + "BDAT\r\nNOOP\r\n", []string{"250", "250", "501 5.5.4"}, nil, true},
		{"negative_size", envelope + "BDAT -1 LAST\r\nNOOP\r\n", []string{"250", "250", "501 5.5.4"}, nil, true},
		{"word_that_is_not_LAST", envelope + "BDAT 6 LATE\r\nNOOP\r\n", []string{"250", "250", "501 5.5.4"}, nil, true},
		{"size_beyond_all", envelope + "BDAT 999999999999 LAST\r\nNOOP\r\n", []string{"250", "250", "552 5.3.4"}, nil, true},
		{"malformed_in_the_middle", envelope + bdat("x\r\n", false) + "BDAT LAST\r\nNOOP\r\n", []string{"250", "250", "250", "501 5.5.4"}, nil, true},
		{"binarymime_takes_any_octets", binaryEnvelope + bdat("a\x00\r", false) + bdat("b\n\r\n.\r\n\r", true), []string{"250", "250", "250 2.0.0 3 octets", "250 2.0.0 Ok: queued"}, []string{"a\x00\rb\n\r\n.\r\n\r"}, false},
		{"binarymime_needs_BDAT", binaryEnvelope + "DATA\r\n" + bdat("x\n", true), []string{"250", "250", "503 5.5.1 A message with BODY=BINARYMIME comes with BDAT", "250 2.0.0 Ok: queued"}, []string{"x\n"}, false},
		{"binarymime_is_of_one_message", binaryEnvelope + bdat("x\n", true) + envelope + bdat("x\n", true), []string{"250", "250", "250 2.0.0 Ok", "250", "250", "554 5.6.0"}, []string{"x\n"}, false},
		{"binarymime_of_too_many_octets", binaryEnvelope + bdat(strings.Repeat("\n", 5001), true), []string{"250", "250", "552 5.3.4"}, nil, false},
		{"too_large", envelope + bdat(strings.Repeat("0123456789\r\n", 500), true), []string{"250", "250", "552 5.3.4"}, nil, false},
		{"too_large_in_chunks", envelope + bdat(strings.Repeat("0123456789\r\n", 300), false) + bdat(strings.Repeat("0123456789\r\n", 300), true), []string{"250", "250", "250", "552 5.3.4"}, nil, false},
	}
	for _, tc := range tests {
		for _, listener := range []int{plain, implicit} {
			t.Run(tc.name+map[int]string{plain: "_plain", implicit: "_tls"}[listener], func(t *testing.T) {
				t.Parallel()
				f := start(t, func(c *Config) { c.MaxMessageBytes = 5000 })
				c := f.ready(t, listener)
				c.send(tc.send)
				for _, want := range tc.want {
					c.expect(want)
				}
				if tc.closes {
					c.closed()
				} else {
					c.cmd("NOOP", "250 2.0.0 Ok\r\n")
				}
				var got []string
				for _, m := range f.rec.all() {
					got = append(got, m.body)
				}
				require.Equal(t, tc.bodies, got)
			})
		}
	}
}

// TestA12_SplitAtEveryOctet: where segments end is nothing to framing.
func TestA12_SplitAtEveryOctet(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.ready(t, plain)
	stream := bdat("a\r\n.\r\n", false) + bdat("BDAT 3\r\nxyz\r\n", true)
	for at := range len(stream) {
		c.cmd("MAIL FROM:<a@example.com>", "250 2.1.0")
		c.cmd("RCPT TO:<b@example.net>", "250 2.1.5")
		c.send(stream[:at])
		c.send(stream[at:])
		c.expect("250 2.0.0 6 octets")
		c.expect("250 2.0.0 Ok: queued")
		require.Equal(t, "a\r\n.\r\nBDAT 3\r\nxyz\r\n", f.rec.all()[at].body)
	}
}

// TestA12_CloseNotifyInMidChunk (CVE-2026-45185 of another server): nothing is kept, and what comes behind in clear is
// not read.
func TestA12_CloseNotifyInMidChunk(t *testing.T) {
	t.Parallel()
	for _, part := range []string{"BDAT 100 LAST\r\nabc", "BDAT 3\r\nabc", "BDAT 3\r\nabcBDAT 3 LAST\r\n"} {
		f := start(t)
		raw, err := net.Dial("tcp", f.Addr(implicit).String())
		require.NoError(t, err)
		c := &client{t: t, Conn: raw, r: nil}
		c.upgrade()
		c.expect("220")
		c.cmd("EHLO x", "250 ")
		c.cmd("AUTH PLAIN "+plainIR("app", "secret"), "235")
		c.cmd("MAIL FROM:<a@example.com>", "250")
		c.cmd("RCPT TO:<b@example.net>", "250")
		c.send(part)
		if strings.HasPrefix(part, "BDAT 3") {
			c.expect("250")
		}
		secure, ok := c.Conn.(*tls.Conn)
		require.True(t, ok)
		require.NoError(t, secure.CloseWrite())
		require.NoError(t, raw.SetWriteDeadline(time.Time{})) // CloseWrite leaves one behind
		_, err = io.WriteString(raw, "abc\r\nBDAT 3 LAST\r\nabc")
		require.NoError(t, err)
		require.NoError(t, raw.SetReadDeadline(time.Now().Add(10*time.Second)))
		_, _ = io.Copy(io.Discard, raw) // until the server has closed
		_ = raw.Close()
		require.NoError(t, f.Close())
		require.Empty(t, f.rec.all())
	}
}

// TestB9_SlowChunksAreCut: many small chunks are no way around the minimum rate.
func TestB9_SlowChunksAreCut(t *testing.T) {
	bubble(t, plain, func(t *testing.T, f *fixture, c *client, done chan struct{}) {
		c.readyPiped()
		c.cmd("MAIL FROM:<a@example.com>", "250")
		c.cmd("RCPT TO:<b@example.net>", "250")
		began := time.Now()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				if _, err := io.WriteString(c.Conn, "BDAT 1\r\nx"); err != nil {
					return
				}
				time.Sleep(10 * time.Second)
			}
		}()
		for {
			if s := c.reply(); strings.HasPrefix(s, "421 4.4.2") {
				break
			}
		}
		require.LessOrEqual(t, time.Since(began), 3*time.Minute+11*time.Second)
		<-stopped
		<-done
		require.Empty(t, f.rec.all())
	})
}

// TestExtensionsReachTheDoor: what MAIL asks for is what the Accepter gets.
func TestExtensionsReachTheDoor(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.ready(t, implicit)
	c.cmd("MAIL FROM:<홍@example.com> SMTPUTF8 REQUIRETLS HOLDFOR=3600 BODY=8BITMIME", "250")
	c.cmd("RCPT TO:<길동@example.net> ORCPT=utf-8;홍길동@example.net", "250")
	c.send(bdat("x\r\n", true))
	c.expect("250")
	c.cmd("MAIL FROM:<a@example.com> HOLDUNTIL="+time.Now().Add(time.Hour).UTC().Format(time.RFC3339), "250")
	c.cmd("RCPT TO:<길동@example.net>", "553 5.6.7")
	c.cmd("RCPT TO:<b@example.net> ORCPT=utf-8;홍길동@example.net", "553 5.6.7")
	c.cmd("RCPT TO:<b@example.net>", "250")
	c.cmd("DATA", "354")
	c.cmd("x\r\n.", "250")
	got := f.rec.all()
	require.True(t, got[0].sub.UTF8 && got[0].sub.RequireTLS)
	require.Equal(t, "UTF8SMTPSA", got[0].sub.Trace.With)
	require.Equal(t, "홍", got[0].sub.ReversePath.Local)
	require.Equal(t, `utf-8;\x{D64D}\x{AE38}\x{B3D9}@example.net`, got[0].sub.Recipients[0].ORCPT)
	for _, m := range got {
		require.WithinDuration(t, time.Now().Add(time.Hour), m.sub.SendAt, time.Minute)
	}
	require.False(t, got[1].sub.UTF8 || got[1].sub.RequireTLS)
}

// TestA12_BinaryMIMEIsForSubmission: what comes in is read by others than the door.
func TestA12_BinaryMIMEIsForSubmission(t *testing.T) {
	t.Parallel()
	f, _ := startInbound(t)
	c := f.dial(t, inbound)
	c.expect("220")
	require.NotContains(t, c.cmd("EHLO x", "250 "), "BINARYMIME")
	c.cmd("MAIL FROM:<a@example.com> BODY=BINARYMIME", "555 5.5.4 BINARYMIME is not offered here")
	c.cmd("MAIL FROM:<a@example.com> BODY=8BITMIME", "250")
}
