package mail

import (
	"crypto/hmac"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"strings"
	"time"
)

// ErrBadReturnPath tells that an address is not a return path that we issued, or that its time is over.
var ErrBadReturnPath = errors.New("not a return path of ours")

const (
	verpPrefix  = "b."
	verpMACSize = 10 // 80 bits: a guess a microsecond finds one in 10^10 years
	verpSize    = 1 + EnvelopeKeySize + 2 + verpMACSize
	verpDay     = 24 * time.Hour
	// VERPLife is how long a return path is accepted after it was issued: longer than any host keeps mail in its queue.
	VERPLife = 30 * verpDay
)

// verpText survives hosts that change the case of local parts.
var verpText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// VERP makes and checks the return paths of envelopes: variable reverse-paths, with a MAC, so that a bounce tells which
// envelope it is about and nobody can invent one. All is in the address: nothing is stored. A return path is
//
//	b.BASE32(key number (1) ‖ envelope ID (20) ‖ day of issue (2) ‖ HMAC-SHA-256 over these, truncated (10))
//
// which makes a local part of 55 characters, of which the case does not matter. New ones are made with the newest key
// of the file, older keys go on checking. Its methods may be called from many goroutines.
type VERP struct{ keys *KeyFile[*MAC] }

// OpenVERP reads the key file, or makes it with one key; see KeyFile.
func OpenVERP(path string) (*VERP, error) {
	keys, err := OpenKeyFile(path, "return-path keys", func(secret []byte) (*MAC, error) { return NewMAC(secret), nil })
	if err != nil {
		return nil, err
	}
	return &VERP{keys}, nil
}

// Rotate adds a new key to the file, durably, and uses it from now on.
func (v *VERP) Rotate() error { return v.keys.Rotate() }

// Path is the return path of an envelope that is sent at that time. The same day gives the same path.
func (v *VERP) Path(id EnvelopeID, at time.Time, domain string) Path {
	number, key := v.keys.Newest()
	b := make([]byte, 0, verpSize)
	b = id.AppendKey(append(b, number))
	b = binary.BigEndian.AppendUint16(b, verpDayOf(at))
	return Path{verpPrefix + verpText.EncodeToString(append(b, verpMAC(key, b)...)), domain}
}

func verpDayOf(t time.Time) uint16 { return uint16(t.Unix() / int64(verpDay/time.Second)) } //nolint:gosec // until the year 2149

func verpMAC(key *MAC, b []byte) []byte {
	return key.Sum([]byte("relayd return path 1\x00"), b)[:verpMACSize]
}

// IsVERP tells whether a local part looks like a return path. Only Open tells whether it is one.
func IsVERP(local string) bool {
	return len(local) >= len(verpPrefix) && strings.EqualFold(local[:len(verpPrefix)], verpPrefix)
}

// Open checks the local part of a return path and returns its envelope. Every defect, an unknown key and an age of more
// than VERPLife are ErrBadReturnPath. It does no I/O.
func (v *VERP) Open(local string, now time.Time) (EnvelopeID, error) {
	if !IsVERP(local) || len(local) != len(verpPrefix)+verpText.EncodedLen(verpSize) {
		return EnvelopeID{}, ErrBadReturnPath
	}
	text := strings.ToLower(local[len(verpPrefix):])
	b, err := verpText.DecodeString(text)
	if err != nil || verpText.EncodeToString(b) != text { // the spare bits of the last character must be zero
		return EnvelopeID{}, ErrBadReturnPath
	}
	key, ok := v.keys.Key(b[0])
	signed, mac := b[:verpSize-verpMACSize], b[verpSize-verpMACSize:]
	if !ok || !hmac.Equal(mac, verpMAC(key, signed)) {
		return EnvelopeID{}, ErrBadReturnPath
	}
	issued := time.Unix(int64(binary.BigEndian.Uint16(signed[1+EnvelopeKeySize:]))*int64(verpDay/time.Second), 0)
	if now.Before(issued.Add(-verpDay)) || now.After(issued.Add(VERPLife+verpDay)) {
		return EnvelopeID{}, ErrBadReturnPath
	}
	return EnvelopeIDFromKey(signed[1 : 1+EnvelopeKeySize])
}
