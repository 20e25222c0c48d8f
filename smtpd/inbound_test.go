package smtpd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/authres"
	"github.com/stretchr/testify/require"

	"relayd/dkim"
	"relayd/internal/account"
	"relayd/internal/mail"
	"relayd/internal/mailauth"
	"relayd/internal/resolver"
)

// handler keeps what comes in.
type handler struct {
	mu  sync.Mutex
	got []InboundMail
	raw []string
	err error
}

func (h *handler) HandleInbound(_ context.Context, in *InboundMail) error {
	b, err := io.ReadAll(in.Message)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return h.err
	}
	h.got, h.raw = append(h.got, *in), append(h.raw, string(b))
	return nil
}

func (h *handler) all() []InboundMail {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]InboundMail(nil), h.got...)
}

type domains map[string]bool

func (d domains) Domain(name string) (account.Domain, bool) {
	return account.Domain{Name: name}, d[name]
}

// records answer TXT queries; every host has the address of the test's client.
type records map[string]string

func (r records) LookupTXT(_ context.Context, name string) ([]string, error) {
	if v, ok := r[name]; ok {
		return []string{v}, nil
	}
	return nil, resolver.ErrNXDomain
}

func (records) LookupIP(context.Context, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

func (records) LookupMXRecords(context.Context, string) ([]resolver.MX, error) {
	return nil, resolver.ErrNoData
}

func (records) LookupPTR(context.Context, netip.Addr) ([]string, error) {
	return nil, resolver.ErrNoData
}

var returnPaths = sync.OnceValue(func() *mail.VERP {
	v, err := mail.OpenVERP(filepath.Join(keyDir(), "keys"))
	if err != nil {
		panic(err)
	}
	return v
})

// startInbound is start with somebody behind the inbound listeners.
func startInbound(t testing.TB, change ...func(*Config)) (*fixture, *handler) {
	t.Helper()
	cfg := testConfig()
	for _, fn := range change {
		fn(&cfg)
	}
	h := &handler{}
	f := &fixture{rec: &recorder{}, log: &lockedBuffer{}}
	deps := testDeps(f.rec, f.log)
	deps.Inbound = &InboundDeps{
		Handler: h, ReturnPaths: returnPaths(), Host: "bounces.example", Domains: domains{"example.com": true}, HasOperator: true,
		Resolver: zone(),
	}
	var err error
	f.Server, err = New(cfg, deps)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- f.Run(context.Background()) }()
	t.Cleanup(func() {
		require.NoError(t, f.Close())
		require.NoError(t, <-done)
	})
	return f, h
}

var signer = sync.OnceValue(func() *dkim.Key {
	ring, err := dkim.Open(keyDir())
	if err != nil {
		panic(err)
	}
	keys, err := ring.AddDomain("mx.example")
	if err != nil {
		panic(err)
	}
	return keys[0]
})

// zone publishes mx.example, which signs and sends from 127.0.0.1, and other.example, which sends from elsewhere.
func zone() mailauth.Resolver {
	return records{
		"mx.example": "v=spf1 ip4:127.0.0.1 -all", "other.example": "v=spf1 ip4:192.0.2.1 -all",
		"_dmarc.mx.example": "v=DMARC1; p=reject", "_dmarc.other.example": "v=DMARC1; p=reject",
		signer().RecordName(): signer().RecordValue(),
	}
}

// session is a client of the inbound listener that has said EHLO.
func (f *fixture) inboundClient(t testing.TB) *client {
	t.Helper()
	c := f.dial(t, inbound)
	c.expect("220 ")
	c.cmd("EHLO mx.example", "250 ")
	return c
}

var anEnvelope = mail.EnvelopeID{Message: mail.NewQueueID(time.Now()), N: 77}

func issuedPath() string {
	return returnPaths().Path(anEnvelope, time.Now(), "bounces.example").String()
}

