package delivery

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	gosmtp "github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
	"relayd/internal/testutil"
)

func newOpener() *opener {
	return &opener{
		hostname: "relay.test", timeouts: DefaultTimeouts(), network: &net.Dialer{Timeout: 5 * time.Second}, brokenTLS: newHostSet(),
		knownTLS: newHostSet(), blamed: newHostSet(), log: slog.New(slog.DiscardHandler), metrics: newMetrics(nil), now: time.Now,
	}
}

func dial(t testing.TB, o *opener, addr netip.AddrPort, smart *Smarthost) (*Session, error) {
	t.Helper()
	s, err := o.open(t.Context(), target{host: "mx.test", addr: addr, smart: smart})
	if err == nil {
		t.Cleanup(s.Close)
	}
	return s, err
}

func message(text string, to ...string) *Transaction {
	t := &Transaction{From: mail.MustParsePath("a@sender.example"), Size: int64(len(text)), Body: func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}}
	for _, a := range to {
		t.Recipients = append(t.Recipients, Recipient{To: mail.MustParsePath(a)})
	}
	return t
}

func TestSessionPipelinesOneTransaction(t *testing.T) {
	t.Parallel()
	for _, ext := range [][]string{{"PIPELINING"}, {"SIZE"}} {
		mx := (&testutil.MX{Extensions: ext, Rule: func(s testutil.Step) testutil.Act {
			if s.To == "gone@x.example" {
				return testutil.Act{Reply: "550 5.1.1 gone"}
			}
			return testutil.Act{}
		}}).Start(t)
		s, err := dial(t, newOpener(), mx.AddrPort(), nil)
		require.NoError(t, err)
		for range 2 {
			answers, err := s.Send(t.Context(), message("Subject: x\r\n\r\n.dot\r\n..\r\nend", "one@x.example", "gone@x.example", "two@x.example"))
			require.NoError(t, err)
			require.Equal(t, []int{250, 550, 250}, []int{answers[0].Reply.Code, answers[1].Reply.Code, answers[2].Reply.Code})
			require.Equal(t, PhaseRcpt, answers[1].Phase)
		}
		answers, err := s.Send(t.Context(), message("Subject: x\r\n\r\n", "gone@x.example"))
		require.NoError(t, err)
		require.Equal(t, 550, answers[0].Reply.Code)
		_, err = s.Send(t.Context(), message("Subject: x\r\n\r\n", "one@x.example"))
		require.NoError(t, err)
		mails := mx.Mails()
		require.Len(t, mails, 3)
		require.Equal(t, "Subject: x\r\n\r\n.dot\r\n..\r\nend\r\n", string(mails[0].Data))
		require.Contains(t, mx.Commands(), "RSET")
	}
}

func TestAllRefusedLeavesDataEmpty(t *testing.T) {
	t.Parallel()
	// A host that answers 354 although it took no recipient (RFC 2920 section 3.1).
	addr := script(t, "220 hi", map[string]string{"MAIL": "250 ok", "RCPT": "550 5.1.1 no", "DATA": "354 go", ".": "554 no recipients"})
	s, err := dial(t, newOpener(), addr, nil)
	require.NoError(t, err)
	for range 2 {
		answers, err := s.Send(t.Context(), message("Subject: secret\r\n\r\n", "one@x.example"))
		require.NoError(t, err)
		require.Equal(t, Answer{mail.Reply{Code: 550, Status: mail.Status{Class: 5, Subject: 1, Detail: 1}, Text: "no"}, PhaseRcpt}, answers[0])
	}
}

