package contact

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Row is what an import, a sync or a call says of one contact.
type Row struct {
	To         mail.Path
	Attributes []Attribute // sorted by name; one of kind Missing is removed
	Status     Status      // Absent: what it is already, else ApplyOptions.Default
	Topics     []TopicStatus
	Locale     *string // nil: as it is
	Timezone   *string
	Consent    Consent // zero: as it is
}

// TopicStatus is what a row says of one topic.
type TopicStatus struct {
	Name   string
	Status Status
}

// ApplyOptions steer ApplyTx. The zero value is an upsert that lays attributes over those that stand there.
type ApplyOptions struct {
	Source            string // "api", "import:imp_…", "source:src_…": kept with what changes
	Default           Status // of new contacts without a status: Absent for Subscribed; Invalid makes such a row an error
	AllowResubscribe  bool   // unsubscribed may become subscribed, but for complaints and hard bounces
	ReplaceAttributes bool   // attributes that a row does not name go
	SkipExisting      bool   // contacts that are on the list stay as they are
}

// Stats counts rows: Created + Updated + Unchanged + SkippedUnsubscribed + SkippedErased + SkippedExisting + Rejected is
// their number. Duplicates are among them.
type Stats struct {
	Created             int64 `json:"created"`
	Updated             int64 `json:"updated"`
	Unchanged           int64 `json:"unchanged"`
	SkippedUnsubscribed int64 `json:"skipped_unsubscribed"` // said subscribed and are not; what else they say is taken
	SkippedErased       int64 `json:"skipped_erased"`
	SkippedExisting     int64 `json:"skipped_existing"`
	Rejected            int64 `json:"rejected"`
	Duplicates          int64 `json:"duplicates"` // of a mailbox that the same source had written before; the last row wins
}

// Add sums two.
func (s *Stats) Add(o Stats) {
	s.Created += o.Created
	s.Updated += o.Updated
	s.Unchanged += o.Unchanged
	s.SkippedUnsubscribed += o.SkippedUnsubscribed
	s.SkippedErased += o.SkippedErased
	s.SkippedExisting += o.SkippedExisting
	s.Rejected += o.Rejected
	s.Duplicates += o.Duplicates
}

// Verdict is what became of one row.
type Verdict uint8

// The verdicts, under the names of Stats.
const (
	Created Verdict = iota + 1
	Updated
	Unchanged
	SkippedUnsubscribed
	SkippedErased
	SkippedExisting
	Rejected
)

// String is the verdict's name in the API.
func (v Verdict) String() string {
	return [...]string{"", "created", "updated", "unchanged", "skipped_unsubscribed", "skipped_erased", "skipped_existing", "rejected"}[v]
}

func (s *Stats) count(v Verdict) {
	*[]*int64{
		new(int64), &s.Created, &s.Updated, &s.Unchanged, &s.SkippedUnsubscribed, &s.SkippedErased, &s.SkippedExisting, &s.Rejected,
	}[v]++
}

// Applied is what ApplyTx did: one verdict for each row, and what was wrong with those that it rejected.
type Applied struct {
	Stats
	Verdicts []Verdict
	Errors   map[int]*RowError // by index of the row
}

// Apply is ApplyTx in a transaction of its own.
func (s *Store) Apply(ctx context.Context, list ListID, rows []Row, o ApplyOptions) (done Applied, err error) {
	err = s.DB.Update(ctx, func(tx kv.Tx) error {
		done, err = s.ApplyTx(tx, list, rows, o)
		return err
	})
	return done, err
}

// ApplyTx writes rows to a list: new mailboxes become contacts, others are changed where the row differs, and rows that
// say nothing new write nothing, so that it may be repeated. Rows of one mailbox count in their order. A row that breaks
// the list's schema or a limit is rejected, and the others are written. ErrNotFound when the list is gone.
//
// About a thousand rows at a time are right: a batch reads four times, whatever its size.
func (s *Store) ApplyTx(tx kv.Tx, list ListID, rows []Row, o ApplyOptions) (Applied, error) {
	l, err := getList(tx, list)
	if err != nil {
		return Applied{}, err
	}
	b := &batch{s: s, tx: tx, list: l, o: o, now: s.now(), Applied: Applied{Verdicts: make([]Verdict, len(rows)), Errors: map[int]*RowError{}}}
	if err := b.group(rows); err != nil {
		return Applied{}, err
	}
	if err := b.load(); err != nil {
		return Applied{}, err
	}
	for _, e := range b.entries {
		for n, i := range e.rows {
			if n > 0 || e.touched {
				b.Duplicates++
			}
			v, bad := b.apply(e, &rows[i])
			if bad != nil {
				b.Errors[i] = bad
			}
			b.Verdicts[i] = v
			b.count(v)
		}
	}
	return b.Applied, b.store()
}

