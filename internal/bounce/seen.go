package bounce

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"relayd/internal/kv"
)

// tableSeen remembers which reports were counted: what they are about → when.
const tableSeen = kv.Table("bounce_seen")

// SeenTx notes in tx that something was reported, and tells whether it had been before. about names the mail and what
// became of it; it has at most 512 octets.
func SeenTx(tx kv.Tx, about string, now time.Time) (before bool, err error) {
	key := []byte(about)[:min(len(about), 512)]
	old, err := tx.Get(tableSeen, key)
	if err != nil || old != nil {
		return old != nil, err
	}
	return false, tx.Put(tableSeen, key, binary.BigEndian.AppendUint64([]byte{1}, uint64(max(0, now.Unix())))) //nolint:gosec // not negative
}

// purgeScan bounds what one call of Purge looks at.
const purgeScan = 50_000

// Purge forgets at most most reports from before a time.
func Purge(ctx context.Context, db kv.DB, before time.Time, most int) (n int, err error) {
	err = db.Update(ctx, func(tx kv.Tx) error {
		n = 0
		var old [][]byte
		looked := 0
		err := tx.Scan(tableSeen, nil, nil, func(k, v []byte) (bool, error) {
			looked++
			if len(v) == 9 && int64(binary.BigEndian.Uint64(v[1:])) < before.Unix() { //nolint:gosec // times
				old = append(old, append([]byte(nil), k...))
			}
			return len(old) < most && looked < purgeScan, nil
		})
		if err != nil {
			return err
		}
		for _, k := range old {
			if err := tx.Delete(tableSeen, k); err != nil {
				return err
			}
		}
		n = len(old)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("purge reports: %w", err)
	}
	return n, nil
}
