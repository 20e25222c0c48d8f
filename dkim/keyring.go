package dkim

import "errors"

// Errors of a Keyring.
var (
	ErrNoKey  = errors.New("no DKIM key")
	ErrExists = errors.New("DKIM key exists")
)

// Keyring holds the keys of all domains.
type Keyring struct{}

// Open reads the keys in dir, which is made when it does not exist.
func Open(dir string) (*Keyring, error) { panic("CONTRACT STUB") }

// Keys returns the keys that sign for a domain now.
func (k *Keyring) Keys(domain string) []*Key { panic("CONTRACT STUB") }

// AllKeys returns the keys of a domain in all states.
func (k *Keyring) AllKeys(domain string) []*Key { panic("CONTRACT STUB") }

// Domains returns the domains that have a key.
func (k *Keyring) Domains() []string { panic("CONTRACT STUB") }

// Generate makes a pending key.
func (k *Keyring) Generate(domain, selector string, alg Algorithm) (*Key, error) {
	panic("CONTRACT STUB")
}

// AddDomain makes an active key of each algorithm, and returns those that are there already.
func (k *Keyring) AddDomain(domain string) ([]*Key, error) { panic("CONTRACT STUB") }

// Rotate makes a pending key of each algorithm.
func (k *Keyring) Rotate(domain string) ([]*Key, error) { panic("CONTRACT STUB") }

// Activate lets a key sign and retires the domain's other keys of its algorithm.
func (k *Keyring) Activate(domain, selector string) error { panic("CONTRACT STUB") }

// Retire ends signing with a key.
func (k *Keyring) Retire(domain, selector string) error { panic("CONTRACT STUB") }

// LoadFile reads a key that the configuration names; it signs at once and is not kept in the directory.
func (k *Keyring) LoadFile(domain, selector, path string) (*Key, error) { panic("CONTRACT STUB") }
