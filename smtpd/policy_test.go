package smtpd

import (
	"context"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"relayd/internal/account"
)

func TestEHLOOffersWhatIsAllowed(t *testing.T) {
	t.Parallel()
	f := start(t)
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	f.deps.Now = func() time.Time { return now }
	offers := func(before, release string) string {
		return "250-relay.example.com\r\n250-PIPELINING\r\n250-SIZE 26214400\r\n" + before + release +
			"250-LIMITS MAILMAX=100000 RCPTMAX=1000\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250 DSN\r\n"
	}
	const release = "250-BINARYMIME\r\n250-FUTURERELEASE 2592000 2026-12-20T12:00:00Z\r\n"
	for listener, want := range map[int]string{
		plain:    offers("250-AUTH PLAIN LOGIN SCRAM-SHA-256\r\n", release),
		starttls: offers("250-STARTTLS\r\n", release),
		inbound:  strings.Replace(offers("250-STARTTLS\r\n", ""), "SIZE 26214400", "SIZE 5242880", 1),
	} {
		c := f.dial(t, listener)
		c.expect("220")
		require.Equal(t, want, c.cmd("EHLO x", "250"))
		require.Equal(t, "250 relay.example.com\r\n", c.cmd("HELO x", "250"))
		if listener == starttls {
			c.cmd("STARTTLS", "220")
			c.upgrade()
			c.cmd("MAIL FROM:<a@example.com>", "503 5.5.1") // EHLO again
			require.Equal(t, offers("250-AUTH PLAIN LOGIN SCRAM-SHA-256 SCRAM-SHA-256-PLUS\r\n250-REQUIRETLS\r\n", release), c.cmd("EHLO x", "250"))
			c.cmd("STARTTLS", "503 5.5.1")
			c.cmd("MAIL FROM:<a@example.com>", "530 5.7.0 Authentication")
		}
	}
}

// TestA6PipelinedCommandsGetTheirRepliesInOneSegment (RFC 2920 section 3.2).
func TestA6PipelinedCommandsGetTheirRepliesInOneSegment(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.ready(t, plain)
	c.send("MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nRCPT TO:<bad>\r\nRCPT TO:<c@example.net>\r\nDATA\r\n")
	b := make([]byte, 4096)
	n, err := c.Read(b)
	require.NoError(t, err)
	require.Equal(t, 5, strings.Count(string(b[:n]), "\r\n"), "%q", b[:n])
	c.send("hello\r\n.\r\nNOOP\r\nQUIT\r\n")
	c.expect("250 2.0.0 Ok: queued")
	c.expect("250 2.0.0 Ok")
	c.expect("221 2.0.0")
	c.closed()
}

func TestA6InputBehindCommandsThatMustWait(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.dial(t, plain)
	c.expect("220")
	c.send("EHLO x\r\nMAIL FROM:<a@example.com>\r\n")
	c.expect("554 5.5.0 Protocol synchronization")
	c.closed()

	c = f.ready(t, plain)
	c.cmd("MAIL FROM:<a@example.com>", "250")
	c.cmd("RCPT TO:<b@example.net>", "250")
	c.send("DATA\r\nhello\r\n.\r\n")
	c.expect("554 5.5.0 Protocol synchronization")
	c.closed()
	require.Empty(t, f.rec.all())
	f.Close() //nolint:errcheck // waits for the log
	require.Equal(t, 2, strings.Count(f.log.String(), "reason=synchronization"))
}

// TestA4PlainTextBehindSTARTTLSIsDropped (CVE-2011-0411).
func TestA4PlainTextBehindSTARTTLSIsDropped(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.dial(t, starttls)
	c.expect("220")
	c.cmd("EHLO x", "250")
	c.send("STARTTLS\r\nEHLO evil\r\nMAIL FROM:<evil@example.com>\r\nNOOP\r\n")
	c.expect("220 2.0.0")
	c.upgrade()
	require.Contains(t, c.cmd("NOOP", "250"), "250 2.0.0 Ok") // the first reply is to the first command
	c.cmd("MAIL FROM:<a@example.com>", "503 5.5.1 Say EHLO")
	require.Contains(t, f.log.String(), "session.injection")
}

