package smtpd

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What somebody may try who means harm, as far as no other file has it.

// TestA1_SmugglingToInbound: as for submission, split at every octet in and around the sequence, and octet by octet.
func TestA1_SmugglingToInbound(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		for name, seq := range smuggling {
			t.Run(name+map[bool]string{false: "_plain", true: "_tls"}[secure], func(t *testing.T) {
				t.Parallel()
				f, h := startInbound(t)
				c := f.inboundClient(t)
				if secure {
					c.cmd("STARTTLS", "220")
					c.upgrade()
					c.cmd("EHLO mx.example", "250 ")
				}
				head := "From: x@mx.example\r\nSubject: x\r\n\r\nhello"
				stream := head + seq + smuggled + ".\r\n"
				for at := -1; at <= len(seq)+4; at++ {
					before := len(h.all())
					c.cmd("MAIL FROM:<x@mx.example>", "250")
					c.cmd("RCPT TO:<"+issuedPath()+">", "250")
					c.cmd("DATA", "354")
					if at < 0 {
						for i := range len(stream) {
							c.send(stream[i : i+1])
						}
					} else {
						c.send(stream[:len(head)+at])
						c.send(stream[len(head)+at:])
					}
					reply := c.reply()
					c.cmd("NOOP", "250 2.0.0 Ok\r\n")
					if strings.HasPrefix(reply, "250") {
						require.Equal(t, "CRLF.NULCRLF", name) // no line end at all
						require.Len(t, h.all(), before+1)
						continue
					}
					require.True(t, strings.HasPrefix(reply, "554 5.6.0"), reply)
					require.Len(t, h.all(), before)
				}
			})
		}
	}
}

// TestA14_VanishedClientInChunks: whatever was said before the last octet of the last chunk, nothing is accepted.
func TestA14_VanishedClientInChunks(t *testing.T) {
	t.Parallel()
	f := start(t)
	stream := bdat("Subject: x\r\n", false) + bdat("\r\nx\r\n", true)
	for n := range len(stream) {
		c := f.envelope(t, plain)
		c.send(stream[:n])
		if tcp, ok := c.Conn.(*net.TCPConn); ok && n%2 == 0 {
			_ = tcp.SetLinger(0) // RST
		}
		_ = c.Close()
	}
	require.NoError(t, f.Close())
	require.Empty(t, f.rec.all())
}

// TestA14_VanishedBehindTheEnd: a message whose end was sent is kept once, whether or not its sender waits for the reply;
// the log says so.
func TestA14_VanishedBehindTheEnd(t *testing.T) {
	t.Parallel()
	for _, chunks := range []bool{false, true} {
		for range 20 {
			f := start(t)
			c := f.envelope(t, plain)
			if chunks {
				c.send(bdat("x\r\n", true))
			} else {
				c.cmd("DATA", "354")
				c.send("x\r\n.\r\n")
			}
			_ = c.Close()
			require.Eventually(t, func() bool { return len(f.rec.all()) > 0 }, time.Minute, time.Millisecond)
			require.NoError(t, f.Shutdown(t.Context()))
			require.Len(t, f.rec.all(), 1)
			require.Equal(t, 1, strings.Count(f.log.String(), "message.accepted"))
		}
	}
}

// TestSessionsAreNotResumed: no ticket is given out (golang/go#70232), and no ID can be used again.
func TestSessionsAreNotResumed(t *testing.T) {
	t.Parallel()
	f := start(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cfg := &tls.Config{InsecureSkipVerify: true, MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(1), ServerName: "x", NextProtos: []string{"smtp", "h2"}} //nolint:gosec // a test
		for range 3 {
			conn, err := tls.Dial("tcp", f.Addr(implicit).String(), cfg)
			require.NoError(t, err)
			c := &client{t: t, Conn: conn, r: bufio.NewReader(conn)}
			c.expect("220")
			c.cmd("QUIT", "221")
			require.Equal(t, version, conn.ConnectionState().Version)
			require.False(t, conn.ConnectionState().DidResume)
			require.Empty(t, conn.ConnectionState().NegotiatedProtocol)
			require.NoError(t, conn.Close())
		}
	}
	_, err := tls.Dial("tcp", f.Addr(implicit).String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}) //nolint:gosec // a test
	require.ErrorContains(t, err, "protocol version")
}

// dialogue is what is sent, and the begins of the replies to it.
type dialogue struct {
	name   string
	steps  []string // sent, expected, sent, expected ...
	closes bool
}

func (f *fixture) speak(t *testing.T, listener int, d dialogue) *client {
	t.Helper()
	c := f.dial(t, listener)
	c.expect("220")
	for i := 0; i < len(d.steps); i += 2 {
		c.send(d.steps[i])
		for want := range strings.SplitSeq(d.steps[i+1], "|") {
			c.expect(want)
		}
	}
	if d.closes {
		c.closed()
	}
	return c
}

