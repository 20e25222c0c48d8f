package account

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"relayd/internal/mail"
)

// credentialRecord is what is stored of a credential.
type credentialRecord struct {
	Credential
	Hash  secretHash `json:"hash"`
	Scram *Scram     `json:"scram,omitempty"` // nil in records of version 1
}

// CreateCredential stores a new credential for sender domains of the account, all of them where domains is empty, and
// returns its password, which cannot be read again. ErrUnknownDomain names the first domain that the account does not
// have.
func (s *Store) CreateCredential(ctx context.Context, account string, domains []string) (Credential, string, error) {
	account = cmp.Or(account, Default)
	if err := checkAccount(account); err != nil {
		return Credential{}, "", err
	}
	s.change.Lock()
	defer s.change.Unlock()
	names := []string{}
	for _, name := range domains {
		d, err := mail.ParseDomain(name, false)
		if err != nil {
			return Credential{}, "", fmt.Errorf("%w: domain name: %w", ErrInvalid, err)
		}
		if known, ok := s.Domain(d); !ok || known.Account != account {
			return Credential{}, "", fmt.Errorf("%w: %s (add it first: relayctl domain add %s)", ErrUnknownDomain, d, d)
		}
		names = append(names, d)
	}
	slices.Sort(names)
	if len(s.credentials) >= maxObjects {
		return Credential{}, "", ErrTooMany
	}
	password, hash := newSecret()
	now := s.time()
	verifier, err := newScram(password)
	if err != nil {
		return Credential{}, "", err
	}
	record := credentialRecord{Credential{"smtp-" + newID(now)[6:], account, slices.Compact(names), now}, hash, verifier}
	err = s.put(ctx, credentialTable, record.Username, record, func() { s.credentials[record.Username] = record })
	if err != nil {
		return Credential{}, "", err
	}
	return record.Credential, password, nil
}

// Authenticate returns the credential of that username if password is its password, else ErrBadCredentials: an unknown
// name and a wrong password cost the same and look alike. It does no I/O.
func (s *Store) Authenticate(_ context.Context, username, password string) (Credential, error) {
	s.mu.RLock()
	record, known := s.credentials[username]
	s.mu.RUnlock()
	if right := record.Hash.is(password); !known || !right {
		return Credential{}, ErrBadCredentials
	}
	return record.Credential, nil
}

// Credential returns the credential of that username.
func (s *Store) Credential(username string) (Credential, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	record, ok := s.credentials[username]
	return record.Credential, ok
}

// Credentials returns the credentials of an account, of all accounts for "", by username.
func (s *Store) Credentials(_ context.Context, account string) ([]Credential, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []Credential
	for _, record := range s.credentials {
		if account == "" || record.Account == account {
			all = append(all, record.Credential)
		}
	}
	slices.SortFunc(all, func(a, b Credential) int { return cmp.Compare(a.Username, b.Username) })
	return all, nil
}

// RevokeCredential removes a credential. Authenticate refuses it from the moment this returns. ErrNotFound when there is
// none of that name.
func (s *Store) RevokeCredential(ctx context.Context, username string) error {
	s.change.Lock()
	defer s.change.Unlock()
	if _, ok := s.Credential(username); !ok {
		return fmt.Errorf("%w: credential", ErrNotFound)
	}
	return s.remove(ctx, credentialTable, username, func() { delete(s.credentials, username) })
}
