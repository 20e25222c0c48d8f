package delivery

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"relayd/internal/mail"
)

// Transaction is one message to some recipients at one site, ready to be sent.
type Transaction struct {
	From       mail.Path // null for notices
	Recipients []Recipient
	Size       int64 // octets, for SIZE
	EightBit   bool
	UTF8       bool // the header has UTF-8
	RequireTLS bool
	EnvelopeID string // ENVID
	RetHeaders bool   // RET=HDRS
	RetFull    bool   // RET=FULL
	// Body writes the whole message, header first. It may be called again on another session.
	Body func(ctx context.Context, w io.Writer) error
}

// Recipient is one forward-path with its RFC 3461 parameters as the door checked them.
type Recipient struct {
	To     mail.Path
	Notify string
	ORCPT  string
}

// needsUTF8 tells that the transaction needs SMTPUTF8 for its header, its reverse-path or a recipient.
func (t *Transaction) needsUTF8() bool {
	need := t.UTF8 || t.From.NeedsUTF8()
	for _, r := range t.Recipients {
		need = need || r.To.NeedsUTF8()
	}
	return need
}

// Answer is the reply that decided about one recipient.
type Answer struct {
	Reply mail.Reply // zero: the session broke before one came
	Phase Phase
}

// fault is why a session cannot go on. Its reply, if any, is the remote's.
type fault struct {
	kind  faultKind
	reply mail.Reply
	err   error
}

type faultKind uint8

const (
	faultConn     faultKind = iota // refused, reset, closed, timed out
	faultReply                     // a reply that ends the session: 421, or a refusal before MAIL
	faultProtocol                  // nonsense
	faultTLS                       // the handshake failed
	faultAuth                      // credentials refused
	faultLocal                     // our side: the store, or we stop
	faultInDoubt                   // the final dot left, its reply did not come
	faultSelf                      // the host is ourselves
	faultPromise                   // the host does not keep what the message asks for
)

func (f *fault) Error() string {
	if f.err != nil {
		return f.err.Error()
	}
	return f.reply.String()
}

func (f *fault) Unwrap() error { return f.err }

// extensions are what EHLO offered.
type extensions struct {
	pipelining, eightBit, smtpUTF8, dsn, startTLS, size, requireTLS, chunking bool
	maxSize                                                                   int64    // 0: not told
	auth                                                                      []string // upper case
}

// Session is one SMTP connection to a host, ready for transactions. For one goroutine at a time.
type Session struct {
	Host string         // as DNS or the configuration names it
	Addr netip.AddrPort //
	TLS  string         // "TLS1.3", "" for none

	ctx      context.Context // ends when work is abandoned: the connection is closed
	unwatch  func() bool
	conn     net.Conn
	r        *replyReader
	w        *bufio.Writer
	ext      extensions
	origin   origin
	greeting string       // said in EHLO
	chunked  bool         // messages go with BDAT
	verify   func() error // whether the certificate is the host's own; nil without TLS
	timeouts Timeouts
	sent     int  // transactions begun
	dirty    bool // a transaction may be open: RSET before the next
	broken   bool // not to be used again
	lastUsed time.Time
}

const writeBuffer = 16 << 10

// newSession watches over conn: when ctx ends it is closed, so that every wait ends.
func newSession(ctx context.Context, conn net.Conn, host string, addr netip.AddrPort, t Timeouts) *Session {
	s := &Session{Host: host, Addr: addr, ctx: ctx, timeouts: t}
	s.unwatch = context.AfterFunc(ctx, func() { _ = conn.Close() })
	s.attach(conn)
	return s
}

func (s *Session) attach(conn net.Conn) {
	s.conn = conn
	s.r = newReplyReader(conn)
	s.w = bufio.NewWriterSize(&deadlineWriter{conn, s.timeouts.DataBlock}, writeBuffer)
}

// deadlineWriter gives every block its time (RFC 5321 section 4.5.3.2.5).
type deadlineWriter struct {
	conn    net.Conn
	timeout time.Duration
}

// dataBlock is what is written at a time: a message that comes in one piece must not have the time of one block. Most are smaller,
// and need one call.
const dataBlock = 256 << 10