// script serves one session that knows PIPELINING and answers each line by its verb.
func script(t *testing.T, banner string, answers map[string]string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, banner+"\r\n")
		lines := bufio.NewScanner(c)
		for lines.Scan() {
			verb, _, _ := strings.Cut(lines.Text(), " ")
			answer, ok := answers[verb]
			switch {
			case verb == "EHLO" && !ok:
				answer = "250-script\r\n250 PIPELINING"
			case !ok:
				answer = "250 ok"
			case answer == "":
				return
			}
			if answer == "-" {
				continue
			}
			_, _ = io.WriteString(c, answer+"\r\n")
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestSessionFaults(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		answers map[string]string
		kind    faultKind
	}{
		{"unasked_reply_is_not_taken_for_the_next", map[string]string{"EHLO": "250 script\r\n250 2.0.0 taken"}, faultProtocol},
		{"2xx_to_data_is_no_354", map[string]string{"DATA": "250 ok"}, faultProtocol},
		{"3xx_to_the_dot_is_in_doubt", map[string]string{"DATA": "354 go", "Subject:": "-", "": "-", ".": "354 more"}, faultInDoubt},
		{"closing_at_the_dot_is_in_doubt", map[string]string{"DATA": "354 go", "Subject:": "-", "": "-", ".": ""}, faultInDoubt},
		{"nonsense_at_the_dot_is_in_doubt", map[string]string{"DATA": "354 go", "Subject:": "-", "": "-", ".": "\xff\xfe"}, faultInDoubt},
		{"codes_that_differ_in_one_reply", map[string]string{"MAIL": "250-ok\r\n550 no"}, faultProtocol},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := dial(t, newOpener(), script(t, "220 hi", tt.answers), nil)
			if err == nil {
				var answers []Answer
				answers, err = s.Send(t.Context(), message("Subject: x\r\n\r\n", "one@x.example"))
				require.True(t, answers[0].Reply.IsZero())
				require.True(t, s.broken)
			}
			require.Error(t, err)
			require.Equal(t, tt.kind, faultOf(err).kind, err)
		})
	}
}

func TestReplyInDataIsHeard(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Rule: on("DATA", testutil.Act{Reply: "354 go on\n552 5.3.4 too much", Drop: true})}).Start(t)
	s, err := dial(t, newOpener(), mx.AddrPort(), nil)
	require.NoError(t, err)
	answers, err := s.Send(t.Context(), message(strings.Repeat("x\r\n", 10_000_000), "one@x.example"))
	require.Error(t, err)
	if !answers[0].Reply.IsZero() { // a reset may overtake it
		require.Equal(t, 552, answers[0].Reply.Code)
	}
}

func TestBrokenStoreNeverEndsAMessage(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{}).Start(t)
	s, err := dial(t, newOpener(), mx.AddrPort(), nil)
	require.NoError(t, err)
	tx := message("", "one@x.example")
	tx.Body = func(_ context.Context, w io.Writer) error {
		_, _ = io.WriteString(w, "Subject: half\r\n\r\nof a mess")
		return errors.New("disk is away")
	}
	_, err = s.Send(t.Context(), tx)
	require.Equal(t, faultLocal, faultOf(err).kind)
	require.True(t, s.broken)
	s.Close()
	mx.Close()
	require.Empty(t, mx.Mails())
}

func TestAbandonedSessionEndsAtOnce(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Rule: on("MAIL", testutil.Act{Stall: make(chan struct{})})}).Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := newOpener().open(ctx, target{host: "mx.test", addr: mx.AddrPort()})
	require.NoError(t, err)
	defer s.Close()
	go func() {
		mx.WaitCommands(t, "MAIL", 1)
		cancel()
	}()
	_, err = s.Send(t.Context(), message("Subject: x\r\n\r\n", "one@x.example"))
	require.Equal(t, faultLocal, faultOf(err).kind)
}