// TestAuthStatesCannotBeConfused: nobody is somebody before 235, nobody becomes another, and nothing of an exchange is
// taken for a command.
func TestAuthStatesCannotBeConfused(t *testing.T) {
	t.Parallel()
	const hello, mail = "EHLO x\r\n", "MAIL FROM:<a@example.com>\r\n"
	right, wrong := "AUTH PLAIN "+plainIR("app", "secret")+"\r\n", "AUTH PLAIN "+plainIR("app", "wrong")+"\r\n"
	raw := func(s string) string { return "AUTH PLAIN " + b64(s) + "\r\n" }
	for _, d := range []dialogue{
		{"before_EHLO", []string{right, "503 5.5.1", mail, "503 5.5.1"}, false},
		{"command_as_response", []string{hello, "250 ", "AUTH PLAIN\r\n", "334", mail, "501 5.5.2", mail, "530 5.7.0"}, false},
		{"command_behind_AUTH_is_a_response", []string{hello, "250 ", "AUTH PLAIN\r\n" + mail + mail, "334|501 5.5.2|530 5.7.0"}, false},
		{"QUIT_is_base64", []string{hello, "250 ", "AUTH LOGIN\r\nQUIT\r\n*\r\nNOOP\r\n", "334|334|501 5.7.0|250"}, false},
		{"MAIL_behind_a_wrong_password", []string{hello, "250 ", wrong + mail, "535|530 5.7.0"}, false},
		{"acting_for_another", []string{hello, "250 ", raw("other\x00app\x00secret"), "535", mail, "530"}, false},
		{"acting_for_another_who_exists", []string{hello, "250 ", raw("app\x00other\x00secret"), "535", mail, "530"}, false},
		{"one_NUL_more", []string{hello, "250 ", raw("\x00app\x00secret\x00"), "501 5.5.2", mail, "530"}, false},
		{"NUL_in_the_password", []string{hello, "250 ", raw("\x00app\x00sec\x00ret"), "501 5.5.2", mail, "530"}, false},
		{"one_NUL_less", []string{hello, "250 ", raw("app\x00secret"), "501 5.5.2", mail, "530"}, false},
		{"no_password", []string{hello, "250 ", raw("\x00app\x00"), "535", mail, "530"}, false},
		{"no_user", []string{hello, "250 ", raw("\x00\x00secret"), "535", mail, "530"}, false},
		{"user_in_another_case", []string{hello, "250 ", "AUTH PLAIN " + plainIR("APP", "secret") + "\r\n", "535", mail, "530"}, false},
		{"user_with_a_blank", []string{hello, "250 ", "AUTH PLAIN " + plainIR("app ", "secret") + "\r\n", "535", mail, "530"}, false},
		{"empty_initial_response", []string{hello, "250 ", "AUTH PLAIN =\r\n", "501 5.5.2", mail, "530"}, false},
		{"no_base64", []string{hello, "250 ", "AUTH PLAIN !!!!\r\n", "501 5.5.2", mail, "530"}, false},
		{"base64_that_goes_on", []string{hello, "250 ", strings.TrimSpace(right) + "AAAA\r\n", "501 5.5.2", mail, "530"}, false},
		{"base64_with_loose_bits", []string{hello, "250 ", "AUTH PLAIN " + strings.TrimSuffix(base64.StdEncoding.EncodeToString([]byte("\x00app\x00secre")), "=") + "\r\n", "5", mail, "530"}, false},
		{"mechanism_that_is_not_offered", []string{hello, "250 ", "AUTH SCRAM-SHA-256-PLUS\r\n", "504", "AUTH CRAM-MD5\r\n", "504", "AUTH ANONYMOUS\r\n", "504", "AUTH EXTERNAL =\r\n", "504", mail, "530"}, false},
		{"given_up", []string{hello, "250 ", "AUTH PLAIN\r\n", "334", "*\r\n", "501 5.7.0", mail, "530"}, false},
		{"twice", []string{hello, "250 ", right, "235", right, "503 5.5.1", wrong, "503 5.5.1", mail, "250"}, false},
		{"in_a_transaction", []string{hello, "250 ", right, "235", mail, "250", right, "503 5.5.1", "RCPT TO:<b@example.net>\r\n", "250"}, false},
		{"between_chunks", []string{hello, "250 ", right, "235", mail + "RCPT TO:<b@example.net>\r\n" + bdat("x\r\n", false), "250|250|250", right, "503 5.5.1", "RSET\r\n", "250", mail, "250"}, false},
		{"failures_of_all_mechanisms_count", []string{hello, "250 ", wrong, "535", "AUTH LOGIN " + b64("app") + "\r\n", "334", b64("wrong") + "\r\n", "535", wrong, "421 4.7.0"}, true},
		{"failures_are_not_forgotten_by_EHLO_and_RSET", []string{hello, "250 ", wrong, "535", hello, "250 ", "RSET\r\n", "250", wrong, "535", hello, "250 ", wrong, "421 4.7.0"}, true},
		{"nothing_behind_the_last_failure_counts", []string{hello, "250 ", wrong + wrong + wrong + right + mail, "535|535|421 4.7.0"}, true},
	} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			f.speak(t, plain, d)
			require.Empty(t, f.rec.all())
		})
	}
}

