package e2e

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// cost is what the daemon has used so far: its largest resident set since the last reset, and its processor time.
func (r *relay) cost() (peak int64, cpu time.Duration) {
	r.t.Helper()
	pid := itoa(r.cmd.Process.Pid)
	status, err := os.ReadFile("/proc/" + pid + "/status")
	require.NoError(r.t, err)
	m := regexp.MustCompile(`VmHWM:\s*(\d+) kB`).FindSubmatch(status)
	require.NotNil(r.t, m)
	kb, err := strconv.ParseInt(string(m[1]), 10, 64)
	require.NoError(r.t, err)
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	require.NoError(r.t, err)
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	ticks := 0
	for _, f := range fields[11:13] { // utime, stime: in hundredths of a second on every Linux that Go runs on
		n, err := strconv.Atoi(f)
		require.NoError(r.t, err)
		ticks += n
	}
	return kb << 10, time.Duration(ticks) * 10 * time.Millisecond
}

// resetPeak lets the largest resident set begin anew.
func (r *relay) resetPeak() {
	r.t.Helper()
	require.NoError(r.t, os.WriteFile("/proc/"+itoa(r.cmd.Process.Pid)+"/clear_refs", []byte("5"), 0o600))
}

// TestA15_MIMEBombsCostLittle: each is answered with 250 or 5xx, makes the resident set grow by at most 64 MB, and takes
// at most 2 seconds of processor time, delivery and all. One octet above 127 at the end of a body lets its structure be
// looked at.
func TestA15_MIMEBombsCostLittle(t *testing.T) { // not parallel: it measures another process
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port, level: "info"})
	r.mx("dest.example")
	l := r.domain("shop.example")
	r.submit(l, "news@shop.example", []string{"ann@dest.example"}, greeting)
	wait(t, "the first message", 20*time.Second, func() bool { return s.count() == 1 })

	var nested, opened strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&nested, "--b%d\r\nContent-Type: multipart/mixed; boundary=b%d\r\n\r\n", i, i+1)
		opened.WriteString("Content-Type: message/rfc822\r\n\r\n")
	}
	const multi = "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b0\r\n"
	for _, bomb := range []struct{ name, header, body, want string }{
		{"nesting", multi, nested.String(), "250"},
		{"nesting of messages", "Content-Type: message/rfc822\r\n", opened.String(), "250"},
		{"parts", multi, strings.Repeat("--b0\r\n\r\nx\r\n", 100_000), "250"},
		{"parts with headers", multi, strings.Repeat("--b0\r\nContent-Type: text/plain\r\nA: b\r\n\r\nx\r\n", 100_000), "250"},
		{"headers of parts", multi, "--b0\r\n" + strings.Repeat("A: b\r\n", 1_000_000), "250"},
		{"lines like boundaries", multi, strings.Repeat("--b\r\n", 2_000_000), "250"},
		{"eight bits", "Content-Type: text/plain\r\n", strings.Repeat(strings.Repeat("\xe9", 998)+"\r\n", 8000), "250"},
		{"boundary of a megabyte", "Content-Type: multipart/mixed;\r\n boundary=" + strings.Repeat("b", 1<<20) + "\r\n", "", "554 5.6.0"},
		{"header lines", strings.Repeat("X: y\r\n", 1_000_000), "", "552 5.3.4"},
		{"header of 100 KB", strings.Repeat("X-Filler: yyyyyy\r\n", 5700), "", "250"},
		{"field of 100 KB", "X: " + strings.Repeat("y\r\n ", 25_000) + "y\r\n", "", "250"},
	} {
		for _, end := range []string{"", "\xe9\r\n"} {
			r.resetPeak()
			before, used := r.cost()
			got := r.raw(l, "From: news@shop.example\r\n"+bomb.header+"\r\n"+bomb.body+end)
			require.True(t, strings.HasPrefix(got, bomb.want), "%s: %s", bomb.name, got)
			after, cpu := r.cost()
			t.Logf("%s, 8-bit %t: +%.1f MB, %v", bomb.name, end != "", float64(after-before)/(1<<20), cpu-used)
			require.LessOrEqual(t, after-before, int64(64<<20), bomb.name)
			require.LessOrEqual(t, cpu-used, 2*time.Second, bomb.name)
		}
	}
}

// raw hands in one message as it is, without dots at the beginnings of its lines, on a connection of its own, and
// returns the last reply.
func (r *relay) raw(l login, message string) string {
	r.t.Helper()
	c := r.talk(l)
	defer c.close()
	c.want("250", "MAIL FROM:<news@shop.example>")
	c.want("250", "RCPT TO:<ann@dest.example>")
	c.want("354", "DATA")
	c.send(message + ".\r\n")
	return c.reply()
}

// talker speaks SMTP octet by octet.
type talker struct {
	t *testing.T
	net.Conn
	buf []byte
}

// talk is an authenticated talker on the listener without TLS.
func (r *relay) talk(l login) *talker {
	r.t.Helper()
	conn, err := net.Dial("tcp", "127.0.0.1:"+itoa(r.plain))
	require.NoError(r.t, err)
	require.NoError(r.t, conn.SetDeadline(time.Now().Add(time.Minute)))
	c := &talker{t: r.t, Conn: conn}
	require.Contains(r.t, c.reply(), "220 ")
	c.want("250", "EHLO client.example")
	c.want("235", "AUTH PLAIN "+plainResponse(l))
	return c
}

func (c *talker) close() { _ = c.Close() }

func (c *talker) send(s string) {
	c.t.Helper()
	_, err := c.Write([]byte(s))
	require.NoError(c.t, err)
}

// reply reads one reply and returns its last line.
func (c *talker) reply() string {
	c.t.Helper()
	for {
		for {
			i := strings.Index(string(c.buf), "\r\n")
			if i < 0 {
				break
			}
			line := string(c.buf[:i])
			c.buf = c.buf[i+2:]
			if len(line) > 3 && line[3] == ' ' {
				return line
			}
		}
		b := make([]byte, 4096)
		n, err := c.Read(b)
		require.NoError(c.t, err)
		c.buf = append(c.buf, b[:n]...)
	}
}

func (c *talker) want(code, line string) {
	c.t.Helper()
	c.send(line + "\r\n")
	got := c.reply()
	require.True(c.t, strings.HasPrefix(got, code), "%s: %s", line, got)
}

func plainResponse(l login) string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + l.Username + "\x00" + l.Password))
}
