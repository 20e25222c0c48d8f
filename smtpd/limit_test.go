package smtpd

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestB4_MillionSourcesAreRememberedWithinBounds: failures from a million /64 for a million user names.
func TestB4_MillionSourcesAreRememberedWithinBounds(t *testing.T) {
	cfg := DefaultConfig()
	l := newLimits(&cfg, time.Now)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var a [16]byte
	a[0] = 0x20
	for i := range uint64(1_000_000) {
		binary.BigEndian.PutUint64(a[:], 0x2001<<48|i)
		l.failure(sourceOf(netip.AddrFrom16(a)), "user"+strconv.FormatUint(i, 10))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	require.LessOrEqual(t, len(l.failed), maxSources)
	require.LessOrEqual(t, len(l.guessed), maxSources)
	require.Less(t, int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(16<<20))
	runtime.KeepAlive(l)
}

// TestB4_GuessesFromManyAddressesAreHeldBack by the user name, and the owner is not.
func TestB4_GuessesFromManyAddressesAreHeldBack(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.AuthDelay = 3200 * time.Millisecond
	l := newLimits(&cfg, time.Now)
	var last time.Duration
	for i := range byte(10) {
		last = l.failure(sourceOf(netip.AddrFrom4([4]byte{192, 0, 2, i})), "app")
	}
	require.Equal(t, cfg.AuthDelay, last)
	f := start(t, func(c *Config) { c.AuthDelay = time.Minute })
	for range 10 {
		f.limits.failure(sourceOf(mustAddr("127.0.0.1")), "app")
	}
	began := time.Now()
	f.ready(t, plain)
	require.Less(t, time.Since(began), time.Minute, "the delay")
}

func TestB8_ConnectionsPerAccount(t *testing.T) {
	t.Parallel()
	f := start(t, func(c *Config) { c.MaxConnectionsPerAccount = 2 })
	one := f.ready(t, plain)
	f.ready(t, implicit)
	c := f.dial(t, plain)
	c.expect("220")
	c.cmd("EHLO x", "250 ")
	c.cmd("AUTH PLAIN "+plainIR("app", "secret"), "421 4.7.0 Too many connections of this account")
	c.closed()
	one.cmd("QUIT", "221")
	one.closed()
	require.Eventually(t, func() bool {
		c := f.dial(t, plain)
		c.expect("220")
		c.cmd("EHLO x", "250 ")
		c.send("AUTH PLAIN " + plainIR("app", "secret") + "\r\n")
		return strings.HasPrefix(c.reply(), "235")
	}, time.Minute, time.Millisecond)
}

// TestB8_StrangersKeepNoApplicationOut, from however many addresses they fill the submission listeners, and however often they
// come again: each of them gives its place to a newcomer, one that has authenticated keeps it.
func TestB8_StrangersKeepNoApplicationOut(t *testing.T) {
	t.Parallel()
	f, _ := startInbound(t, func(c *Config) { c.MaxConnections, c.StressPercent, c.MaxConnectionsPerIP = 20, 80, 5 })
	flood := func(i int) {
		for n := range 60 {
			f.dialFrom(t, "127.0.2."+strconv.Itoa(1+n%12), []int{plain, starttls}[i%2])
			f.limits.mu.Lock()
			require.LessOrEqual(t, f.limits.open, 20)
			require.LessOrEqual(t, len(f.limits.strangers), 16)
			f.limits.mu.Unlock()
		}
	}
	flood(0)
	var apps []*client
	for i := range 4 {
		c := f.ready(t, i%3)
		flood(i)
		c.cmd("MAIL FROM:<a@example.com>", "250")
		apps = append(apps, c)
	}
	f.inboundClient(t).cmd("MAIL FROM:<>", "250") // a bounce
	flood(0)
	for _, c := range apps {
		c.cmd("RCPT TO:<b@example.net>", "250")
		c.cmd("DATA", "354")
		c.cmd("x\r\n.", "250")
	}
	require.Len(t, f.rec.all(), len(apps))
	require.NoError(t, f.Close())
	require.Contains(t, f.log.String(), "reason=displaced")
	require.Zero(t, f.limits.open+f.limits.inbound+f.limits.leaving+len(f.limits.source)+len(f.limits.strangers)+len(f.limits.strange)+len(f.limits.account))
}

// closer notes that it was closed.
type closer struct{ closed bool }

func (c *closer) Close() error { c.closed = true; return nil }

// TestB8_WhoseConnectionGivesItsPlace: never one that has authenticated, nor one of port 25; of the source that has most of
// them, the oldest.
func TestB8_WhoseConnectionGivesItsPlace(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.MaxConnections, cfg.StressPercent = 10, 80
	l := newLimits(&cfg, time.Now)
	source := func(i byte) netip.Prefix { return sourceOf(netip.AddrFrom4([4]byte{192, 0, 2, i})) }
	var conns []*closer
	left := 0
	admit := func(i byte, kind, reason string) *place {
		c := &closer{}
		at, got := l.admit(c, source(i), kind)
		require.Equal(t, reason, got)
		conns = append(conns, c)
		for ; l.leaving > 0; left++ { // the sessions of those that were displaced end
			l.release(&place{given: true})
		}
		return at
	}
	closed := func() (which []int) {
		for i, c := range conns {
			if c.closed {
				which = append(which, i)
			}
		}
		return which
	}
	require.True(t, l.login(admit(1, Submission, ""), "app")) // 0
	admit(1, Inbound, "")                                     // 1
	unknown, _ := l.admit(&closer{}, netip.Prefix{}, Submission)
	require.Empty(t, l.move(unknown, source(7))) // a proxy has named it
	for i := range byte(3) {
		admit(2+i, Submission, "") // 2 to 4
	}
	for range 4 {
		admit(9, Submission, "") // 5 to 8
	}
	require.Empty(t, closed())
	require.True(t, l.stressed(false))
	require.False(t, l.stressed(true), "who has authenticated is waited for: strangers make no stress for it")
	mine := admit(1, Submission, "") // 9
	require.Equal(t, []int{5}, closed())
	admit(9, Submission, "") // 10
	require.Equal(t, []int{5, 6}, closed())
	admit(1, Inbound, "") // 11
	require.Equal(t, []int{5, 6, 7}, closed())
	require.True(t, l.login(mine, "app"))
	require.Equal(t, 10, l.open)
	for range 6 { // port 25 takes more
		admit(6, Inbound, "")
	}
	require.Equal(t, []int{2, 3, 4, 5, 6, 7, 8, 10}, closed())
	require.Equal(t, 9, left)
	require.Empty(t, l.strangers)
	require.True(t, l.stressed(true))
	admit(8, Inbound, "connections")
	admit(8, Submission, "connections") // nobody is left who would give way
	require.True(t, unknown.given)
	require.Equal(t, "connections", l.move(unknown, source(8)))
}

// TestB9_UnderStressNobodyIsWaitedForLong: not even who was idle when it began.
func TestB9_UnderStressNobodyIsWaitedForLong(t *testing.T) {
	bubble(t, plain, func(t *testing.T, f *fixture, c *client, _ chan struct{}) {
		c.expect("220")
		time.Sleep(time.Minute)
		c.cmd("NOOP", "250") // still there
		time.Sleep(25 * time.Second)
		f.limits.open = f.cfg.MaxConnections
		f.limits.weigh()
		began := time.Now()
		c.ended(began, 0, 10*time.Second, "421 4.4.2")
		conn, done := f.pipe(t, plain)
		late := &client{t: t, Conn: conn, r: bufio.NewReader(conn)}
		late.expect("220")
		began = time.Now()
		late.ended(began, 10*time.Second, 10*time.Second, "421 4.4.2")
		_ = conn.Close()
		<-done
		began = time.Now()
		conn, done = f.pipe(t, implicit)
		<-done
		require.Equal(t, 10*time.Second, time.Since(began), "handshake")
		_ = conn.Close()
		require.Equal(t, 10*time.Second, f.slowProxy(t), "PROXY header")
		f.limits.open = 0
	})
}

// slowProxy has a proxy send an octet of its header every second, and returns for how long.
func (f *fixture) slowProxy(t *testing.T) time.Duration {
	t.Helper()
	l, err := f.newListener(f.cfg.Listeners[plain])
	require.NoError(t, err)
	proxy, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if _, err := io.WriteString(proxy, "P"); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
	}()
	began := time.Now()
	_, err = f.introduce(server, l, mustAddr("192.0.2.1"))
	require.Error(t, err)
	took := time.Since(began)
	<-done
	return took
}

