package account

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"relayd/internal/mail"
)

// The scopes that stand for others.
const (
	ScopeAll   = "all"   // every scope but admin, within the key's account
	ScopeAdmin = "admin" // every scope, in every account
)

// Scopes returns every scope that a key may hold, without "all".
func Scopes() []string {
	return []string{
		"messages:send", "messages:read", "campaigns:read", "campaigns:write", "campaigns:send", "contacts:read",
		"contacts:write", "contacts:import", "templates:read", "templates:write", "queue:read", "queue:write",
		"suppressions:read", "suppressions:write", "suppressions:delete", "events:read", "events:publish", "rules:write",
		"domains:read", "domains:write", "credentials:read", "credentials:write", "webhooks:write", "stats:read",
		"keys:read", "keys:write", ScopeAdmin,
	}
}

// Allows tells whether the key holds scope.
func (k Key) Allows(scope string) bool {
	for _, has := range k.Scopes {
		if has == scope || has == ScopeAdmin || has == ScopeAll && scope != ScopeAdmin {
			return true
		}
	}
	return false
}

// keyRecord is what is stored of a key.
type keyRecord struct {
	Key
	Hash secretHash `json:"hash"`
}

const (
	keyPrefix   = "key_"
	tokenPrefix = "rk_live_"
	maxKeyName  = 100
)

// CreateKey stores a new key and returns its token, rk_live_<id>_<secret>, which cannot be read again. ErrInvalid for an
// unknown scope, none at all, or a bad name.
func (s *Store) CreateKey(ctx context.Context, account, name string, scopes []string) (Key, string, error) {
	account = cmp.Or(account, Default)
	if err := checkAccount(account); err != nil {
		return Key{}, "", err
	}
	if mail.CleanText(name, maxKeyName) != name {
		return Key{}, "", fmt.Errorf("%w: name: at most %d bytes of printable text", ErrInvalid, maxKeyName)
	}
	scopes = slices.Clone(scopes)
	slices.Sort(scopes)
	scopes = slices.Compact(scopes)
	if len(scopes) == 0 {
		return Key{}, "", fmt.Errorf("%w: a key needs at least one scope", ErrInvalid)
	}
	known := Scopes()
	for _, scope := range scopes {
		if scope != ScopeAll && !slices.Contains(known, scope) {
			return Key{}, "", fmt.Errorf("%w: scope %q; known are all %s", ErrInvalid, mail.CleanText(scope, 40), strings.Join(known, " "))
		}
	}
	s.change.Lock()
	defer s.change.Unlock()
	if len(s.keys) >= maxObjects {
		return Key{}, "", ErrTooMany
	}
	secret, hash := newSecret()
	now := s.time()
	id := newID(now)
	record := keyRecord{Key{keyPrefix + id, account, name, scopes, now}, hash}
	if err := s.put(ctx, keyTable, record.ID, record, func() { s.keys[record.ID] = record }); err != nil {
		return Key{}, "", err
	}
	return record.Key, tokenPrefix + id + "_" + secret, nil
}

// CheckKey returns the key whose token this is, else ErrBadCredentials, whatever is wrong with it. It does no I/O and
// takes the same time for tokens of any length and for unknown IDs.
func (s *Store) CheckKey(_ context.Context, token string) (Key, error) {
	rest, live := strings.CutPrefix(token, tokenPrefix)
	id, secret, _ := strings.Cut(rest, "_")
	s.mu.RLock()
	record, known := s.keys[keyPrefix+id]
	s.mu.RUnlock()
	if right := record.Hash.is(secret); !live || !known || !right {
		return Key{}, ErrBadCredentials
	}
	return record.Key, nil
}

// Key returns the key of that ID.
func (s *Store) Key(id string) (Key, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	record, ok := s.keys[id]
	return record.Key, ok
}

// Keys returns the keys of an account, of all accounts for "", oldest first.
func (s *Store) Keys(_ context.Context, account string) ([]Key, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []Key
	for _, record := range s.keys {
		if account == "" || record.Account == account {
			all = append(all, record.Key)
		}
	}
	slices.SortFunc(all, func(a, b Key) int { return cmp.Compare(a.ID, b.ID) })
	return all, nil
}

// RevokeKey removes a key. CheckKey refuses it from the moment this returns. ErrNotFound when there is none of that ID.
func (s *Store) RevokeKey(ctx context.Context, id string) error {
	s.change.Lock()
	defer s.change.Unlock()
	if _, ok := s.Key(id); !ok {
		return fmt.Errorf("%w: key", ErrNotFound)
	}
	return s.remove(ctx, keyTable, id, func() { delete(s.keys, id) })
}
