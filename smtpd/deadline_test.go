package smtpd

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// bubble runs fn with a client of a piped session, in fake time.
func bubble(t *testing.T, listener int, fn func(t *testing.T, f *fixture, c *client, done chan struct{}), change ...func(*Config)) {
	t.Helper()
	t.Parallel()
	certificate() // made outside of the bubble
	synctest.Test(t, func(t *testing.T) {
		f := piped(t, change...)
		conn, done := f.pipe(t, listener)
		fn(t, f, &client{t: t, Conn: conn, r: bufio.NewReader(conn)}, done)
		_ = conn.Close()
		<-done
		require.NoError(t, f.Close())
	})
}

func (c *client) readyPiped() {
	c.t.Helper()
	c.expect("220")
	c.cmd("EHLO x", "250 ")
	c.cmd("AUTH PLAIN "+plainIR("app", "secret"), "235")
}

// ended requires 421 or nothing, then the end, within most.
func (c *client) ended(began time.Time, least, most time.Duration, prefix string) {
	c.t.Helper()
	if prefix != "" {
		c.expect(prefix)
	}
	took := time.Since(began)
	require.GreaterOrEqual(c.t, took, least)
	require.LessOrEqual(c.t, took, most)
	_, err := c.r.ReadByte()
	require.Equal(c.t, io.EOF, err)
}

// trickle sends an octet every ten seconds until the connection is closed, and returns what waits for that.
func (c *client) trickle() (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if _, err := io.WriteString(c.Conn, "N"); err != nil {
				return
			}
			time.Sleep(10 * time.Second)
		}
	}()
	return func() { <-done }
}

func TestB9SilentClientIsCut(t *testing.T) {
	bubble(t, plain, func(t *testing.T, _ *fixture, c *client, _ chan struct{}) {
		c.expect("220")
		began := time.Now()
		c.ended(began, 5*time.Minute, 5*time.Minute, "421 4.4.2")
	})
}

// TestBusySessionIsNotCut by the deadline of a wait before, nor does it keep a silent client for longer.
func TestBusySessionIsNotCut(t *testing.T) {
	bubble(t, plain, func(t *testing.T, f *fixture, c *client, done chan struct{}) {
		c.readyPiped()
		for range 20 { // 80 minutes
			time.Sleep(4 * time.Minute)
			c.transaction()
			c.cmd("x\r\n.", "250 2.0.0")
		}
		began := time.Now()
		c.ended(began, 5*time.Minute, 5*time.Minute, "421 4.4.2")
		<-done
		require.Len(t, f.rec.all(), 20)
	})
}

// TestB9SlowCommandIsCut: octets that trickle in do not prolong the wait for a line.
func TestB9SlowCommandIsCut(t *testing.T) {
	bubble(t, plain, func(t *testing.T, _ *fixture, c *client, done chan struct{}) {
		c.expect("220")
		began := time.Now()
		defer c.trickle()()
		c.ended(began, 5*time.Minute, 5*time.Minute+time.Second, "421 4.4.2")
		<-done
	})
}

func TestB9SlowMessageIsCut(t *testing.T) {
	bubble(t, plain, func(t *testing.T, f *fixture, c *client, done chan struct{}) {
		c.readyPiped()
		c.transaction()
		began := time.Now()
		defer c.trickle()()
		c.ended(began, 3*time.Minute, 3*time.Minute+11*time.Second, "421 4.4.2")
		<-done
		require.Empty(t, f.rec.all())
		require.Contains(t, f.log.String(), "reason=timeout")
	})
}

// TestSteadyMessageIsNotCut: who keeps the minimum rate may take long.
func TestSteadyMessageIsNotCut(t *testing.T) {
	bubble(t, plain, func(t *testing.T, f *fixture, c *client, _ chan struct{}) {
		c.readyPiped()
		c.transaction()
		for range 20 { // 50 minutes
			time.Sleep(150 * time.Second)
			c.send(strings.Repeat(strings.Repeat("x", 98)+"\r\n", 900))
		}
		c.cmd(".", "250 2.0.0")
		require.Len(t, f.rec.all(), 1)
	})
}

func TestB9HandshakeIsCut(t *testing.T) {
	bubble(t, implicit, func(t *testing.T, _ *fixture, c *client, done chan struct{}) {
		began := time.Now()
		<-done
		require.Equal(t, 30*time.Second, time.Since(began))
	})
}

