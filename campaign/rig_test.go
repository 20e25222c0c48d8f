package campaign

import (
	"bytes"
	"context"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/dkim"
	"relayd/internal/account"
	"relayd/internal/api"
	contacts "relayd/internal/contact"
	"relayd/internal/event"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/kv/kvtest"
	"relayd/internal/mail"
	"relayd/internal/suppression"
	"relayd/spool"
)

// rig is a campaign service on real stores, with delivery played by the test.
type rig struct {
	*Service
	t     testing.TB
	sync  bool // commits are durable
	dir   string
	db    *kv.Bolt
	store *spool.Store
	list  *suppression.List
	keys  *dkim.Keyring
	log   *event.Log
	lists *contacts.Store
	in    *intake.Intake
	cfg   Config
	clock *atomic.Int64

	perDay    int   // recipients of an account
	minMemory int64 // bytes below which the spool takes nothing
}

func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), clock: new(atomic.Int64)}
	r.clock.Store(time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC).UnixNano())
	r.cfg = DefaultConfig()
	r.cfg.PublicURL, r.cfg.Hostname, r.cfg.DataDir = "https://u.shop.example", "relay.example", r.dir
	for _, fn := range change {
		fn(&r.cfg)
	}
	var err error
	r.keys, err = dkim.Open(filepath.Join(r.dir, "dkim"))
	require.NoError(t, err)
	_, err = r.keys.AddDomain("shop.example")
	require.NoError(t, err)
	r.open()
	t.Cleanup(r.close)
	return r
}

func (r *rig) now() time.Time { return time.Unix(0, r.clock.Load()).UTC() }

func (r *rig) pass(d time.Duration) { r.clock.Add(int64(d)) }

func (r *rig) open() {
	t := r.t
	ctx := t.Context()
	var err error
	r.db, err = kv.OpenBolt(filepath.Join(r.dir, "relayd.db"), kv.BoltOptions{NoSync: !r.sync})
	require.NoError(t, err)
	db := kv.DB(r.db)
	if _, ok := t.(*testing.T); ok { // a benchmark measures what runs once
		db = kvtest.Twice(r.db)
	}
	r.log, err = event.Open(db, r.now)
	require.NoError(t, err)
	r.store, err = spool.Open(ctx, db, r.log, spool.Config{Now: r.now, MinMemoryBytes: r.minMemory})
	require.NoError(t, err)
	accounts, err := account.Open(ctx, db, r.now)
	require.NoError(t, err)
	accounts.SetConfigured([]account.Domain{
		{Name: "shop.example", Account: "default", Sign: "required"},
		{Name: "keyless.example", Account: "default", Sign: "required"},
		{Name: "unsigned.example", Account: "default", Sign: "none"},
		{Name: "other.example", Account: "other", Sign: "required"},
	})
	r.list = suppression.New(db, r.now)
	r.lists, err = contacts.New(ctx, contacts.Deps{DB: db, Now: r.now})
	require.NoError(t, err)
	in, err := intake.New(intake.DefaultConfig(), intake.Deps{
		DB: db, Broadcaster: lateBroadcaster{r}, Spool: r.store, Keys: r.keys, Domains: accounts, Suppression: r.list, Erasures: r.lists,
		Hostname: "relay.example", Now: r.now,
	})
	require.NoError(t, err)
	r.in = in
	quota, err := account.OpenQuota(ctx, db, account.QuotaConfig{AccountPerDay: r.perDay, AccountPerSecond: float64(min(r.perDay, 1))}, r.now)
	require.NoError(t, err)
	r.Service, err = New(r.cfg, Deps{
		Quota:    days{quota},
		Contacts: r.lists, DB: db, Spool: r.store, Intake: in, Keys: r.keys, Domains: accounts, Suppression: r.list, Events: r.log, Now: r.now,
	})
	require.NoError(t, err)
	r.store.OnSettle(r.SettleHook)
}

// lateBroadcaster is what app wires.
type lateBroadcaster struct{ r *rig }

func (b lateBroadcaster) Broadcast(ctx context.Context, m *intake.Broadcast) error {
	return b.r.Service.Broadcast(ctx, m)
}

// list makes a contact list.
func (r *rig) audience(name string, rows ...contacts.Row) contacts.ListID {
	l := &contacts.List{Account: "default", Name: name, OptIn: contacts.Single}
	require.NoError(r.t, r.lists.CreateList(r.t.Context(), l, nil))
	done, err := r.lists.Apply(r.t.Context(), l.ID, rows, contacts.ApplyOptions{})
	require.NoError(r.t, err)
	require.Empty(r.t, done.Errors)
	return l.ID
}

// member is a subscribed contact.
func member(email, name, zone string) contacts.Row {
	to, err := mail.ParsePath(email)
	if err != nil {
		panic(err)
	}
	return contacts.Row{
		To: to, Status: contacts.Subscribed, Timezone: &zone,
		Attributes: []contacts.Attribute{{Name: "Name", Kind: contacts.String, Text: name}},
	}
}

