package account

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
)

// scramIterations is the least that RFC 7677 section 4 allows. The passwords are 256 random bits: more would cost the
// clients and gain nothing.
const scramIterations = 4096

// Scram is what SCRAM-SHA-256 (RFC 5802 section 5, RFC 7677) needs to check a password that it does not know.
type Scram struct {
	Salt       []byte `json:"salt"`
	Iterations int    `json:"iterations"`
	StoredKey  []byte `json:"stored_key"`
	ServerKey  []byte `json:"server_key"`
}

// NewScram makes the verifier of a password.
func NewScram(password string, salt []byte, iterations int) (Scram, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return Scram{}, fmt.Errorf("make SCRAM verifier: %w", err)
	}
	stored := sha256.Sum256(keyed(salted, "Client Key"))
	return Scram{salt, iterations, stored[:], keyed(salted, "Server Key")}, nil
}

func keyed(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}

func newScram(password string) (*Scram, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails since Go 1.24
	v, err := NewScram(password, salt, scramIterations)
	if err != nil {
		return nil, err
	}
	return &v, nil
}

// Scram returns the credential of that username with its verifier. For an unknown name, and for a credential that was
// made before there were verifiers, it returns ErrBadCredentials with a verifier that no password fits and that looks
// like any other, the same each time. It does no I/O.
func (s *Store) Scram(_ context.Context, username string) (Credential, Scram, error) {
	s.mu.RLock()
	record, known := s.credentials[username]
	s.mu.RUnlock()
	fake := Scram{keyed(s.pepper[:], "salt "+username)[:16], scramIterations, keyed(s.pepper[:], "stored "+username), keyed(s.pepper[:], "server "+username)}
	if !known || record.Scram == nil {
		return Credential{}, fake, ErrBadCredentials
	}
	return record.Credential, *record.Scram, nil
}