// TestClientThatDoesNotReadIsCut: the write deadline ends a session whose replies nobody takes.
func TestClientThatDoesNotReadIsCut(t *testing.T) {
	bubble(t, plain, func(t *testing.T, _ *fixture, _ *client, done chan struct{}) {
		began := time.Now()
		<-done
		require.Equal(t, time.Minute, time.Since(began))
	})
}

func TestAcceptHasItsTimeout(t *testing.T) {
	bubble(t, plain, func(t *testing.T, f *fixture, c *client, _ chan struct{}) {
		stuck := make(chan struct{})
		var ctx context.Context
		f.rec.before = func(c context.Context) error { ctx = c; return nil }
		f.rec.read = func(r io.Reader) ([]byte, error) {
			_, _ = io.ReadAll(r)
			<-ctx.Done()
			close(stuck)
			return nil, ctx.Err()
		}
		c.readyPiped()
		c.transaction()
		began := time.Now()
		c.cmd("x\r\n.", "451 4.3.0")
		<-stuck
		require.Equal(t, 5*time.Minute, time.Since(began))
		c.cmd("NOOP", "250")
	})
}

func TestA6EarlyTalkerIsCut(t *testing.T) {
	bubble(t, plain, func(t *testing.T, _ *fixture, c *client, _ chan struct{}) {
		time.Sleep(10 * time.Millisecond)
		c.cmd("EHLO x", "554 5.5.0 Protocol synchronization")
		c.closed()
	}, func(c *Config) { c.GreetDelay = 20 * time.Millisecond })
}

func TestPatientClientGetsTheBanner(t *testing.T) {
	bubble(t, plain, func(t *testing.T, _ *fixture, c *client, _ chan struct{}) {
		began := time.Now()
		c.expect("220")
		require.Equal(t, 20*time.Millisecond, time.Since(began))
		c.cmd("NOOP", "250")
	}, func(c *Config) { c.GreetDelay = 20 * time.Millisecond })
}

// TestB4FailedAuthIsHeldBackAndTheOwnerIsNot: the delay doubles up to its bound, over sessions; a right password is
// answered at once.
func TestB4FailedAuthIsHeldBackAndTheOwnerIsNot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := piped(t, func(c *Config) { c.AuthDelay = 3200 * time.Millisecond; c.MaxAuthFailures = 1 })
		for i, want := range []int{100, 200, 400, 800, 1600, 3200, 3200, 3200} {
			conn, done := f.pipe(t, plain)
			c := &client{t: t, Conn: conn, r: bufio.NewReader(conn)}
			c.expect("220")
			c.cmd("EHLO x", "250 ")
			began := time.Now()
			c.cmd("AUTH PLAIN "+plainIR([]string{"app", "nobody"}[i%2], "wrong"), "421 4.7.0")
			require.Equal(t, time.Duration(want)*time.Millisecond, time.Since(began))
			_ = conn.Close()
			<-done
		}
		conn, done := f.pipe(t, plain)
		c := &client{t: t, Conn: conn, r: bufio.NewReader(conn)}
		began := time.Now()
		c.readyPiped()
		require.Zero(t, time.Since(began))
		_ = conn.Close()
		<-done
		time.Sleep(forgetFailure + time.Second)
		require.Equal(t, 100*time.Millisecond, f.limits.failure(sourceOf(mustAddr("192.0.2.1")), "app"))
		require.NoError(t, f.Close())
	})
}

func TestShutdownEndsIdleSessionsAndLetsTransactionsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := piped(t)
		idleConn, idleDone := f.pipe(t, plain)
		idle := &client{t: t, Conn: idleConn, r: bufio.NewReader(idleConn)}
		idle.expect("220")
		busyConn, busyDone := f.pipe(t, plain)
		busy := &client{t: t, Conn: busyConn, r: bufio.NewReader(busyConn)}
		busy.readyPiped()
		busy.cmd("MAIL FROM:<a@example.com>", "250")
		dataConn, dataDone := f.pipe(t, plain)
		data := &client{t: t, Conn: dataConn, r: bufio.NewReader(dataConn)}
		data.readyPiped()
		data.transaction()
		data.send("Subject: x\r\n")
		synctest.Wait()

		result := make(chan error)
		go func() { result <- f.Shutdown(context.Background()) }()
		idle.expect("421 4.3.2")
		_ = idleConn.Close()
		<-idleDone
		data.cmd("\r\nhello\r\n.", "250 2.0.0")
		data.expect("421 4.3.2")
		_ = dataConn.Close()
		<-dataDone
		busy.cmd("RCPT TO:<b@example.net>", "250")
		busy.cmd("DATA", "354")
		busy.cmd("hello\r\n.", "250 2.0.0")
		busy.expect("421 4.3.2")
		_ = busyConn.Close()
		<-busyDone
		require.NoError(t, <-result)
		require.Len(t, f.rec.all(), 2)
	})
}

