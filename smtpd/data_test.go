package smtpd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
)

// smuggling are the ends of data that are none: sequences that some servers take for the end of a message and others
// for a part of it (CVE-2023-51764 to 51766).
var smuggling = map[string]string{
	"LF.LF":         "\n.\n",
	"LF.CRLF":       "\n.\r\n",
	"CRLF.LF":       "\r\n.\n",
	"CR.CR":         "\r.\r",
	"CR.LF":         "\r.\n",
	"CR.CRLF":       "\r.\r\n",
	"LF.CR":         "\n.\r",
	"CRLF.CR":       "\r\n.\r",
	"CRLF.CRCRLF":   "\r\n.\r\r\n",
	"CRCRLF.CRCRLF": "\r\r\n.\r\r\n",
	"LFLF.CRLF":     "\n\n.\r\n",
	"CRLF.NULCRLF":  "\r\n.\x00\r\n",
}

const smuggled = "MAIL FROM:<evil@example.com>\r\nRCPT TO:<victim@example.net>\r\nDATA\r\nSubject: evil\r\n\r\nevil\r\n"

// TestA1SmugglingNeverMakesASecondMessage splits the stream at every octet in and around the sequence.
func TestA1SmugglingNeverMakesASecondMessage(t *testing.T) {
	t.Parallel()
	for _, listener := range []int{plain, implicit} {
		for name, seq := range smuggling {
			t.Run(name+map[int]string{plain: "_plain", implicit: "_tls"}[listener], func(t *testing.T) {
				t.Parallel()
				f := start(t)
				c := f.ready(t, listener)
				head := "Subject: x\r\n\r\nhello"
				for at := -1; at <= len(seq)+4; at++ {
					before := len(f.rec.all())
					c.transaction()
					stream := head + seq + smuggled + ".\r\n"
					cut := len(head) + at
					if at < 0 {
						cut = 0
					}
					c.send(stream[:cut])
					c.send(stream[cut:])
					reply := c.reply()
					c.cmd("NOOP", "250 2.0.0 Ok\r\n") // one reply, and the session is in step
					if strings.HasPrefix(reply, "250") {
						require.Equal(t, "CRLF.NULCRLF", name) // no line end at all; the door refuses NUL
						require.Len(t, f.rec.all(), before+1)
						require.Contains(t, f.rec.all()[before].body, "evil\r\n")
						continue
					}
					require.True(t, strings.HasPrefix(reply, "554 5.6.0"), reply)
					require.Len(t, f.rec.all(), before)
				}
			})
		}
	}
}

func TestA2StrayCRBeforeTheEndDoesNotHang(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.inData(t, plain)
	c.cmd("hello\r\r\n.", "554 5.6.0")
	c.transaction()
	c.send("hello\r\r\n.\r\nNOOP\r\n")
	c.expect("554 5.6.0")
	c.expect("250 2.0.0")
	require.Empty(t, f.rec.all())
}

func TestA9ActualSizeIsEnforced(t *testing.T) {
	t.Parallel()
	f := start(t, func(c *Config) { c.MaxMessageBytes = 5000 })
	c := f.inData(t, plain)
	c.send(strings.Repeat("0123456789\r\n", 416) + "12345678\r\n.\r\n") // 5002
	c.expect("552 5.3.4")
	c.transaction()
	c.send(strings.Repeat("0123456789\r\n", 416) + "..23456\r\n.\r\n") // 5000 without the stuffed dot
	c.expect("250 2.0.0")
	require.Len(t, f.rec.all(), 1)
	require.Len(t, f.rec.all()[0].body, 5000)
}

