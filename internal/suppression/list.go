// Package suppression remembers which mailboxes must not be written to, and why. An entry belongs to one account; its
// key is the mailbox's canonical spelling, so that case, quotes, a trailing dot or an international domain make no way
// around it.
package suppression

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Scopes: what an entry blocks.
const (
	Global    = "global"    // all mail
	Broadcast = "broadcast" // campaigns and other bulk mail
)

// Reasons of entries, a closed set.
const (
	HardBounce  = "hard_bounce"
	Complaint   = "complaint"
	Unsubscribe = "unsubscribe"
	Manual      = "manual"
	Invalid     = "invalid" // the domain has no mail host, or declares that it takes no mail
)

// Sentinel errors.
var (
	ErrSuppressed = errors.New("recipient is suppressed")
	ErrBadEntry   = errors.New("bad suppression entry")
	ErrBadCursor  = errors.New("bad cursor")
)

// Limits of an entry's fields, in bytes.
const (
	maxAccount = 128
	maxText    = 1024
)

// Entry is one reason why one mailbox is not written to.
type Entry struct {
	Account   string    `json:"account"`
	Address   string    `json:"email"` // as given when the entry was made
	Scope     string    `json:"scope"`
	Reason    string    `json:"reason"`
	Source    string    `json:"source,omitempty"` // envelope ID, campaign ID, import…
	Note      string    `json:"note,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at,omitzero"` // zero: never
}

// List is the suppression list of all accounts. Its methods may be called from many goroutines.
type List struct {
	db  kv.DB
	now func() time.Time
}

const table kv.Table = "suppression"

// New returns the list in db. now is the clock, nil for time.Now.
func New(db kv.DB, now func() time.Time) *List {
	if now == nil {
		now = time.Now
	}
	return &List{db, now}
}

// Check returns the entry that forbids writing to the mailbox, nil where there is none. broadcast says that the mail is
// of a campaign or other bulk: entries of scope broadcast count only then.
func (l *List) Check(ctx context.Context, account string, to mail.Path, broadcast bool) (*Entry, error) {
	found, err := l.CheckMany(ctx, account, []mail.Path{to}, broadcast)
	if err != nil {
		return nil, err
	}
	return found[0], nil
}

// CheckMany is Check for many mailboxes: one result for each, nil where nothing forbids.
func (l *List) CheckMany(ctx context.Context, account string, to []mail.Path, broadcast bool) (found []*Entry, err error) {
	err = l.db.View(ctx, func(tx kv.Tx) (err error) {
		found, err = l.CheckManyTx(tx, account, to, broadcast)
		return err
	})
	return found, err
}

// CheckManyTx is CheckMany inside a transaction, in one round trip: one result for each, nil where nothing forbids.
func (l *List) CheckManyTx(tx kv.Tx, account string, to []mail.Path, broadcast bool) ([]*Entry, error) {
	scopes := scopesOf(broadcast)
	keys := make([][]byte, 0, len(to)*len(scopes))
	for _, p := range to {
		for _, scope := range scopes {
			keys = append(keys, key(account, p, scope))
		}
	}
	values, err := tx.GetMany(table, keys)
	if err != nil {
		return nil, fmt.Errorf("check suppression: %w", err)
	}
	now := l.now()
	found := make([]*Entry, len(to))
	for i, v := range values {
		at := i / len(scopes)
		if v == nil || found[at] != nil {
			continue
		}
		e, err := decode(v)
		if err != nil {
			return nil, fmt.Errorf("check suppression: %w", err)
		}
		if e.ExpiresAt.IsZero() || e.ExpiresAt.After(now) {
			e.Account, e.Scope = account, scopes[i%len(scopes)]
			found[at] = &e
		}
	}
	return found, nil
}

func scopesOf(broadcast bool) []string {
	if broadcast {
		return []string{Global, Broadcast}
	}
	return []string{Global}
}

// Add stores an entry durably; created is false when a live one of that account, mailbox and scope stood there, which is
// then left as it is, so that the first reason and its source are kept.
func (l *List) Add(ctx context.Context, e Entry) (created bool, err error) {
	err = l.db.Update(ctx, func(tx kv.Tx) (err error) {
		created, err = l.AddNewTx(tx, e)
		return err
	})
	return created, err
}

// AddTx is Add inside a transaction, for callers to whom created is all the same.
func (l *List) AddTx(tx kv.Tx, e Entry) error {
	_, err := l.AddNewTx(tx, e)
	return err
}

// AddNewTx is Add inside a transaction.
func (l *List) AddNewTx(tx kv.Tx, e Entry) (created bool, err error) {
	to, err := check(&e, l.now())
	if err != nil {
		return false, err
	}
	k := key(e.Account, to, e.Scope)
	old, err := tx.Get(table, k)
	if err != nil {
		return false, fmt.Errorf("add suppression: %w", err)
	}
	if old != nil {
		was, err := decode(old)
		if err != nil {
			return false, fmt.Errorf("add suppression: %w", err)
		}
		if !replaces(e, was, l.now()) {
			return false, nil
		}
		created = !was.ExpiresAt.IsZero() && !was.ExpiresAt.After(l.now())
		return created, tx.Put(table, k, encode(e))
	}
	return true, tx.Put(table, k, encode(e))
}

