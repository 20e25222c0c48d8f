package spool

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// schemaVersion is the layout of the tables. Open refuses a store of a newer one and migrates an older one: version 2
// added the notes and the index of outcomes.
const schemaVersion = 2

// schemaOf reads the version of a store, 0 of an empty one.
func schemaOf(record []byte) (uint64, error) {
	if record == nil {
		return 0, nil
	}
	v, n := binary.Uvarint(record)
	switch {
	case n <= 0 || v == 0:
		return 0, fmt.Errorf("schema %w", ErrCorrupt)
	case v > schemaVersion:
		return v, fmt.Errorf("%w: the store has version %d, this program knows %d: use the newer program", ErrSchema, v, schemaVersion)
	}
	return v, nil
}

func putSchema(tx kv.Tx) error {
	return tx.Put(tableSpool, keySchema, binary.AppendUvarint(nil, schemaVersion))
}

// migrate brings the tables of an older version up to date. It may be interrupted and begun again.
func (s *Store) migrate(ctx context.Context, from uint64) error {
	if from == schemaVersion {
		return nil
	}
	s.log.Info("spool.migrating", "reason", fmt.Sprintf("version %d to %d", from, schemaVersion))
	if from == 1 {
		if err := s.indexOutcomes(ctx); err != nil {
			return err
		}
	}
	return s.db.Update(ctx, putSchema)
}

// indexOutcomes makes the outcomes of a store of version 1 findable, in slices.
func (s *Store) indexOutcomes(ctx context.Context) error {
	const slice = 1000
	var after []byte
	for {
		var entries []indexed
		var last time.Time
		err := s.db.View(ctx, func(tx kv.Tx) error {
			return tx.Scan(tableOutcome, after, nil, func(k, v []byte) (bool, error) {
				id, err := mail.EnvelopeIDFromKey(k)
				if err != nil {
					return false, err
				}
				o, err := decodeOutcome(id, v)
				if err != nil {
					return false, err
				}
				if o.SettledAt.After(last) {
					last = o.SettledAt
				}
				entries = append(entries, indexed{hashText(o.To.String()), hashText(o.MessageID), bytes.Clone(k)})
				return len(entries) < slice, nil
			})
		})
		if err != nil || len(entries) == 0 {
			return err
		}
		err = s.db.Update(ctx, func(tx kv.Tx) error {
			return tx.Put(tableSettled, s.settledKey(last), appendSettled(entries))
		})
		if err != nil {
			return err
		}
		after = append(entries[len(entries)-1].key, 0)
	}
}