// batch is one call of ApplyTx.
type batch struct {
	s    *Store
	tx   kv.Tx
	list *List
	o    ApplyOptions
	now  time.Time
	Applied
	entries []*entry // by mailbox
	counts  Counts
}

// entry is one mailbox of a batch.
type entry struct {
	key                       string
	to                        mail.Path
	rows                      []int // of the batch, in their order
	contact                   Contact
	member                    Membership
	exists                    bool   // the contact is stored
	joined                    bool   // its membership is stored
	was                       Status // of the stored membership
	gone                      gone
	refused                   bool // it complained or bounced
	touched                   bool // by an earlier batch of this import
	contactDirty, memberDirty bool
}

// group checks rows by themselves and gathers those of one mailbox, in the order in which mailboxes are stored.
func (b *batch) group(rows []Row) error {
	byKey := make(map[string]*entry, len(rows))
	for i := range rows {
		r := &rows[i]
		if bad := b.check(r); bad != nil {
			b.Errors[i], b.Verdicts[i] = bad, Rejected
			b.count(Rejected)
			continue
		}
		key := r.To.Key()
		e := byKey[key]
		if e == nil {
			e = &entry{key: key, to: r.To}
			byKey[key] = e
			b.entries = append(b.entries, e)
		}
		e.rows = append(e.rows, i)
	}
	slices.SortFunc(b.entries, func(x, y *entry) int { return strings.Compare(x.key, y.key) })
	return nil
}

// check is about what can be wrong with a row whatever is stored.
func (b *batch) check(r *Row) *RowError {
	if r.To.IsNull() || r.To.Domain == "" {
		return &RowError{Column: "email", Code: "invalid_email", Detail: "no address"}
	}
	if r.Status == Invalid {
		return &RowError{Column: "status", Code: "invalid_subscription_status", Detail: "not a subscription status"}
	}
	if err := checkAttributes(r.Attributes); err != nil {
		return &RowError{Column: "attributes", Code: "invalid_attribute", Detail: err.Error()}
	}
	if bad := b.list.conform(r.Attributes, false); bad != nil {
		return bad
	}
	for _, t := range r.Topics {
		if b.list.Topic(t.Name) == nil {
			return &RowError{Column: "topics", Value: t.Name, Code: "unknown_topic", Detail: "the list has no such topic"}
		}
		if t.Status != Subscribed && t.Status != Unsubscribed {
			return &RowError{Column: "topics", Value: t.Name, Code: "invalid_subscription_status", Detail: "neither subscribed nor unsubscribed"}
		}
	}
	if r.Locale != nil && !isLocale(*r.Locale) {
		return &RowError{Column: "locale", Value: *r.Locale, Code: "invalid_locale", Detail: "not a language tag such as fr or ko-KR"}
	}
	if r.Timezone != nil && !isTimezone(*r.Timezone) {
		return &RowError{Column: "timezone", Value: *r.Timezone, Code: "invalid_timezone", Detail: "not a time zone such as Europe/Paris"}
	}
	return checkConsent(r.Consent)
}

const maxConsentText = 4 << 10

func checkConsent(c Consent) *RowError {
	for name, f := range map[string]struct {
		text string
		most int
	}{"ip": {c.IP, 64}, "source": {c.Source, 1000}, "text": {c.Text, maxConsentText}} {
		if mail.CleanText(f.text, f.most) != f.text {
			return &RowError{Column: "consent." + name, Value: f.text, Code: "invalid_consent", Detail: fmt.Sprintf("one line of at most %d bytes", f.most)}
		}
	}
	if c.At.IsZero() && !c.IsZero() {
		return &RowError{Column: "consent.at", Code: "invalid_consent", Detail: "a proof of consent has its time"}
	}
	return nil
}

// isLocale takes the usual language tags (BCP 47), "" for none.
func isLocale(s string) bool {
	if len(s) > 35 {
		return false
	}
	for i, part := range strings.Split(s, "-") {
		if s != "" && (part == "" || len(part) > 8) || i == 0 && len(part) == 1 {
			return false
		}
		for j := range len(part) {
			c := part[j] | 0x20
			if (c < 'a' || c > 'z') && (i == 0 || part[j] < '0' || part[j] > '9') {
				return false
			}
		}
	}
	return true
}

// isTimezone takes names of the tz database, "" for none. Local is the server's and none of the contact's.
func isTimezone(s string) bool {
	if s == "" {
		return true
	}
	if s == "Local" || len(s) > 64 {
		return false
	}
	_, err := time.LoadLocation(s)
	return err == nil
}

