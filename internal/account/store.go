package account

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Errors of this package.
var (
	ErrNotFound       = errors.New("no such account object")
	ErrExists         = errors.New("domain exists already")
	ErrConfigured     = errors.New("domain is set in the configuration file")
	ErrInvalid        = errors.New("invalid value")
	ErrUnknownDomain  = errors.New("domain is not known")
	ErrBadCredentials = errors.New("bad credentials")
	ErrTooMany        = errors.New("too many objects")
)

// Default is the account that exists always.
const Default = "default"

const (
	domainTable     = kv.Table("domain")
	credentialTable = kv.Table("credential")
	keyTable        = kv.Table("key")
	pepperTable     = kv.Table("pepper")
	// recordVersion is the first byte of every record; the rest is JSON. An unknown version is an error.
	recordVersion = 1
	// credentialVersion is that of credentials: version 2 added the SCRAM verifier.
	credentialVersion = 2
	// maxObjects bounds each of the three kinds, because all of them are kept in memory.
	maxObjects = 100_000
)

// Store keeps domains, credentials and keys. What it answers comes from memory, without I/O: the index is rebuilt by
// Open and changed after each change is durable, so that a revoked credential or key fails at once. Its methods may be
// called from many goroutines.
type Store struct {
	db  kv.DB
	now func() time.Time

	change sync.Mutex // held by one change from its check to its place in the index

	mu          sync.RWMutex
	configured  map[string]Domain
	domains     map[string]Domain
	credentials map[string]credentialRecord
	keys        map[string]keyRecord

	pepper [32]byte // of the verifiers that Scram makes up
}

// Open reads all records. now is the clock, nil for time.Now.
func Open(ctx context.Context, db kv.DB, now func() time.Time) (*Store, error) {
	if now == nil {
		now = time.Now
	}
	s := &Store{db: db, now: now}
	if err := s.loadPepper(ctx); err != nil {
		return nil, fmt.Errorf("load pepper: %w", err)
	}
	return s, s.Reload(ctx)
}

// loadPepper reads the pepper, or makes one. It outlives a restart: a verifier that was another one after each would tell
// that there is no such user.
func (s *Store) loadPepper(ctx context.Context) error {
	key := []byte("scram")
	return s.db.Update(ctx, func(tx kv.Tx) error {
		b, err := tx.Get(pepperTable, key)
		switch {
		case err != nil:
			return err
		case b == nil:
			_, _ = rand.Read(s.pepper[:]) // never fails since Go 1.24
			return tx.Put(pepperTable, key, append([]byte{recordVersion}, s.pepper[:]...))
		case len(b) != 1+len(s.pepper) || b[0] != recordVersion:
			return errors.New("unknown record version")
		}
		copy(s.pepper[:], b[1:])
		return nil
	})
}