func (d *deadlineWriter) Write(p []byte) (n int, err error) {
	for {
		if err := d.conn.SetWriteDeadline(time.Now().Add(d.timeout)); err != nil {
			return n, err
		}
		k, err := d.conn.Write(p[n:min(len(p), n+dataBlock)])
		if n += k; err != nil || n == len(p) {
			return n, err
		}
	}
}

// Name is the host with its address, as results carry it.
func (s *Session) Name() string { return s.Host + "[" + s.Addr.Addr().Unmap().String() + "]" }

// Send presents one transaction and returns what was answered for each recipient. An error means that the session is
// of no further use; recipients without an answer were not decided, and after faultInDoubt the message may have been
// taken. The caller has checked what the host offers (SIZE, 8BITMIME, SMTPUTF8).
func (s *Session) Send(ctx context.Context, t *Transaction) ([]Answer, error) {
	s.sent++
	answers := make([]Answer, len(t.Recipients))
	err := s.send(ctx, t, answers)
	if err != nil {
		s.broken = true
	}
	return answers, err
}

func (s *Session) send(ctx context.Context, t *Transaction, answers []Answer) error {
	if err := s.inStep(); err != nil {
		return err
	}
	reset := s.dirty
	s.dirty = true
	if reset {
		s.command("RSET")
		if !s.ext.pipelining {
			if err := s.finish(s.timeouts.Command); err != nil {
				return err
			}
			reset = false
		}
	}
	s.mailFrom(t)
	if s.chunked {
		return s.sendChunked(ctx, t, answers, reset)
	}
	if s.ext.pipelining {
		return s.sendPipelined(ctx, t, answers, reset)
	}
	from, err := s.roundTrip(s.timeouts.Command)
	if err != nil {
		return decideAll(answers, from, PhaseMail, err)
	}
	if !from.Positive() {
		s.dirty = false
		return decideAll(answers, from, PhaseMail, nil)
	}
	taken := 0
	for i, r := range t.Recipients {
		s.rcptTo(r)
		reply, err := s.roundTrip(s.timeouts.Command)
		if err != nil {
			return decideOpen(answers, i, reply, PhaseRcpt, err)
		}
		if reply.Positive() {
			taken++
		} else {
			answers[i] = Answer{reply, PhaseRcpt}
		}
	}
	if taken == 0 {
		return nil
	}
	s.command("DATA")
	reply, err := s.roundTrip(s.timeouts.DataInit)
	if err != nil {
		return decideOpen(answers, 0, reply, PhaseData, err)
	}
	return s.data(ctx, t, answers, reply, taken)
}

// sendPipelined sends MAIL, RCPT and DATA in one go (RFC 2920).
func (s *Session) sendPipelined(ctx context.Context, t *Transaction, answers []Answer, reset bool) error {
	for _, r := range t.Recipients {
		s.rcptTo(r)
	}
	s.command("DATA")
	if err := s.flush(); err != nil {
		return err
	}
	if reset {
		if err := s.finish(s.timeouts.Command); err != nil {
			return err
		}
	}
	from, err := s.read(s.timeouts.Command)
	if err != nil {
		return decideAll(answers, from, PhaseMail, err)
	}
	if !from.Positive() {
		_ = decideAll(answers, from, PhaseMail, nil)
	}
	taken := 0
	for i := range t.Recipients {
		reply, err := s.read(s.timeouts.Command)
		if err != nil {
			return decideOpen(answers, i, reply, PhaseRcpt, err)
		}
		switch {
		case !from.Positive(): // decided by MAIL
		case reply.Positive():
			taken++
		default:
			answers[i] = Answer{reply, PhaseRcpt}
		}
	}
	reply, err := s.read(s.timeouts.DataInit)
	if err != nil {
		return decideOpen(answers, 0, reply, PhaseData, err)
	}
	if !from.Positive() || taken == 0 {
		return s.leaveData(reply)
	}
	return s.data(ctx, t, answers, reply, taken)
}

