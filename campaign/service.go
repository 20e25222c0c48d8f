package campaign

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"relayd/dkim"
	"relayd/internal/account"
	"relayd/internal/api"
	contacts "relayd/internal/contact"
	"relayd/internal/event"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/suppression"
	"relayd/spool"
)

// Fanout is the door through which a campaign's recipients become envelopes: intake.Intake.
type Fanout interface {
	PageTx(tx kv.Tx, p *intake.Page) error
	PageAdded(p *intake.Page)
	Accept(ctx context.Context, s *intake.Submission) (mail.QueueID, error) // of test messages
}

// Domains knows the sender domains: account.Store.
type Domains interface {
	Domain(name string) (account.Domain, bool)
}

// Keyring gives the active signing keys of a domain: dkim.Keyring.
type Keyring interface {
	Keys(domain string) []*dkim.Key
}

// Quota bounds the recipients of an account in 24 hours: a thin layer over account.Quota.
type Quota interface {
	Left(account string) (n int64, limited bool)
	ReserveDay(account string, n int) (intake.Reservation, error)
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
	Contacts    *contacts.Store       // nil: campaigns go to uploaded recipients only
	Quota       Quota                 // nil: none
	Sites       Sites                 // nil: what delivery knows of sites is left out
	Log         *slog.Logger          // nil: nothing is logged
	Metrics     prometheus.Registerer // nil: not registered
	Now         func() time.Time      // nil: time.Now
}

// Service holds all campaigns. Its methods may be called from many goroutines. Where a method takes an account, "" means
// any: the caller has full rights.
type Service struct {
	cfg         Config
	db          kv.DB
	spool       *spool.Store
	intake      Fanout
	keys        Keyring
	domains     Domains
	suppression *suppression.List
	events      *event.Log
	contacts    *contacts.Store
	sites       Sites
	quota       Quota
	zones       *zones
	log         *slog.Logger
	now         func() time.Time
	metrics     *metrics
	tokens      *tokenKeys
	cache       *cache[mail.QueueID]
	templates   *cache[templateKey]

	wake chan struct{}

	mu   sync.Mutex
	jobs map[mail.QueueID]*job // campaigns that are neither drafts nor ended
}

// job is what Run has to do for a campaign, and what is known of its speed.
type job struct {
	revision int64 // of the record
	state    string
	reason   string
	queued   bool
	held     bool   // somebody prepares it
	after    uint64 // numbers below have been placed
	speed    speed
	looked   time.Time // when its counts were last looked at, while it is fanned out
	look     int       // times that Run is to look whether a guard has paused it
	guards   api.CampaignGuards
	list     contacts.ListID // zero: its recipients were uploaded
	topic    string
	rate     float64
	parallel int // SMTP transactions at a time
	pace     pacer
	next     time.Time // when the first of those that wait for their time is due
	quiet    *quiet
	hushed   time.Time // until when a recipient waits for the end of the quiet hours
}

