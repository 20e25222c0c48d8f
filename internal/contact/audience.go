package contact

import (
	"context"
	"errors"
	"fmt"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Audience is whom a campaign is for: the subscribed members of a list who want a topic, meet a condition and are on
// none of the other lists.
type Audience struct {
	List    ListID
	Topic   string     // "": the list as such
	Where   *Condition // nil: everybody
	Also    []ListID   // subscribed to each of these too
	Exclude []ListID   // members of these, subscribed or not, are left out
	Until   time.Time  // who joined later is left out; zero: nobody is
	Now     time.Time  // what within_days counts from; zero: now
	// Members takes those who are not subscribed too. It is for lists, never for sending.
	Members bool
	status  Status // of members, Absent for all
}

// Recipient is one contact of an audience.
type Recipient struct {
	ID       ID
	To       mail.Path
	Locale   string
	Timezone string
	Data     string // the attributes, as AppendAttributes writes them
}

// PageTx returns up to most recipients behind after, in the order of their IDs, which never changes; next is where to go
// on. done tells that there are no more. It looks at a bounded number of members, so that a page may be short, even
// empty, without being the last. ErrNotFound when the list is gone.
func (s *Store) PageTx(tx kv.Tx, a *Audience, after ID, most int) (page []Recipient, next ID, done bool, err error) {
	l, err := getList(tx, a.List)
	if err != nil {
		return nil, after, false, err
	}
	now := a.Now
	if now.IsZero() {
		now = s.now()
	}
	w := &walk{s: s, tx: tx, a: a, list: l, now: now}
	next, done, err = w.page(after, most, func(c *Contact, _ []byte, data string) error {
		page = append(page, Recipient{c.ID, c.To, c.Locale, c.Timezone, data})
		return nil
	})
	return page, next, done, err
}

// Page is PageTx in a transaction of its own.
func (s *Store) Page(ctx context.Context, a *Audience, after ID, most int) (page []Recipient, next ID, done bool, err error) {
	err = s.DB.View(ctx, func(tx kv.Tx) error {
		page, next, done, err = s.PageTx(tx, a, after, most)
		return err
	})
	return page, next, done, err
}

// Count returns how many an audience has. It reads the list in slices and not on one snapshot: what joins or leaves
// meanwhile may be counted or not.
func (s *Store) Count(ctx context.Context, a *Audience) (n int64, err error) {
	now := a.Now
	if now.IsZero() {
		now = s.now()
	}
	var after ID
	for done := false; !done; {
		err := s.DB.View(ctx, func(tx kv.Tx) error {
			l, err := getList(tx, a.List)
			if err != nil {
				return err
			}
			w := &walk{s: s, tx: tx, a: a, list: l, now: now}
			after, done, err = w.page(after, walkSlice, func(*Contact, []byte, string) error { n++; return nil })
			return err
		})
		if err != nil {
			return n, fmt.Errorf("count audience: %w", err)
		}
	}
	return n, nil
}

// walkSlice is how many members one transaction looks at.
const walkSlice = 10_000

// walk goes through the members of a list.
type walk struct {
	s       *Store
	tx      kv.Tx
	a       *Audience
	list    *List
	now     time.Time
	contact Contact
	places  []seat // memory of seats
}

// seat is a member under question.
type seat struct {
	id     ID
	member []byte // the record, valid until the transaction ends
}

// found takes a contact of an audience, with the record of its membership and its attributes as they are stored.
type found func(c *Contact, member []byte, data string) error

var errEnough = errors.New("enough")

// page calls found for each that belongs to the audience, most times at most.
func (w *walk) page(after ID, most int, found found) (next ID, done bool, err error) {
	looked := 0
	for next = after; most > 0 && looked < walkSlice; {
		slice := min(walkSlice-looked, max(most, 100), 2000)
		seats, last, end, err := w.seats(next, slice)
		if err != nil {
			return next, false, err
		}
		looked += slice
		seats, err = w.without(seats)
		if err != nil {
			return next, false, err
		}
		at, n, err := w.contacts(seats, most, found)
		if err != nil {
			return next, false, err
		}
		if most -= n; most == 0 && at < len(seats) {
			return seats[at-1].id, false, nil
		}
		if next = last; end {
			return next, true, nil
		}
	}
	return next, false, nil
}

// seats reads up to slice members behind after and keeps those who want the mail. last is the last one that it read.
func (w *walk) seats(after ID, slice int) (seats []seat, last ID, end bool, err error) {
	n := 0
	last, end, seats = after, true, w.places[:0]
	from := append(memberKey(w.list.ID, after), 0)
	if after == (ID{}) {
		from = w.list.ID[:]
	}
	err = w.tx.Scan(tableMember, from, kv.PrefixEnd(w.list.ID[:]), func(k, v []byte) (bool, error) {
		if n == slice {
			end = false
			return false, nil
		}
		n++
		if len(k) != 2*len(ID{}) {
			return false, fmt.Errorf("%w: key of membership", errBadRecord)
		}
		last = ID(k[len(ID{}):])
		m, err := peekMembership(v, !w.a.Until.IsZero())
		if err != nil {
			return false, err
		}
		late := !w.a.Until.IsZero() && m.Joined.After(w.a.Until)
		wanted := w.list.Wants(&m, w.a.Topic)
		if w.a.Members {
			wanted = w.a.status == Absent || w.a.status == m.Status
		}
		if !late && wanted {
			seats = append(seats, seat{last, v})
		}
		return true, nil
	})
	if err != nil {
		return nil, after, false, fmt.Errorf("read members: %w", err)
	}
	w.places = seats
	return seats, last, end, nil
}

// without leaves out the members of excluded lists, and those who are not subscribed to the others that are asked for.
func (w *walk) without(seats []seat) ([]seat, error) {
	for _, other := range append(append([]ListID{}, w.a.Exclude...), w.a.Also...) {
		if len(seats) == 0 {
			return seats, nil
		}
		keys := make([][]byte, len(seats))
		for i := range seats {
			keys[i] = memberKey(other, seats[i].id)
		}
		values, err := w.tx.GetMany(tableMember, keys)
		if err != nil {
			return nil, fmt.Errorf("read members: %w", err)
		}
		excluded := false
		for _, x := range w.a.Exclude {
			excluded = excluded || x == other
		}
		kept := seats[:0]
		for i, v := range values {
			subscribed := len(v) > 1 && Status(v[1]) == Subscribed
			if excluded && v == nil || !excluded && subscribed {
				kept = append(kept, seats[i])
			}
		}
		seats = kept
	}
	return seats, nil
}

// sparse is how many contacts are passed over for one that is wanted before looking each up is better.
const sparse = 8

// contacts reads those of the seats and calls found for those who meet the condition. at is how many seats it looked at.
func (w *walk) contacts(seats []seat, most int, found found) (at, n int, err error) {
	if len(seats) == 0 {
		return 0, 0, nil
	}
	look := func(v []byte) error {
		m := &seats[at]
		at++
		data, err := decodeHead(&w.contact, m.id, string(v))
		if err != nil {
			return err
		}
		if w.a.Where != nil {
			asked := candidate{contact: &w.contact, data: data, now: w.now}
			if matches := w.a.Where.match(&asked); asked.err != nil || !matches {
				return asked.err
			}
		}
		if err := found(&w.contact, m.member, data); err != nil {
			return err
		}
		if n++; n == most {
			return errEnough
		}
		return nil
	}
	// Contacts lie in the order of their IDs: reading them all is faster, unless most belong to other lists.
	passed := 0
	from := contactKey(w.list.Account, seats[0].id)
	end := kv.PrefixEnd(accountKey(w.list.Account))
	err = w.tx.Scan(tableContact, from, end, func(k, v []byte) (bool, error) {
		id := ID(k[len(k)-len(ID{}):])
		for at < len(seats) && string(seats[at].id[:]) < string(id[:]) {
			at++ // deleted
		}
		if at == len(seats) {
			return false, nil
		}
		if id != seats[at].id {
			passed++
			return passed < sparse*len(seats), nil
		}
		if err := look(v); err != nil {
			return false, err
		}
		return at < len(seats), nil
	})
	if errors.Is(err, errEnough) {
		return at, n, nil
	}
	if err != nil || at == len(seats) || passed < sparse*len(seats) {
		return len(seats), n, err
	}
	keys := make([][]byte, 0, len(seats)-at)
	for _, m := range seats[at:] {
		keys = append(keys, contactKey(w.list.Account, m.id))
	}
	values, err := w.tx.GetMany(tableContact, keys)
	if err != nil {
		return at, n, fmt.Errorf("read contacts: %w", err)
	}
	for _, v := range values {
		if v == nil {
			at++
			continue
		}
		if err := look(v); errors.Is(err, errEnough) {
			return at, n, nil
		} else if err != nil {
			return at, n, err
		}
	}
	return at, n, nil
}
