package demo

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-smtp"

	"relayd/internal/mail"
)

// Signature is one DKIM-Signature field of a letter and what came of its verification.
type Signature struct {
	Domain, Selector, Algorithm, Result string // Result "pass", or why not
}

// Verifier checks every DKIM signature of the message in r.
type Verifier func(ctx context.Context, r io.Reader) ([]Signature, error)

// Letter is one message to one recipient as it lies in the inbox. Its bytes are on disk.
type Letter struct {
	ID          int // counts from 1
	From, To    string
	Subject     string
	Size        int64
	At          time.Time
	TLS         bool // came over STARTTLS
	Checked     bool // Signatures are known
	Signatures  []Signature
	Unsubscribe string // the https or http link of List-Unsubscribe
}

// Verified tells that all signatures are valid and that both algorithms are among them.
func (l Letter) Verified() bool {
	algorithms := map[string]bool{}
	for _, s := range l.Signatures {
		if s.Result != "pass" {
			return false
		}
		algorithms[s.Algorithm] = true
	}
	return len(algorithms) >= 2
}

// Counts says what lies in the inbox.
type Counts struct {
	Messages   int // all, a duplicate is one more
	Recipients int // different addresses
	Verified   int // different addresses with a verified message
	TLS        int // messages that came over STARTTLS
	Pending    int // messages not checked yet
	Smallest   int64
	LastAt     time.Time // when the last message was checked
}

// InboxConfig says where an inbox keeps its messages and what it takes.
type InboxConfig struct {
	Dir        string // must exist
	Host       string // its name in the greeting and the certificate
	MaxMessage int64  // octets
	Verify     Verifier
	Now        func() time.Time
}

// Inbox is a catch-all mail host on loopback: it takes every recipient over SMTP with STARTTLS, keeps each message as a
// file and verifies its signatures. Memory holds one short record per message. Safe for concurrent use.
type Inbox struct {
	cfg  InboxConfig
	smtp *smtp.Server
	ln   *trackingListener

	ctx    context.Context // ends verification
	cancel context.CancelFunc
	work   chan int // IDs of letters to check
	wg     sync.WaitGroup
	closed sync.Once

	mu      sync.Mutex
	letters []Letter
	counts  Counts
	state   map[string]bool // recipient: verified
	changed chan struct{}   // closed and replaced when counts change
}

// NewInbox listens on a free port of 127.0.0.1 and serves until Close.
func NewInbox(cfg InboxConfig) (*Inbox, error) {
	cert, err := newCertificate(cfg.Host, cfg.Now())
	if err != nil {
		return nil, err
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	ln := &trackingListener{Listener: tcp, open: map[net.Conn]bool{}}
	b := &Inbox{cfg: cfg, ln: ln, work: make(chan int, 64), state: map[string]bool{}, changed: make(chan struct{})}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	s := smtp.NewServer(smtp.BackendFunc(b.open))
	s.Domain = cfg.Host
	s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true}
	s.MaxMessageBytes, s.MaxRecipients, s.MaxLineLength = cfg.MaxMessage, 100, 2000
	s.ReadTimeout, s.WriteTimeout = time.Minute, time.Minute
	s.ErrorLog = log.New(io.Discard, "", 0) // a peer that hangs up is no event of the demo
	b.smtp = s
	b.wg.Go(func() { _ = s.Serve(ln) })
	for range runtime.GOMAXPROCS(0) {
		b.wg.Go(b.check)
	}
	return b, nil
}

// Port is the port of 127.0.0.1 on which the inbox takes mail.
func (b *Inbox) Port() int { return b.ln.Addr().(*net.TCPAddr).Port }

// Close ends sessions and verification and returns when all goroutines have ended. It may be called twice.
func (b *Inbox) Close() error {
	b.closed.Do(func() {
		b.cancel()
		b.ln.closeAll()
		_ = b.smtp.Shutdown(context.Background()) // waits for the sessions, whose connections are gone
		b.wg.Wait()
	})
	return nil
}

func (b *Inbox) open(c *smtp.Conn) (smtp.Session, error) { return &delivery{box: b, conn: c}, nil }

// delivery is one SMTP session of the inbox.
type delivery struct {
	box  *Inbox
	conn *smtp.Conn
	from string
	to   []string
}

func (d *delivery) Reset()        { d.from, d.to = "", nil }
func (d *delivery) Logout() error { return nil }

func (d *delivery) Mail(from string, _ *smtp.MailOptions) error {
	d.from = from
	return nil
}

func (d *delivery) Rcpt(to string, _ *smtp.RcptOptions) error {
	d.to = append(d.to, to)
	return nil
}

// Data stores the message once per recipient and answers 250 when the files are written.
func (d *delivery) Data(r io.Reader) error {
	_, tlsOn := d.conn.TLSConnectionState()
	first := ""
	for _, to := range d.to {
		id, path, err := d.box.reserve()
		if err != nil {
			return err
		}
		var size int64
		if first == "" {
			size, err = store(path, r)
			first = path
		} else {
			size, err = copyFile(path, first)
		}
		if err != nil {
			return fmt.Errorf("store message: %w", err)
		}
		l := Letter{ID: id, From: d.from, To: to, Size: size, At: d.box.cfg.Now(), TLS: tlsOn}
		if err := d.box.add(l, path); err != nil {
			return err
		}
	}
	return nil
}