// load reads what is stored of the batch's mailboxes.
func (b *batch) load() error {
	account := b.list.Account
	keys := make([][]byte, len(b.entries))
	for i, e := range b.entries {
		keys[i] = emailKey(account, e.key)
	}
	ids, err := b.tx.GetMany(tableEmail, keys)
	if err != nil {
		return fmt.Errorf("look up contacts: %w", err)
	}
	var known []*entry
	var contacts, members [][]byte
	for i, v := range ids {
		if len(v) != len(ID{}) {
			continue
		}
		e := b.entries[i]
		e.contact.ID, e.exists = ID(v), true
		known = append(known, e)
		contacts = append(contacts, contactKey(account, e.contact.ID))
		members = append(members, memberKey(b.list.ID, e.contact.ID))
	}
	if contacts, err = b.tx.GetMany(tableContact, contacts); err != nil {
		return fmt.Errorf("read contacts: %w", err)
	}
	if members, err = b.tx.GetMany(tableMember, members); err != nil {
		return fmt.Errorf("read memberships: %w", err)
	}
	for i, e := range known {
		if contacts[i] == nil {
			return fmt.Errorf("%w: mailbox without a contact", errBadRecord)
		}
		c, err := decodeContact(e.contact.ID, contacts[i])
		if err != nil {
			return err
		}
		e.contact = *c
		e.touched = b.mine(c.Source)
		if members[i] == nil {
			continue
		}
		if e.member, err = decodeMembership(b.list.ID, string(members[i])); err != nil {
			return err
		}
		e.joined, e.was = true, e.member.Status
		e.touched = e.touched || b.mine(e.member.Source)
	}
	if err := b.loadGone(); err != nil {
		return err
	}
	return b.loadRefused()
}

// mine tells that what is stored came from this very import.
func (b *batch) mine(source string) bool {
	return source == b.o.Source && strings.HasPrefix(source, "import:")
}

// loadGone finds which of the new mailboxes must not come back.
func (b *batch) loadGone() error {
	some := false
	prefix := accountKey(b.list.Account)
	if err := b.tx.Scan(tableGone, prefix, kv.PrefixEnd(prefix), func(_, _ []byte) (bool, error) {
		some = true
		return false, nil
	}); err != nil || !some {
		return err
	}
	var fresh []*entry
	var keys [][]byte
	for _, e := range b.entries {
		if !e.exists {
			fresh, keys = append(fresh, e), append(keys, b.s.goneKey(b.list.Account, e.key))
		}
	}
	values, err := b.tx.GetMany(tableGone, keys)
	if err != nil {
		return fmt.Errorf("read deleted contacts: %w", err)
	}
	for i, v := range values {
		if v == nil {
			continue
		}
		if fresh[i].gone, err = decodeGone(string(v)); err != nil {
			return err
		}
	}
	return nil
}

// loadRefused asks for the complaints and hard bounces of mailboxes that might be subscribed again.
func (b *batch) loadRefused() error {
	if b.s.Suppressions == nil || !b.o.AllowResubscribe {
		return nil
	}
	var ask []*entry
	var to []mail.Path
	for _, e := range b.entries {
		if e.was == Unsubscribed || len(e.gone.lists) > 0 {
			ask, to = append(ask, e), append(to, e.to)
		}
	}
	if len(ask) == 0 {
		return nil
	}
	reasons, err := b.s.Suppressions.RefusedTx(b.tx, b.list.Account, to)
	if err != nil {
		return fmt.Errorf("ask the suppression list: %w", err)
	}
	for i, e := range ask {
		e.refused = reasons[i] != ""
	}
	return nil
}

// apply changes the entry as its row says.
func (b *batch) apply(e *entry, r *Row) (Verdict, *RowError) {
	switch {
	case e.gone.erased && !e.exists:
		return SkippedErased, nil
	case b.o.SkipExisting && (e.joined || e.memberDirty):
		return SkippedExisting, nil
	}
	status, skipped, bad := b.status(e, r)
	if bad != nil {
		return Rejected, bad
	}
	isNew := !e.exists && !e.contactDirty
	attributes := merge(e.contact.Attributes, r.Attributes, b.o.ReplaceAttributes)
	if err := checkAttributes(attributes); err != nil {
		return Rejected, &RowError{Column: "attributes", Code: "invalid_attribute", Detail: err.Error()}
	}
	if bad := b.list.conform(attributes, true); bad != nil {
		return Rejected, bad
	}
	contactChange := b.changeContact(e, r, attributes)
	memberChange := b.changeMember(e, r, status)
	e.contactDirty = e.contactDirty || contactChange
	e.memberDirty = e.memberDirty || memberChange
	switch {
	case skipped:
		return SkippedUnsubscribed, nil
	case isNew:
		return Created, nil
	case contactChange || memberChange:
		return Updated, nil
	}
	return Unchanged, nil
}