// TestB2InboundRecipients: what we issued is accepted at RCPT, all else refused there with one answer.
func TestB2InboundRecipients(t *testing.T) {
	t.Parallel()
	f, h := startInbound(t, func(c *Config) { c.MaxErrors = 1000 })
	path := issuedPath()
	local := strings.TrimSuffix(path, "@bounces.example")
	old := returnPaths().Path(anEnvelope, time.Now().Add(-60*24*time.Hour), "bounces.example").String()
	for name, c := range map[string]struct {
		to   string
		kind InboundKind // "" is refused
	}{
		"return path":               {path, Bounce},
		"return path in upper case": {strings.ToUpper(path), Bounce},
		"fbl":                       {"fbl@bounces.example", Complaint},
		"unsubscribe":               {"Unsubscribe@bounces.example", Unsubscribe},
		"postmaster of the host":    {"postmaster@relay.example.com", Operator},
		"postmaster of nobody":      {"PostMaster", Operator}, // RFC 5321 section 4.5.1
		"postmaster of the bounces": {"Postmaster@bounces.example", Operator},
		"abuse of a domain of ours": {"abuse@example.com", Operator},
		"changed MAC":               {flip(local) + "@bounces.example", ""},
		"truncated":                 {local[:len(local)-1] + "@bounces.example", ""},
		"at another domain of ours": {local + "@example.com", ""},
		"old":                       {old, ""},
		"somebody":                  {"somebody@bounces.example", ""},
		"fbl elsewhere":             {"fbl@example.com", ""},
		"postmaster elsewhere":      {"postmaster@victim.example", ""},
		"abuse of a foreign domain": {"abuse@victim.example", ""},
		"hosted domain's mailbox":   {"ceo@example.com", ""},
	} {
		cl := f.inboundClient(t)
		cl.cmd("MAIL FROM:<>", "250 ")
		if c.kind == "" {
			cl.cmd("RCPT TO:<"+c.to+">", "550 5.1.1 No such recipient here")
			continue
		}
		cl.cmd("RCPT TO:<"+c.to+">", "250 2.1.5")
		cl.cmd("DATA", "354 ")
		cl.cmd("From: m@mx.example\r\nSubject: "+name+"\r\n\r\nHello\r\n.", "250 2.0.0 Ok: queued as ")
		got := h.all()
		last := got[len(got)-1]
		require.Equal(t, c.kind, last.Recipients[0].Kind, name)
		if c.kind == Bounce {
			require.Equal(t, anEnvelope, last.Recipients[0].Envelope)
		}
	}
	require.Empty(t, f.rec.all(), "nothing is relayed")
}

// flip changes one character of the MAC.
func flip(local string) string {
	c := byte('a')
	if local[len(local)-3] == c {
		c = 'b'
	}
	return local[:len(local)-3] + string(c) + local[len(local)-2:]
}

func TestInboundWithoutOperatorOrHandler(t *testing.T) {
	t.Parallel()
	f, _ := startInbound(t)
	f.deps.Inbound.HasOperator = false
	c := f.inboundClient(t)
	c.cmd("MAIL FROM:<>", "250 ")
	require.Contains(t, c.cmd("RCPT TO:<postmaster@relay.example.com>", "550 5.1.1"), "no operator address")

	bare := start(t)
	c = bare.dial(t, inbound)
	c.expect("220 ")
	c.cmd("EHLO mx.example", "250 ")
	c.cmd("MAIL FROM:<>", "250 ")
	c.cmd("RCPT TO:<postmaster@relay.example.com>", "550 5.1.1")
}

// receive sends one message and returns what the handler got of it.
func receive(t *testing.T, from, message string) (InboundMail, string) {
	t.Helper()
	f, h := startInbound(t)
	c := f.inboundClient(t)
	c.cmd("MAIL FROM:<"+from+">", "250 ")
	c.cmd("RCPT TO:<"+issuedPath()+">", "250 ")
	c.cmd("DATA", "354 ")
	c.cmd(message+".", "250 2.0.0")
	return h.all()[0], h.raw[0]
}

