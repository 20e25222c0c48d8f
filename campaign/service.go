package campaign

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"relayd/dkim"
	"relayd/internal/account"
	"relayd/internal/api"
	"relayd/internal/event"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/suppression"
	"relayd/spool"
)

// Fanout is the door through which a campaign's recipients become envelopes: intake.Intake.
type Fanout interface {
	PageTx(tx kv.Tx, p *intake.Page) error
	PageAdded(p *intake.Page)
}

// Domains knows the sender domains: account.Store.
type Domains interface {
	Domain(name string) (account.Domain, bool)
}

// Keyring gives the active signing keys of a domain: dkim.Keyring.
type Keyring interface {
	Keys(domain string) []*dkim.Key
}

// Deps are what a Service works with.
type Deps struct {
	DB          kv.DB
	Spool       *spool.Store
	Intake      Fanout
	Keys        Keyring
	Domains     Domains
	Suppression *suppression.List
	Events      *event.Log
	Log         *slog.Logger
	Metrics     prometheus.Registerer
	Now         func() time.Time // nil: time.Now
}

// Service holds all campaigns. Its methods may be called from many goroutines. Where a method takes an account, "" means
// any: the caller has full rights.
type Service struct{}

// New opens the campaigns in deps.DB.
func New(cfg Config, deps Deps) (*Service, error) { panic("stub") }

// Run queues the recipients of running campaigns until ctx ends.
func (s *Service) Run(ctx context.Context) error { panic("stub") }

// Close frees what New opened.
func (s *Service) Close() error { panic("stub") }

// Create checks and stores a campaign with its inline recipients, and starts it where req says so.
func (s *Service) Create(ctx context.Context, account string, req *api.CreateCampaign) (api.Campaign, error) {
	panic("stub")
}

// AddRecipients streams a CSV or JSONL upload into a draft.
func (s *Service) AddRecipients(ctx context.Context, account, id, contentType string, r io.Reader, opts api.ImportOptions) (api.ImportReport, error) {
	panic("stub")
}

// Start begins to send.
func (s *Service) Start(ctx context.Context, account, id string) (api.Campaign, error) { panic("stub") }

// Pause stops new attempts; those in an SMTP transaction finish.
func (s *Service) Pause(ctx context.Context, account, id string) (api.Campaign, error) { panic("stub") }

// Resume goes on.
func (s *Service) Resume(ctx context.Context, account, id string) (api.Campaign, error) { panic("stub") }

// Cancel ends it: what is not delivered becomes cancelled.
func (s *Service) Cancel(ctx context.Context, account, id string) (api.Campaign, error) { panic("stub") }

// Get returns one campaign.
func (s *Service) Get(ctx context.Context, account, id string) (api.Campaign, error) { panic("stub") }

// Progress returns counts that sum to the total.
func (s *Service) Progress(ctx context.Context, account, id string) (api.Progress, error) { panic("stub") }

// List returns campaigns, newest first.
func (s *Service) List(ctx context.Context, account, cursor string, limit int) (api.CampaignList, error) {
	panic("stub")
}

// Recipients returns results per recipient, of one state or of all for "".
func (s *Service) Recipients(ctx context.Context, account, id, state, cursor string, limit int) (api.RecipientList, error) {
	panic("stub")
}

// Compose renders, assembles and signs the message of one envelope (delivery.Composer).
func (s *Service) Compose(ctx context.Context, m *spool.Message, e *spool.Envelope) ([]byte, error) {
	panic("stub")
}

// SettleHook keeps the counters (spool.SettleHook).
func (s *Service) SettleHook(tx kv.Tx, settled []spool.Settled) error { panic("stub") }

// Blocked returns why no message of the campaign may leave now, "" if it may.
func (s *Service) Blocked(campaign string) string { panic("stub") }

// Unsubscribed says whom a token names.
type Unsubscribed struct {
	Account  string
	Address  string // whole: pages show only Masked
	Campaign string
	Created  bool // false: it was unsubscribed already
}

// Masked is the address as a page may show it: a***@example.com.
func (u Unsubscribed) Masked() string { panic("stub") }

// ParseToken checks a token and returns whom it names, without touching the store. ErrBadToken for every defect.
func (s *Service) ParseToken(token string) (Unsubscribed, error) { panic("stub") }

// Unsubscribe makes the token's address unsubscribed from the account's broadcasts, durably before it returns. It may
// be repeated.
func (s *Service) Unsubscribe(ctx context.Context, token string) (Unsubscribed, error) { panic("stub") }
