package smtpd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/account"
	"relayd/internal/intake"
	"relayd/internal/mail"
)

// taken is one message that a recorder accepted.
type taken struct {
	sub  intake.Submission
	body string
}

// recorder is an Accepter that keeps what it gets.
type recorder struct {
	mu       sync.Mutex
	messages []taken
	err      error                             // answer instead of accepting
	before   func(ctx context.Context) error   // runs first
	read     func(r io.Reader) ([]byte, error) // default io.ReadAll
}

func (r *recorder) Accept(ctx context.Context, s *intake.Submission) (mail.QueueID, error) {
	if r.before != nil {
		if err := r.before(ctx); err != nil {
			return mail.QueueID{}, err
		}
	}
	if r.err != nil {
		return mail.QueueID{}, r.err
	}
	read := io.ReadAll
	if r.read != nil {
		read = r.read
	}
	b, err := read(s.Body)
	if err != nil {
		return mail.QueueID{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.messages = append(r.messages, taken{*s, string(b)})
	return mail.NewQueueID(time.Now()), nil
}

func (r *recorder) all() []taken {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]taken(nil), r.messages...)
}

// users is an Authenticator and Senders: every user's password is "secret", every one may use example.com.
type users map[string]account.Credential

func (u users) Authenticate(_ context.Context, username, password string) (account.Credential, error) {
	c, known := u[username]
	if !known || password != "secret" {
		return account.Credential{}, account.ErrBadCredentials
	}
	return c, nil
}

func (u users) Scram(_ context.Context, username string) (account.Credential, account.Scram, error) {
	c, known := u[username]
	password := "secret"
	if !known {
		password = rand.Text()
	}
	v, err := account.NewScram(password, []byte("0123456789abcdef"), 4096)
	if !known {
		err = account.ErrBadCredentials
	}
	return c, v, err
}

func (u users) Credential(username string) (account.Credential, bool) {
	c, known := u[username]
	return c, known
}

func (u users) CheckSender(c account.Credential, domain string) error {
	if slices.Contains(c.Domains, domain) {
		return nil
	}
	return refuse(550, 7, 1, "Sender domain "+domain+" is not yours")
}

