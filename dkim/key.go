package dkim

import "time"

// Algorithm is how a key signs.
type Algorithm string

// The algorithms.
const (
	RSA2048 Algorithm = "rsa2048" // rsa-sha256, RFC 6376
	Ed25519 Algorithm = "ed25519" // ed25519-sha256, RFC 8463; as a second signature only
)

// State of a key.
type State string

// The states.
const (
	Pending State = "pending" // made; to be published; does not sign yet
	Active  State = "active"  // signs
	Retired State = "retired" // signs no more; stays published until the mail that it signed has arrived
)

// Key is a signing key of one domain. It never changes: a new state is a new Key.
type Key struct {
	Domain    string
	Selector  string
	Algorithm Algorithm
	State     State
	CreatedAt time.Time
	ChangedAt time.Time // when it came into State
}

// RecordName returns the DNS name of the public key.
func (k *Key) RecordName() string { panic("CONTRACT STUB") }

// RecordValue returns the TXT value of the public key as one string.
func (k *Key) RecordValue() string { panic("CONTRACT STUB") }