// TestA4_StartTLSInStates: what was begun in plain text is not ended under TLS, and plain text in place of a handshake
// is no command.
func TestA4_StartTLSInStates(t *testing.T) {
	t.Parallel()
	transaction := "MAIL FROM:<x@mx.example>\r\nRCPT TO:<" + issuedPath() + ">\r\n"
	for _, d := range []dialogue{
		{"in_a_transaction", []string{"EHLO x\r\n", "250 ", transaction + "STARTTLS\r\n", "250|250|220"}, false},
		{"before_EHLO", []string{"STARTTLS\r\n", "220"}, false},
		{"behind_pipelined_commands", []string{"EHLO x\r\n", "250 ", transaction + "NOOP\r\nSTARTTLS\r\nDATA\r\nevil\r\n.\r\n", "250|250|250|220"}, false},
	} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			f, h := startInbound(t)
			c := f.speak(t, inbound, d)
			c.upgrade()
			c.cmd("DATA", "503 5.5.1")
			c.cmd("RCPT TO:<"+issuedPath()+">", "503 5.5.1")
			c.cmd("MAIL FROM:<x@mx.example>", "503 5.5.1 Say EHLO")
			require.Empty(t, h.all())
		})
	}
	for _, d := range []dialogue{
		{"with_argument", []string{"EHLO x\r\n", "250 ", "STARTTLS now\r\n", "501 5.5.4", "NOOP\r\n", "250"}, false},
		{"between_chunks", []string{"EHLO x\r\n", "250 ", transaction + bdat("x\r\n", false) + "STARTTLS\r\nNOOP\r\n", "250|250|250|503 5.5.1|250"}, false},
		{"with_bare_LF", []string{"EHLO x\r\n", "250 ", "STARTTLS\nEHLO evil\r\n", "500 5.5.2"}, true},
		{"with_bare_CR", []string{"EHLO x\r\n", "250 ", "STARTTLS\rNOOP\r\n", "500 5.5.2", "NOOP\r\n", "250"}, false},
	} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			f, h := startInbound(t)
			f.speak(t, inbound, d)
			require.Empty(t, h.all())
		})
	}
	t.Run("plain_text_in_place_of_the_handshake", func(t *testing.T) {
		t.Parallel()
		f, h := startInbound(t)
		c := f.speak(t, inbound, dialogue{steps: []string{"EHLO x\r\n", "250 ", "STARTTLS\r\n", "220"}})
		c.send("EHLO x\r\n" + transaction + bdat("x\r\n", true))
		rest, _ := io.ReadAll(c.r) // an alert, then the end
		require.NotContains(t, string(rest), "250")
		require.NotContains(t, string(rest), "503")
		require.Empty(t, h.all())
	})
}

// TestA12_ChunkGames: sizes that others read in another way end the session, and chunks without octets are no way to stay.
func TestA12_ChunkGames(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		"BDAT +3 LAST", "BDAT 0x3 LAST", "BDAT 3.0 LAST", "BDAT 3,LAST", "BDAT 3  LAST", "BDAT 3 LAST LAST", "BDAT LAST 3",
		"BDAT 3 LAST 3", "BDAT 9223372036854775808 LAST", "BDAT 18446744073709551619 LAST", "BDAT 3LAST", "BDAT -0 LAST", "BDAT 3_0",
	} {
		want := "501 5.5.4"
		if len(line) > 20 {
			want = "552 5.3.4" // a number, but not one that anybody can send
		}
		for _, begun := range []string{"", bdat("x\r\n", false)} {
			f := start(t)
			c := f.envelope(t, plain)
			if c.send(begun + line + "\r\nNOOP\r\n"); begun != "" {
				c.expect("250")
			}
			c.expect(want)
			c.closed()
			require.Empty(t, f.rec.all(), line)
		}
	}
	f := start(t, func(c *Config) { c.MaxJunkCommands = 10 })
	c := f.envelope(t, plain)
	c.send(strings.Repeat("BDAT 0\r\n", 20))
	for range 9 { // one EHLO
		c.expect("250")
	}
	c.expect("421 4.7.0")
	c.closed()
	require.Empty(t, f.rec.all())

	f = start(t) // leading zeros are a number
	c = f.envelope(t, plain)
	c.send("BDAT 0000000000000000000000003 last\r\nx\r\nNOOP\r\n")
	c.expect("250 2.0.0 Ok: queued")
	c.expect("250 2.0.0 Ok\r\n")
}