var certificate = sync.OnceValue(func() *tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relay.example.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"relay.example.com"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// fixture is a server with its recorder and log.
type fixture struct {
	*Server
	rec *recorder
	log *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Listeners of every fixture by index.
const (
	plain    = iota // submission, none
	starttls        // submission, starttls
	implicit        // submission, implicit
	inbound         // inbound, starttls
)

func testConfig() Config {
	cfg := DefaultConfig()
	cfg.Listeners = []Listener{
		{Kind: Submission, Address: "127.0.0.1:0", TLS: NoTLS},
		{Kind: Submission, Address: "127.0.0.1:0", TLS: StartTLS},
		{Kind: Submission, Address: "127.0.0.1:0", TLS: Implicit},
		{Kind: Inbound, Address: "127.0.0.1:0", TLS: StartTLS},
	}
	cfg.AuthDelay = 0
	cfg.GreetDelay = 0
	cfg.MaxConnectionsPerIP = 1000
	return cfg
}

func testDeps(rec *recorder, log io.Writer) Deps {
	u := users{"app": {Username: "app", Account: "default", Domains: []string{"example.com"}}}
	return Deps{
		Accepter: rec, Authenticator: u, Senders: u, Hostname: "relay.example.com",
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate(), nil },
		Log:            slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// start runs a server until the test ends.
func start(t testing.TB, change ...func(*Config)) *fixture {
	t.Helper()
	cfg := testConfig()
	for _, fn := range change {
		fn(&cfg)
	}
	f := &fixture{rec: &recorder{}, log: &lockedBuffer{}}
	var err error
	f.Server, err = New(cfg, testDeps(f.rec, f.log))
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- f.Run(context.Background()) }()
	t.Cleanup(func() {
		require.NoError(t, f.Close())
		require.NoError(t, <-done)
	})
	return f
}

// piped is a server without listeners, whose sessions run on net.Pipe: for synctest and fuzzing.
func piped(t testing.TB, change ...func(*Config)) *fixture {
	t.Helper()
	cfg := testConfig()
	for _, fn := range change {
		fn(&cfg)
	}
	f := &fixture{rec: &recorder{}, log: &lockedBuffer{}}
	var err error
	f.Server, err = newServer(cfg, testDeps(f.rec, f.log))
	require.NoError(t, err)
	return f
}

// pipe runs a session of listener i and returns the client's end and a channel that closes when the session ended.
func (f *fixture) pipe(t testing.TB, i int) (net.Conn, chan struct{}) {
	t.Helper()
	l, err := f.newListener(f.cfg.Listeners[i])
	require.NoError(t, err)
	client, server := net.Pipe()
	done := make(chan struct{})
	f.wg.Go(func() {
		defer close(done)
		at := &place{}
		f.serve(server, l, netip.MustParseAddr("192.0.2.1"), at)
		f.limits.mu.Lock()
		defer f.limits.mu.Unlock()
		subtract(f.limits.account, at.account)
	})
	return client, done
}

// client is the other side of a session.
type client struct {
	t testing.TB
	net.Conn
	r      *bufio.Reader
	theirs bool // the server is another
}

// wellFormed are our replies: those of RFC 2034 section 4, all but the banner and the answers to EHLO and HELO, have a
// status code of their class, and a line has at most 512 octets.
var wellFormed = regexp.MustCompile(`^(?:220 relay\.example\.com ESMTP relayd|250[ -]relay\.example\.com|250[ -](?:PIPELINING|SIZE|STARTTLS|AUTH|REQUIRETLS|BINARYMIME|FUTURERELEASE|LIMITS|ENHANCEDSTATUSCODES|8BITMIME|SMTPUTF8|CHUNKING|DSN)(?: [ -~]+)?|3(?:34|54) [ -~]*|([245])\d\d ([245])\.\d{1,3}\.\d{1,3} [ -~]+)\r\n$`)

func checkReply(t testing.TB, line string) {
	t.Helper()
	m := wellFormed.FindStringSubmatch(line)
	require.NotNil(t, m, "%q", line)
	require.Equal(t, m[1], m[2], "%q", line)
	require.LessOrEqual(t, len(line), 512, "%q", line)
}

func (f *fixture) dial(t testing.TB, i int) *client {
	t.Helper()
	conn, err := net.Dial("tcp", f.Addr(i).String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	return &client{t: t, Conn: conn, r: bufio.NewReader(conn)}
}

func (c *client) send(raw string) {
	c.t.Helper()
	_, err := io.WriteString(c.Conn, raw)
	require.NoError(c.t, err)
}

// reply reads one reply, all its lines.
func (c *client) reply() string {
	c.t.Helper()
	var all strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		require.NoError(c.t, err, "after %q", all.String())
		if !c.theirs {
			checkReply(c.t, line)
		}
		all.WriteString(line)
		if len(line) < 4 || line[3] != '-' {
			return all.String()
		}
	}
}

func (c *client) expect(prefix string) string {
	c.t.Helper()
	got := c.reply()
	last := got[strings.LastIndex(strings.TrimSuffix(got, "\r\n"), "\n")+1:]
	require.True(c.t, strings.HasPrefix(last, prefix), "want %s, got %q", prefix, got)
	return got
}

func (c *client) cmd(line, prefix string) string {
	c.t.Helper()
	c.send(line + "\r\n")
	return c.expect(prefix)
}

// closed requires that the server has nothing more to say.
func (c *client) closed() {
	c.t.Helper()
	b, err := io.ReadAll(c.r)
	require.Empty(c.t, string(b))
	if err != nil {
		require.NotErrorIs(c.t, err, context.DeadlineExceeded)
	}
}

func (c *client) upgrade() {
	c.t.Helper()
	conn := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // a test
	require.NoError(c.t, conn.Handshake())
	c.Conn, c.r = conn, bufio.NewReader(conn)
}

func plainIR(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))
}

// ready is a client that has authenticated on listener i.
func (f *fixture) ready(t testing.TB, i int) *client {
	t.Helper()
	c := f.dial(t, i)
	if i == implicit {
		c.upgrade()
	}
	c.expect("220 ")
	c.cmd("EHLO client.example", "250 ")
	if i == starttls {
		c.cmd("STARTTLS", "220 2.0.0")
		c.upgrade()
		c.cmd("EHLO client.example", "250 ")
	}
	c.cmd("AUTH PLAIN "+plainIR("app", "secret"), "235 2.7.0")
	return c
}

// inData is a client whose next octets are a message.
func (f *fixture) inData(t testing.TB, i int) *client {
	t.Helper()
	c := f.ready(t, i)
	c.transaction()
	return c
}

func (c *client) transaction() {
	c.t.Helper()
	c.cmd("MAIL FROM:<a@example.com>", "250 2.1.0")
	c.cmd("RCPT TO:<b@example.net>", "250 2.1.5")
	c.cmd("DATA", "354 ")
}

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }
