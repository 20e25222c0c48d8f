package mail

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ErrBadID is returned when a text is not a queue ID or an envelope ID.
var ErrBadID = errors.New("not a queue ID")

// idText is base32 with an alphabet in byte order, so that the text of IDs sorts as their bytes do.
var idText = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// QueueID names one message in the 250 reply, in Received, in logs and in the API. It begins with the time of
// acceptance in milliseconds (48 bits, big endian), then 48 random bits: IDs sort by time, cannot be guessed from one
// another, and need no counter shared between nodes.
type QueueID [12]byte

// NewQueueID makes the ID of a message accepted at t.
func NewQueueID(t time.Time) QueueID {
	var id QueueID
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(t.UnixMilli())) //nolint:gosec // times before 1970 do not occur
	copy(id[:6], ms[2:])
	_, _ = rand.Read(id[6:]) // never fails since Go 1.24
	return id
}

// ParseQueueID is the inverse of String. It accepts upper case.
func ParseQueueID(s string) (QueueID, error) {
	var id QueueID
	if len(s) != 20 {
		return id, fmt.Errorf("%w: %q", ErrBadID, s)
	}
	b, err := idText.DecodeString(strings.ToLower(s))
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%w: %q", ErrBadID, s)
	}
	copy(id[:], b)
	if id.String() != strings.ToLower(s) { // spare bits of the last character must be zero
		return QueueID{}, fmt.Errorf("%w: %q", ErrBadID, s)
	}
	return id, nil
}

// String returns 20 lower-case characters.
func (id QueueID) String() string { return idText.EncodeToString(id[:]) }

// IsZero tells whether the ID was never set.
func (id QueueID) IsZero() bool { return id == QueueID{} }

// Time is when the message was accepted, to the millisecond.
func (id QueueID) Time() time.Time {
	var ms [8]byte
	copy(ms[2:], id[:6])
	return time.UnixMilli(int64(binary.BigEndian.Uint64(ms[:]))).UTC() //nolint:gosec // 48 bits
}

// MarshalText and UnmarshalText make the ID a string in JSON.
func (id QueueID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText parses what MarshalText wrote.
func (id *QueueID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseQueueID(string(b))
	return err
}

// EnvelopeID names one message to one recipient: queueID.n. For a submitted message n counts its recipients from 0;
// for a campaign n is derived from the recipient's address, so that a repeated fan-out page meets its own envelopes.
type EnvelopeID struct {
	Message QueueID
	N       uint64
}

// ParseEnvelopeID is the inverse of String.
func ParseEnvelopeID(s string) (EnvelopeID, error) {
	q, n, ok := strings.Cut(s, ".")
	if !ok {
		return EnvelopeID{}, fmt.Errorf("%w: %q", ErrBadID, s)
	}
	id, err := ParseQueueID(q)
	if err != nil {
		return EnvelopeID{}, err
	}
	v, err := strconv.ParseUint(n, 36, 64)
	if err != nil {
		return EnvelopeID{}, fmt.Errorf("%w: %q", ErrBadID, s)
	}
	return EnvelopeID{id, v}, nil
}

// String returns queueID.n with n in base 36.
func (e EnvelopeID) String() string { return e.Message.String() + "." + strconv.FormatUint(e.N, 36) }

// AppendKey appends the 20 bytes by which stores order envelopes: all of one message stand together.
func (e EnvelopeID) AppendKey(b []byte) []byte {
	b = append(b, e.Message[:]...)
	return binary.BigEndian.AppendUint64(b, e.N)
}

// EnvelopeKeySize is the length of what AppendKey appends.
const EnvelopeKeySize = 20

// EnvelopeIDFromKey is the inverse of AppendKey.
func EnvelopeIDFromKey(b []byte) (EnvelopeID, error) {
	if len(b) != EnvelopeKeySize {
		return EnvelopeID{}, fmt.Errorf("%w: key of %d bytes", ErrBadID, len(b))
	}
	return EnvelopeID{QueueID(b[:12]), binary.BigEndian.Uint64(b[12:])}, nil
}

// MarshalText makes the ID a string in JSON.
func (e EnvelopeID) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText parses what MarshalText wrote.
func (e *EnvelopeID) UnmarshalText(b []byte) (err error) {
	*e, err = ParseEnvelopeID(string(b))
	return err
}