// TestB9_SlowInEveryPhase: an octet every ten seconds is cut by the deadline of the phase.
func TestB9_SlowInEveryPhase(t *testing.T) {
	for _, phase := range []struct {
		name     string
		listener int
		begin    func(c *client)
		most     time.Duration
		reply    string
	}{
		{"user_name_of_AUTH", plain, func(c *client) { c.cmd("EHLO x", "250 "); c.cmd("AUTH LOGIN", "334") }, 5 * time.Minute, "421 4.4.2"},
		{"password_of_AUTH", plain, func(c *client) {
			c.cmd("EHLO x", "250 ")
			c.cmd("AUTH LOGIN "+b64("app"), "334")
		}, 5 * time.Minute, "421 4.4.2"},
		{"line_that_is_too_long", plain, func(c *client) { c.send(strings.Repeat("x", 20_000)) }, 5 * time.Minute, "421 4.4.2"},
		{"chunk", plain, func(c *client) {
			c.cmd("EHLO x", "250 ")
			c.cmd("AUTH PLAIN "+plainIR("app", "secret"), "235")
			c.cmd("MAIL FROM:<a@example.com>", "250")
			c.cmd("RCPT TO:<b@example.net>", "250")
			c.send("BDAT 5000 LAST\r\n")
		}, 3*time.Minute + 11*time.Second, "421 4.4.2"},
		{"refused_chunk", plain, func(c *client) { c.cmd("EHLO x", "250 "); c.send("BDAT 5000 LAST\r\n") }, 3*time.Minute + 11*time.Second, "421 4.4.2"},
		{"handshake_behind_STARTTLS", starttls, func(c *client) { c.cmd("EHLO x", "250 "); c.cmd("STARTTLS", "220") }, 30 * time.Second, ""},
	} {
		t.Run(phase.name, func(t *testing.T) {
			bubble(t, phase.listener, func(t *testing.T, f *fixture, c *client, done chan struct{}) {
				c.expect("220")
				phase.begin(c)
				began := time.Now()
				defer c.trickle()()
				if phase.reply != "" {
					c.expect(phase.reply)
				}
				_, _ = io.Copy(io.Discard, c.r)
				require.LessOrEqual(t, time.Since(began), phase.most+lingerFor)
				<-done
				require.Empty(t, f.rec.all())
			})
		})
	}
}

// TestB9_SlowRecordsUnderTLS: octets of a record that is never whole do not prolong the wait for a line.
func TestB9_SlowRecordsUnderTLS(t *testing.T) {
	bubble(t, implicit, func(t *testing.T, _ *fixture, c *client, done chan struct{}) {
		raw := c.Conn
		conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // a test
		require.NoError(t, conn.Handshake())
		c.Conn = conn
		var read sync.WaitGroup
		read.Go(func() { _, _ = io.Copy(io.Discard, conn) })
		defer read.Wait()
		_, err := io.WriteString(raw, "\x17\x03\x03\x40\x00") // 16 KB of data follow
		require.NoError(t, err)
		began := time.Now()
		defer (&client{t: t, Conn: raw}).trickle()()
		<-done
		require.LessOrEqual(t, time.Since(began), 5*time.Minute+lingerFor)
	})
}

// TestB9_TalkingOnAfterTheEnd holds a session for two seconds at most.
func TestB9_TalkingOnAfterTheEnd(t *testing.T) {
	bubble(t, plain, func(t *testing.T, _ *fixture, c *client, done chan struct{}) {
		c.expect("220")
		c.cmd("GET / HTTP/1.1", "554")
		began := time.Now()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				if _, err := io.WriteString(c.Conn, "x"); err != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		<-done
		require.LessOrEqual(t, time.Since(began), lingerFor)
		<-stopped
	})
}

// TestUnfinishedLinesCostLittle: a stranger who never ends his line holds no buffer of a message.
func TestUnfinishedLinesCostLittle(t *testing.T) {
	t.Parallel()
	for _, n := range []int{lineBuffer - 1, lineBuffer, lineBuffer + 1, maxLine - 1, maxLine, maxLine + 1, maxSkip} {
		w := newWire(streamConn{Reader: strings.NewReader(strings.Repeat("x", n))}, testPool, time.Second)
		_, err := w.readLine(time.Minute, nil)
		require.ErrorIs(t, err, io.EOF, n)
		require.LessOrEqual(t, len(w.buf), wideBuffer)
		require.Nil(t, w.big)
		w.r = w.w
		w.shrink()
		require.Len(t, w.buf, lineBuffer)
	}
}