// status decides what the membership becomes. skipped tells that the row asked for a subscription that it does not get.
func (b *batch) status(e *entry, r *Row) (status Status, skipped bool, bad *RowError) {
	member := e.joined || e.memberDirty
	wants := r.Status
	if wants == Absent && member {
		return e.member.Status, false, nil
	}
	if wants == Absent {
		switch wants = b.o.Default; wants {
		case Absent:
			wants = Subscribed
		case Invalid:
			return 0, false, &RowError{Column: "status", Code: "invalid_subscription_status", Detail: "a subscription status is needed"}
		}
	}
	if wants != Subscribed {
		return wants, false, nil
	}
	left := member && e.member.Status == Unsubscribed || !member && slices.Contains(e.gone.lists, b.list.ID)
	if left && (!b.o.AllowResubscribe || e.refused) {
		return Unsubscribed, true, nil
	}
	if member && e.member.Status == Subscribed {
		return Subscribed, false, nil
	}
	if b.list.OptIn == Double && r.Consent.IsZero() && (!member || e.member.Consent.IsZero()) {
		return Pending, false, nil
	}
	return Subscribed, false, nil
}

// changeContact tells whether the row differs from the contact.
func (b *batch) changeContact(e *entry, r *Row, attributes []Attribute) bool {
	c := &e.contact
	changed := c.To != r.To || !slices.Equal(c.Attributes, attributes) || r.Locale != nil && *r.Locale != c.Locale ||
		r.Timezone != nil && *r.Timezone != c.Timezone || !slices.Contains(c.Lists, b.list.ID)
	if !changed {
		return false
	}
	if !e.exists && c.Created.IsZero() {
		c.Created = b.now
	}
	c.To, c.Attributes, c.Updated, c.Source = r.To, attributes, b.now, b.o.Source
	if r.Locale != nil {
		c.Locale = *r.Locale
	}
	if r.Timezone != nil {
		c.Timezone = *r.Timezone
	}
	if !slices.Contains(c.Lists, b.list.ID) {
		c.Lists = append(c.Lists, b.list.ID)
	}
	return true
}

// changeMember tells whether the row differs from the membership.
func (b *batch) changeMember(e *entry, r *Row, status Status) bool {
	m := &e.member
	before := *m
	if m.Joined.IsZero() {
		m.List, m.Joined = b.list.ID, b.now
	}
	if m.Status != status {
		m.Status, m.Changed, m.Source = status, b.now, b.o.Source
	}
	if !r.Consent.IsZero() {
		m.Consent = r.Consent
		m.Consent.At = m.Consent.At.UTC().Truncate(time.Millisecond)
	}
	for _, t := range r.Topics {
		n := b.list.Topic(t.Name).Number
		decided := m.Topics.Known&(1<<n) != 0
		if t.Status == Subscribed && decided && m.Topics.status(n, Subscribed) == Unsubscribed && (!b.o.AllowResubscribe || e.refused) {
			continue // as for the whole list
		}
		m.Topics.set(n, t.Status)
	}
	return *m != before
}

// store writes what changed.
func (b *batch) store() error {
	fresh := 0
	for _, e := range b.entries {
		if e.contactDirty && !e.exists {
			fresh++
		}
	}
	ids := newIDs(b.now, fresh)
	account := b.list.Account
	for _, e := range b.entries {
		if e.contactDirty {
			if !e.exists {
				e.contact.ID, ids = ids[0], ids[1:]
				if err := b.tx.Put(tableEmail, emailKey(account, e.key), e.contact.ID[:]); err != nil {
					return fmt.Errorf("write contact: %w", err)
				}
			}
			if err := b.tx.Put(tableContact, contactKey(account, e.contact.ID), e.contact.encode()); err != nil {
				return fmt.Errorf("write contact: %w", err)
			}
		}
		if e.memberDirty {
			if err := b.tx.Put(tableMember, memberKey(b.list.ID, e.contact.ID), e.member.encode()); err != nil {
				return fmt.Errorf("write membership: %w", err)
			}
			if e.joined {
				b.counts.count(e.was, -1)
			}
			b.counts.count(e.member.Status, 1)
		}
	}
	return b.s.change(b.tx, b.list.ID, b.counts)
}

// newIDs returns n in ascending order, so that contacts are appended to their table.
func newIDs(at time.Time, n int) []ID {
	ids := make([]ID, n)
	for i := range ids {
		ids[i] = ID(mail.NewQueueID(at))
	}
	slices.SortFunc(ids, func(a, b ID) int { return strings.Compare(string(a[:]), string(b[:])) })
	return ids
}