func TestEveryWaitHasADeadline(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"CONNECT", "EHLO", "STARTTLS", "MAIL", "RCPT", "DATA", "DOT"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			mx := (&testutil.MX{TLS: testutil.NewCA(t).Server(t, "mx.test"), Rule: on(verb, testutil.Act{Stall: make(chan struct{})})}).Start(t)
			o := newOpener()
			short := 50 * time.Millisecond
			o.timeouts = Timeouts{short, short, short, short, short, short}
			s, err := dial(t, o, mx.AddrPort(), nil)
			if err == nil {
				_, err = s.Send(t.Context(), message("Subject: x\r\n\r\n", "one@x.example"))
			}
			require.True(t, isTimeout(err), "%v", err)
		})
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	ca := testutil.NewCA(t)
	t.Run("untrusted_certificate_still_encrypts", func(t *testing.T) {
		t.Parallel()
		mx := (&testutil.MX{TLS: ca.Server(t, "somebody.else")}).Start(t)
		s, err := dial(t, newOpener(), mx.AddrPort(), nil)
		require.NoError(t, err)
		require.Equal(t, "TLS1.3", s.TLS)
		_, err = s.Send(t.Context(), message("Subject: x\r\n\r\n", "one@x.example"))
		require.NoError(t, err)
		require.Equal(t, "TLS1.3", mx.Mails()[0].TLS)
	})
	t.Run("broken_tls_falls_back_and_is_remembered", func(t *testing.T) {
		t.Parallel()
		mx := (&testutil.MX{Extensions: []string{"STARTTLS"}, Rule: on("STARTTLS", testutil.Act{BadTLS: true})}).Start(t)
		o := newOpener()
		for range 2 {
			s, err := dial(t, o, mx.AddrPort(), nil)
			require.NoError(t, err)
			require.Empty(t, s.TLS)
		}
		n := 0
		for _, c := range mx.Commands() {
			n += boolInt(c == "STARTTLS")
		}
		require.Equal(t, 1, n)
	})
	t.Run("refused_starttls_goes_on_in_clear", func(t *testing.T) {
		t.Parallel()
		mx := (&testutil.MX{TLS: ca.Server(t, "mx.test"), Rule: on("STARTTLS", testutil.Act{Reply: "454 4.7.0 not now"})}).Start(t)
		s, err := dial(t, newOpener(), mx.AddrPort(), nil)
		require.NoError(t, err)
		require.Empty(t, s.TLS)
		all, _ := mx.Sessions()
		require.Equal(t, 1, all)
	})
	t.Run("text_after_220_is_no_reply", func(t *testing.T) {
		t.Parallel()
		mx := (&testutil.MX{TLS: ca.Server(t, "mx.test"), Rule: on("STARTTLS", testutil.Act{
			Reply: "220 go on\n250-injected\n250 STARTTLS",
		})}).Start(t)
		s, err := dial(t, newOpener(), mx.AddrPort(), nil)
		require.NoError(t, err)
		require.NotEmpty(t, s.TLS) // discarded with the plain session, as it came before the handshake
		require.True(t, s.ext.pipelining)
	})
}

func TestSmarthost(t *testing.T) {
	t.Parallel()
	ca := testutil.NewCA(t)
	secret := map[string]string{"user": "pass word"}
	host := func(tls string) *Smarthost {
		return &Smarthost{Name: "up", TLS: tls, Username: "user", Password: "pass word"}
	}
	noAuth := func(t *testing.T, mx *testutil.MX) {
		t.Helper()
		for _, c := range mx.Commands() {
			require.NotContains(t, c, "AUTH")
			require.NotContains(t, c, "MAIL")
		}
	}
	for _, mech := range []string{"PLAIN", "LOGIN", "CRAM-MD5", "GSSAPI LOGIN PLAIN"} {
		for _, way := range []string{TLSStart, TLSImplicit} {
			t.Run("auth "+mech+" "+way, func(t *testing.T) {
				t.Parallel()
				mx := (&testutil.MX{TLS: ca.Server(t, "mx.test"), Implicit: way == TLSImplicit, Auth: mech, Users: secret}).Start(t)
				o := newOpener()
				o.roots = ca.Pool()
				s, err := dial(t, o, mx.AddrPort(), host(way))
				require.NoError(t, err)
				_, err = s.Send(t.Context(), message("Subject: x\r\n\r\n", "one@x.example"))
				require.NoError(t, err)
				require.Equal(t, "user", mx.Mails()[0].User)
				require.NotEmpty(t, mx.Mails()[0].TLS)
			})
		}
	}
	t.Run("untrusted_certificate_gets_no_credentials", func(t *testing.T) {
		t.Parallel()
		for _, way := range []string{TLSStart, TLSImplicit} {
			mx := (&testutil.MX{TLS: ca.Server(t, "mx.test"), Implicit: way == TLSImplicit, Auth: "PLAIN", Users: secret}).Start(t)
			_, err := dial(t, newOpener(), mx.AddrPort(), host(way))
			require.Equal(t, faultTLS, faultOf(err).kind, err)
			noAuth(t, mx)
		}
	})
	t.Run("wrong_name_gets_no_credentials", func(t *testing.T) {
		t.Parallel()
		mx := (&testutil.MX{TLS: ca.Server(t, "evil.test"), Auth: "PLAIN", Users: secret}).Start(t)
		o := newOpener()
		o.roots = ca.Pool()
		_, err := dial(t, o, mx.AddrPort(), host(TLSStart))
		require.Equal(t, faultTLS, faultOf(err).kind, err)
		noAuth(t, mx)
	})
	t.Run("stripped_starttls_gets_no_credentials", func(t *testing.T) {
		t.Parallel()
		mx := (&testutil.MX{Auth: "PLAIN", Users: secret}).Start(t)
		_, err := dial(t, newOpener(), mx.AddrPort(), host(TLSStart))
		require.Equal(t, faultTLS, faultOf(err).kind, err)
		noAuth(t, mx)
	})
	t.Run("535_is_an_auth_fault", func(t *testing.T) {
		t.Parallel()
		mx := (&testutil.MX{Auth: "PLAIN", Users: map[string]string{"user": "other"}}).Start(t)
		_, err := dial(t, newOpener(), mx.AddrPort(), host(TLSNone))
		require.Equal(t, faultAuth, faultOf(err).kind, err)
	})
	t.Run("454_is_not", func(t *testing.T) {
		t.Parallel()
		mx := (&testutil.MX{Auth: "PLAIN", Users: secret, Rule: on("AUTH", testutil.Act{Reply: "454 4.7.0 later"})}).Start(t)
		_, err := dial(t, newOpener(), mx.AddrPort(), host(TLSNone))
		require.Equal(t, faultReply, faultOf(err).kind, err)
	})
	t.Run("none_is_for_loopback_only", func(t *testing.T) {
		t.Parallel()
		_, err := newOpener().open(t.Context(), target{host: "x", addr: netip.MustParseAddrPort("192.0.2.1:25"), smart: host(TLSNone)})
		require.Equal(t, faultTLS, faultOf(err).kind, err)
	})
}