func TestPanicEndsOneSession(t *testing.T) {
	bubble(t, plain, func(t *testing.T, f *fixture, c *client, done chan struct{}) {
		f.rec.before = func(context.Context) error { panic("defect") }
		c.readyPiped()
		c.transaction()
		go func() { _, _ = io.WriteString(c.Conn, "x\r\n.\r\n") }()
		c.expect("421 4.3.0")
		<-done
		require.Contains(t, f.log.String(), "session.panicked")
	})
}

// FuzzSession: whatever comes in, in several states, the session ends, every reply line is well formed, and nothing is
// accepted that the reference does not see.
func FuzzSession(f *testing.F) {
	seeds := []string{
		"EHLO x\r\nNOOP\r\nQUIT\r\n", "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n",
		"hello\r\n.\r\nMAIL FROM:<a@example.com>\r\n", "AUTH LOGIN\r\nYXBw\r\nc2VjcmV0\r\n", "BDAT 3 LAST\r\nabc", "BDAT 3\r\nabcBDAT 4\r\nRSETNOOP\r\nBDAT 0 LAST\r\n", "BDAT 5 LAST\r\na\nb\r\nNOOP\r\n",
		"BDAT 3 LATE\r\nabcNOOP\r\n", "BDAT 3\r\nabcRSET\r\nBDAT 2 LAST\r\nxy", "BDAT 99999999999999999999\r\n", "\n\r\n.\r\n",
		"MAIL FROM:<a@example.com> BODY=BINARYMIME\r\nRCPT TO:<b@example.net>\r\nDATA\r\nBDAT 4\r\n\x00\n\r.BDAT 2 LAST\r\nx\n", "AUTH EXTERNAL =\r\n",
		"STARTTLS\r\nNOOP\r\n", "GET / HTTP/1.0\r\n\r\n",
	}
	for state := range 4 {
		for _, s := range seeds {
			f.Add(state, []byte(s))
		}
	}
	certificate()
	f.Fuzz(func(t *testing.T, state int, input []byte) {
		f := piped(t, func(c *Config) {
			c.CommandTimeout, c.DataTimeout, c.HandshakeTimeout = time.Second, time.Second, time.Second
		})
		prefix := []string{
			"", "EHLO x\r\n", "EHLO x\r\nAUTH PLAIN " + plainIR("app", "secret") + "\r\n",
			"EHLO x\r\nAUTH PLAIN " + plainIR("app", "secret") + "\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\n",
		}[state&3]
		listener := plain
		if state&4 != 0 {
			listener = starttls
		}
		conn, done := f.pipe(t, listener)
		output := make(chan string)
		go func() {
			b, _ := io.ReadAll(conn)
			output <- string(b)
		}()
		for line := range strings.SplitAfterSeq(prefix, "\n") {
			if line != "" {
				_, _ = io.WriteString(conn, line)
			}
		}
		_, _ = conn.Write(input)
		_ = conn.Close()
		got := <-output
		<-done
		for line := range strings.SplitSeq(strings.TrimSuffix(got, "\r\n"), "\r\n") {
			if strings.HasPrefix(line, "\x16") || strings.HasPrefix(line, "\x15") { // TLS after 220
				break
			}
			if line != "" {
				checkReply(t, line+"\r\n")
			}
		}
		if accepted := len(f.rec.all()); accepted > 0 {
			require.True(t, bytes.Contains(input, []byte(".\r\n")) || bytes.Contains(bytes.ToUpper(input), []byte("BDAT ")))
			require.GreaterOrEqual(t, accepted, strings.Count(got, "Ok: queued as"))
		}
		require.NoError(t, f.Close())
	})
}
