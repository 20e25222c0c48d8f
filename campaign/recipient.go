package campaign

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// recipient is one contact of a campaign before it is queued.
type recipient struct {
	to           mail.Path
	attributes   []attribute
	unsubscribed bool // remembered so that a later row of the same address does not bring it back
}

const flagUnsubscribed = 1

// number derives the N of the recipient's envelope from campaign and mailbox, so that one mailbox has one envelope. The
// campaign is part of it, so that not the same people are always the last. The highest bit is zero: the highest number
// means "before the first" in the spool's lists.
func number(id mail.QueueID, key string) uint64 {
	h := sha256.New()
	h.Write(id[:])
	h.Write([]byte(key))
	return binary.BigEndian.Uint64(h.Sum(nil)) &^ (1 << 63)
}

func recipientKey(id mail.QueueID, n uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 20), id[:]...), n)
}

func (r *recipient) encode() []byte {
	flags := byte(0)
	if r.unsubscribed {
		flags = flagUnsubscribed
	}
	b := appendText([]byte{recordVersion, flags}, r.to.String())
	return appendAttributes(b, r.attributes)
}

// decodeRecipient does not read the attributes: their record is returned as it is.
func decodeRecipient(s string) (r recipient, attributes string, err error) {
	if len(s) < 2 || s[0] != recordVersion {
		return r, "", fmt.Errorf("%w: unknown version of recipient", errBadRecord)
	}
	address, rest, ok := cutText(s[2:])
	if !ok {
		return r, "", fmt.Errorf("%w: recipient", errBadRecord)
	}
	r.unsubscribed = s[1]&flagUnsubscribed != 0
	if r.to, err = mail.ParsePath(address); err != nil {
		return r, "", fmt.Errorf("%w: %w", errBadRecord, err)
	}
	return r, rest, nil
}

// snapshot is what an envelope carries of its recipient: when it was queued, which is the message's Date, and the
// attributes as they were then.
func snapshot(at time.Time, attributes string) []byte {
	b := make([]byte, 0, 10+len(attributes))
	b = append(b, recordVersion)
	b = binary.AppendUvarint(b, uint64(at.Unix())) //nolint:gosec // after 1970
	return append(b, attributes...)
}

func readSnapshot(data []byte) (at time.Time, list []attribute, err error) {
	at, rest, err := cutSnapshot(data)
	if err != nil {
		return at, nil, err
	}
	list, err = readAttributes(make([]attribute, 0, 8), rest)
	return at, list, err
}

// cutSnapshot does not read the attributes: their record is returned as it is.
func cutSnapshot(data []byte) (at time.Time, attributes string, err error) {
	if len(data) == 0 || data[0] != recordVersion {
		return at, "", fmt.Errorf("%w: unknown version of merge data", errBadRecord)
	}
	sec, rest, ok := cutUvarint(string(data[1:]))
	if !ok || sec > 1<<40 {
		return at, "", fmt.Errorf("%w: merge data", errBadRecord)
	}
	return time.Unix(int64(sec), 0).UTC(), rest, nil //nolint:gosec // checked
}

// added counts what became of the rows of one batch.
type added struct {
	created, duplicates, skipped int64
	total                        int64 // change of the number of recipients
}

// putRecipients stores a batch in tx. One mailbox is one recipient, whatever its spelling: the last row wins, but an
// unsubscribed mailbox stays so.
func putRecipients(tx kv.Tx, id mail.QueueID, batch []recipient) (added, error) {
	var sum added
	keys := make([][]byte, len(batch))
	for i := range batch {
		keys[i] = recipientKey(id, number(id, batch[i].to.Key()))
	}
	stored, err := tx.GetMany(tableRecipient, keys)
	if err != nil {
		return sum, fmt.Errorf("read recipients: %w", err)
	}
	staged := make(map[uint64]*recipient, len(batch))
	for i := range batch {
		r := &batch[i]
		n := binary.BigEndian.Uint64(keys[i][12:])
		old, n, err := findSlot(tx, id, n, stored[i], staged, r.to.Key())
		if err != nil {
			return sum, err
		}
		switch {
		case old == nil && r.unsubscribed:
			sum.skipped++
		case old == nil:
			sum.created++
			sum.total++
		case old.unsubscribed:
			sum.skipped++
			continue
		case r.unsubscribed:
			sum.skipped++
			sum.total--
		default:
			sum.duplicates++
		}
		staged[n] = r
	}
	for n, r := range staged {
		if err := tx.Put(tableRecipient, recipientKey(id, n), r.encode()); err != nil {
			return sum, fmt.Errorf("write recipient: %w", err)
		}
	}
	return sum, nil
}

// findSlot looks from n on for the mailbox, or for a free number: two mailboxes with one hash get neighbouring ones.
func findSlot(tx kv.Tx, id mail.QueueID, n uint64, stored []byte, staged map[uint64]*recipient, key string) (*recipient, uint64, error) {
	for first := true; ; n, first = (n+1)&^(1<<63), false {
		if r := staged[n]; r != nil {
			if r.to.Key() == key {
				return r, n, nil
			}
			continue
		}
		if !first {
			var err error
			if stored, err = tx.Get(tableRecipient, recipientKey(id, n)); err != nil {
				return nil, 0, fmt.Errorf("read recipient: %w", err)
			}
		}
		if stored == nil {
			return nil, n, nil
		}
		r, _, err := decodeRecipient(string(stored))
		if err != nil {
			return nil, 0, err
		}
		if r.to.Key() == key {
			return &r, n, nil
		}
	}
}

// row is a stored recipient with its number.
type row struct {
	recipient
	n    uint64
	data string // attributes as stored
}

// scanRecipients reads up to most rows with numbers from n on.
func scanRecipients(tx kv.Tx, id mail.QueueID, n uint64, most int) ([]row, error) {
	rows := make([]row, 0, min(most, 1000))
	err := tx.Scan(tableRecipient, recipientKey(id, n), kv.PrefixEnd(id[:]), func(k, v []byte) (bool, error) {
		if len(rows) == most {
			return false, nil
		}
		r, data, err := decodeRecipient(string(v))
		rows = append(rows, row{r, binary.BigEndian.Uint64(k[12:]), data})
		return true, err
	})
	if err != nil {
		return nil, fmt.Errorf("read recipients: %w", err)
	}
	return rows, nil
}