func TestInboundVerdicts(t *testing.T) {
	t.Parallel()
	const head, body = "From: MX <mailer@mx.example>\r\nTo: x@bounces.example\r\nSubject: x\r\nDate: Fri, 20 Nov 2026 12:00:00 +0000\r\n", "Hello\r\n"
	hasher := dkim.NewBodyHasher()
	_, _ = io.WriteString(hasher, body)
	signature, err := dkim.Sign([]*dkim.Key{signer()}, []byte(head), hasher.Sum(), time.Now())
	require.NoError(t, err)
	signed := string(signature) + head + "\r\n" + body
	unsigned := head + "\r\n" + body

	for name, c := range map[string]struct {
		from, message          string
		spf, helo, dkim, dmarc mailauth.Result
	}{
		"dsn, signed":                     {"", signed, "", "pass", "pass", "pass"},
		"dsn, unsigned, HELO aligned":     {"", unsigned, "", "pass", "none", "pass"},
		"signed":                          {"m@mx.example", signed, "pass", "pass", "pass", "pass"},
		"spf fails, signature saves it":   {"m@other.example", signed, "fail", "pass", "pass", "pass"},
		"spf fails, unsigned":             {"m@other.example", unsigned, "fail", "pass", "none", "fail"},
		"changed body, spf not aligned":   {"m@other.example", strings.Replace(signed, "Hello", "Hallo", 1), "fail", "pass", "fail", "fail"},
		"author has no record":            {"m@mx.example", "From: a@nobody.example\r\n\r\nx\r\n", "pass", "pass", "none", "none"},
		"two authors":                     {"m@mx.example", "From: a@mx.example, b@other.example\r\n\r\nx\r\n", "pass", "pass", "none", ""},
		"reverse-path without SPF record": {"m@nobody.example", unsigned, "none", "pass", "none", "fail"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in, raw := receive(t, c.from, c.message)
			require.True(t, strings.HasPrefix(raw, "Return-Path: <"+c.from+">\r\nAuthentication-Results: "), raw)
			require.True(t, strings.HasSuffix(raw, c.message[strings.Index(c.message, "\r\n\r\n"):]), "the body is as it came")
			fields, err := mail.ParseHeader([]byte(raw[:strings.Index(raw, "\r\n\r\n")+2]))
			require.NoError(t, err)
			host, results, err := authres.Parse(fields.Get("Authentication-Results"))
			require.NoError(t, err)
			require.Equal(t, "relay.example.com", host)
			got := map[string]authres.ResultValue{}
			for _, r := range results {
				switch r := r.(type) {
				case *authres.SPFResult:
					if r.From != "" {
						got["spf"] = r.Value
					} else {
						got["helo"] = r.Value
					}
				case *authres.DKIMResult:
					got["dkim"] = r.Value
				case *authres.DMARCResult:
					got["dmarc"] = r.Value
				}
			}
			require.Equal(t, map[string]authres.ResultValue{
				"spf": authres.ResultValue(c.spf), "helo": authres.ResultValue(c.helo), "dkim": authres.ResultValue(c.dkim),
				"dmarc": authres.ResultValue(c.dmarc),
			}, with(got, "spf", "dmarc"), raw)
			require.Equal(t, in.Size, int64(len(raw)))
		})
	}
}

// with fills in what is not said.
func with(m map[string]authres.ResultValue, keys ...string) map[string]authres.ResultValue {
	for _, k := range keys {
		m[k] = m[k] + ""
	}
	return m
}

func TestInboundRemovesResultsInOurName(t *testing.T) {
	t.Parallel()
	_, raw := receive(t, "m@mx.example", "Authentication-Results: relay.example.com; dmarc=pass header.from=bank.example\r\n"+
		"authentication-results:\r\n RELAY.example.com 1;\r\n\tspf=pass smtp.mailfrom=bank.example\r\n"+
		"Authentication-Results: \"relay.example.com\"; dkim=pass\r\n"+
		"Authentication-Results: (c) relay.example.com; dkim=pass\r\n"+
		"Authentication-Results: mx.google.example; dkim=pass header.d=kept.example\r\n"+
		"From: a@mx.example\r\n\r\nx\r\n")
	require.NotContains(t, raw, "bank.example")
	require.Equal(t, 1, strings.Count(strings.ToLower(raw), "authentication-results: relay.example.com"))
	require.Equal(t, 2, strings.Count(strings.ToLower(raw), "authentication-results:"))
	require.Contains(t, raw, "kept.example")
}

func TestInboundAnswersOfTheHandler(t *testing.T) {
	t.Parallel()
	f, h := startInbound(t, func(c *Config) { c.MaxInboundBytes = 64 << 10 })
	send := func(message, want string) {
		t.Helper()
		c := f.inboundClient(t)
		c.cmd("MAIL FROM:<>", "250 ")
		c.cmd("RCPT TO:<"+issuedPath()+">", "250 ")
		c.cmd("DATA", "354 ")
		c.cmd(message+".", want)
		c.cmd("NOOP", "250 ") // the session lives
	}
	h.err = refuse(550, 7, 1, "Not so")
	send("Subject: x\r\n\r\nx\r\n", "550 5.7.1 Not so")
	h.err = errors.New("disk on fire")
	send("Subject: x\r\n\r\nx\r\n", "45")
	h.err = nil
	send("Subject: x\r\n\r\n"+strings.Repeat("0123456789abcdef\r\n", 5000), "552 5.3.4")
	send(strings.Repeat("Received: from x by y; z\r\n", 51)+"\r\nx\r\n", "554 5.4.6")
	send("no header at all\r\n", "250 ")
	f.occupy(inboundShare * f.cfg.MaxInboundBytes)
	send("Subject: x\r\n\r\nx\r\n", "452 4.3.1")
	f.occupy(-inboundShare * f.cfg.MaxInboundBytes)
	require.Zero(t, f.held(), "memory is given back")
	require.Len(t, h.all(), 1)
}

