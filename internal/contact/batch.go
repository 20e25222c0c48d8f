package contact

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// batch is one call of ApplyTx.
type batch struct {
	s    *Store
	tx   kv.Tx
	list *List
	o    ApplyOptions
	now  time.Time
	Applied
	entries []entry // by mailbox
	counts  Counts
	only    []ListID // the list, of contacts that are on no other
	memory  arena
}

func newBatch(s *Store, tx kv.Tx, l *List, o ApplyOptions, rows int) *batch {
	return &batch{
		s: s, tx: tx, list: l, o: o, now: s.now(), only: []ListID{l.ID},
		Applied: Applied{Verdicts: make([]Verdict, rows), Errors: map[int]*RowError{}},
	}
}

// arena holds the keys and records of a batch, which the transaction may keep until it ends.
type arena struct{ free []byte }

const arenaBlock = 64 << 10

// room is for a record of up to n bytes; a longer one has memory of its own.
func (a *arena) room(n int) []byte {
	if len(a.free) < n {
		a.free = make([]byte, max(n, arenaBlock))
	}
	b := a.free[:0:n]
	a.free = a.free[n:]
	return b
}

// entry is one mailbox of a batch.
type entry struct {
	key                       string
	lookUp                    []byte // its key in the index
	to                        mail.Path
	rows                      []int32 // of the batch, in their order
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
func (b *batch) group(rows []Row, keys []string) {
	order := make([]int32, 0, len(rows))
	for i := range rows {
		if bad := b.check(&rows[i]); bad != nil {
			b.Errors[i], b.Verdicts[i] = bad, Rejected
			b.count(Rejected)
			continue
		}
		order = append(order, int32(i)) //nolint:gosec // rows are in memory
	}
	byMailbox := func(i, k int32) int { return strings.Compare(keys[i], keys[k]) }
	if !slices.IsSortedFunc(order, byMailbox) {
		slices.SortStableFunc(order, byMailbox)
	}
	b.entries = make([]entry, 0, len(order))
	for from := 0; from < len(order); {
		key, end := keys[order[from]], from+1
		for end < len(order) && keys[order[end]] == key {
			end++
		}
		b.entries = append(b.entries, entry{key: key, to: rows[order[from]].To, rows: order[from:end]})
		from = end
	}
}

// load reads what is stored of the batch's mailboxes.
func (b *batch) load() error {
	account := b.list.Account
	keys := make([][]byte, len(b.entries))
	for i := range b.entries {
		b.entries[i].lookUp = appendEmailKey(b.memory.room(len(account)+1+len(b.entries[i].key)), account, b.entries[i].key)
		keys[i] = b.entries[i].lookUp
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
		e := &b.entries[i]
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
	for i := range b.entries {
		if e := &b.entries[i]; !e.exists {
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
	for i := range b.entries {
		if e := &b.entries[i]; e.was == Unsubscribed || len(e.gone.lists) > 0 {
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
	if len(e.contact.Attributes) > 0 || len(b.list.Schema) > 0 { // otherwise they are those of the row, which were checked
		if err := checkAttributes(attributes); err != nil {
			return Rejected, &RowError{Column: "attributes", Code: "invalid_attribute", Detail: err.Error()}
		}
		if bad := b.list.conform(attributes, true); bad != nil {
			return Rejected, bad
		}
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
	if len(c.Lists) == 0 {
		c.Lists = b.only
	} else if !slices.Contains(c.Lists, b.list.ID) {
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

// store writes what changed, each table in the order of its keys.
func (b *batch) store() error {
	fresh := 0
	for i := range b.entries {
		if e := &b.entries[i]; e.contactDirty && !e.exists {
			fresh++
		}
	}
	ids := newIDs(b.now, fresh)
	account := b.list.Account
	for i := range b.entries {
		e := &b.entries[i]
		if e.contactDirty {
			if !e.exists {
				e.contact.ID, ids = ids[0], ids[1:]
				if err := b.tx.Put(tableEmail, e.lookUp, e.contact.ID[:]); err != nil {
					return fmt.Errorf("write contact: %w", err)
				}
			}
			key := appendContactKey(b.memory.room(len(account)+1+len(ID{})), account, e.contact.ID)
			if err := b.tx.Put(tableContact, key, e.contact.append(b.memory.room(e.contact.size()))); err != nil {
				return fmt.Errorf("write contact: %w", err)
			}
		}
		if e.memberDirty {
			key := appendMemberKey(b.memory.room(len(ListID{})+len(ID{})), b.list.ID, e.contact.ID)
			if err := b.tx.Put(tableMember, key, e.member.append(b.memory.room(e.member.size()))); err != nil {
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
	slices.SortFunc(ids, func(a, b ID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}
