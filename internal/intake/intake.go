package intake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"relayd/dkim"
	"relayd/internal/account"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/suppression"
	"relayd/spool"
)

// DomainBook knows the sender domains: account.Store.
type DomainBook interface {
	Domain(name string) (account.Domain, bool)
}

// Keyring gives the active signing keys of a domain: dkim.Keyring.
type Keyring interface {
	Keys(domain string) []*dkim.Key
}

// Suppression tells whether mail to an address is unwanted: suppression.List.
type Suppression interface {
	CheckMany(ctx context.Context, account string, to []mail.Path, broadcast bool) ([]*suppression.Entry, error)
	CheckManyTx(tx kv.Tx, account string, to []mail.Path, broadcast bool) ([]*suppression.Entry, error)
}

// Erasures tells which mailboxes asked to be forgotten: contact.Store.
type Erasures interface {
	ErasedMany(ctx context.Context, account string, to []mail.Path) ([]bool, error)
	ErasedManyTx(tx kv.Tx, account string, to []mail.Path) ([]bool, error)
}

// Quota bounds what an account and a credential may send: a thin layer over account.Quota.
type Quota interface {
	// Check tells whether anything at all may be sent now.
	Check(account, credential string) error
	// Reserve takes n recipients, or refuses with a temporary *mail.Error.
	Reserve(account, credential string, n int) (Reservation, error)
}

// Reservation is what one message took of a quota.
type Reservation interface {
	PutTx(tx kv.Tx) error // makes it durable with the message
	Release()             // the message was not stored
}

// Routes names the queue in which an envelope waits, by who sends what to whom: delivery.Scheduler.
type Routes interface {
	QueueDomain(account, stream string, from, to mail.Path) string
}

// Deps are what an Intake works with.
type Deps struct {
	DB          kv.DB // of the spool; needed by PurgeKeys
	Spool       *spool.Store
	Keys        Keyring
	Domains     DomainBook
	Suppression Suppression
	Erasures    Erasures         // nil: nobody asked to be forgotten
	Quota       Quota            // nil: none
	Routes      Routes           // nil: the queue is that of the recipient's domain
	Broadcaster Broadcaster      // nil: a message is never a campaign
	Hostname    string           // in Received and Message-ID
	Log         *slog.Logger     // nil: no log
	Now         func() time.Time // nil: time.Now
}

// Intake is the one door. Its methods may be called from many goroutines.
type Intake struct {
	cfg  Config
	deps Deps
}

