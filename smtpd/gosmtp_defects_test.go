package smtpd

import (
	"bufio"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"
)

// The server of go-smtp v0.25.1, and why it is not our front door: TestGoSMTPDefects shows each defect there and its
// absence here. When one of its subtests fails for go-smtp, a release has mended it. That it reads DATA octet by octet is
// shown by BenchmarkAccept.

// inbox is a go-smtp backend that keeps what it gets.
type inbox struct {
	mu         sync.Mutex
	recipients []string
	messages   []string
	read       func(io.Reader) ([]byte, error)
	patience   time.Duration // with the octets of a message, when it is not that of the server
}

func (b *inbox) NewSession(c *smtp.Conn) (smtp.Session, error) {
	return &inboxSession{b, c.Conn()}, nil
}

type inboxSession struct {
	*inbox
	conn net.Conn
}

func (*inboxSession) Reset()                               {}
func (*inboxSession) Logout() error                        { return nil }
func (*inboxSession) Mail(string, *smtp.MailOptions) error { return nil }
func (*inboxSession) AuthMechanisms() []string             { return []string{sasl.Plain} }

func (s *inboxSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, _, password string) error {
		if password != "secret" {
			return smtp.ErrAuthFailed
		}
		return nil
	}), nil
}

func (s *inboxSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recipients = append(s.recipients, to)
	return nil
}

func (s *inboxSession) Data(r io.Reader) error {
	if s.patience > 0 { // ReadTimeout would be that of every command before it as well
		if err := s.conn.SetReadDeadline(time.Now().Add(s.patience)); err != nil {
			return err
		}
	}
	b, err := s.read(r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages = append(s.messages, string(b))
	return nil
}

func startGoSMTP(t testing.TB, b *inbox, timeout time.Duration) string {
	t.Helper()
	if b.read == nil {
		b.read = io.ReadAll
	}
	s := smtp.NewServer(b)
	s.Domain, s.AllowInsecureAuth, s.MaxMessageBytes = "relay.example.com", true, 26<<20
	s.ReadTimeout, s.WriteTimeout = timeout, time.Minute
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return l.Addr().String()
}

// peer is either server seen from outside.
type peer struct {
	*client
	messages   func() []string
	recipients func() []string
}

// ask sends a command and returns its reply, "" when the session is closed.
func (p *peer) ask(line string) string {
	if _, err := io.WriteString(p.Conn, line+"\r\n"); err != nil {
		return ""
	}
	for {
		s, err := p.r.ReadString('\n')
		if err != nil {
			return ""
		}
		if len(s) < 4 || s[3] != '-' {
			return s
		}
	}
}

func (p *peer) begin() {
	p.t.Helper()
	p.cmd("MAIL FROM:<a@example.com>", "250")
	p.cmd("RCPT TO:<b@example.net>", "250")
}

func TestGoSMTPDefects(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		shows func(p *peer) bool // whether the defect shows
	}{
		{"octets_of_a_refused_chunk_are_run_as_commands", func(p *peer) bool { // go-smtp issue 315
			p.begin()
			p.send("BDAT 6 LATE\r\nNOOP\r\n") // 6 octets of message
			p.reply()
			s, _ := p.r.ReadString('\n')
			return strings.HasPrefix(s, "250")
		}},
		{"rest_of_a_message_is_run_after_a_timeout", func(p *peer) bool { // go-smtp issue 196
			p.begin()
			p.cmd("DATA", "354")
			p.send("hello\r\n")
			p.reply() // the timeout
			return strings.HasPrefix(p.ask("NOOP"), "250")
		}},
		{"stray_CR_before_the_end_hides_it", func(p *peer) bool {
			p.begin()
			p.cmd("DATA", "354")
			p.send("hello\r\r\n.\r\nNOOP\r\n.\r\n")
			p.reply()
			return len(p.messages()) == 1 && strings.Contains(p.messages()[0], "NOOP")
		}},
		{"bare_LF_ends_a_command", func(p *peer) bool {
			p.send("NOOP\n")
			return strings.HasPrefix(p.reply(), "250")
		}},
		{"bare_CR_and_LF_pass_into_the_message", func(p *peer) bool {
			p.begin()
			p.cmd("DATA", "354")
			p.send("a\nb\rc\r\n.\r\n")
			p.reply()
			return len(p.messages()) == 1 && p.messages()[0] == "a\nb\rc\r\n"
		}},
		{"quoted_local_part_loses_its_quotes", func(p *peer) bool {
			p.cmd("MAIL FROM:<a@example.com>", "250")
			p.cmd(`RCPT TO:<"foo> SIZE=1"@example.net>`, "250")
			p.cmd("DATA", "354")
			p.cmd("x\r\n.", "250")
			return p.recipients()[0] == `foo> SIZE=1@example.net`
		}},
		{"nested_MAIL_keeps_the_old_recipients", func(p *peer) bool {
			p.begin()
			p.ask("MAIL FROM:<c@example.com>")
			p.ask("RSET") // what a client would have to do
			p.begin()
			if !strings.HasPrefix(p.ask("MAIL FROM:<c@example.com>"), "250") {
				return false
			}
			return strings.HasPrefix(p.ask("DATA"), "354")
		}},
		{"failed_AUTH_is_not_counted", func(p *peer) bool {
			for range 50 {
				if s := p.ask("AUTH PLAIN " + plainIR("app", "guess")); s == "" || strings.HasPrefix(s, "421") {
					return false
				}
			}
			return true
		}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			require.True(t, tc.shows(goSMTPPeer(t, tc.name)), "go-smtp has mended this")
			require.False(t, tc.shows(ourPeer(t, tc.name)), "ours has it")
		})
	}
}

// TestGoSMTPMended are defects of v0.25.0 that v0.25.1 no longer has: a BDAT that is refused for want of a recipient is
// read over.
func TestGoSMTPMended(t *testing.T) {
	t.Parallel()
	p := goSMTPPeer(t, "")
	p.send("BDAT 6 LAST\r\nNOOP\r\nQUIT\r\n")
	p.expect("502")
	p.expect("221")
}

func goSMTPPeer(t *testing.T, name string) *peer {
	t.Helper()
	b := &inbox{}
	if strings.Contains(name, "timeout") {
		b.patience = 50 * time.Millisecond
	}
	addr := startGoSMTP(t, b, time.Minute)
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	p := &peer{client: &client{t: t, Conn: conn, r: bufio.NewReader(conn), theirs: true}}
	p.messages = func() []string { b.mu.Lock(); defer b.mu.Unlock(); return b.messages }
	p.recipients = func() []string { b.mu.Lock(); defer b.mu.Unlock(); return b.recipients }
	p.expect("220")
	p.cmd("EHLO x", "250")
	return p
}

func ourPeer(t *testing.T, name string) *peer {
	t.Helper()
	f := start(t, func(c *Config) {
		if strings.Contains(name, "timeout") {
			c.DataTimeout = 50 * time.Millisecond
		}
	})
	p := &peer{client: f.dial(t, plain)}
	p.messages = func() (all []string) {
		for _, m := range f.rec.all() {
			all = append(all, m.body)
		}
		return all
	}
	p.recipients = func() (all []string) {
		for _, m := range f.rec.all() {
			for _, r := range m.sub.Recipients {
				all = append(all, r.To.String())
			}
		}
		return all
	}
	p.expect("220")
	p.cmd("EHLO x", "250")
	if !strings.Contains(name, "AUTH") {
		p.cmd("AUTH PLAIN "+plainIR("app", "secret"), "235")
	}
	return p
}