// replaces tells whether e takes the place of was: an entry that lasts longer does.
func replaces(e, was Entry, now time.Time) bool {
	switch {
	case was.ExpiresAt.IsZero():
		return false
	case !was.ExpiresAt.After(now):
		return true
	}
	return e.ExpiresAt.IsZero() || e.ExpiresAt.After(was.ExpiresAt)
}

// check validates e and sets what it leaves open.
func check(e *Entry, now time.Time) (mail.Path, error) {
	to, err := mail.ParsePath(strings.TrimSpace(e.Address))
	if err != nil {
		return to, fmt.Errorf("%w: %w", ErrBadEntry, err)
	}
	e.Address = to.String()
	if e.Account == "" || len(e.Account) > maxAccount || strings.IndexByte(e.Account, 0) >= 0 {
		return to, fmt.Errorf("%w: account %q", ErrBadEntry, mail.CleanText(e.Account, 40))
	}
	if e.Scope == "" {
		e.Scope = Global
	}
	if e.Scope != Global && e.Scope != Broadcast {
		return to, fmt.Errorf("%w: scope %q is not global or broadcast", ErrBadEntry, mail.CleanText(e.Scope, 40))
	}
	if e.Reason == "" {
		e.Reason = Manual
	}
	switch e.Reason {
	case HardBounce, Complaint, Unsubscribe, Manual, Invalid:
	default:
		return to, fmt.Errorf("%w: reason %q is not hard_bounce, complaint, unsubscribe, manual or invalid", ErrBadEntry,
			mail.CleanText(e.Reason, 40))
	}
	e.Source, e.Note = mail.CleanText(e.Source, maxText), mail.CleanText(e.Note, maxText)
	if e.CreatedAt.IsZero() {
		e.CreatedAt = now
	}
	if !e.ExpiresAt.IsZero() && !e.ExpiresAt.After(now) {
		return to, fmt.Errorf("%w: expires_at is not in the future", ErrBadEntry)
	}
	return to, nil
}

// Remove deletes the mailbox's entry of that scope, or of all scopes for "". It returns how many there were.
func (l *List) Remove(ctx context.Context, account string, to mail.Path, scope string) (n int, err error) {
	scopes := []string{scope}
	if scope == "" {
		scopes = scopesOf(true)
	}
	err = l.db.Update(ctx, func(tx kv.Tx) error {
		n = 0
		for _, s := range scopes {
			k := key(account, to, s)
			v, err := tx.Get(table, k)
			if err != nil || v == nil {
				if err != nil {
					return fmt.Errorf("remove suppression: %w", err)
				}
				continue
			}
			if err := tx.Delete(table, k); err != nil {
				return fmt.Errorf("remove suppression: %w", err)
			}
			n++
		}
		return nil
	})
	return n, err
}

// Get returns all entries of a mailbox, expired ones too.
func (l *List) Get(ctx context.Context, account string, to mail.Path) ([]Entry, error) {
	prefix := append(accountKey(account), to.Key()+"\x00"...)
	var found []Entry
	err := l.db.View(ctx, func(tx kv.Tx) error {
		found = nil
		return tx.Scan(table, prefix, kv.PrefixEnd(prefix), func(k, v []byte) (bool, error) {
			e, err := entryOf(account, k, v)
			found = append(found, e)
			return true, err
		})
	})
	return found, err
}

// maxPage bounds what List returns at once.
const maxPage = 1000

// List returns up to limit entries of an account in order of address, and the cursor of the next page, "" at the end.
func (l *List) List(ctx context.Context, account, cursor string, limit int) (page []Entry, next string, err error) {
	prefix := accountKey(account)
	from := prefix
	if cursor != "" {
		rest, err := base64.RawURLEncoding.DecodeString(cursor)
		if err != nil || len(rest) > 600 {
			return nil, "", ErrBadCursor
		}
		from = append(append(accountKey(account), rest...), 0)
	}
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	err = l.db.View(ctx, func(tx kv.Tx) error {
		page, next = nil, ""
		var last []byte
		return tx.Scan(table, from, kv.PrefixEnd(prefix), func(k, v []byte) (bool, error) {
			if len(page) == limit {
				next = base64.RawURLEncoding.EncodeToString(last)
				return false, nil
			}
			e, err := entryOf(account, k, v)
			page = append(page, e)
			last = append(last[:0], k[len(prefix):]...)
			return true, err
		})
	})
	return page, next, err
}

func entryOf(account string, k, v []byte) (Entry, error) {
	e, err := decode(v)
	e.Account, e.Scope = account, string(k[strings.LastIndexByte(string(k), 0)+1:])
	return e, err
}

// key is account NUL mailbox NUL scope. None of the three can hold a NUL.
func key(account string, to mail.Path, scope string) []byte {
	return append(append(append(accountKey(account), to.Key()...), 0), scope...)
}

func accountKey(account string) []byte { return append([]byte(account), 0) }
