package contact

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// UnsubscribeTx makes mailboxes unsubscribed from a list, or from one of its topics. It returns how many were not before;
// mailboxes that are not on the list are passed over.
func (s *Store) UnsubscribeTx(tx kv.Tx, list ListID, topic string, to []mail.Path, source string) (int, error) {
	l, err := getList(tx, list)
	if err != nil {
		return 0, err
	}
	t := l.Topic(topic)
	if topic != "" && t == nil {
		return 0, ErrNotFound
	}
	n := 0
	for _, p := range unique(to) {
		id, m, err := s.memberTx(tx, l, p)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return 0, err
		}
		before := *m
		if t != nil {
			m.Topics.set(t.Number, Unsubscribed)
		} else if m.Status != Unsubscribed {
			m.Status, m.Changed, m.Source = Unsubscribed, s.now(), source
		}
		if *m == before {
			continue
		}
		n++
		if err := s.putMember(tx, list, id, before.Status, m); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// UnsubscribeAllTx makes a mailbox unsubscribed from every list of the account. It returns from how many it was not.
func (s *Store) UnsubscribeAllTx(tx kv.Tx, account string, to mail.Path, source string) (int, error) {
	id, err := lookUp(tx, account, to)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	c, err := getContact(tx, account, id)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, l := range c.Lists {
		one, err := s.UnsubscribeTx(tx, l, "", []mail.Path{to}, source)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return 0, err
		}
		n += one
	}
	return n, nil
}

func unique(to []mail.Path) []mail.Path {
	seen := make(map[string]bool, len(to))
	return slices.DeleteFunc(slices.Clone(to), func(p mail.Path) bool {
		was := seen[p.Key()]
		seen[p.Key()] = true
		return was
	})
}

// memberTx returns the contact's ID and its membership, ErrNotFound where there is none.
func (s *Store) memberTx(tx kv.Tx, l *List, to mail.Path) (ID, *Membership, error) {
	id, err := lookUp(tx, l.Account, to)
	if err != nil {
		return id, nil, err
	}
	v, err := tx.Get(tableMember, memberKey(l.ID, id))
	if err != nil {
		return id, nil, fmt.Errorf("read membership: %w", err)
	}
	if v == nil {
		return id, nil, ErrNotFound
	}
	m, err := decodeMembership(l.ID, string(v))
	return id, &m, err
}

func (s *Store) putMember(tx kv.Tx, list ListID, id ID, was Status, m *Membership) error {
	if err := tx.Put(tableMember, memberKey(list, id), m.encode()); err != nil {
		return fmt.Errorf("write membership: %w", err)
	}
	var by Counts
	by.count(was, -1)
	by.count(m.Status, 1)
	return s.change(tx, list, by)
}