// waitFor runs rounds until the campaign is in a state.
func (r *rig) waitFor(id, state string) api.Progress {
	for range 1000 {
		if p := r.progress(id); p.State == state {
			return p
		}
		r.round(r.t.Context())
	}
	require.Equal(r.t, state, r.progress(id).State)
	return api.Progress{}
}

func (r *rig) close() {
	_ = r.Close()
	require.NoError(r.t, r.db.Close())
}

// reopen is what a restart does.
func (r *rig) reopen() {
	r.close()
	r.open()
}

// fan runs fan-out until nothing is left to queue.
func (r *rig) fan() {
	for i := 0; i < 1000 && r.round(r.t.Context()) == 0; i++ {
	}
}

// deliver leases what is due and settles it as fn says. It returns how many envelopes it saw.
func (r *rig) deliver(most int, fn func(msg []byte, e *spool.Envelope) spool.Result) int {
	t, ctx := r.t, r.t.Context()
	queues := r.store.Take(r.now(), 10_000)
	lease, err := r.store.Lease(ctx, queues, r.now(), most)
	require.NoError(t, err)
	results := make([]spool.Result, 0, len(lease.Envelopes))
	for _, e := range lease.Envelopes {
		m := lease.Messages[e.ID.Message]
		room := bytes.Repeat([]byte("?"), rand.IntN(32<<10)) // what others have left in it does no harm
		msg, err := r.Compose(ctx, m, e, room)
		var res spool.Result
		if err != nil {
			res = spool.Result{Outcome: spool.Failed, Reason: "render_failed", Reply: mail.ReplyOf(err)}
		} else {
			res = fn(msg, e)
		}
		res.ID, res.At = e.ID, r.now()
		results = append(results, res)
	}
	if len(results) > 0 {
		require.NoError(t, r.store.Settle(ctx, lease, results))
	}
	for _, q := range queues {
		r.store.Return(q, time.Time{})
	}
	return len(results)
}

func delivered(_ []byte, _ *spool.Envelope) spool.Result {
	return spool.Result{Outcome: spool.Delivered, Presented: true, Reply: mail.Reply{Code: 250, Text: "ok"}}
}

func (r *rig) progress(id string) api.Progress {
	p, err := r.Progress(r.t.Context(), "default", id)
	require.NoError(r.t, err)
	require.Equal(r.t, p.Total, p.Counts.Sum(), "%+v", p.Counts)
	return p
}

// all pages through the recipients.
func (r *rig) all(id, state string) map[string]api.RecipientResult {
	found := map[string]api.RecipientResult{}
	for cursor := ""; ; {
		page, err := r.Recipients(r.t.Context(), "default", id, state, cursor, 7)
		require.NoError(r.t, err)
		for _, one := range page.Data {
			_, twice := found[one.Address]
			require.False(r.t, twice, one.Address)
			found[one.Address] = one
		}
		if !page.HasMore {
			return found
		}
		cursor = page.NextCursor
	}
}

// blocked is what the gate says of a campaign's envelopes.
func (r *rig) blocked(id string) string {
	qid, err := parseID(id)
	require.NoError(r.t, err)
	reason, _, err := r.Blocked(r.t.Context(), &spool.Message{ID: qid, Campaign: id}, &spool.Envelope{Data: snapshot(r.now(), "\x00")})
	require.NoError(r.t, err)
	return reason
}

func (r *rig) verify(msg []byte) []dkim.Verification {
	v, err := dkim.Verify(r.t.Context(), bytes.NewReader(msg), zone{r.keys})
	require.NoError(r.t, err)
	return v
}

// zone publishes the keys of a ring.
type zone struct{ keys *dkim.Keyring }

func (z zone) LookupTXT(_ context.Context, name string) ([]string, error) {
	for _, domain := range z.keys.Domains() {
		for _, k := range z.keys.AllKeys(domain) {
			if k.RecordName() == name {
				return []string{k.RecordValue()}, nil
			}
		}
	}
	return nil, nil
}

// request is a campaign that is right.
func request(recipients ...api.Recipient) *api.CreateCampaign {
	return &api.CreateCampaign{
		Name: "Black Friday", From: api.Mailbox{Email: "deals@shop.example", Name: "Shop"},
		Template: api.CampaignTemplate{
			Subject: "{{Subject}}",
			HTML:    `<html><body><p>Hi {{Name}}</p>{{Body}}<p><a href="{{unsubscribe_url}}">Unsubscribe</a></p></body></html>`,
		},
		Data:       map[string]any{"Subject": "Black Friday for {{Name}}", "Body": "<p>All is <b>cheap</b> &amp; good.</p>"},
		Recipients: recipients, Start: len(recipients) > 0,
	}
}

func to(email, name string) api.Recipient {
	return api.Recipient{Email: email, Attributes: map[string]any{"Name": name}}
}

// days is what app wires.
type days struct{ *account.Quota }

func (d days) ReserveDay(account string, n int) (intake.Reservation, error) {
	return d.Quota.ReserveDay(account, n)
}