// TestB9_SlowProxyHeaderIsCut before a header is whole.
func TestB9_SlowProxyHeaderIsCut(t *testing.T) {
	bubble(t, plain, func(t *testing.T, f *fixture, c *client, _ chan struct{}) {
		c.expect("220")
		f.cfg.HandshakeTimeout = 5 * time.Second
		require.Equal(t, 5*time.Second, f.slowProxy(t))
	})
}

func TestProxyHeader(t *testing.T) {
	t.Parallel()
	v2 := func(command, family byte, addr string) string {
		return proxySignature + string([]byte{command, family, byte(len(addr) >> 8), byte(len(addr))}) + addr
	}
	ip4 := "\xc0\x00\x02\x07\x7f\x00\x00\x01\x12\x34\x00\x19"
	ip6 := "\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01" + strings.Repeat("\x00", 20)
	tests := []struct {
		name, header, want string // "": the connection is closed
	}{
		{"v1_tcp4", "PROXY TCP4 192.0.2.7 127.0.0.1 4660 25\r\n", "192.0.2.7"},
		{"v1_tcp6", "PROXY TCP6 2001:db8::1 ::1 4660 25\r\n", "2001:db8::1"},
		{"v1_unknown", "PROXY UNKNOWN\r\n", "127.0.0.1"},
		{"v2_tcp4", v2(0x21, 0x11, ip4), "192.0.2.7"},
		{"v2_tcp4_with_more", v2(0x21, 0x11, ip4+"\x03\x00\x01x"), "192.0.2.7"},
		{"v2_tcp6", v2(0x21, 0x21, ip6), "2001:db8::1"},
		{"v2_local", v2(0x20, 0, ""), "127.0.0.1"},
		{"none", "EHLO client.example\r\n", ""},
		{"v1_bare_LF", "PROXY TCP4 192.0.2.7 127.0.0.1 4660 25\n", ""},
		{"v1_endless", "PROXY TCP4 " + strings.Repeat("1", 200), ""},
		{"v1_wrong_family", "PROXY TCP4 2001:db8::1 ::1 4660 25\r\n", ""},
		{"v1_no_address", "PROXY TCP4 x y 4660 25\r\n", ""},
		{"v1_no_destination", "PROXY TCP4 192.0.2.7 4660 25\r\n", ""},
		{"v1_destination_of_another_family", "PROXY TCP4 192.0.2.7 ::1 4660 25\r\n", ""},
		{"v1_port_beyond_all", "PROXY TCP4 192.0.2.7 127.0.0.1 65536 25\r\n", ""},
		{"v1_port_with_a_zero", "PROXY TCP4 192.0.2.7 127.0.0.1 04660 25\r\n", ""},
		{"v1_port_that_is_none", "PROXY TCP4 192.0.2.7 127.0.0.1 smtp 25\r\n", ""},
		{"v1_zone", "PROXY TCP6 fe80::1%eth0 ::1 4660 25\r\n", ""},
		{"v1_address_with_a_zero", "PROXY TCP4 192.0.2.07 127.0.0.1 4660 25\r\n", ""},
		{"v1_two_blanks", "PROXY TCP4  192.0.2.7 127.0.0.1 4660 25\r\n", ""},
		{"v1_more_behind", "PROXY TCP4 192.0.2.7 127.0.0.1 4660 25 x\r\n", ""},
		{"v1_udp", "PROXY UDP4 192.0.2.7 127.0.0.1 4660 25\r\n", ""},
		{"v1_lower_case", "proxy tcp4 192.0.2.7 127.0.0.1 4660 25\r\n", ""},
		{"v1_bare_CR", "PROXY TCP4 192.0.2.7 127.0.0.1 4660 25\rEHLO x\r\n", ""},
		{"v1_unknown_with_addresses", "PROXY UNKNOWN 192.0.2.7 127.0.0.1 4660 25\r\n", "127.0.0.1"},
		{"v2_local_with_addresses", v2(0x20, 0x11, ip4), "127.0.0.1"},
		{"v2_unspecified", v2(0x21, 0, "\x03\x00\x01x"), "127.0.0.1"},
		{"v2_udp", v2(0x21, 0x12, ip4), ""},
		{"v2_unix", v2(0x21, 0x31, strings.Repeat("x", 216)), ""},
		{"v2_command_2", v2(0x22, 0x11, ip4), ""},
		{"v2_tcp6_with_the_length_of_tcp4", v2(0x21, 0x21, ip4), ""},
		{"v2_short", v2(0x21, 0x11, "\x01\x02"), ""},
		{"v2_endless", v2(0x21, 0x11, strings.Repeat("x", 5000)), ""},
		{"v2_version_1", v2(0x11, 0x11, ip4), ""},
	}
	f := start(t, func(c *Config) {
		for i := range c.Listeners {
			c.Listeners[i].Proxy = []string{"127.0.0.0/8"}
		}
	})
	for _, tc := range tests {
		for _, listener := range []int{plain, implicit} {
			t.Run(tc.name+"_"+strconv.Itoa(listener), func(t *testing.T) {
				t.Parallel()
				c := f.dial(t, listener)
				c.send(tc.header)
				if tc.want == "" {
					_, err := c.r.ReadByte()
					require.Error(t, err)
					return
				}
				if listener == implicit {
					c.upgrade()
				}
				c.expect("220")
				c.cmd("EHLO x", "250 ")
				c.cmd("AUTH PLAIN "+plainIR("app", "secret"), "235")
				c.cmd("MAIL FROM:<"+tc.name+"@example.com>", "250")
				c.cmd("RCPT TO:<b@example.net>", "250")
				c.cmd("DATA", "354")
				c.cmd("x\r\n.", "250")
				for _, m := range f.rec.all() {
					if m.sub.ReversePath.Local == tc.name {
						require.Equal(t, tc.want, m.sub.Trace.ClientIP)
					}
				}
			})
		}
	}
}

