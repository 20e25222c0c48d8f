package intake

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"relayd/dkim"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// bodyWriter is where a body goes: spool.BodyWriter, or memory. WriteTo gives out what it has so far, Abort forgets it.
type bodyWriter interface {
	io.Writer
	io.WriterTo
	Size() int64
	Abort()
}

// taking is one message on its way through the door. As an io.Writer it takes the message in blocks: the header is
// gathered and then rewritten, the body goes on as it comes.
type taking struct {
	in      *Intake
	sub     *Submission
	id      mail.QueueID
	now     time.Time
	account string
	stream  string
	tags    []string
	sendAt  time.Time
	ttl     time.Duration // 0 for none
	controls
	quota Reservation // nil for our own mail

	binary  bool // BINARYMIME: the body is not yet held to lines
	lines   lineChecker
	raw     []byte // header section as it came, until its end
	header  *header
	body    bodyWriter
	newBody func() bodyWriter // empty, for the message's queue ID
	hash    *dkim.BodyHasher  // nil where nobody asks for sum
	sum     [32]byte          // of the body
	bits    eightBits
}

// begin checks what can be checked before the message is read.
func (in *Intake) begin(s *Submission) (*taking, error) {
	now := in.deps.Now()
	t := &taking{in: in, sub: s, id: mail.NewQueueID(now), now: now, account: s.Account, stream: s.Stream, binary: s.Binary}
	t.tags, t.sendAt = slices.Clone(s.Tags), s.SendAt
	if t.account == "" {
		t.account = "default"
	}
	if t.stream == "" {
		t.stream = "transactional"
	}
	if !isStream(t.stream) {
		return nil, refuse(550, 6, 0, "Stream names have 1 to 64 letters, digits, '-' and '_', and do not begin with cmp_")
	}
	if len(s.Recipients) == 0 {
		return nil, refuse(554, 5, 1, "No recipients")
	}
	for _, r := range s.Recipients {
		if err := CheckRecipient(r.To, s.UTF8); err != nil {
			return nil, err
		}
	}
	if s.Internal {
		return t, nil
	}
	if s.ReversePath.IsNull() {
		return nil, refuse(550, 7, 1, "The null reverse-path is not for submission")
	}
	if err := in.checkDomain(t.account, s.Domains, s.ReversePath.Domain, "Sender domain"); err != nil {
		return nil, err
	}
	if in.deps.Quota != nil {
		var err error
		if t.quota, err = in.deps.Quota.Reserve(t.account, s.Credential, len(s.Recipients)); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// release gives back what the message took of the quota: it was not stored.
func (t *taking) release() {
	if t.quota != nil {
		t.quota.Release()
	}
}

// company is what becomes durable with the message.
func (t *taking) company() (also []func(kv.Tx) error) {
	if t.key != "" { // first: it refuses
		also = append(also, t.claimKey())
	}
	if t.quota != nil {
		also = append(also, t.quota.PutTx)
	}
	return also
}

// campaignPrefix begins the streams of campaigns, which nobody else may write to.
const campaignPrefix = "cmp_"

func isStream(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= 64 && !strings.HasPrefix(s, campaignPrefix)
}

// read takes the whole message and returns its record, signed. The body is then in t.body, which is the caller's to
// abort.
func (t *taking) read() (*spool.Message, error) {
	t.body, t.hash = t.newBody(), dkim.NewBodyHasher()
	if _, err := io.Copy(t, t.sub.Body); err != nil {
		if _, ok := errors.AsType[*mail.Error](err); ok {
			return nil, err
		}
		return nil, fmt.Errorf("read message %s: %w", t.id, err)
	}
	if err := t.finish(); err != nil {
		return nil, err
	}
	if bool(t.bits) || t.binary {
		if err := t.clean(); err != nil {
			return nil, fmt.Errorf("make message %s 7-bit: %w", t.id, err)
		}
	}
	if t.hash != nil {
		t.sum = t.hash.Sum()
	}
	if err := t.header.sign(t.sum); err != nil {
		return nil, err
	}
	return t.message(), nil
}

// Write takes the next block of the message.
func (t *taking) Write(p []byte) (int, error) {
	if !t.binary {
		if err := t.lines.check(p); err != nil {
			return 0, err
		}
	}
	rest := p
	if t.header == nil {
		var err error
		if rest, err = t.gather(p); err != nil || t.header == nil {
			return len(p), err
		}
	}
	return len(p), t.writeBody(rest)
}

// gather adds p to the header section and returns what stands behind its end.
func (t *taking) gather(p []byte) (rest []byte, err error) {
	had := len(t.raw)
	seen := max(0, had-3) // an end mark may have begun before p
	look := p
	if had > 0 {
		t.raw = append(t.raw, p...)
		look = t.raw[seen:]
	}
	end := -1
	switch {
	case seen == 0 && bytes.HasPrefix(look, []byte("\r\n")):
		end = 0
	default:
		if i := bytes.Index(look, []byte("\r\n\r\n")); i >= 0 {
			end = seen + i + 2
		}
	}
	if most := t.in.cfg.MaxHeaderBytes; end > most || end < 0 && had+len(p) > most {
		return nil, refuse(552, 3, 4, fmt.Sprintf("Header section is larger than %d octets", most))
	}
	switch {
	case end < 0 && had == 0:
		t.raw = append(t.raw, p...)
		return nil, nil
	case end < 0:
		return nil, nil
	case had == 0: // the usual way: the body behind it is not copied
		t.raw = append(t.raw, p[:end]...)
	}
	rest = p[end+2-had:]
	t.raw = t.raw[:end]
	if t.binary {
		if err := t.checkBinaryHeader(); err != nil {
			return nil, err
		}
	}
	if t.header, err = t.newHeader(t.raw); err == nil && !t.header.needsHash() {
		t.hash = nil
	}
	if err == nil && t.campaign != "" { // it becomes a template, and no message of the spool
		t.body.Abort()
		t.newBody = func() bodyWriter { return &memoryBody{most: maxBroadcast} }
		t.body = t.newBody()
	}
	return rest, err
}

func (t *taking) writeBody(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	t.bits.check(p)
	if t.hash != nil {
		_, _ = t.hash.Write(p) // never fails
	}
	_, err := t.body.Write(p)
	return err
}

// finish ends the last line, and the header section of a message that has nothing else.
func (t *taking) finish() (err error) {
	if t.lines.open() {
		if _, err = t.Write([]byte("\r\n")); err != nil {
			return err
		}
	}
	if err = t.lines.end(); err != nil {
		return err
	}
	if t.header == nil {
		if t.binary {
			if err = t.checkBinaryHeader(); err != nil {
				return err
			}
		}
		t.header, err = t.newHeader(t.raw)
	}
	return err
}

// message is the record of what was read.
func (t *taking) message() *spool.Message {
	h := t.header
	_, expires := t.times()
	return &spool.Message{
		ID:          t.id,
		Account:     t.account,
		Stream:      t.stream,
		Class:       t.sub.Class,
		ReversePath: t.sub.ReversePath,
		Header:      h.out,
		Size:        int64(len(h.out)) + 2 + t.body.Size(),
		EightBit:    bool(t.bits),
		UTF8:        h.utf8,
		RequireTLS:  t.sub.RequireTLS,
		MessageID:   h.messageID,
		Subject:     h.subject,
		EnvelopeID:  t.sub.EnvelopeID,
		RetHeaders:  t.sub.RetHeaders,
		RetFull:     t.sub.RetFull,
		AcceptedAt:  t.now,
		ExpiresAt:   expires,
		Deadline:    t.deadline(),
		Credential:  t.sub.Credential,
		ClientIP:    t.sub.Trace.ClientIP,
		Tags:        t.tags,
	}
}

// envelopes makes one for each recipient; who is named twice gets one.
func (t *taking) envelopes() []*spool.Envelope {
	envs := make([]*spool.Envelope, 0, len(t.sub.Recipients))
	seen := make(map[mail.Path]bool, len(t.sub.Recipients))
	next, _ := t.times()
	for _, r := range t.sub.Recipients {
		if seen[r.To] {
			continue
		}
		seen[r.To] = true
		envs = append(envs, &spool.Envelope{
			ID:          mail.EnvelopeID{Message: t.id, N: uint64(len(envs))},
			Queue:       t.in.queue(t.account, t.stream, t.sub.ReversePath, r.To),
			Class:       t.sub.Class,
			To:          r.To,
			Notify:      r.Notify,
			ORCPT:       r.ORCPT,
			NextAttempt: next,
		})
	}
	return envs
}

// broadcast tells whether suppressions of bulk mail count.
func (t *taking) broadcast() bool { return t.sub.Class == spool.Bulk }

// suppress asks which recipients are suppressed.
func (t *taking) suppress(ctx context.Context, envs []*spool.Envelope) ([]spool.Result, error) {
	to := recipientsOf(envs)
	entries, err := t.in.deps.Suppression.CheckMany(ctx, t.account, to, t.broadcast())
	if err != nil {
		return nil, fmt.Errorf("accept message: %w", err)
	}
	if t.broadcast() && t.in.deps.Erasures != nil {
		erased, err := t.in.deps.Erasures.ErasedMany(ctx, t.account, to)
		if err != nil {
			return nil, fmt.Errorf("accept message: %w", err)
		}
		addErased(entries, erased)
	}
	return suppressed(envs, entries, t.now), nil
}

// maxTextLine bounds a line without its CRLF (RFC 5322 section 2.1.1).
const maxTextLine = 998

// lineChecker sees every octet of a message and refuses what no message may hold: a bare CR or LF, NUL, and a line of
// more than 998 octets.
type lineChecker struct {
	lines int  // complete ones
	col   int  // octets of the line that is not complete
	cr    bool // the last octet was a CR
}

func (l *lineChecker) check(p []byte) error {
	if i := bytes.IndexByte(p, 0); i >= 0 {
		return refuse(554, 6, 0, fmt.Sprintf("Line %d holds a NUL", l.lines+1+bytes.Count(p[:i], []byte{'\n'})))
	}
	if l.cr && len(p) > 0 {
		if l.cr = false; p[0] != '\n' {
			return l.bare("CR")
		}
		l.lines++
		l.col = 0
		p = p[1:]
	}
	before := l.lines
	for b := p; len(b) > 0; {
		i := bytes.IndexByte(b, '\r')
		if i < 0 {
			i = len(b)
		}
		if l.col += i; l.col > maxTextLine {
			if bytes.IndexByte(b[:i], '\n') >= 0 {
				return l.bare("LF")
			}
			return refuse(554, 6, 0, fmt.Sprintf("Line %d has more than %d octets", l.lines+1, maxTextLine))
		}
		switch {
		case i == len(b):
			b = nil
			continue
		case i+1 == len(b):
			l.cr = true
			b = nil
			continue
		case b[i+1] != '\n':
			return l.bare("CR")
		}
		l.lines++
		l.col = 0
		b = b[i+2:]
	}
	if bytes.Count(p, []byte{'\n'}) != l.lines-before {
		return l.bare("LF")
	}
	return nil
}

func (l *lineChecker) bare(what string) error {
	return refuse(554, 6, 0, "Message has a bare "+what+": every line must end in CRLF")
}

// open tells that the last line has no end.
func (l *lineChecker) open() bool { return l.col > 0 && !l.cr }

func (l *lineChecker) end() error {
	if l.cr {
		return l.bare("CR")
	}
	return nil
}

// eightBits becomes true with the first octet above 127.
type eightBits bool

func (e *eightBits) check(p []byte) {
	for !bool(*e) && len(p) >= 8 {
		*e = binary.LittleEndian.Uint64(p)&0x8080808080808080 != 0
		p = p[8:]
	}
	for i := 0; i < len(p) && !bool(*e); i++ {
		*e = p[i] >= 0x80
	}
}

func refuse(code, subject, detail int, text string) *mail.Error {
	return mail.Refuse(code, mail.Status{Class: code / 100, Subject: subject, Detail: detail}, text, nil)
}
