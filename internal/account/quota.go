package account

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// QuotaConfig is the table [quota]: how many recipients may be handed in. 0 is no limit.
type QuotaConfig struct {
	// AccountPerDay bounds the recipients of one account in any 24 hours, over SMTP and HTTP together. Default 0.
	AccountPerDay int `toml:"account_recipients_per_day"`
	// AccountPerSecond is the rate of one account. A message may overdraw it; the next ones wait until it is made up.
	// Default 0.
	AccountPerSecond float64 `toml:"account_recipients_per_second"`
	// CredentialPerDay bounds the recipients of one SMTP credential or API key in any 24 hours. Default 0.
	CredentialPerDay int `toml:"credential_recipients_per_day"`
	// CredentialPerSecond is the rate of one credential or key. Default 0.
	CredentialPerSecond float64 `toml:"credential_recipients_per_second"`
}

// Validate returns all errors joined.
func (c QuotaConfig) Validate() error {
	var errs []error
	check := func(key string, v float64) {
		if v < 0 || v > 1e9 {
			errs = append(errs, fmt.Errorf("quota.%s: %v is not between 0 and 1000000000", key, v))
		}
	}
	check("account_recipients_per_day", float64(c.AccountPerDay))
	check("account_recipients_per_second", c.AccountPerSecond)
	check("credential_recipients_per_day", float64(c.CredentialPerDay))
	check("credential_recipients_per_second", c.CredentialPerSecond)
	return errors.Join(errs...)
}

const (
	quotaTable = kv.Table("quota")
	// quotaSlot is the grain of the rolling day: what was sent leaves the count up to one slot late, never early.
	quotaSlot  = 15 * time.Minute
	quotaSlots = int64(24*time.Hour/quotaSlot) + 1
	// quotaBurst is how far ahead of its rate a sender may be before a message has to wait.
	quotaBurst = time.Second
	// quotaNode is the number of this process among those that share a store: each has rows of its own.
	quotaNode = 0
)

// Quota counts the recipients of accounts and credentials. What it decides comes from memory; the counts become durable
// blindly, one small row per message, account and quarter of an hour, in the transaction that stores the message, so
// that a restart forgets nothing that was answered 250. Its methods may be called from many goroutines.
type Quota struct {
	cfg QuotaConfig
	db  kv.DB
	now func() time.Time

	mu    sync.Mutex
	usage map[string]*usage // by subject
}

// usage is what one subject has sent.
type usage struct {
	slots []slot    // oldest first, at most quotaSlots
	total int64     // of slots
	due   time.Time // when the rate is made up: the theoretical arrival time of GCRA
}

type slot struct{ number, count int64 }

