package contact

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Change is what a call says of one contact.
type Change struct {
	Row
	List             string // name or ID of the list that status, topics and consent are about; "": none
	Replace          bool   // attributes that are not named go
	AllowResubscribe bool
	MustExist        bool                           // a contact that there is not is ErrNotFound
	Check            func(tx kv.Tx, f *Found) error // may refuse to change what is there; f is nil for a new contact
}

// Put makes or changes one contact, as a call that names its address may: one that was erased may come back by it.
func (s *Store) Put(ctx context.Context, account, ref string, c Change, source string) (f *Found, fresh bool, err error) {
	err = s.DB.Update(ctx, func(tx kv.Tx) error {
		f, fresh, err = s.putTx(tx, account, ref, c, source)
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("change contact: %w", err)
	}
	return f, fresh, nil
}

func (s *Store) putTx(tx kv.Tx, account, ref string, c Change, source string) (*Found, bool, error) {
	old, err := s.GetTx(tx, account, ref)
	named, isEmail, _ := ParseRef(ref)
	switch {
	case errors.Is(err, ErrNotFound) && (c.MustExist || !isEmail):
		return nil, false, ErrNotFound
	case errors.Is(err, ErrNotFound):
		old = nil
	case err != nil:
		return nil, false, err
	}
	row := c.Row
	switch {
	case row.To.IsNull() && old != nil:
		row.To = old.To
	case row.To.IsNull():
		row.To = named
	case old != nil && row.To.Key() != old.To.Key(), old == nil && row.To.Key() != named.Key():
		return nil, false, invalid("/email", "the address is the contact's key: to change it, delete the contact and make another")
	}
	if c.Check != nil {
		if err := c.Check(tx, old); err != nil {
			return nil, false, err
		}
	}
	if old == nil {
		if err := tx.Delete(tableGone, s.goneKeyUnless(tx, account, row.To)); err != nil {
			return nil, false, err
		}
	}
	o := ApplyOptions{Source: source, ReplaceAttributes: c.Replace, AllowResubscribe: c.AllowResubscribe}
	bad, err := s.applyOne(tx, account, old, c.List, row, o)
	if err != nil {
		return nil, false, err
	}
	if bad != nil {
		return nil, false, rowInvalid(bad)
	}
	f, err := s.GetTx(tx, account, "email:"+row.To.String())
	if err != nil {
		return nil, false, err
	}
	return f, old == nil, s.tellChange(tx, account, old, f, source)
}

// goneKeyUnless is the key of an erased mailbox: naming the address ends that it is kept away, but not that it was
// unsubscribed.
func (s *Store) goneKeyUnless(tx kv.Tx, account string, to mail.Path) []byte {
	key := s.goneKey(account, to.Key())
	v, err := tx.Get(tableGone, key)
	if err != nil || v == nil {
		return key
	}
	g, err := decodeGone(string(v))
	if err != nil || len(g.lists) == 0 {
		return key
	}
	g.erased = false
	_ = tx.Put(tableGone, key, g.encode()) // an error of the transaction comes again with its commit
	return nil
}

// applyOne writes a row with or without a list.
func (s *Store) applyOne(tx kv.Tx, account string, old *Found, list string, row Row, o ApplyOptions) (*RowError, error) {
	if list != "" {
		l, err := s.ListTx(tx, account, list)
		if errors.Is(err, ErrNotFound) {
			return nil, invalid("/list", "there is no list %q", mail.CleanText(list, 80))
		}
		if err != nil {
			return nil, err
		}
		done, err := s.ApplyTx(tx, l.ID, []Row{row}, o)
		if err != nil {
			return nil, err
		}
		if done.Verdicts[0] == SkippedUnsubscribed {
			return &RowError{Column: "status", Code: "unsubscribed", Detail: "unsubscribed stays so unless allow_resubscribe is set, and for complaints and hard bounces always"}, nil
		}
		return done.Errors[0], nil
	}
	if row.Status != Absent || len(row.Topics) > 0 || !row.Consent.IsZero() {
		return nil, invalid("/list", "status, topics and consent are about a list: name it")
	}
	// The list of no name has no schema and no members.
	b := newBatch(s, tx, &List{Account: account}, o, 1)
	if bad := b.check(&row); bad != nil {
		return bad, nil
	}
	c := &Contact{To: row.To, Created: b.now}
	if old != nil {
		c = &old.Contact
	} else {
		c.ID = newIDs(b.now, 1)[0]
		if err := tx.Put(tableEmail, emailKey(account, row.To.Key()), slices.Clone(c.ID[:])); err != nil {
			return nil, fmt.Errorf("write contact: %w", err)
		}
	}
	after := *c
	after.To, after.Attributes = row.To, merge(c.Attributes, row.Attributes, o.ReplaceAttributes)
	if err := checkAttributes(after.Attributes); err != nil {
		return &RowError{Column: "attributes", Code: "invalid_attribute", Detail: err.Error()}, nil
	}
	if row.Locale != nil {
		after.Locale = *row.Locale
	}
	if row.Timezone != nil {
		after.Timezone = *row.Timezone
	}
	if old != nil && slices.Equal(after.Attributes, c.Attributes) && after.To == c.To && after.Locale == c.Locale && after.Timezone == c.Timezone {
		return nil, nil
	}
	after.Updated, after.Source = b.now, o.Source
	return nil, tx.Put(tableContact, contactKey(account, after.ID), after.encode())
}

// rowInvalid is a row's error as one of a request.
func rowInvalid(e *RowError) error {
	pointer := "/" + e.Column
	if e.Column == "" {
		pointer = ""
	}
	bad := invalid(pointer, "%s", e.Detail)
	bad.Code, bad.Errors[0].Code = e.Code, e.Code
	return bad
}

// tellChange appends the events of a change that a call made. Imports and syncs have one event as a whole.
func (s *Store) tellChange(tx kv.Tx, account string, old, f *Found, source string) error {
	if s.Events == nil {
		return nil
	}
	e := event.Event{Type: "contact.updated", At: s.now(), Account: account, To: f.To.String(), Reason: source, Data: map[string]any{"contact": f.ID.String()}}
	if old == nil {
		e.Type = "contact.created"
	}
	if err := s.Events.Append(tx, e); err != nil {
		return err
	}
	for _, m := range f.Memberships {
		before := Absent
		if old != nil {
			for _, was := range old.Memberships {
				if was.List == m.List {
					before = was.Status
				}
			}
		}
		if m.Status == before || m.Status == Pending {
			continue
		}
		e.Type = "contact." + m.Status.String()
		e.Data = map[string]any{"contact": f.ID.String(), "list": m.List.String()}
		if err := s.Events.Append(tx, e); err != nil {
			return err
		}
	}
	return nil
}

// PatchList changes a list; check may refuse, nil for no check. Topics that change hands keep their numbers by name.
func (s *Store) PatchList(ctx context.Context, account, ref string, change func(l *List) error) (l *List, err error) {
	err = s.DB.Update(ctx, func(tx kv.Tx) error {
		if l, err = s.ListTx(tx, account, ref); err != nil {
			return err
		}
		if err := change(l); err != nil {
			return err
		}
		l.Updated = s.now()
		if err := l.check(); err != nil {
			return err
		}
		return l.put(tx)
	})
	if err != nil {
		return nil, fmt.Errorf("change list: %w", err)
	}
	return l, nil
}

// SetTopics makes these the list's topics. One whose name is there already keeps its number and so what contacts decided
// upon it; a number is never used twice.
func (l *List) SetTopics(topics []Topic) {
	all := slices.Clone(l.Topics)
	for i := range all {
		all[i].Gone = true
	}
	for _, t := range topics {
		if t.Default == "" {
			t.Default = "subscribed"
		}
		live := l.Topic(t.Name)
		if live == nil || !all[live.Number].Gone { // a name that stands twice is refused by check
			t.Number = len(all)
			all = append(all, t)
			continue
		}
		t.Number = live.Number
		all[t.Number] = t
	}
	l.Topics = all
}

// Members returns up to limit members of a list behind the cursor, in the order in which contacts were made, with their
// membership. status narrows them, Absent for all. A page may be short without being the last.
func (s *Store) Members(ctx context.Context, list ListID, status Status, cursor string, limit int) (page []Found, next string, err error) {
	var after ID
	if cursor != "" {
		if after, err = parseID(cursor, contactPrefix); err != nil {
			return nil, "", ErrBadCursor
		}
	}
	err = s.DB.View(ctx, func(tx kv.Tx) error {
		page, next = nil, ""
		l, err := getList(tx, list)
		if err != nil {
			return err
		}
		w := &walk{s: s, tx: tx, a: &Audience{List: list, Members: true, status: status}, list: l, now: s.now()}
		last, done, err := w.page(after, limit, func(c *Contact, member []byte, data string) error {
			m, err := decodeMembership(list, string(member))
			if err != nil {
				return err
			}
			f := Found{Contact: *c, Memberships: []Membership{m}, On: []*List{l}}
			f.Lists = slices.Clone(c.Lists)
			f.Attributes, err = ReadAttributes(nil, data)
			page = append(page, f)
			return err
		})
		if !done {
			next = last.String()
		}
		return err
	})
	return page, next, err
}