// Tests against an independent server.

type inbox struct{ mails chan string }

func (b *inbox) NewSession(*gosmtp.Conn) (gosmtp.Session, error) { return &inboxSession{b}, nil }

type inboxSession struct{ *inbox }

func (s *inboxSession) Mail(string, *gosmtp.MailOptions) error { return nil }
func (s *inboxSession) Rcpt(string, *gosmtp.RcptOptions) error { return nil }
func (s *inboxSession) Reset()                                 {}
func (s *inboxSession) Logout() error                          { return nil }
func (s *inboxSession) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err == nil && s.mails != nil {
		s.mails <- string(b)
	}
	return err
}

func goSMTP(t testing.TB, b *inbox) netip.AddrPort {
	t.Helper()
	srv := gosmtp.NewServer(b)
	srv.Domain = "inbox.test"
	srv.TLSConfig = testutil.NewCA(t).Server(t, "inbox.test")
	srv.MaxMessageBytes = 100 << 20
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestSendsToGoSMTP(t *testing.T) {
	t.Parallel()
	b := &inbox{make(chan string, 1)}
	s, err := dial(t, newOpener(), goSMTP(t, b), nil)
	require.NoError(t, err)
	require.Equal(t, "TLS1.3", s.TLS)
	for _, size := range []int{100, 4 << 10, 100 << 10, 3 << 20} {
		text := testutil.Message("a@sender.example", "b@x.example", "hello", size)
		answers, err := s.Send(t.Context(), message(text, "b@x.example", "c@x.example"))
		require.NoError(t, err)
		require.Equal(t, 250, answers[1].Reply.Code)
		require.Equal(t, text, <-b.mails)
	}
}

func TestDotWriter(t *testing.T) {
	t.Parallel()
	tests := map[string][2]string{
		"plain":            {"a\r\nb\r\n", "a\r\nb\r\n.\r\n"},
		"empty":            {"", ".\r\n"},
		"no_final_crlf":    {"a", "a\r\n.\r\n"},
		"dots":             {".\r\n..\r\na.\r\n.b", "..\r\n...\r\na.\r\n..b\r\n.\r\n"},
		"bare_lf":          {"a\nb\n.\n", "a\r\nb\r\n..\r\n.\r\n"},
		"bare_cr":          {"a\rb\r.\r", "a\r\nb\r\n..\r\n.\r\n"},
		"smuggled_end":     {"a\r\n.\rMAIL\n.\r\n", "a\r\n..\r\nMAIL\r\n..\r\n.\r\n"},
		"cr_cr_lf":         {"a\r\r\n.\r\r\n", "a\r\n\r\n..\r\n\r\n.\r\n"},
		"nul":              {"a\x00b\r\n\x00.\r\n", "ab\r\n..\r\n.\r\n"},
		"lf_cr":            {"a\n\rb", "a\r\n\r\nb\r\n.\r\n"},
		"trailing_cr_only": {"\r", "\r\n.\r\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt[1], stuffed(tt[0], len(tt[0])+1))
			for cut := 1; cut <= len(tt[0]); cut++ {
				require.Equal(t, tt[1], stuffed(tt[0], cut), "blocks of %d", cut)
			}
		})
	}
}

