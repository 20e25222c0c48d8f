package contact

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Suppressions tells for which mailboxes no option may bring a subscription back, because they complained or bounced:
// one result for each, "" or the reason. Other reasons are not told.
type Suppressions interface {
	RefusedTx(tx kv.Tx, account string, to []mail.Path) ([]string, error)
}

// Events is the durable log: event.Log.
type Events interface {
	Append(tx kv.Tx, e event.Event) error
}

// Deps are what a Store works with. DB is needed.
type Deps struct {
	DB           kv.DB
	Suppressions Suppressions // nil: nobody complained
	Events       Events       // nil: none
	Log          *slog.Logger
	Node         string           // name of this process among those that share the store; default "0"
	TempDir      string           // for chunks that are checked before they are imported; "": the system's
	Now          func() time.Time // nil: time.Now
}

// Store keeps the contacts of all accounts. Its methods may be called from many goroutines.
type Store struct {
	Deps
	log    *slog.Logger
	secret *mail.MAC // of the hashes of erased mailboxes
	active activeImports
}

// New opens the store.
func New(ctx context.Context, deps Deps) (*Store, error) {
	s := &Store{Deps: deps, log: deps.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	if s.Node == "" {
		s.Node = "0"
	}
	fresh := make([]byte, sha256.Size)
	_, _ = rand.Read(fresh) // never fails since Go 1.24
	key := []byte("erased")
	err := s.DB.Update(ctx, func(tx kv.Tx) error {
		v, err := tx.Get(tableSecret, key)
		if err != nil {
			return err
		}
		if len(v) == sha256.Size {
			s.secret = mail.NewMAC(bytes.Clone(v))
			return nil
		}
		s.secret = mail.NewMAC(fresh)
		return tx.Put(tableSecret, key, fresh)
	})
	if err != nil {
		return nil, fmt.Errorf("open contacts: %w", err)
	}
	return s, s.recoverImports(ctx)
}

// now is the clock to the millisecond, which is what records keep.
func (s *Store) now() time.Time { return s.Now().UTC().Truncate(time.Millisecond) }

// goneKey names a mailbox without telling which it is.
func (s *Store) goneKey(account, mailbox string) []byte {
	key := accountKey(account)
	return append(key, s.secret.Sum(key, []byte(mailbox))[:16]...)
}

// Found is a contact with what joins it to its lists.
type Found struct {
	Contact
	Memberships []Membership
	On          []*List // of the memberships
}

// Get returns the contact that ref names: its ID, or "email:" and an address. ErrNotFound when the account has none.
func (s *Store) Get(ctx context.Context, account, ref string) (f *Found, err error) {
	err = s.DB.View(ctx, func(tx kv.Tx) error {
		f, err = s.GetTx(tx, account, ref)
		return err
	})
	return f, err
}

// GetTx is Get inside a transaction.
func (s *Store) GetTx(tx kv.Tx, account, ref string) (*Found, error) {
	id, err := resolve(tx, account, ref)
	if err != nil {
		return nil, err
	}
	c, err := getContact(tx, account, id)
	if err != nil {
		return nil, err
	}
	f := &Found{Contact: *c}
	keys := make([][]byte, len(c.Lists))
	for i, l := range c.Lists {
		keys[i] = memberKey(l, id)
	}
	values, err := tx.GetMany(tableMember, keys)
	if err != nil {
		return nil, fmt.Errorf("read memberships: %w", err)
	}
	f.Lists = nil
	for i, v := range values {
		l, err := getList(tx, c.Lists[i])
		if v == nil || errors.Is(err, ErrNotFound) {
			continue // the list was deleted
		}
		if err != nil {
			return nil, err
		}
		m, err := decodeMembership(c.Lists[i], string(v))
		if err != nil {
			return nil, err
		}
		f.Lists, f.Memberships, f.On = append(f.Lists, m.List), append(f.Memberships, m), append(f.On, l)
	}
	return f, nil
}

// resolve finds the contact that ref names.
func resolve(tx kv.Tx, account, ref string) (ID, error) {
	to, isEmail, err := ParseRef(ref)
	if err != nil {
		return ID{}, err
	}
	if !isEmail {
		return parseID(ref, contactPrefix)
	}
	return lookUp(tx, account, to)
}

// ParseRef reads the address out of "email:ann@example.com"; isEmail is false for anything else.
func ParseRef(ref string) (to mail.Path, isEmail bool, err error) {
	if len(ref) < 6 || ref[:6] != "email:" {
		return to, false, nil
	}
	to, err = mail.ParsePath(ref[6:])
	return to, true, err
}

func lookUp(tx kv.Tx, account string, to mail.Path) (ID, error) {
	v, err := tx.Get(tableEmail, emailKey(account, to.Key()))
	if err != nil {
		return ID{}, fmt.Errorf("look up contact: %w", err)
	}
	if v == nil {
		return ID{}, ErrNotFound
	}
	if len(v) != len(ID{}) {
		return ID{}, fmt.Errorf("%w: index of mailboxes", errBadRecord)
	}
	return ID(v), nil
}

func getContact(tx kv.Tx, account string, id ID) (*Contact, error) {
	v, err := tx.Get(tableContact, contactKey(account, id))
	if err != nil {
		return nil, fmt.Errorf("read contact: %w", err)
	}
	if v == nil {
		return nil, ErrNotFound
	}
	return decodeContact(id, v)
}

// Wanted says whether a mail of a list may still go to a mailbox.
type Wanted struct {
	OK     bool
	Reason string // where not: "deleted", "unsubscribed", "pending", "topic_unsubscribed" or "erased"
}

// WantedTx is the last look before a mail of a list is sent: the contact exists, and is subscribed to the list and, unless
// topic is "", to the topic. It costs three look-ups.
func (s *Store) WantedTx(tx kv.Tx, list ListID, topic string, to mail.Path) (Wanted, error) {
	l, err := getList(tx, list)
	if errors.Is(err, ErrNotFound) {
		return Wanted{Reason: "deleted"}, nil
	}
	if err != nil {
		return Wanted{}, err
	}
	id, err := lookUp(tx, l.Account, to)
	if errors.Is(err, ErrNotFound) {
		return Wanted{Reason: "deleted"}, nil
	}
	if err != nil {
		return Wanted{}, err
	}
	v, err := tx.Get(tableMember, memberKey(list, id))
	if err != nil {
		return Wanted{}, fmt.Errorf("read membership: %w", err)
	}
	if v == nil {
		return Wanted{Reason: "deleted"}, nil
	}
	m, err := decodeMembership(list, string(v))
	if err != nil {
		return Wanted{}, err
	}
	switch m.Status {
	case Unsubscribed:
		return Wanted{Reason: "unsubscribed"}, nil
	case Pending:
		return Wanted{Reason: "pending"}, nil
	}
	if topic != "" {
		t := l.Topic(topic)
		if t == nil || m.Topics.status(t.Number, t.byDefault()) != Subscribed {
			return Wanted{Reason: "topic_unsubscribed"}, nil
		}
	}
	return Wanted{OK: true}, nil
}

// Wanted is WantedTx in a transaction of its own.
func (s *Store) Wanted(ctx context.Context, list ListID, topic string, to mail.Path) (w Wanted, err error) {
	err = s.DB.View(ctx, func(tx kv.Tx) error {
		w, err = s.WantedTx(tx, list, topic, to)
		return err
	})
	return w, err
}

// ErasedTx tells whether the mailbox's owner asked to be forgotten.
func (s *Store) ErasedTx(tx kv.Tx, account string, to mail.Path) (bool, error) {
	v, err := tx.Get(tableGone, s.goneKey(account, to.Key()))
	if err != nil || v == nil {
		return false, err
	}
	g, err := decodeGone(string(v))
	return g.erased, err
}

// ErasedMany is ErasedManyTx in a transaction of its own.
func (s *Store) ErasedMany(ctx context.Context, account string, to []mail.Path) (erased []bool, err error) {
	err = s.DB.View(ctx, func(tx kv.Tx) error {
		erased, err = s.ErasedManyTx(tx, account, to)
		return err
	})
	return erased, err
}

// ErasedManyTx is ErasedTx for many mailboxes in one round trip: one result for each.
func (s *Store) ErasedManyTx(tx kv.Tx, account string, to []mail.Path) ([]bool, error) {
	keys := make([][]byte, len(to))
	for i := range to {
		keys[i] = s.goneKey(account, to[i].Key())
	}
	values, err := tx.GetMany(tableGone, keys)
	if err != nil {
		return nil, fmt.Errorf("look up erased mailboxes: %w", err)
	}
	erased := make([]bool, len(to))
	for i, v := range values {
		if v == nil {
			continue
		}
		g, err := decodeGone(string(v))
		if err != nil {
			return nil, err
		}
		erased[i] = g.erased
	}
	return erased, nil
}