// TestProxyHeaderOfAStranger is no header: it would let everybody choose his address.
func TestProxyHeaderOfAStranger(t *testing.T) {
	t.Parallel()
	f := start(t, func(c *Config) { c.Listeners[plain].Proxy = []string{"192.0.2.0/24"}; c.MaxConnectionsPerIP = 1 })
	c := f.dial(t, plain)
	c.expect("220")
	c.cmd("PROXY TCP4 192.0.2.7 127.0.0.1 4660 25", "500")
	f2 := start(t, func(c *Config) { c.Listeners[plain].Proxy = []string{"127.0.0.1"}; c.MaxConnectionsPerIP = 1 })
	var first *client
	for i, want := range []string{"220", "421"} {
		c := f2.dial(t, plain)
		c.send("PROXY TCP4 192.0.2.7 127.0.0.1 4660 25\r\n")
		c.expect(want)
		if i == 0 {
			first = c
		}
	}
	c = f2.dial(t, plain)
	c.send("PROXY TCP4 192.0.2.8 127.0.0.1 4660 25\r\n")
	c.expect("220")
	first.cmd("NOOP", "250")
}

// TestTranscript: the dialogue is in the log where its level is debug, without its secrets.
func TestTranscript(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.inData(t, plain)
	c.cmd("Subject: hidden\r\n.", "250")
	c.cmd("QUIT", "221")
	c.closed()
	require.NoError(t, f.Close())
	log := f.log.String()
	for _, want := range []string{`line="EHLO client.example"`, `line="AUTH PLAIN ***"`, `line="MAIL FROM:<a@example.com>"`, "line=DATA", `line="235 2.7.0 Authenticated"`, "listener.opened"} {
		require.Contains(t, log, want)
	}
	require.NotContains(t, log, "hidden")
	require.NotContains(t, log, plainIR("app", "secret"))
}