func stuffed(text string, block int) string {
	var b bytes.Buffer
	d := &dotWriter{w: &b}
	for len(text) > 0 {
		n := min(block, len(text))
		_, _ = d.Write([]byte(text[:n]))
		text = text[n:]
	}
	_ = d.Close()
	return b.String()
}

func FuzzDotWriter(f *testing.F) {
	f.Add("a\r\n.\r\n", 3)
	f.Add("\r\n.\n\r.\r\x00.", 1)
	f.Fuzz(func(t *testing.T, text string, block int) {
		whole := stuffed(text, len(text)+1)
		require.Equal(t, whole, stuffed(text, max(1, block%64)))
		body, ok := strings.CutSuffix(whole, ".\r\n")
		require.True(t, ok)
		require.True(t, body == "" || strings.HasSuffix(body, "\r\n"))
		for line := range strings.SplitSeq(strings.TrimSuffix(body, "\r\n"), "\r\n") {
			require.NotContains(t, line, "\r")
			require.NotContains(t, line, "\n")
			require.NotContains(t, line, "\x00")
			require.NotEqual(t, ".", line)
		}
	})
}

func TestReplyBounds(t *testing.T) {
	t.Parallel()
	bad := map[string]string{
		"long_line":  "250 " + strings.Repeat("x", 3000) + "\r\n",
		"many_lines": strings.Repeat("250-x\r\n", 1000) + "250 x\r\n",
		"endless":    strings.Repeat("x", 1<<20),
		"no_code":    "hello\r\n",
		"one_digit":  "2\r\n",
		"code_1yz":   "150 ok\r\n",
		"code_6yz":   "650 ok\r\n",
		"no_blank":   "250ok\r\n",
		"mixed":      "250-ok\r\n251 ok\r\n",
		"cut":        "250 ok",
	}
	for name, text := range bad {
		_, err := newReplyReader(strings.NewReader(text)).read(nil)
		require.Error(t, err, name)
	}
	good := map[string]mail.Reply{
		"250\r\n":                            {Code: 250},
		"250 \n":                             {Code: 250},
		"250 2.1.0 ok\r\n":                   {Code: 250, Status: mail.Status{Class: 2, Subject: 1}, Text: "ok"},
		"550-5.1.1 no\r\n550 5.1.1 such\r\n": {Code: 550, Status: mail.Status{Class: 5, Subject: 1, Detail: 1}, Text: "no such"},
		"550 4.1.1 wrong class\r\n":          {Code: 550, Text: "4.1.1 wrong class"},
	}
	for text, want := range good {
		got, err := newReplyReader(strings.NewReader(text)).read(nil)
		require.NoError(t, err, text)
		require.Equal(t, want, got)
	}
}

func FuzzReply(f *testing.F) {
	f.Add([]byte("250-a\r\n250 2.0.0 b\r\n"))
	f.Add([]byte("5\xff0 x\x00\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newReplyReader(bytes.NewReader(data))
		for {
			reply, err := r.read(nil)
			if err != nil {
				return
			}
			require.True(t, reply.Code >= 200 && reply.Code <= 599)
			require.LessOrEqual(t, len(reply.Text), 512)
			require.NotContains(t, reply.Text, "\r")
			Classify(reply, Phase(rand.Intn(4))) //nolint:gosec // any phase
			back, err := ParseReply(reply.String())
			require.NoError(t, err)
			require.Equal(t, reply.Code, back.Code)
		}
	})
}