func store(path string, r io.Reader) (int64, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(f, r)
	return n, errors.Join(err, f.Close())
}

func copyFile(path, from string) (int64, error) {
	f, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return store(path, f)
}

// reserve takes the next ID.
func (b *Inbox) reserve() (int, string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil {
		return 0, "", errors.New("inbox is closed")
	}
	b.letters = append(b.letters, Letter{})
	id := len(b.letters)
	return id, b.path(id), nil
}

func (b *Inbox) path(id int) string { return filepath.Join(b.cfg.Dir, fmt.Sprintf("%06d.eml", id)) }

// add makes a stored letter visible and hands it to the checkers; it waits while they are behind.
func (b *Inbox) add(l Letter, path string) error {
	h, err := readHeader(path)
	if err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	l.Subject = mail.CleanText(mail.DecodeText(h.Get("Subject")), 200)
	l.Unsubscribe = unsubscribeLink(h.Get("List-Unsubscribe"))
	b.mu.Lock()
	b.letters[l.ID-1] = l
	b.counts.Messages++
	b.counts.Pending++
	if l.TLS {
		b.counts.TLS++
	}
	if b.counts.Smallest == 0 || l.Size < b.counts.Smallest {
		b.counts.Smallest = l.Size
	}
	if _, known := b.state[l.To]; !known {
		b.state[l.To] = false
		b.counts.Recipients++
	}
	b.notify()
	b.mu.Unlock()
	select {
	case b.work <- l.ID:
		return nil
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
}

func (b *Inbox) notify() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// check verifies letters until the inbox is closed.
func (b *Inbox) check() {
	for {
		select {
		case id := <-b.work:
			signatures, err := b.verify(id)
			if err != nil {
				signatures = []Signature{{Result: mail.CleanText(err.Error(), 200)}}
			}
			b.checked(id, signatures)
		case <-b.ctx.Done():
			return
		}
	}
}

func (b *Inbox) verify(id int) ([]Signature, error) {
	f, err := os.Open(b.path(id))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	return b.cfg.Verify(ctx, bufio.NewReaderSize(f, 32<<10))
}

func (b *Inbox) checked(id int, signatures []Signature) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := &b.letters[id-1]
	l.Signatures, l.Checked = signatures, true
	b.counts.Pending--
	b.counts.LastAt = b.cfg.Now()
	if l.Verified() && !b.state[l.To] {
		b.state[l.To] = true
		b.counts.Verified++
	}
	b.notify()
}

// Counts returns the counts and a channel that is closed when they change.
func (b *Inbox) Counts() (Counts, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts, b.changed
}

// Has tells whether something came for that address, in the spelling of the forward-path.
func (b *Inbox) Has(to string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.state[to]
	return ok
}

// Letter returns one letter, and whether there is one with that ID.
func (b *Inbox) Letter(id int) (Letter, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if id < 1 || id > len(b.letters) || b.letters[id-1].ID == 0 {
		return Letter{}, false
	}
	return b.letters[id-1], true
}

// Page returns at most most letters, the newest first, after skipping some, and how many there are in all.
func (b *Inbox) Page(skip, most int) (letters []Letter, all int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(b.letters) - 1 - skip; i >= 0 && len(letters) < most; i-- {
		if b.letters[i].ID != 0 {
			letters = append(letters, b.letters[i])
		}
	}
	return letters, b.counts.Messages
}

// maxHeader bounds what is read of a message's header section.
const maxHeader = 256 << 10

// readHeader reads the header section of a stored message.
func readHeader(path string) (mail.Header, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := bufio.NewReader(io.LimitReader(f, maxHeader))
	var raw []byte
	for {
		line, err := r.ReadBytes('\n')
		if len(line) <= 2 || err != nil {
			break
		}
		raw = append(raw, line...)
	}
	return mail.ParseHeader(raw)
}

// unsubscribeLink returns the first web address of a List-Unsubscribe value (RFC 2369 section 3.2), or "".
func unsubscribeLink(value string) string {
	for part := range strings.SplitSeq(value, ",") {
		link := strings.Trim(strings.TrimSpace(part), "<>")
		if strings.HasPrefix(link, "https://") || strings.HasPrefix(link, "http://") {
			return strings.ReplaceAll(link, " ", "") // folding
		}
	}
	return ""
}

// trackingListener knows its open connections, so that Close can end them: go-smtp's Close does not wait for its
// sessions, and its Shutdown does not end them.
type trackingListener struct {
	net.Listener
	mu     sync.Mutex
	open   map[net.Conn]bool
	closed bool
}

func (l *trackingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	l.open[c] = true
	return &trackedConn{c, l}, nil
}

func (l *trackingListener) closeAll() {
	_ = l.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for c := range l.open {
		_ = c.Close()
	}
}

type trackedConn struct {
	net.Conn
	in *trackingListener
}

func (c *trackedConn) Close() error {
	c.in.mu.Lock()
	delete(c.in.open, c.Conn)
	c.in.mu.Unlock()
	return c.Conn.Close()
}
