package account

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"time"
)

// secretText is base32 in lower case: a double click selects all of it, and no character needs quoting in a shell.
var secretText = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// secretHash is SHA-256 of a secret. The secrets are 256 random bits, not chosen by people: a slow hash adds nothing.
type secretHash [sha256.Size]byte

// newSecret returns 256 random bits as text, and its hash.
func newSecret() (string, secretHash) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	text := secretText.EncodeToString(b[:])
	return text, sha256.Sum256([]byte(text))
}

// maxSecret bounds what is hashed for a stranger, in bytes.
const maxSecret = 256

// is compares in constant time.
func (h secretHash) is(secret string) bool {
	if len(secret) > maxSecret {
		secret = ""
	}
	got := sha256.Sum256([]byte(secret))
	return subtle.ConstantTimeCompare(got[:], h[:]) == 1
}

// newID returns 26 characters: 48 bits of time in milliseconds and 80 random bits. IDs sort by time.
func newID(now time.Time) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(now.UnixMilli())<<16) //nolint:gosec // times before 1970 do not occur
	_, _ = rand.Read(b[6:])
	return secretText.EncodeToString(b[:])
}
