package intake

import (
	"context"
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
	Check(ctx context.Context, account string, to mail.Path, broadcast bool) (*suppression.Entry, error)
	CheckTx(tx kv.Tx, account string, to mail.Path, broadcast bool) (*suppression.Entry, error)
}

// Deps are what an Intake works with.
type Deps struct {
	Spool       *spool.Store
	Keys        Keyring
	Domains     DomainBook
	Suppression Suppression      // nil: nobody is suppressed
	Hostname    string           // in Received and Message-ID
	Now         func() time.Time // nil: time.Now
}

// Intake is the one door: only it creates messages.
type Intake struct{}

// New returns the door.
func New(cfg Config, deps Deps) (*Intake, error) { panic("stub") }

// CheckSender tells whether a credential may use a domain as the sender's. A refusal is a *mail.Error.
func (in *Intake) CheckSender(c account.Credential, domain string) error { panic("stub") }

// Accept stores a message durably, one envelope for each recipient, and returns its queue ID.
func (in *Intake) Accept(ctx context.Context, s *Submission) (mail.QueueID, error) { panic("stub") }

// Prepared is a message ready to be stored in a transaction of the caller.
type Prepared struct{ ID mail.QueueID }

// Prepare does all of Accept but storing. The message may have at most 1 MiB of body.
func (in *Intake) Prepare(ctx context.Context, s *Submission) (*Prepared, error) { panic("stub") }

// PutTx stores the message in tx. It may run more than once.
func (p *Prepared) PutTx(tx kv.Tx) error { panic("stub") }

// Added wakes the queues. Call it after the transaction is durable.
func (p *Prepared) Added() { panic("stub") }

// Page is one step of a campaign's fan-out.
type Page struct {
	Message    *spool.Message // the campaign's
	Recipients []PageRecipient
	Envelopes  []*spool.Envelope // filled in by PageTx
	Done       []spool.Result    // filled in by PageTx: the suppressed ones
}

// PageRecipient is one recipient of a campaign.
type PageRecipient struct {
	To   mail.Path
	N    uint64 // of the envelope's ID, derived from campaign and address
	Data []byte // snapshot of the merge data
}

// PageTx creates the envelopes of p in tx and settles those of suppressed recipients at once. It may run more than once.
func (in *Intake) PageTx(tx kv.Tx, p *Page) error { panic("stub") }

// PageAdded wakes the queues. Call it after the transaction is durable.
func (in *Intake) PageAdded(p *Page) { panic("stub") }

// CheckRecipient tells whether mail to that address can be taken at all.
func CheckRecipient(to mail.Path) error { return nil }
