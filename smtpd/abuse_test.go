package smtpd

import (
	"bufio"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What a stranger may try to use up.

// held is how many octets of inbound messages are held.
func (f *fixture) held() int64 {
	h := &f.inbound.held
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == 0 && len(h.source) > 0 {
		return -1 // a source that nobody forgets
	}
	return h.all
}

// occupy counts n octets as held by nobody.
func (f *fixture) occupy(n int64) {
	f.inbound.held.mu.Lock()
	defer f.inbound.held.mu.Unlock()
	f.inbound.held.all += n
}

// dialFrom is dial from another address of this machine.
func (f *fixture) dialFrom(t *testing.T, address string, i int) *client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	conn, err := d.Dial("tcp", f.Addr(i).String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	c := &client{t: t, Conn: conn, r: bufio.NewReader(conn)}
	c.expect("220 ")
	c.cmd("EHLO mx.example", "250 ")
	return c
}

// TestA15_InboundHeadersAreBounded: 256 KiB pass, and one octet more is refused, however it comes; bodies have no part in it.
func TestA15_InboundHeadersAreBounded(t *testing.T) {
	t.Parallel()
	f, h := startInbound(t)
	c := f.inboundClient(t)
	line := "X: " + strings.Repeat("x", 59) + "\r\n" // 64 octets
	fits := strings.Repeat(line, maxInboundHeader/64-1) + "X: " + strings.Repeat("x", 57) + "\r\n\r\n"
	require.Len(t, fits, maxInboundHeader)
	for name, tc := range map[string]struct{ message, want string }{
		"fits":                    {fits, "250"},
		"fits_with_a_body":        {fits + strings.Repeat(line, 10_000), "250"},
		"one_octet_more":          {"X" + fits, "552 5.3.4 The message's header has more than 256 KiB"},
		"more_with_a_body":        {"X" + fits + strings.Repeat(line, 10_000), "552 5.3.4"},
		"fields_without_values":   {strings.Repeat("a:\r\n", 1_000_000), "552 5.3.4"},
		"one_field":               {"X:" + strings.Repeat(" x\r\n", 1_000_000), "552 5.3.4"},
		"a_line_without_an_end":   {strings.Repeat("x", 1_000_000) + "\r\n", "552 5.3.4"},
		"no_header_but_a_body":    {"\r\n" + strings.Repeat(line, 10_000), "250"},
		"small_header_large_body": {"X: x\r\n\r\n" + strings.Repeat("\r\n", 1_000_000), "250"},
	} {
		for _, chunks := range []bool{false, true} {
			before := len(h.all())
			c.cmd("MAIL FROM:<>", "250 ")
			c.cmd("RCPT TO:<"+issuedPath()+">", "250 ")
			if chunks {
				half := len(tc.message) / 2
				c.send(bdat(tc.message[:half], false))
				reply := c.reply()
				if strings.HasPrefix(reply, "250") {
					c.send(bdat(tc.message[half:], true))
					reply = c.reply()
				}
				require.True(t, strings.HasPrefix(reply, tc.want), "%s: %s", name, reply)
			} else {
				c.cmd("DATA", "354 ")
				c.send(tc.message)
				c.cmd(".", tc.want)
			}
			c.cmd("NOOP", "250 ")
			took := 0
			if tc.want == "250" {
				took = 1
			}
			require.Len(t, h.all(), before+took, name)
			require.Zero(t, f.held(), name)
		}
	}
}

// TestB8_OneSourceHoldsAQuarterOfInboundMemory, however many connections it has: others get theirs. What is counted is
// what a message takes while it is judged.
func TestB8_OneSourceHoldsAQuarterOfInboundMemory(t *testing.T) {
	t.Parallel()
	f, h := startInbound(t, func(c *Config) { c.MaxInboundBytes = 64 << 10 })
	message := "From: x@mx.example\r\n\r\n" + strings.Repeat(strings.Repeat("x", 62)+"\r\n", 1000)
	begin := func(address string) *client {
		c := f.dialFrom(t, address, inbound)
		c.cmd("MAIL FROM:<>", "250 ")
		c.cmd("RCPT TO:<"+issuedPath()+">", "250 ")
		c.cmd("DATA", "354 ")
		return c
	}
	var open []*client
	for i := range int64(inboundShare / 4 / copies) {
		c := begin("127.0.0.1")
		c.send(message)
		open = append(open, c)
		require.Eventually(t, func() bool { return f.held() >= (i+1)*copies*int64(len(message)) }, time.Minute, time.Millisecond)
	}
	c := begin("127.0.0.1")
	c.cmd("From: x@mx.example\r\n\r\nx\r\n.", "452 4.3.1")
	c.cmd("NOOP", "250 ")
	begin("127.0.0.2").cmd(message+".", "250 2.0.0 Ok: queued")
	for _, c := range open {
		c.cmd(".", "250 2.0.0 Ok: queued")
	}
	require.Len(t, h.all(), len(open)+1)
	require.Zero(t, f.held())
	begin("127.0.0.1").cmd(message+".", "250 2.0.0 Ok: queued")
}

// TestB8_ManySourcesLeaveInboundMemoryForOneMore: each takes as much as it gets, and a bounce still comes in.
func TestB8_ManySourcesLeaveInboundMemoryForOneMore(t *testing.T) {
	t.Parallel()
	f, h := startInbound(t)
	held, most := &f.inbound.held, f.cfg.MaxInboundBytes
	for i := range byte(16) {
		source := sourceOf(netip.AddrFrom4([4]byte{192, 0, 2, i}))
		for held.take(source, copies*leastHeld, most) {
		}
		require.LessOrEqual(t, held.all, inboundShare*most)
	}
	c := f.inboundClient(t)
	c.cmd("MAIL FROM:<>", "250 ")
	c.cmd("RCPT TO:<"+issuedPath()+">", "250 ")
	c.cmd("DATA", "354 ")
	c.cmd("From: x@mx.example\r\n\r\n"+strings.Repeat("0123456789abcde\r\n", 1800)+".", "250 2.0.0 Ok: queued")
	require.Len(t, h.all(), 1)
}

// TestB8_InboundConnectionsLeaveRoomForSubmission, however many sources they come from.
func TestB8_InboundConnectionsLeaveRoomForSubmission(t *testing.T) {
	t.Parallel()
	f, _ := startInbound(t, func(c *Config) { c.MaxConnections, c.StressPercent, c.GreetDelay = 10, 80, 0 })
	var open []*client
	for i := range 8 {
		open = append(open, f.dialFrom(t, "127.0.1."+string(rune('1'+i)), inbound))
	}
	c := f.dial(t, inbound)
	c.expect("421 4.7.0 Too many connections")
	c.closed()
	for range 2 {
		f.ready(t, plain).cmd("MAIL FROM:<a@example.com>", "250 ")
	}
	c = f.dial(t, plain)
	c.expect("421 4.7.0 Too many connections")
	open[0].cmd("QUIT", "221 ")
	open[0].closed()
	require.Eventually(t, func() bool { // its place is free again
		c := f.dial(t, inbound)
		return strings.HasPrefix(c.reply(), "220 ")
	}, time.Minute, time.Millisecond)
}

// TestB10_OneRecipientInManySpellingsIsOne: whatever follows from a message, an event, mail to the operator, follows once.
func TestB10_OneRecipientInManySpellingsIsOne(t *testing.T) {
	t.Parallel()
	f, h := startInbound(t)
	c := f.inboundClient(t)
	c.cmd("MAIL FROM:<>", "250 ")
	path := issuedPath()
	for range 5 {
		for _, to := range []string{
			"fbl@bounces.example", "FBL@BOUNCES.example", `"fbl"@bounces.example`, path, strings.ToUpper(path), "postmaster@example.com",
			"Postmaster@Example.com", "Postmaster", "postmaster@relay.example.com", "abuse@example.com",
		} {
			c.cmd("RCPT TO:<"+to+">", "250 ")
		}
	}
	c.send(bdat("From: x@mx.example\r\n\r\nx\r\n", true))
	c.expect("250 2.0.0 Ok: queued")
	var got []string
	for _, r := range h.all()[0].Recipients {
		got = append(got, r.To.String())
	}
	require.Equal(t, []string{"fbl@bounces.example", path, "postmaster@example.com", "Postmaster@relay.example.com", "abuse@example.com"}, got)
}

// TestB9_SentOctetsPayForNoLongWait: whoever has sent much at once may then wait no longer than others, so that nobody
// holds what was sent for hours.
func TestB9_SentOctetsPayForNoLongWait(t *testing.T) {
	for _, chunks := range []bool{false, true} {
		t.Run(map[bool]string{false: "data", true: "bdat"}[chunks], func(t *testing.T) {
			bubble(t, plain, func(t *testing.T, _ *fixture, c *client, done chan struct{}) {
				c.readyPiped()
				c.cmd("MAIL FROM:<a@example.com>", "250")
				c.cmd("RCPT TO:<b@example.net>", "250")
				much := strings.Repeat("0123456789abcdef\r\n", 100_000)
				if chunks {
					c.send("BDAT 10000000\r\n" + much)
				} else {
					c.cmd("DATA", "354")
					c.send(much)
				}
				began, gone := time.Now(), make(chan struct{})
				go func() {
					defer close(gone)
					for {
						time.Sleep(time.Minute)
						if _, err := io.WriteString(c.Conn, "x"); err != nil {
							return
						}
					}
				}()
				c.ended(began, 3*time.Minute, 4*time.Minute, "421 4.4.2")
				_ = c.Close()
				<-done
				<-gone
			})
		})
	}
}

// TestB9_UnderStressNoMessageIsWaitedForLong, not even one that began before.
func TestB9_UnderStressNoMessageIsWaitedForLong(t *testing.T) {
	bubble(t, plain, func(t *testing.T, f *fixture, c *client, _ chan struct{}) {
		c.readyPiped()
		c.transaction()
		c.send("Subject: x\r\n")
		time.Sleep(20 * time.Second)
		c.send("X: y\r\n") // still there
		time.Sleep(5 * time.Second)
		f.limits.open = f.cfg.MaxConnections
		f.limits.weigh()
		c.ended(time.Now(), 0, 10*time.Second, "421 4.4.2")
		f.limits.open = 0
	})
}

// TestRecipientsBeyondTheLimitWithoutEnd: as many as the limit get 452, which is no fault of a client that pipelines; from
// there on they count as errors.
func TestRecipientsBeyondTheLimitWithoutEnd(t *testing.T) {
	t.Parallel()
	f, h := startInbound(t, func(c *Config) { c.MaxRecipients, c.MaxErrors = 10, 3 })
	begin := func() *client {
		c := f.inboundClient(t)
		c.cmd("MAIL FROM:<>", "250 ")
		for range 10 {
			c.cmd("RCPT TO:<fbl@bounces.example>", "250 ")
		}
		for range 10 {
			c.cmd("RCPT TO:<fbl@bounces.example>", "452 4.5.3")
		}
		return c
	}
	c := begin()
	c.send(bdat("From: x@mx.example\r\n\r\nx\r\n", true))
	c.expect("250 2.0.0 Ok: queued")
	c.cmd("NOOP", "250 ")
	require.Len(t, h.all(), 1)
	c = begin()
	for range 3 {
		c.cmd("RCPT TO:<fbl@bounces.example>", "452 4.5.3")
	}
	c.cmd("RCPT TO:<fbl@bounces.example>", "421 4.7.0 Too many errors")
	c.closed()
}

// TestRefusedMessagesAreErrors, whoever refuses them, and temporary refusals are not; the reply to a message is its own.
func TestRefusedMessagesAreErrors(t *testing.T) {
	t.Parallel()
	f, h := startInbound(t, func(c *Config) { c.MaxErrors = 3 })
	c := f.inboundClient(t)
	hand := func(message, want string) {
		t.Helper()
		c.cmd("MAIL FROM:<>", "250 ")
		c.cmd("RCPT TO:<unsubscribe@bounces.example>", "250 ")
		c.send(bdat(message, true))
		c.expect(want)
	}
	const message = "Subject: guess\r\n\r\nx\r\n"
	answer := func(err error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.err = err
	}
	answer(refuse(452, 3, 1, "Later"))
	for range 10 {
		hand(message, "452 4.3.1")
	}
	answer(refuse(550, 7, 1, "The subject holds no unsubscribe token of ours"))
	for range 2 {
		hand(message, "550 5.7.1")
	}
	answer(nil)
	hand(message, "250 2.0.0 Ok: queued") // all is forgiven
	answer(refuse(550, 7, 1, "The subject holds no unsubscribe token of ours"))
	hand("bare\nLF\r\n", "554 5.6.0")
	for range 3 {
		hand(message, "550 5.7.1")
	}
	c.cmd("MAIL FROM:<>", "421 4.7.0 Too many errors")
	c.closed()
}