// Reload reads all records again, for stores that another process may have changed.
func (s *Store) Reload(ctx context.Context) error {
	s.change.Lock()
	defer s.change.Unlock()
	var domains map[string]Domain
	var credentials map[string]credentialRecord
	var keys map[string]keyRecord
	err := s.db.View(ctx, func(tx kv.Tx) (err error) {
		if domains, err = load[Domain](tx, domainTable); err != nil {
			return err
		}
		if credentials, err = load[credentialRecord](tx, credentialTable); err != nil {
			return err
		}
		keys, err = load[keyRecord](tx, keyTable)
		return err
	})
	if err != nil {
		return fmt.Errorf("load accounts: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.domains, s.credentials, s.keys = domains, credentials, keys
	return nil
}

func load[T any](tx kv.Tx, table kv.Table) (map[string]T, error) {
	all := map[string]T{}
	err := tx.Scan(table, nil, nil, func(key, value []byte) (bool, error) {
		if len(value) == 0 || value[0] < recordVersion || value[0] > newestVersion(table) {
			return false, fmt.Errorf("%s %q: unknown record version", table, key)
		}
		var record T
		if err := json.Unmarshal(value[1:], &record); err != nil {
			return false, fmt.Errorf("%s %q: %w", table, key, err)
		}
		all[string(key)] = record
		return true, nil
	})
	return all, err
}

func newestVersion(table kv.Table) byte {
	if table == credentialTable {
		return credentialVersion
	}
	return recordVersion
}

// put stores record and then, durable, calls index under the lock.
func (s *Store) put(ctx context.Context, table kv.Table, key string, record any, index func()) error {
	b, err := json.Marshal(record)
	if err == nil {
		err = s.db.Update(ctx, func(tx kv.Tx) error {
			return tx.Put(table, []byte(key), append([]byte{newestVersion(table)}, b...))
		})
	}
	if err != nil {
		return fmt.Errorf("put %s %s: %w", table, key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	index()
	return nil
}

// remove deletes a record and then, durable, calls index under the lock.
func (s *Store) remove(ctx context.Context, table kv.Table, key string, index func()) error {
	err := s.db.Update(ctx, func(tx kv.Tx) error { return tx.Delete(table, []byte(key)) })
	if err != nil {
		return fmt.Errorf("remove %s %s: %w", table, key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	index()
	return nil
}

// SetConfigured replaces the domains of the configuration file. They are not stored, cannot be changed over the API and
// win over a stored domain of the same name.
func (s *Store) SetConfigured(domains []Domain) {
	configured := map[string]Domain{}
	for _, d := range domains {
		d.Configured = true
		d.Account = cmp.Or(d.Account, Default)
		d.Sign = cmp.Or(d.Sign, SignRequired)
		configured[d.Name] = d
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.configured = configured
}

// Values of Domain.Sign.
const (
	SignRequired = "required" // mail without an active key of the domain is refused
	SignNone     = "none"     // the operator wants it unsigned
)

// AddDomain stores a new domain of d.Account ("" means Default). ErrExists when any account has it, ErrInvalid for a bad
// name, account or Sign.
func (s *Store) AddDomain(ctx context.Context, d Domain) error {
	d.Account = cmp.Or(d.Account, Default)
	d.Sign = cmp.Or(d.Sign, SignRequired)
	name, err := mail.ParseDomain(d.Name, false)
	if err != nil {
		return fmt.Errorf("%w: domain name: %w", ErrInvalid, err)
	}
	d.Name = name
	if d.Sign != SignRequired && d.Sign != SignNone {
		return fmt.Errorf("%w: sign is %q, not required or none", ErrInvalid, d.Sign)
	}
	if err := checkAccount(d.Account); err != nil {
		return err
	}
	d.Configured, d.CreatedAt = false, s.time()
	s.change.Lock()
	defer s.change.Unlock()
	if _, ok := s.Domain(d.Name); ok {
		return fmt.Errorf("%w: %s", ErrExists, d.Name)
	}
	if len(s.domains) >= maxObjects {
		return ErrTooMany
	}
	return s.put(ctx, domainTable, d.Name, d, func() { s.domains[d.Name] = d })
}

// RemoveDomain removes a stored domain. Credentials that name it stay, without use. ErrConfigured for a domain of the
// configuration file.
func (s *Store) RemoveDomain(ctx context.Context, name string) error {
	s.change.Lock()
	defer s.change.Unlock()
	d, ok := s.Domain(name)
	switch {
	case !ok:
		return fmt.Errorf("%w: domain %s", ErrNotFound, name)
	case d.Configured:
		return fmt.Errorf("%w: %s", ErrConfigured, name)
	}
	return s.remove(ctx, domainTable, name, func() { delete(s.domains, name) })
}

// Domain returns the domain of that exact name (A-label, lower case), from memory.
func (s *Store) Domain(name string) (Domain, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if d, ok := s.configured[name]; ok {
		return d, true
	}
	d, ok := s.domains[name]
	return d, ok
}

// Domains returns the domains of an account, of all accounts for "", by name.
func (s *Store) Domains(account string) []Domain {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []Domain
	for _, d := range s.configured {
		if account == "" || d.Account == account {
			all = append(all, d)
		}
	}
	for _, d := range s.domains {
		if _, shadowed := s.configured[d.Name]; !shadowed && (account == "" || d.Account == account) {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b Domain) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// time is the clock in the precision of the API.
func (s *Store) time() time.Time { return s.now().UTC().Truncate(time.Millisecond) }

// checkAccount takes names of 1 to 32 lower-case letters, digits and hyphens: account names stand in queue names and
// in keys of stores.
func checkAccount(name string) error {
	ok := name != "" && len(name) <= 32 && name[0] != '-'
	for i := range len(name) {
		c := name[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	if !ok {
		return fmt.Errorf("%w: account %q: 1 to 32 lower-case letters, digits and hyphens", ErrInvalid, mail.CleanText(name, 40))
	}
	return nil
}

// Only tells whether everything in the store belongs to one account.
func (s *Store) Only(account string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, d := range s.configured {
		if d.Account != account {
			return false
		}
	}
	for _, d := range s.domains {
		if d.Account != account {
			return false
		}
	}
	for _, c := range s.credentials {
		if c.Account != account {
			return false
		}
	}
	for _, k := range s.keys {
		if k.Account != account {
			return false
		}
	}
	return true
}