func TestA7EndlessLineCostsLittle(t *testing.T) {
	f := start(t)
	c := f.dial(t, plain)
	c.expect("220")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	block := []byte(strings.Repeat("x", 64<<10))
	for range 1600 { // 100 MB
		if _, err := c.Write(block); err != nil {
			break
		}
	}
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20))
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
	c.expect("500 5.5.2 Command line is too long")
	c.closed()
}

func TestErrorsAndJunkEndTheSession(t *testing.T) {
	t.Parallel()
	f := start(t, func(c *Config) { c.MaxErrors = 3; c.MaxJunkCommands = 4 })
	c := f.dial(t, plain)
	c.expect("220")
	for range 3 {
		c.cmd("FOO", "500")
	}
	c.cmd("FOO", "421 4.7.0 Too many errors")
	c.closed()

	c = f.ready(t, plain) // one EHLO
	for range 2 {
		for range 3 {
			c.cmd("NOOP", "250")
		}
		c.transaction()
		c.cmd("x\r\n.", "250") // counts from 0 again
		c.cmd("RSET", "250")
	}
	for range 3 {
		c.cmd("NOOP", "250")
	}
	c.cmd("RSET", "421 4.7.0 Too many commands")
	c.closed()
}

func TestMessagesPerSession(t *testing.T) {
	t.Parallel()
	f := start(t, func(c *Config) { c.MaxMessagesPerSession = 1 })
	c := f.inData(t, plain)
	c.cmd("x\r\n.", "250")
	c.cmd("MAIL FROM:<a@example.com>", "421 4.7.0")
	c.closed()
}

func TestB8ConnectionLimits(t *testing.T) {
	t.Parallel()
	f := start(t, func(c *Config) { c.MaxConnectionsPerIP = 2 })
	one, two := f.dial(t, plain), f.dial(t, starttls)
	one.expect("220")
	two.expect("220")
	three := f.dial(t, plain)
	three.expect("421 4.7.0 Too many connections")
	three.closed()
	two.cmd("QUIT", "221")
	two.closed()
	require.Eventually(t, func() bool {
		c := f.dial(t, plain)
		return strings.HasPrefix(c.reply(), "220")
	}, time.Minute, time.Millisecond)
}

func TestB4FailuresAreRememberedWithinBounds(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	now := time.Now()
	l := newLimits(&cfg, func() time.Time { return now })
	for i := range 100_000 {
		ip := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		l.failure(sourceOf(ip), "")
	}
	require.LessOrEqual(t, len(l.failed), maxSources)
	require.Equal(t, sourceOf(mustAddr("2001:db8::1")), sourceOf(mustAddr("2001:db8::ffff:1")))
	require.NotEqual(t, sourceOf(mustAddr("2001:db8::1")), sourceOf(mustAddr("2001:db8:0:1::1")))
	require.Equal(t, sourceOf(mustAddr("::ffff:192.0.2.1")), sourceOf(mustAddr("192.0.2.1")))
}

// TestSecretsAreNotLogged: neither a right nor a wrong password, however it was sent.
func TestSecretsAreNotLogged(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.dial(t, plain)
	c.expect("220")
	c.cmd("EHLO x", "250")
	c.cmd("AUTH PLAIN "+plainIR("app", "hunter2"), "535")
	c.cmd("AUTH LOGIN", "334")
	c.cmd("YXBw", "334")
	c.cmd("aHVudGVyMg==", "535")
	c.cmd("aHVudGVyMg==", "500")
	c.cmd("AUTH PLAIN "+plainIR("app", "secret"), "235")
	c.cmd("QUIT", "221")
	c.closed()
	require.NoError(t, f.Close())
	for _, s := range []string{"hunter2", "secret", "aHVudGVyMg", plainIR("app", "hunter2")} {
		require.NotContains(t, f.log.String(), s)
	}
	require.Equal(t, 2, strings.Count(f.log.String(), "auth.failed"))
	require.Equal(t, 1, strings.Count(f.log.String(), "session.closed"))
}