// leaveData ends a DATA that a host took although it took no recipient (RFC 2920 section 3.1): nothing is sent but
// the final dot, and whatever is said to it decides nothing.
func (s *Session) leaveData(reply mail.Reply) error {
	if reply.Code != 354 {
		return nil
	}
	_, _ = s.w.Write(finalDot)
	_, err := s.roundTrip(s.timeouts.DataDone)
	if err != nil {
		return err
	}
	s.dirty = true
	return nil
}

// data sends the message after the reply to DATA and gives its reply to every recipient that is still open.
func (s *Session) data(ctx context.Context, t *Transaction, answers []Answer, reply mail.Reply, taken int) error {
	if reply.Code != 354 {
		if reply.Code/100 < 4 {
			return &fault{kind: faultProtocol, err: fmt.Errorf("%w: %d to DATA", errReply, reply.Code)}
		}
		return decideOpen(answers, 0, reply, PhaseData, nil)
	}
	if err := s.inStep(); err != nil {
		return err
	}
	d := &dotWriter{w: s.w}
	body := &localReader{w: d}
	if err := t.Body(ctx, body); err != nil {
		if body.err == nil {
			return &fault{kind: faultLocal, err: fmt.Errorf("read message: %w", err)}
		}
		return s.brokenData(answers, body.err)
	}
	if err := d.Close(); err != nil {
		return s.brokenData(answers, err)
	}
	if err := s.w.Flush(); err != nil { // the dot may or may not have left
		return &fault{kind: faultInDoubt, err: fmt.Errorf("send final dot: %w", err)}
	}
	done, err := s.read(s.timeouts.DataDone)
	if err != nil && done.IsZero() {
		return &fault{kind: faultInDoubt, err: fmt.Errorf("read reply to the final dot: %w", err)}
	}
	s.dirty = false
	if done.Code/100 < 4 && !done.Positive() {
		return &fault{kind: faultInDoubt, err: fmt.Errorf("%w: %d to the final dot", errReply, done.Code)}
	}
	if s.r.buffered() { // more than was asked for: who knows what the next one would belong to
		s.broken = true
	}
	return decideOpen(answers, 0, done, PhaseData, err)
}

// brokenData is for a connection that broke before the dot: the host cannot have taken the message. Some say why first.
func (s *Session) brokenData(answers []Answer, cause error) error {
	if reply, err := s.read(2 * time.Second); !reply.IsZero() && reply.Code >= 400 {
		return decideOpen(answers, 0, reply, PhaseData, errors.Join(err, &fault{kind: faultConn, err: cause}))
	}
	return &fault{kind: s.connKind(), err: fmt.Errorf("send message: %w", cause)}
}

// localReader tells errors of the connection from errors of the store.
type localReader struct {
	w   io.Writer
	err error // of the connection
}

func (l *localReader) Write(p []byte) (int, error) {
	n, err := l.w.Write(p)
	if err != nil {
		l.err = err
	}
	return n, err
}

// decideAll gives one reply to all recipients.
func decideAll(answers []Answer, reply mail.Reply, phase Phase, err error) error {
	if !reply.IsZero() {
		for i := range answers {
			answers[i] = Answer{reply, phase}
		}
	}
	return err
}

// decideOpen gives one reply to the recipients from i on that have none, and after a broken session to those before
// as well: nobody else will answer for them.
func decideOpen(answers []Answer, from int, reply mail.Reply, phase Phase, err error) error {
	if err != nil {
		from = 0
	}
	if !reply.IsZero() {
		for i := from; i < len(answers); i++ {
			if answers[i].Reply.IsZero() {
				answers[i] = Answer{reply, phase}
			}
		}
	}
	return err
}

func (s *Session) mailFrom(t *Transaction) {
	w := s.w
	_, _ = w.WriteString("MAIL FROM:<")
	_, _ = w.WriteString(t.From.String())
	_ = w.WriteByte('>')
	if s.ext.size && t.Size > 0 {
		_, _ = w.WriteString(" SIZE=")
		_, _ = w.WriteString(strconv.FormatInt(t.Size, 10))
	}
	if t.EightBit && s.ext.eightBit {
		_, _ = w.WriteString(" BODY=8BITMIME")
	}
	if s.ext.smtpUTF8 && t.needsUTF8() {
		_, _ = w.WriteString(" SMTPUTF8")
	}
	if t.RequireTLS { // the caller has seen that it is offered
		_, _ = w.WriteString(" REQUIRETLS")
	}
	if s.ext.dsn {
		switch {
		case t.RetHeaders:
			_, _ = w.WriteString(" RET=HDRS")
		case t.RetFull:
			_, _ = w.WriteString(" RET=FULL")
		}
		s.parameter("ENVID", t.EnvelopeID)
	}
	_, _ = w.Write(crlf)
}

