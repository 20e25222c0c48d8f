package testutil

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Step is a point in a session at which the test may interfere: "CONNECT", a verb, or "DOT" after the message.
type Step struct {
	Verb    string
	Arg     string // of the command, as it came
	From    string // reverse-path of the transaction, "" before MAIL and for <>
	To      string // of RCPT
	Session int    // from 1
	Message int    // messages taken in this session before
	Seen    int    // how often this verb came in all sessions before
	TLS     bool
}

// Act says what to do instead of the usual. The zero value is the usual.
type Act struct {
	Reply   string          // one line, or several joined by "\n" with their codes; "\r\n" is added
	Raw     []byte          // written as it is, before Reply
	Stall   <-chan struct{} // waits for it, or for the end of the test
	Drop    bool            // closes the connection after Reply, if any
	Reset   bool            // closes with RST
	BadTLS  bool            // at STARTTLS: says 220, then nonsense
	Swallow bool            // says nothing and goes on
}

// Mail is one message that an MX took.
type Mail struct {
	From    string
	To      []string
	Data    []byte // dots unstuffed
	TLS     string // "TLS1.3", "" for none
	Session int
	MailArg string   // of MAIL, with its parameters
	RcptArg []string // of each RCPT
	User    string   // authenticated as
	At      time.Time
}

// MX is an SMTP server that does what a test wants. Set its fields before Start.
type MX struct {
	Hostname   string                       // default mx.test
	Extensions []string                     // nil: PIPELINING, SIZE 52428800, 8BITMIME, ENHANCEDSTATUSCODES, DSN
	TLS        *tls.Config                  // nil: no STARTTLS
	Implicit   bool                         // TLS from the first octet
	Auth       string                       // mechanisms to offer
	Users      map[string]string            // passwords
	Rule       func(s Step) Act             // nil: everything is taken
	Received   func(m *Mail)                // told of each message, before its reply
	Peer       func(client netip.AddrPort)  // told of each connection
	IP         string                       // default 127.0.0.1
	Port       int                          // default: any
	Listen     func() (net.Listener, error) // instead of IP and Port

	t        testing.TB
	listener net.Listener
	done     chan struct{}
	wg       sync.WaitGroup

	mu       sync.Mutex
	changed  chan struct{}
	mails    []*Mail
	commands []string
	faults   []string
	sessions int
	open     int
	most     int
	stripped bool
	seen     map[string]int
	conns    map[net.Conn]struct{}
}

// Start listens; the end of the test closes it.
func (m *MX) Start(t testing.TB) *MX {
	t.Helper()
	m.t = t
	if m.Hostname == "" {
		m.Hostname = "mx.test"
	}
	if m.Extensions == nil {
		m.Extensions = []string{"PIPELINING", "SIZE 52428800", "8BITMIME", "ENHANCEDSTATUSCODES", "DSN"}
	}
	if m.IP == "" {
		m.IP = "127.0.0.1"
	}
	m.done, m.changed = make(chan struct{}), make(chan struct{})
	m.seen, m.conns = map[string]int{}, map[net.Conn]struct{}{}
	if m.Listen == nil {
		m.Listen = func() (net.Listener, error) {
			return net.Listen("tcp", net.JoinHostPort(m.IP, fmt.Sprint(m.Port)))
		}
	}
	l, err := m.Listen()
	if err != nil {
		t.Fatal(err)
	}
	m.listener = l
	m.wg.Go(m.accept)
	t.Cleanup(m.Close)
	return m
}

// Close ends every session and waits for it. It is idempotent.
func (m *MX) Close() {
	m.mu.Lock()
	select {
	case <-m.done:
	default:
		close(m.done)
	}
	closeAlone(m.listener)
	for c := range m.conns {
		_ = c.Close()
	}
	m.mu.Unlock()
	m.wg.Wait()
}

// closeAlone closes a listener so that its port is free at once: no child is between fork and exec, where it has a copy.
func closeAlone(l net.Listener) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	_ = l.Close()
}

// AddrPort is where it listens.
func (m *MX) AddrPort() netip.AddrPort { return netip.MustParseAddrPort(m.listener.Addr().String()) }

// PortNumber is the port alone.
func (m *MX) PortNumber() int { return int(m.AddrPort().Port()) }

// StripTLS has the MX offer STARTTLS no more, or again.
func (m *MX) StripTLS(on bool) { m.note(func() { m.stripped = on }) }

// offersTLS tells whether STARTTLS is offered now.
func (m *MX) offersTLS() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.TLS != nil && !m.stripped
}

// Mails returns what was taken so far.
func (m *MX) Mails() []*Mail {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]*Mail(nil), m.mails...)
}

// Commands returns every command line so far, in the order of their arrival.
func (m *MX) Commands() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.commands...)
}

// Faults returns what in messages broke the protocol: bare CR or LF, NUL, lines that are too long.
func (m *MX) Faults() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.faults...)
}

// Open tells how many connections are open.
func (m *MX) Open() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.open
}

// Sessions tells how many connections were accepted, and how many were open at most.
func (m *MX) Sessions() (all, most int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sessions, m.most
}

// Wait returns when n messages were taken, and fails the test after a long time.
func (m *MX) Wait(t testing.TB, n int) []*Mail {
	t.Helper()
	m.Until(t, fmt.Sprintf("%d messages", n), func() bool { return len(m.mails) >= n })
	return m.Mails()
}

// WaitCommands returns when n commands of the verb came.
func (m *MX) WaitCommands(t testing.TB, verb string, n int) {
	t.Helper()
	m.Until(t, fmt.Sprintf("%d %s", n, verb), func() bool { return m.seen[verb] >= n })
}

// Until waits for a condition on the fields of the MX, which is called under its lock after each change.
func (m *MX) Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		m.mu.Lock()
		if ok() {
			m.mu.Unlock()
			return
		}
		changed := m.changed
		m.mu.Unlock()
		select {
		case <-changed:
		case <-limit:
			m.mu.Lock()
			defer m.mu.Unlock()
			t.Fatalf("waited too long for %s: %d messages, commands %q", what, len(m.mails), tail(m.commands, 20))
		}
	}
}

func tail(s []string, n int) []string { return s[max(0, len(s)-n):] }

// note changes the record and wakes who waits.
func (m *MX) note(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *MX) accept() {
	for {
		conn, err := m.listener.Accept()
		if err != nil {
			return
		}
		s := &mxSession{mx: m, conn: conn}
		if m.Peer != nil {
			m.Peer(netip.MustParseAddrPort(conn.RemoteAddr().String()))
		}
		m.note(func() {
			m.sessions++
			m.open++
			m.conns[conn] = struct{}{}
			now := 0
			for c := range m.conns {
				if established(c) {
					now++
				}
			}
			m.most = max(m.most, now)
			s.id = m.sessions
			select {
			case <-m.done:
				_ = conn.Close()
			default:
			}
		})
		m.wg.Go(func() {
			s.serve()
			_ = s.conn.Close()
			m.note(func() {
				m.open--
				delete(m.conns, conn)
			})
		})
	}
}