// RemoveTx takes mailboxes off a list; a contact that is on no other list is deleted. It returns how many were on it.
// That one was unsubscribed is remembered: see ApplyTx.
func (s *Store) RemoveTx(tx kv.Tx, list ListID, to []mail.Path) (int, error) {
	l, err := getList(tx, list)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, p := range unique(to) {
		id, m, err := s.memberTx(tx, l, p)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return 0, err
		}
		c, err := getContact(tx, l.Account, id)
		if err != nil {
			return 0, err
		}
		n++
		if err := s.leave(tx, l.Account, c, []Membership{*m}, false); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// leave removes memberships of a contact, and the contact with the last of them.
func (s *Store) leave(tx kv.Tx, account string, c *Contact, from []Membership, erased bool) error {
	g := gone{at: s.now(), erased: erased}
	key := s.goneKey(account, c.To.Key())
	old, err := tx.Get(tableGone, key)
	if err != nil {
		return fmt.Errorf("read deleted contact: %w", err)
	}
	if old != nil {
		was, err := decodeGone(string(old))
		if err != nil {
			return err
		}
		g.erased, g.lists = g.erased || was.erased, was.lists
	}
	for i := range from {
		m := &from[i]
		if err := tx.Delete(tableMember, memberKey(m.List, c.ID)); err != nil {
			return fmt.Errorf("delete membership: %w", err)
		}
		var by Counts
		by.count(m.Status, -1)
		if err := s.change(tx, m.List, by); err != nil {
			return err
		}
		if m.Status == Unsubscribed && !slices.Contains(g.lists, m.List) && len(g.lists) < maxLists {
			g.lists = append(g.lists, m.List)
		}
		c.Lists = slices.DeleteFunc(c.Lists, func(l ListID) bool { return l == m.List })
	}
	if g.erased || len(g.lists) > 0 {
		if err := tx.Put(tableGone, key, g.encode()); err != nil {
			return fmt.Errorf("write deleted contact: %w", err)
		}
	}
	if len(c.Lists) > 0 {
		c.Updated = s.now()
		return tx.Put(tableContact, contactKey(account, c.ID), c.encode())
	}
	return s.drop(tx, account, c)
}

func (s *Store) drop(tx kv.Tx, account string, c *Contact) error {
	if err := tx.Delete(tableContact, contactKey(account, c.ID)); err != nil {
		return fmt.Errorf("delete contact: %w", err)
	}
	return tx.Delete(tableEmail, emailKey(account, c.To.Key()))
}

// Delete removes a contact from all lists. With erase nothing of it stays but a keyed hash of its mailbox, which keeps
// imports and syncs from bringing it back; a call that names the address for itself may. Without erase, a hash stays
// only where it was unsubscribed. The address may be erased although there is no such contact, so that it never comes in.
func (s *Store) Delete(ctx context.Context, account, ref string, erase bool) (ID, error) {
	return s.DeleteIf(ctx, account, ref, erase, nil)
}

// DeleteIf is Delete with a check of what is there, which may refuse.
func (s *Store) DeleteIf(ctx context.Context, account, ref string, erase bool, check func(*Found) error) (id ID, err error) {
	to, isEmail, err := ParseRef(ref)
	if err != nil {
		return id, err
	}
	err = s.DB.Update(ctx, func(tx kv.Tx) error {
		f, err := s.GetTx(tx, account, ref)
		if err == nil && check != nil {
			err = check(f)
		}
		if errors.Is(err, ErrNotFound) && erase && isEmail {
			id = ID{}
			return tx.Put(tableGone, s.goneKey(account, to.Key()), (&gone{at: s.now(), erased: true}).encode())
		}
		if err != nil {
			return err
		}
		id = f.ID
		c := f.Contact
		c.Lists = slices.Clone(c.Lists)
		if err := s.leave(tx, account, &c, f.Memberships, erase); err != nil {
			return err
		}
		if s.Events == nil {
			return nil
		}
		e := event.Event{Type: "contact.deleted", At: s.now(), Account: account, Data: map[string]any{"contact": id.String()}}
		if erase {
			e.Type = "contact.erased"
		}
		return s.Events.Append(tx, e)
	})
	if err != nil {
		return id, fmt.Errorf("delete contact: %w", err)
	}
	return id, nil
}

// removeSlice is how many members of a deleted list go in one transaction.
const removeSlice = 1000

// DeleteList removes a list: it is gone at once, its members are removed in slices. Contacts stay, even those that are on
// no other list. Run finishes what a crash interrupts.
func (s *Store) DeleteList(ctx context.Context, account, ref string, check func(*List) error) error {
	var l *List
	err := s.DB.Update(ctx, func(tx kv.Tx) (err error) {
		if l, err = s.ListTx(tx, account, ref); err != nil {
			return err
		}
		if check != nil {
			if err := check(l); err != nil {
				return err
			}
		}
		l.Deleting = true
		if err := tx.Delete(tableListName, emailKey(account, l.Name)); err != nil {
			return err
		}
		return l.put(tx)
	})
	if err != nil {
		return fmt.Errorf("delete list: %w", err)
	}
	return s.emptyList(context.WithoutCancel(ctx), l.ID)
}

func (s *Store) emptyList(ctx context.Context, list ListID) error {
	for done := false; !done; {
		err := s.DB.Update(ctx, func(tx kv.Tx) error {
			var keys [][]byte
			err := tx.Scan(tableMember, list[:], kv.PrefixEnd(list[:]), func(k, _ []byte) (bool, error) {
				keys = append(keys, bytes.Clone(k))
				return len(keys) < removeSlice, nil
			})
			if err != nil {
				return err
			}
			for _, k := range keys {
				if err := tx.Delete(tableMember, k); err != nil {
					return err
				}
			}
			if done = len(keys) < removeSlice; !done {
				return nil
			}
			var counters [][]byte
			err = tx.Scan(tableCount, list[:], kv.PrefixEnd(list[:]), func(k, _ []byte) (bool, error) {
				counters = append(counters, bytes.Clone(k))
				return true, nil
			})
			if err != nil {
				return err
			}
			for _, k := range counters {
				if err := tx.Delete(tableCount, k); err != nil {
					return err
				}
			}
			return tx.Delete(tableList, bytes.Clone(list[:]))
		})
		if err != nil {
			return fmt.Errorf("remove members of list: %w", err)
		}
	}
	return nil
}

// finishDeletions goes on with lists whose deletion a crash interrupted.
func (s *Store) finishDeletions(ctx context.Context) error {
	var left []ListID
	err := s.DB.View(ctx, func(tx kv.Tx) error {
		left = nil
		return tx.Scan(tableList, nil, nil, func(k, v []byte) (bool, error) {
			l, err := decodeList(ListID(k), v)
			if err == nil && l.Deleting {
				left = append(left, l.ID)
			}
			return true, err
		})
	})
	if err != nil {
		return fmt.Errorf("read lists: %w", err)
	}
	for _, id := range left {
		if err := s.emptyList(ctx, id); err != nil {
			return err
		}
	}
	return nil
}