// TestTranscriptOfEveryMechanism has no word of an exchange: neither what the client says, whole or in steps, right, wrong
// or cut off, nor the challenges, by which a password of SCRAM could be guessed.
func TestTranscriptOfEveryMechanism(t *testing.T) {
	t.Parallel()
	f, token := startOAuth(t)
	dial := func() *client {
		c := f.dial(t, implicit)
		c.upgrade()
		c.expect("220")
		c.cmd("EHLO x", "250 ")
		return c
	}
	for _, d := range [][]string{ // sent, expected
		{"AUTH PLAIN " + plainIR("app", "secret"), "235"},
		{"AUTH PLAIN", "334", plainIR("app", "secret"), "235"},
		{"auth plain " + plainIR("app", "hunter2"), "535"},
		{"AUTH LOGIN", "334", b64("app"), "334", b64("secret"), "235"},
		{"AUTH LOGIN " + b64("app"), "334", b64("hunter2"), "535", b64("hunter2"), "500"},
		{"AUTH LOGIN", "334", "!!!", "501", b64("app"), "500", b64("secret"), "500"}, // a client that does not look
		{"AUTH " + plainIR("app", "secret"), "504"},
		{"AUTH\t" + plainIR("app", "secret"), "500"},
		{"AUTHPLAIN " + plainIR("app", "secret"), "500"},
		{"AUTH OAUTHBEARER " + b64("n,,\x01auth=Bearer "+token+"\x01\x01"), "235"},
		{"AUTH OAUTHBEARER", "334", b64("n,,\x01auth=Bearer " + token + "x\x01\x01"), "334", "AQ==", "535"},
	} {
		c := dial()
		for i := 0; i < len(d); i += 2 {
			c.cmd(d[i], d[i+1])
		}
		c.cmd("QUIT", "221")
	}
	c := dial()
	require.Contains(t, c.scramLogin(scramSHA256, "n,,", nil, "app", "secret"), "235")
	c.cmd("QUIT", "221")
	c = dial()
	require.Contains(t, c.scramLogin(scramSHA256, "n,,", nil, "app", "hunter2"), "535")
	c.cmd("QUIT", "221")
	require.NoError(t, f.Close())
	log := f.log.String()
	for _, secret := range []string{
		"secret", "hunter2", b64("secret"), b64("hunter2"), plainIR("app", "secret"), plainIR("app", "hunter2"), b64("app"), "AQ==",
		token[:40], b64("n,,\x01auth=Bearer "), b64("n,,n=app,r=clientnonce"), "c=biws", b64("c=biws"), "r=clientnonce", b64("r=clientnonc"),
	} {
		require.NotContains(t, log, secret)
	}
	require.NotRegexp(t, `line="334 [^*]`, log)
	require.Contains(t, log, `line="AUTH SCRAM-SHA-256 ***"`)
	require.Contains(t, log, `line="334 ***"`)
}