// TestInboundKeepsRequireTLS (RFC 8689): it is offered and taken under TLS, and whoever hands the message on is told.
func TestInboundKeepsRequireTLS(t *testing.T) {
	t.Parallel()
	f, h := startInbound(t)
	c := f.inboundClient(t)
	c.cmd("MAIL FROM:<> REQUIRETLS", "555 5.5.4 REQUIRETLS is not offered here")
	c.cmd("STARTTLS", "220 ")
	c.upgrade()
	require.Contains(t, c.cmd("EHLO mx.example", "250 "), "250-REQUIRETLS\r\n")
	for _, param := range []string{" REQUIRETLS", ""} {
		c.cmd("MAIL FROM:<>"+param, "250 ")
		c.cmd("RCPT TO:<"+issuedPath()+">", "250 ")
		c.send(bdat("From: x@mx.example\r\n\r\nx\r\n", true))
		c.expect("250 2.0.0 Ok: queued")
	}
	require.True(t, h.all()[0].RequireTLS)
	require.False(t, h.all()[1].RequireTLS)
}

// TestA9_InboundHasASizeOfItsOwn, which it tells in EHLO, and asks of MAIL and of the message alike.
func TestA9_InboundHasASizeOfItsOwn(t *testing.T) {
	t.Parallel()
	for _, limits := range [][3]int64{{5000, 4000, 4000}, {4000, 5000, 4000}} {
		f, h := startInbound(t, func(c *Config) { c.MaxMessageBytes, c.MaxInboundBytes = limits[0], limits[1] })
		size := strconv.FormatInt(limits[2], 10)
		c := f.dial(t, inbound)
		c.expect("220 ")
		require.Contains(t, c.cmd("EHLO mx.example", "250 "), "250-SIZE "+size+"\r\n")
		c.cmd("MAIL FROM:<> SIZE=4001", "552 5.3.4")
		message := "From: x@mx.example\r\n\r\n"
		message += strings.Repeat("x", int(limits[2])-len(message)-2) + "\r\n"
		for _, chunks := range []bool{false, true} {
			for _, m := range []string{message, "X" + message} {
				c.cmd("MAIL FROM:<> SIZE="+size, "250 ")
				c.cmd("RCPT TO:<"+issuedPath()+">", "250 ")
				if chunks {
					c.send(bdat(m, true))
				} else {
					c.cmd("DATA", "354 ")
					c.send(m + ".\r\n")
				}
				c.expect(map[bool]string{true: "250 2.0.0", false: "552 5.3.4"}[m == message])
			}
		}
		require.Len(t, h.all(), 2)
		require.Zero(t, f.held())
	}
}

func TestSplitMessage(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]struct {
		fields []string
		body   string
	}{
		"":                                {nil, ""},
		"\r\nbody\r\n":                    {nil, "body\r\n"},
		"A: 1\r\n b\r\nC: 2\r\n\r\nx\r\n": {[]string{"A: 1\r\n b\r\n", "C: 2\r\n"}, "x\r\n"},
		"A: 1\r\n":                        {[]string{"A: 1\r\n"}, ""},
		" folded first\r\nA: 1":           {[]string{" folded first\r\n", "A: 1"}, ""},
	} {
		fields, body := splitMessage([]byte(in))
		var got []string
		for _, f := range fields {
			got = append(got, string(f))
		}
		require.Equal(t, want.fields, got, "%q", in)
		require.Equal(t, want.body, string(body), "%q", in)
	}
}

func FuzzInboundTrace(f *testing.F) {
	f.Add([]byte("Authentication-Results: relay.example.com; x\r\n a\r\n\r\nbody"))
	f.Fuzz(func(t *testing.T, message []byte) {
		fields, body := splitMessage(message)
		joined := append(bytes.Join(fields, nil), body...)
		if len(joined) > len(message) {
			t.Fatal("grew")
		}
		_ = authorDomain(fields)
		for _, field := range fields {
			_ = claimsHost(field, "relay.example.com")
		}
	})
}

// shared holds what outlives a test, because several share it.
var shared struct {
	mu   sync.Mutex
	dirs []string
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, dir := range shared.dirs {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// keyDir outlives the tests that share its keys.
func keyDir() string {
	dir, err := os.MkdirTemp("", "relayd-test-*")
	if err != nil {
		panic(err)
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.dirs = append(shared.dirs, dir)
	return dir
}