func TestEndlessMessageEndsTheSession(t *testing.T) {
	t.Parallel()
	f := start(t, func(c *Config) { c.MaxMessageBytes = 5000 })
	c := f.inData(t, plain)
	go func() { _, _ = io.Copy(c.Conn, io.LimitReader(zeros{}, 1<<20)) }()
	c.expect("552 5.3.4")
	c.closed()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestA10RecipientsOverTheLimitAreRefusedOneByOne(t *testing.T) {
	t.Parallel()
	f := start(t, func(c *Config) { c.MaxRecipients = 2 })
	c := f.ready(t, plain)
	c.cmd("MAIL FROM:<a@example.com>", "250")
	c.cmd("RCPT TO:<b1@example.net>", "250")
	c.cmd("RCPT TO:<b2@example.net>", "250")
	c.cmd("RCPT TO:<b3@example.net>", "452 4.5.3")
	c.cmd("RCPT TO:<b4@example.net>", "452 4.5.3")
	c.cmd("DATA", "354")
	c.cmd("x\r\n.", "250")
	require.Len(t, f.rec.all()[0].sub.Recipients, 2)
}

func TestEarlyRefusalDrainsTheMessage(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.rec.err = mail.Refuse(550, mail.Status{Class: 5, Subject: 7, Detail: 1}, "not\r\n250 here", nil)
	c := f.inData(t, plain)
	c.send("Subject: x\r\n\r\n" + strings.Repeat("RSET\r\n", 100_000) + ".\r\nNOOP\r\n")
	require.Equal(t, "550 5.7.1 not??250 here\r\n", c.reply())
	c.expect("250 2.0.0 Ok")
	f.rec.err = errors.New("disk /var/lib is full")
	c.transaction()
	require.Equal(t, "451 4.3.0 Local error, please try again later\r\n", c.cmd("x\r\n.", "451"))
	require.Contains(t, f.log.String(), "disk /var/lib is full")
}

// TestA14VanishedClient: whatever the client said before the final dot, and however it goes (RST, FIN, half-closed), nothing
// is accepted.
func TestA14VanishedClient(t *testing.T) {
	t.Parallel()
	full := "EHLO x\r\nAUTH PLAIN " + plainIR("app", "secret") + "\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"
	message := "Subject: x\r\n\r\nhello\r\n."
	f := start(t)
	var wg sync.WaitGroup
	for i := range len(full) + len(message) + 1 {
		wg.Go(func() {
			c := f.dial(t, plain)
			c.expect("220")
			lines := strings.SplitAfter(full[:min(i, len(full))], "\r\n")
			for _, line := range lines {
				c.send(line)
				if strings.HasSuffix(line, "\r\n") {
					c.reply()
				}
			}
			if i > len(full) {
				c.send(message[:i-len(full)])
			}
			tcp, ok := c.Conn.(*net.TCPConn)
			if !ok {
				return
			}
			switch i % 3 {
			case 0:
				_ = tcp.SetLinger(0) // RST
			case 1:
				_ = tcp.CloseWrite() // and waits for what the server has to say
				_, _ = io.Copy(io.Discard, c.r)
			}
			_ = c.Close()
		})
	}
	wg.Wait()
	require.NoError(t, f.Close())
	require.Empty(t, f.rec.all())
}

// reference reads a message octet by octet: content, whether it has a bare CR or LF, and what follows its end.
func reference(stream []byte) (content []byte, bad bool, rest []byte, complete bool) {
	for i := range stream {
		lineStart := i == 0 || i >= 2 && stream[i-2] == '\r' && stream[i-1] == '\n'
		if lineStart && bytes.HasPrefix(stream[i:], []byte(".\r\n")) {
			return content, bad, stream[i+3:], true
		}
		c := stream[i]
		if c == '\n' && (i == 0 || stream[i-1] != '\r') || c == '\r' && i+1 < len(stream) && stream[i+1] != '\n' {
			bad = true
		}
		if lineStart && c == '.' {
			continue
		}
		content = append(content, c)
	}
	return content, bad, nil, false
}

// streamConn is a net.Conn that gives out a stream in pieces.
type streamConn struct {
	net.Conn
	io.Reader
}

func (c streamConn) Read(p []byte) (int, error)    { return c.Reader.Read(p) }
func (streamConn) Write(p []byte) (int, error)     { return len(p), nil }
func (streamConn) SetReadDeadline(time.Time) error { return nil }

// pieces reads at most n octets at a time.
type pieces struct {
	r io.Reader
	n int
}

func (p pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.n)]) }

var testPool = &sync.Pool{New: func() any { b := make([]byte, dataBuffer); return &b }}

func checkData(t *testing.T, stream []byte, piece int) {
	t.Helper()
	content, bad, rest, complete := reference(stream)
	for _, writeTo := range []bool{false, true} {
		w := newWire(streamConn{Reader: pieces{bytes.NewReader(stream), piece}}, testPool, time.Second)
		cfg := DefaultConfig()
		d := newDataReader(w, &cfg, cfg.MaxMessageBytes, false)
		var got bytes.Buffer
		var err error
		if writeTo {
			_, err = d.WriteTo(&got)
		} else {
			_, err = io.Copy(&got, iotest.OneByteReader(d))
		}
		lost := d.drain(true)
		if !complete {
			require.ErrorIs(t, lost, io.ErrUnexpectedEOF)
			require.Error(t, err)
			continue
		}
		require.NoError(t, lost)
		require.Equal(t, bad, d.refusal() != nil)
		require.Equal(t, bad, err != nil)
		if !bad {
			require.Equal(t, string(content), got.String())
			require.EqualValues(t, len(content), d.size)
		} else {
			require.True(t, bytes.HasPrefix(content, got.Bytes()), "%q %q", content, got.String())
		}
		left, err := io.ReadAll(w.conn)
		require.NoError(t, err)
		require.Equal(t, string(rest), string(w.unread())+string(left))
		w.r, w.w = 0, 0
		w.shrink()
	}
}

func FuzzDataReader(f *testing.F) {
	for _, seq := range smuggling {
		f.Add([]byte("hello"+seq+"x\r\n.\r\nrest"), 3)
	}
	f.Add([]byte(".\r\n"), 1)
	f.Add([]byte("..\r\n...\r\n.x\r\n.\r\nNOOP\r\n"), 2)
	f.Add([]byte("a\r\r\n.\r\n"), 1)
	f.Add([]byte("\r\n.\r"), 1)
	f.Fuzz(func(t *testing.T, stream []byte, piece int) {
		if piece < 1 {
			piece = 1
		}
		checkData(t, stream, piece)
	})
}

func TestDataReaderEqualsReference(t *testing.T) {
	t.Parallel()
	// All streams of up to seven octets of the four that matter, with the end behind them.
	alphabet := []byte("a.\r\n")
	for n := range 8 {
		stream := make([]byte, n, n+5)
		for i := range 1 << (2 * n) {
			for j := range n {
				stream[j] = alphabet[i>>(2*j)&3]
			}
			checkData(t, append(stream[:n:n+5], "\r\n.\r\nQ"[:5]...), 1+i%9)
			if n < 6 {
				checkData(t, stream[:n], 1)
			}
		}
	}
}

func TestAccepterThatReadsNothing(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.rec.read = func(io.Reader) ([]byte, error) { return nil, nil }
	c := f.inData(t, plain)
	c.send("Subject: x\r\n\r\nRSET\r\n.\r\n")
	c.expect("250 2.0.0")
	c.cmd("NOOP", "250 2.0.0 Ok\r\n")
}