// failing is an Authenticator whose store is down.
type failing struct{}

func (failing) Authenticate(context.Context, string, string) (account.Credential, error) {
	return account.Credential{}, io.ErrUnexpectedEOF
}

func TestAuthenticatorErrorIsTemporary(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.deps.Authenticator = failing{}
	c := f.dial(t, plain)
	c.expect("220")
	c.cmd("EHLO x", "250")
	for range 5 {
		c.cmd("AUTH PLAIN "+plainIR("app", "secret"), "454 4.7.0")
	}
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	require.NoError(t, DefaultConfig().Validate())
	err := Config{Listeners: []Listener{{Kind: "pop3", Address: "localhost", TLS: "ssl"}, {Kind: Submission, Address: "0.0.0.0:25", TLS: NoTLS}}, AuthDelay: time.Hour, GreetDelay: -1}.Validate()
	for _, want := range []string{
		`smtp.listener[0]: kind: "pop3"`, `address: "localhost"`, `tls: "ssl"`, "smtp.listener[1]: tls: none is for loopback",
		"smtp.max_message_bytes", "smtp.max_recipients", "smtp.max_connections:", "smtp.accept_timeout", "smtp.auth_delay", "smtp.greet_delay",
	} {
		require.ErrorContains(t, err, want)
	}
	cfg := testConfig()
	deps := testDeps(&recorder{}, io.Discard)
	deps.GetCertificate = nil
	_, err = New(cfg, deps)
	require.ErrorContains(t, err, "needs a certificate")
	deps = testDeps(&recorder{}, io.Discard)
	deps.Metrics = prometheus.NewPedanticRegistry()
	s, err := New(cfg, deps)
	require.NoError(t, err)
	taken := cfg
	taken.Listeners = []Listener{{Kind: Inbound, Address: s.Addr(0).String(), TLS: StartTLS}}
	deps.Metrics = nil
	_, err = New(taken, deps)
	require.ErrorContains(t, err, "address already in use")
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.Run(context.Background()), net.ErrClosed)
}

// TestShutdownDoesNotBreakAMessageUnderTLS: the session is woken in the middle of a record stream, and goes on.
func TestShutdownDoesNotBreakAMessageUnderTLS(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.inData(t, implicit)
	c.send("Subject: x\r\n\r\n")
	result := make(chan error, 1)
	go func() { result <- f.Shutdown(context.Background()) }()
	require.Eventually(t, func() bool { _, err := net.Dial("tcp", f.Addr(plain).String()); return err != nil }, time.Minute, time.Millisecond)
	for range 100 {
		c.send(strings.Repeat("x", 70) + "\r\n")
	}
	c.cmd(".", "250 2.0.0")
	c.expect("421 4.3.2")
	c.closed()
	require.NoError(t, <-result)
	require.Len(t, f.rec.all(), 1)
}

func TestClosedContextEndsRun(t *testing.T) {
	t.Parallel()
	s, err := New(testConfig(), testDeps(&recorder{}, io.Discard))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	conn, err := net.Dial("tcp", s.Addr(plain).String())
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 64))
	require.NoError(t, err)
	cancel()
	require.NoError(t, <-done)
	_, err = io.ReadAll(conn)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

// TestShutdownGivesUpWithItsContext: who does not end its transaction is closed.
func TestShutdownGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.inData(t, plain)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, f.Shutdown(ctx), context.DeadlineExceeded)
	c.closed()
	require.Empty(t, f.rec.all())
}