// New opens the campaigns in deps.DB, and with DataDir the keys of unsubscribe links, which it makes where there are
// none. Campaigns that were paused are paused again in the spool before New returns.
func New(cfg Config, deps Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Node == "" {
		cfg.Node = DefaultConfig().Node
	}
	tokens, err := openTokenKeys(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, db: deps.DB, spool: deps.Spool, intake: deps.Intake, keys: deps.Keys, domains: deps.Domains,
		suppression: deps.Suppression, events: deps.Events, log: deps.Log, now: deps.Now, tokens: tokens,
		contacts: deps.Contacts, sites: deps.Sites, quota: deps.Quota, zones: &zones{},
		metrics: newMetrics(deps.Metrics), cache: newCache[mail.QueueID](cfg.CacheBytes),
		templates: newCache[templateKey](cfg.CacheBytes / 4),
		wake:      make(chan struct{}, 1), jobs: map[mail.QueueID]*job{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if err := s.load(context.Background()); err != nil {
		return nil, err
	}
	return s, nil
}

// load finds the campaigns with work left.
func (s *Service) load(ctx context.Context) error {
	return s.db.View(ctx, func(tx kv.Tx) error {
		var ids []mail.QueueID
		err := tx.Scan(tableActive, nil, nil, func(k, _ []byte) (bool, error) {
			if len(k) != len(mail.QueueID{}) {
				return false, fmt.Errorf("%w: key of %d bytes", errBadRecord, len(k))
			}
			ids = append(ids, mail.QueueID(k))
			return true, nil
		})
		if err != nil {
			return fmt.Errorf("read active campaigns: %w", err)
		}
		for _, id := range ids {
			r, err := getRecord(tx, id)
			if err != nil {
				return err
			}
			s.follow(r)
		}
		return nil
	})
}

// follow brings what is held in memory in line with a record that is durable. Whoever has read or changed a record tells,
// in any order: what an older one says is passed over.
func (s *Service) follow(r *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[r.ID]
	if j != nil && r.Revision < j.revision {
		return
	}
	stopped := r.State == Paused || r.State == Cancelling
	s.spool.PauseStream(formatID(r.ID), stopped)
	if r.State == Draft || ended(r.State) {
		delete(s.jobs, r.ID)
		return
	}
	if j == nil {
		j = &job{}
		s.jobs[r.ID] = j
	}
	j.revision = r.Revision
	if j.state != r.State {
		j.after, j.look = 0, 0
	}
	j.state, j.reason, j.queued, j.guards, j.list = r.State, r.Reason, r.Queued, r.Guards, r.Members.list()
	if r.Audience != nil {
		j.topic = r.Audience.Topic
	}
	j.rate, j.parallel, j.quiet = r.Send.MaxRatePerSecond, r.Send.MaxConcurrency, r.Rules.quiet()
	s.poke()
}

// poke makes Run look at its campaigns.
func (s *Service) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Close forgets what is cached. Run must have returned.
func (s *Service) Close() error {
	s.cache.clear()
	s.templates.clear()
	return nil
}

// owned reads a campaign that the account may see.
func (s *Service) owned(tx kv.Tx, account, id string) (*record, error) {
	qid, err := parseID(id)
	if err != nil {
		return nil, err
	}
	r, err := getRecord(tx, qid)
	if err != nil {
		return nil, err
	}
	if account != "" && r.Account != account {
		return nil, ErrNotFound
	}
	return r, nil
}

// read returns a campaign that the account may see.
func (s *Service) read(ctx context.Context, account, id string) (r *record, err error) {
	err = s.db.View(ctx, func(tx kv.Tx) (err error) {
		r, err = s.owned(tx, account, id)
		return err
	})
	return r, err
}

// composition returns the campaign's compiled message.
func (s *Service) composition(ctx context.Context, id mail.QueueID) (*composition, error) {
	return s.cache.get(id, func() (*composition, error) {
		var r *record
		err := s.db.View(ctx, func(tx kv.Tx) (err error) {
			r, err = getRecord(tx, id)
			return err
		})
		if err != nil {
			return nil, err
		}
		return s.compile(ctx, r)
	})
}

func (s *Service) compile(ctx context.Context, r *record) (c *composition, err error) {
	err = s.db.View(ctx, func(tx kv.Tx) error {
		req, err := getContent(tx, r)
		if err != nil {
			return err
		}
		rules := r.Rules
		if r.Started.IsZero() { // as it would start now
			if rules, err = getRules(tx, r.Account); err != nil {
				return err
			}
		}
		rules.apply(req)
		if c, err = newComposition(r.ID, r.Account, req, s.cfg.Hostname, s.cfg.PublicURL); err == nil {
			c.mailbox, c.list = s.cfg.UnsubscribeMailbox, r.Members.list()
			if rules != nil {
				c.postal = rules.PostalAddress
			}
		}
		return err
	})
	return c, err
}

// Compose renders, assembles and signs the message of one envelope (delivery.Composer), in room where it fits. Every
// attempt gets the same bytes as long as the domain's keys stay. A *mail.Error with 5yz means that this recipient's message
// cannot be made.
func (s *Service) Compose(ctx context.Context, m *spool.Message, e *spool.Envelope, room []byte) ([]byte, error) {
	c, err := s.composition(ctx, m.ID)
	if err != nil {
		if _, bad := errors.AsType[*Invalid](err); bad || errors.Is(err, ErrNotFound) {
			return nil, mail.Refuse(550, mail.Status{Class: 5, Subject: 6, Detail: 0}, "Campaign content cannot be used", err)
		}
		return nil, err
	}
	at, attributes, err := readSnapshot(e.Data)
	if err != nil {
		return nil, mail.Refuse(550, mail.Status{Class: 5, Subject: 6, Detail: 0}, "Merge data cannot be read", err)
	}
	keys := s.keys.Keys(c.from.Domain)
	if d, ok := s.domains.Domain(c.from.Domain); len(keys) == 0 && (!ok || d.Sign != "none") {
		return nil, mail.Refuse(451, mail.Status{Class: 4, Subject: 7, Detail: 5},
			"No DKIM key for "+c.from.Domain+": run relayctl domain add "+c.from.Domain, nil)
	}
	l := letter{
		id: e.ID, to: e.To, at: at, attributes: attributes,
		token: s.tokens.seal(forUnsubscribe, claim{m.ID, c.list, m.Account, e.To.String()}),
	}
	msg, err := c.signed(room, &l, keys)
	if err != nil {
		s.metrics.failed.Inc()
		if r, ok := errors.AsType[*RenderError](err); ok {
			return nil, mail.Refuse(550, mail.Status{Class: 5, Subject: 6, Detail: 0}, "Message cannot be rendered: "+mail.CleanText(r.Error(), 200), err)
		}
		return nil, err
	}
	s.metrics.composed.Inc()
	return msg, nil
}

// signatureRoom is kept free before the header for each signature, so that the message need not be copied.
const signatureRoom = 1024

// hashers are used again for one message after the other.
var hashers = sync.Pool{New: func() any { return dkim.NewBodyHasher() }}

// signed writes the message, in buf where it fits, with one signature for each key before it.
func (c *composition) signed(buf []byte, l *letter, keys []*dkim.Key) ([]byte, error) {
	room := signatureRoom * len(keys)
	if guess := c.guess(); cap(buf) < room+guess {
		buf = make([]byte, 0, 2*room+guess) // what is left of it behind the unused room is enough for the next one
	}
	msg, body, err := c.write(buf[:room], l)
	if err != nil {
		return nil, err
	}
	c.size.Store(int64(len(msg) - room))
	if len(keys) == 0 {
		return msg, nil
	}
	h := hashers.Get().(*dkim.BodyHasher) //nolint:forcetypeassert // the pool holds nothing else
	defer hashers.Put(h)
	h.Reset()
	_, _ = h.Write(msg[body:]) // never fails
	signatures, err := dkim.Sign(keys, msg[room:body-len("\r\n")], h.Sum(), l.at)
	if err != nil {
		return nil, fmt.Errorf("sign message: %w", err)
	}
	if len(signatures) > room {
		return append(signatures, msg[room:]...), nil
	}
	start := room - len(signatures)
	copy(msg[start:], signatures)
	return msg[start:], nil
}

// guess is the room that one message takes, so that its buffer is made once.
func (c *composition) guess() int {
	if n := c.size.Load(); n > 0 {
		return int(n) + int(n)/32 + 512
	}
	n := 4096 + len(c.tail) + c.text.size*2
	if c.html != nil {
		n += c.html.size * 3 / 2
	}
	return n
}