func (s *Session) rcptTo(r Recipient) {
	_, _ = s.w.WriteString("RCPT TO:<")
	_, _ = s.w.WriteString(r.To.String())
	_ = s.w.WriteByte('>')
	if s.ext.dsn {
		s.parameter("NOTIFY", r.Notify)
		s.parameter("ORCPT", r.ORCPT)
	}
	_, _ = s.w.Write(crlf)
}

// parameter writes an ESMTP parameter unless its value could be taken for anything else.
func (s *Session) parameter(name, value string) {
	if value == "" || strings.IndexFunc(value, func(c rune) bool { return c <= ' ' || c > '~' }) >= 0 {
		return
	}
	_ = s.w.WriteByte(' ')
	_, _ = s.w.WriteString(name)
	_ = s.w.WriteByte('=')
	_, _ = s.w.WriteString(value)
}

// command puts a line without its answer into the buffer; errors come with the flush.
func (s *Session) command(line string) {
	_, _ = s.w.WriteString(line)
	_, _ = s.w.Write(crlf)
}

// inStep refuses to say anything to a host that has said more than it was asked for: its replies would be taken for those to
// what comes next. What it says later than that cannot be told apart.
func (s *Session) inStep() error {
	if s.r.buffered() {
		return &fault{kind: faultProtocol, err: fmt.Errorf("%w: one came before its command", errReply)}
	}
	return nil
}

func (s *Session) flush() error {
	if s.w.Buffered() > 0 {
		if err := s.inStep(); err != nil {
			return err
		}
	}
	if err := s.w.Flush(); err != nil {
		return &fault{kind: s.connKind(), err: fmt.Errorf("send command: %w", err)}
	}
	return nil
}

// connKind tells a connection that broke from one that we closed.
func (s *Session) connKind() faultKind {
	if s.ctx.Err() != nil {
		return faultLocal
	}
	return faultConn
}

// read waits for one reply. A 421 comes with an error: the host closes the connection (RFC 5321 section 3.8).
func (s *Session) read(timeout time.Duration) (mail.Reply, error) { return s.readLines(timeout, nil) }

func (s *Session) readLines(timeout time.Duration, lines *[]string) (mail.Reply, error) {
	_ = s.conn.SetReadDeadline(time.Now().Add(timeout)) // refused when closed: what came before is in the buffer, and is read
	reply, err := s.r.read(lines)
	switch {
	case errors.Is(err, errReply):
		return mail.Reply{}, &fault{kind: faultProtocol, err: err}
	case err != nil:
		return mail.Reply{}, &fault{kind: s.connKind(), err: fmt.Errorf("read reply: %w", err)}
	case reply.Code == 421:
		return reply, &fault{kind: faultReply, reply: reply}
	}
	return reply, nil
}

// roundTrip flushes and reads one reply.
func (s *Session) roundTrip(timeout time.Duration) (mail.Reply, error) {
	if err := s.flush(); err != nil {
		return mail.Reply{}, err
	}
	return s.read(timeout)
}

// finish is roundTrip for a command that must succeed, RSET.
func (s *Session) finish(timeout time.Duration) error {
	reply, err := s.roundTrip(timeout)
	if err == nil && !reply.Positive() {
		err = &fault{kind: faultReply, reply: reply}
	}
	return err
}

// Close says QUIT to a session in order, without waiting for the answer, and closes the connection.
func (s *Session) Close() {
	s.unwatch()
	if !s.broken && s.conn.SetWriteDeadline(time.Now().Add(time.Second)) == nil {
		_, _ = s.conn.Write([]byte("QUIT\r\n"))
	}
	_ = s.conn.Close()
}
