package intake

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// The rows of X-Relay-Idempotency-Key, and an index of them by time, for Purge.
const (
	keyTable    = kv.Table("intake-key")
	keyAgeTable = kv.Table("intake-key-age")

	keyVersion = 1
	keyRowSize = 1 + sha256.Size + len(mail.QueueID{}) + 8
)

// keyLife is how long a key is remembered.
const keyLife = 24 * time.Hour

// errRepeated carries the queue ID that an earlier message with the same key and content got.
type errRepeated struct{ id mail.QueueID }

func (e errRepeated) Error() string { return "message was accepted before as " + e.id.String() }

var errKeyReused = refuse(554, 6, 0, "X-Relay-Idempotency-Key was used for a message with other content within 24 hours")

// keyRow is the key of the row: whose key it is, and a digest, so that its length is bounded.
func (t *taking) keyRow() []byte {
	h := sha256.New()
	for _, s := range []string{t.account, t.sub.Credential, t.controls.key} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		_, _ = io.WriteString(h, s)
	}
	return h.Sum(nil)
}

// fingerprint is what "the same content" means: sender, recipients, the body, and the header but for what a client
// writes anew when it tries again.
func (t *taking) fingerprint() [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n", t.sub.ReversePath, t.stream)
	to := make([]string, 0, len(t.sub.Recipients))
	for _, r := range t.sub.Recipients {
		to = append(to, r.To.String())
	}
	slices.Sort(to)
	fmt.Fprintf(h, "%s\n\n", strings.Join(slices.Compact(to), "\n"))
	for _, f := range t.header.fields {
		switch strings.ToLower(f.Name) {
		case "received", "date", "message-id", "dkim-signature":
		default:
			h.Write(f.Raw)
		}
	}
	h.Write(t.sum[:])
	return [sha256.Size]byte(h.Sum(nil))
}

// claimKey makes the key the message's, in the transaction that stores it. It fails with errRepeated where an equal
// message had it before, with errKeyReused where another one had.
func (t *taking) claimKey() func(kv.Tx) error {
	key, content := t.keyRow(), t.fingerprint()
	return func(tx kv.Tx) error {
		old, err := tx.Get(keyTable, key)
		if err != nil {
			return err
		}
		if old != nil {
			was, err := decodeKeyRow(old)
			if err != nil {
				return err
			}
			// Its own row means that the transaction runs again after a commit of unknown outcome.
			if was.id != t.id && was.at.After(t.now.Add(-keyLife)) {
				if was.content == content {
					return errRepeated{was.id}
				}
				return errKeyReused
			}
		}
		row := append([]byte{keyVersion}, content[:]...)
		row = append(row, t.id[:]...)
		at := nanos(t.now)
		if err := tx.Put(keyTable, key, append(row, at...)); err != nil {
			return err
		}
		return tx.Put(keyAgeTable, append(at, key...), []byte{keyVersion})
	}
}

type usedKey struct {
	content [sha256.Size]byte
	id      mail.QueueID
	at      time.Time
}

func decodeKeyRow(b []byte) (usedKey, error) {
	var k usedKey
	if len(b) != keyRowSize || b[0] != keyVersion {
		return k, errors.New("idempotency key: unknown record version")
	}
	b = b[1:]
	b = b[copy(k.content[:], b):]
	b = b[copy(k.id[:], b):]
	k.at = time.Unix(0, int64(binary.BigEndian.Uint64(b))) //nolint:gosec // written from 63 bits
	return k, nil
}

func nanos(t time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(t.UnixNano())) //nolint:gosec // times before 1970 do not occur
}

// PurgeKeys forgets at most `most` idempotency keys that nobody can repeat any more.
func (in *Intake) PurgeKeys(ctx context.Context, most int) (n int, err error) {
	end := nanos(in.deps.Now().Add(-keyLife))
	err = in.deps.DB.Update(ctx, func(tx kv.Tx) error {
		n = 0
		var ages, keys [][]byte
		err := tx.Scan(keyAgeTable, nil, end, func(k, _ []byte) (bool, error) {
			ages = append(ages, bytes.Clone(k))
			keys = append(keys, bytes.Clone(k[8:]))
			return len(ages) < most, nil
		})
		if err != nil || len(ages) == 0 {
			return err
		}
		rows, err := tx.GetMany(keyTable, keys)
		if err != nil {
			return err
		}
		for i := range ages {
			if row := rows[i]; len(row) == keyRowSize && bytes.Equal(row[keyRowSize-8:], ages[i][:8]) { // not used anew since
				if err := tx.Delete(keyTable, keys[i]); err != nil {
					return err
				}
			}
			if err := tx.Delete(keyAgeTable, ages[i]); err != nil {
				return err
			}
		}
		n = len(ages)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("purge idempotency keys: %w", err)
	}
	return n, nil
}