// New returns the door.
func New(cfg Config, deps Deps) (*Intake, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Spool == nil || deps.Keys == nil || deps.Domains == nil || deps.Suppression == nil || deps.Hostname == "" {
		return nil, errors.New("intake: spool, keys, domains, suppression and hostname are needed")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	return &Intake{cfg, deps}, nil
}

// queue is where an envelope waits.
func (in *Intake) queue(account, stream string, from, to mail.Path) spool.Queue {
	q := spool.Queue{Account: account, Stream: stream, Domain: to.Domain}
	if in.deps.Routes != nil {
		q.Domain = in.deps.Routes.QueueDomain(account, stream, from, to)
	}
	return q
}

// Accept takes a message over: nil means that it is on stable storage, and returns its queue ID. A message that repeats
// an idempotency key gets the ID of the first one, and nothing is stored. A refusal is a *mail.Error; any other error is
// temporary, and nothing is stored.
func (in *Intake) Accept(ctx context.Context, s *Submission) (mail.QueueID, error) {
	if err := in.deps.Spool.Admit(); err != nil {
		return mail.QueueID{}, err
	}
	t, err := in.begin(s)
	if err != nil {
		return mail.QueueID{}, err
	}
	if err := t.store(ctx); err != nil {
		t.release()
		if was, ok := errors.AsType[errRepeated](err); ok {
			return was.id, nil
		}
		return mail.QueueID{}, err
	}
	return t.id, nil
}

func (t *taking) store(ctx context.Context) error {
	t.newBody = func() bodyWriter { return t.in.deps.Spool.NewBody(ctx, t.id) }
	defer func() { t.body.Abort() }() // after Commit it does nothing
	m, err := t.read()
	if err != nil {
		return err
	}
	if t.campaign != "" {
		message, err := t.whole()
		if err != nil {
			return err
		}
		return t.broadcastTo(ctx, message)
	}
	body, _ := t.body.(*spool.BodyWriter)
	envs := t.envelopes()
	done, err := t.suppress(ctx, envs)
	if err != nil {
		return err
	}
	if err := t.in.deps.Spool.Commit(ctx, m, body, envs, done, t.company()...); err != nil {
		return fmt.Errorf("commit message %s: %w", t.id, err)
	}
	return nil
}

// maxPrepared bounds the body of a prepared message: it becomes one value of the store.
const maxPrepared = 1 << 20

// Prepared is a message ready to be stored in a transaction of the caller.
type Prepared struct {
	ID mail.QueueID

	in      *Intake
	taking  *taking
	message *spool.Message
	body    []byte
	envs    []*spool.Envelope
	done    []spool.Result
}

// Prepare does all of Accept but storing, for a message that becomes durable with its cause: a DSN with its bounce. The
// body has at most 1 MiB.
func (in *Intake) Prepare(_ context.Context, s *Submission) (*Prepared, error) {
	t, err := in.begin(s)
	if err != nil {
		return nil, err
	}
	t.newBody = func() bodyWriter { return &memoryBody{b: []byte{}} }
	m, err := t.read()
	if err == nil && t.campaign != "" {
		err = refuse(554, 6, 0, "X-Relay-Campaign is for SMTP: post a campaign to /v1/campaigns")
	}
	if err == nil && t.key != "" {
		err = refuse(554, 6, 0, "X-Relay-Idempotency-Key is for SMTP: give the key with the request")
	}
	if err != nil {
		t.release()
		return nil, err
	}
	p := &Prepared{ID: t.id, in: in, taking: t, message: m}
	if b, ok := t.body.(*memoryBody); ok {
		p.body = b.b
	}
	return p, nil
}

// PutTx stores the message in tx. It may run more than once.
func (p *Prepared) PutTx(tx kv.Tx) (err error) {
	p.envs = p.taking.envelopes()
	p.done, err = p.in.suppressTx(tx, p.taking.account, p.envs, p.taking.broadcast(), p.taking.now)
	if err != nil {
		return fmt.Errorf("put message %s: %w", p.ID, err)
	}
	for _, fn := range p.taking.company() {
		if err := fn(tx); err != nil {
			return fmt.Errorf("put message %s: %w", p.ID, err)
		}
	}
	return p.in.deps.Spool.PutTx(tx, p.message, p.body, p.envs, p.done)
}

// Drop gives back what the message took of its sender's quota. Call it when it will not be stored.
func (p *Prepared) Drop() { p.taking.release() }

// Added wakes the queues. Call it after the transaction is durable.
func (p *Prepared) Added() { p.in.deps.Spool.Added(p.envs, p.done) }

// memoryBody is a body of limited length.
type memoryBody struct {
	b    []byte
	most int // octets; 0: maxPrepared
}

var errNoRoom = fmt.Errorf("prepare message: body of more than %d octets", maxPrepared)

func (b *memoryBody) Write(p []byte) (int, error) {
	switch {
	case b.most == 0 && len(b.b)+len(p) > maxPrepared:
		return 0, errNoRoom
	case b.most > 0 && len(b.b)+len(p) > b.most:
		return 0, refuse(552, 3, 4, fmt.Sprintf("A campaign's message has at most %d octets", b.most))
	}
	b.b = append(b.b, p...)
	return len(p), nil
}

func (b *memoryBody) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(b.b)
	return int64(n), err
}

func (b *memoryBody) Size() int64 { return int64(len(b.b)) }

// Abort does nothing: memory goes by itself.
func (b *memoryBody) Abort() {}