// OpenQuota reads the counts of the last day. now is the clock, nil for time.Now.
func OpenQuota(ctx context.Context, db kv.DB, cfg QuotaConfig, now func() time.Time) (*Quota, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	q := &Quota{cfg: cfg, db: db, now: now, usage: map[string]*usage{}}
	oldest := slotOf(now()) - quotaSlots
	err := db.View(ctx, func(tx kv.Tx) error {
		clear(q.usage)
		return tx.Scan(quotaTable, nil, nil, func(k, v []byte) (bool, error) {
			return true, q.load(k, v, oldest)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("open quotas: %w", err)
	}
	return q, nil
}

func slotOf(t time.Time) int64 { return t.Unix() / int64(quotaSlot/time.Second) }

// quotaKey orders rows by slot, so that old ones are removed from the front.
func quotaKey(number int64, subject string) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(number)) //nolint:gosec // times before 1970 do not occur
	b = binary.BigEndian.AppendUint32(b, quotaNode)
	return append(b, subject...)
}

func (q *Quota) load(k, v []byte, oldest int64) error {
	if len(k) < 13 || len(v) != 17 || v[0] != recordVersion {
		return errors.New("quota row: unknown record version")
	}
	number := int64(binary.BigEndian.Uint64(k)) //nolint:gosec // written from 63 bits
	if number < oldest {
		return nil
	}
	u := q.of(string(k[12:]))
	count := int64(binary.BigEndian.Uint64(v[1:]))                 //nolint:gosec // written from 63 bits
	if n := len(u.slots); n > 0 && u.slots[n-1].number == number { // of another node
		u.slots[n-1].count += count
	} else {
		u.slots = append(u.slots, slot{number, count})
	}
	u.total += count
	due := time.Unix(0, int64(binary.BigEndian.Uint64(v[9:]))) //nolint:gosec // written from 63 bits
	if due.After(u.due) && number <= oldest+quotaSlots {       // else the clock was set back, and it would hold for that long
		u.due = due
	}
	return nil
}

// of returns the usage of a subject; q.mu is held, or q is not shared yet. Subjects are accounts and credentials that
// exist: nobody else can add to the map.
func (q *Quota) of(subject string) *usage {
	u := q.usage[subject]
	if u == nil {
		u = &usage{}
		q.usage[subject] = u
	}
	return u
}

// limit is one bound of one subject.
type limit struct {
	subject   string // "a/" and the account, or "c/" and the credential
	what      string // for the reply
	perDay    int64
	perSecond float64
}

func (q *Quota) limits(account, credential string) []limit {
	var all []limit
	if q.cfg.AccountPerDay > 0 || q.cfg.AccountPerSecond > 0 {
		all = append(all, limit{"a/" + account, "account", int64(q.cfg.AccountPerDay), q.cfg.AccountPerSecond})
	}
	if credential != "" && (q.cfg.CredentialPerDay > 0 || q.cfg.CredentialPerSecond > 0) {
		all = append(all, limit{"c/" + credential, "credential", int64(q.cfg.CredentialPerDay), q.cfg.CredentialPerSecond})
	}
	return all
}

// Check tells whether one recipient more would be taken now. A refusal is a temporary *mail.Error.
func (q *Quota) Check(account, credential string) error {
	limits := q.limits(account, credential)
	if len(limits) == 0 {
		return nil
	}
	now := q.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, l := range limits {
		if err := q.of(l.subject).check(l, 1, now); err != nil {
			return err
		}
	}
	return nil
}

// Left tells how many recipients more an account may hand in within its 24 hours; limited is false where nothing bounds it.
func (q *Quota) Left(account string) (n int64, limited bool) {
	if q.cfg.AccountPerDay == 0 {
		return 0, false
	}
	return max(int64(q.cfg.AccountPerDay)-q.Usage(account), 0), true
}

// ReserveDay is Reserve for the day of an account alone. A campaign takes its recipients so: it has a rate of its own, and
// must not keep other mail of the account waiting.
func (q *Quota) ReserveDay(account string, n int) (*Reservation, error) {
	limits := q.limits(account, "")
	for i := range limits {
		limits[i].perSecond = 0
	}
	return q.reserve(limits, n)
}

// Reserve takes n recipients from account and credential. Where one of them has not enough left, it takes nothing and
// returns a temporary *mail.Error: 452 4.7.0 for the day, 451 4.7.0 for the rate. A message of more recipients than
// the day has in all waits for ever: split it.
func (q *Quota) Reserve(account, credential string, n int) (*Reservation, error) {
	return q.reserve(q.limits(account, credential), n)
}

func (q *Quota) reserve(limits []limit, n int) (*Reservation, error) {
	now := q.now()
	r := &Reservation{q: q, limits: limits, n: int64(n), slot: slotOf(now)}
	if len(limits) == 0 {
		return r, nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, l := range limits {
		if err := q.of(l.subject).check(l, r.n, now); err != nil {
			return nil, err
		}
	}
	for _, l := range limits {
		u := q.of(l.subject)
		u.add(r.slot, r.n)
		if l.perSecond > 0 {
			if u.due.Before(now) {
				u.due = now
			}
			u.due = u.due.Add(time.Duration(float64(n) / l.perSecond * float64(time.Second)))
		}
	}
	return r, nil
}

func (u *usage) check(l limit, n int64, now time.Time) error {
	u.forget(slotOf(now) - quotaSlots)
	if l.perDay > 0 && u.total+n > l.perDay {
		text := fmt.Sprintf("Quota of this %s: %d of %d recipients in 24 hours are used, try again later", l.what, u.total, l.perDay)
		return mail.Refuse(452, mail.Status{Class: 4, Subject: 7}, text, ErrQuota)
	}
	if wait := u.due.Sub(now); l.perSecond > 0 && wait > quotaBurst && wait < 48*time.Hour { // longer: the clock was set back
		text := fmt.Sprintf("Rate of this %s: %g recipients a second, try again in %d seconds", l.what, l.perSecond, int(wait.Seconds())+1)
		return mail.Refuse(451, mail.Status{Class: 4, Subject: 7}, text, ErrRate)
	}
	return nil
}

// Errors inside the refusals of a Quota.
var (
	ErrQuota = errors.New("daily quota is used up")
	ErrRate  = errors.New("rate is exceeded")
)

// forget drops what is older than a day.
func (u *usage) forget(oldest int64) {
	n := 0
	for n < len(u.slots) && u.slots[n].number < oldest {
		u.total -= u.slots[n].count
		n++
	}
	if n > 0 {
		u.slots = append(u.slots[:0], u.slots[n:]...)
	}
}

// add counts n in a slot, normally the newest.
func (u *usage) add(number, n int64) {
	u.total += n
	for i := len(u.slots) - 1; i >= 0; i-- {
		if u.slots[i].number == number {
			u.slots[i].count += n
			return
		}
		if u.slots[i].number < number {
			break
		}
	}
	if n <= 0 {
		u.total -= n // it was forgotten meanwhile
		return
	}
	if last := len(u.slots) - 1; last >= 0 && u.slots[last].number > number { // the clock was set back
		u.slots[last].count += n
		return
	}
	u.slots = append(u.slots, slot{number, n})
}

// Reservation is what one message took.
type Reservation struct {
	q      *Quota
	limits []limit
	n      int64
	slot   int64
}

// PutTx writes the counts in the transaction that stores the message. It may run more than once, and reads nothing: the
// count in memory is that of this process alone.
func (r *Reservation) PutTx(tx kv.Tx) error {
	if len(r.limits) == 0 {
		return nil
	}
	type row struct{ key, value []byte }
	rows := make([]row, 0, 2)
	r.q.mu.Lock()
	for _, l := range r.limits {
		u := r.q.of(l.subject)
		for i, s := range slices.Backward(u.slots) {
			if s.number <= r.slot || i == 0 {
				v := append(make([]byte, 0, 17), recordVersion)
				v = binary.BigEndian.AppendUint64(v, uint64(max(s.count, 0)))          //nolint:gosec // not negative
				v = binary.BigEndian.AppendUint64(v, uint64(max(u.due.UnixNano(), 0))) //nolint:gosec // not negative
				rows = append(rows, row{quotaKey(s.number, l.subject), v})
				break
			}
		}
	}
	r.q.mu.Unlock()
	for _, w := range rows {
		if err := tx.Put(quotaTable, w.key, w.value); err != nil {
			return err
		}
	}
	return nil
}

// Release gives the recipients back: the message was not stored. The rate is not given back, so that what is refused
// again and again is held back as well.
func (r *Reservation) Release() {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	for _, l := range r.limits {
		r.q.of(l.subject).add(r.slot, -r.n)
	}
}

// Usage tells how many recipients an account has handed in during the last 24 hours.
func (q *Quota) Usage(account string) int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.usage["a/"+account]
	if u == nil {
		return 0
	}
	u.forget(slotOf(q.now()) - quotaSlots)
	return u.total
}

// Purge removes at most `most` rows that no longer count, and forgets subjects that have none.
func (q *Quota) Purge(ctx context.Context, most int) (n int, err error) {
	oldest := slotOf(q.now()) - quotaSlots
	err = q.db.Update(ctx, func(tx kv.Tx) error {
		n = 0
		var old []string
		err := tx.Scan(quotaTable, nil, quotaKey(oldest, ""), func(k, _ []byte) (bool, error) {
			old = append(old, string(k))
			return len(old) < most, nil
		})
		if err != nil {
			return err
		}
		for _, k := range old {
			if err := tx.Delete(quotaTable, []byte(k)); err != nil {
				return err
			}
		}
		n = len(old)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("purge quotas: %w", err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for subject, u := range q.usage {
		if u.forget(oldest); len(u.slots) == 0 && !u.due.After(q.now()) {
			delete(q.usage, subject)
		}
	}
	return n, nil
}
