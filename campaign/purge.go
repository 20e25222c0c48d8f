package campaign

import (
	"context"
	"errors"
	"fmt"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// removeSlice is how many rows one transaction removes.
const removeSlice = 2000

// Purge forgets campaigns that ended before a time, with all their rows, at most so many rows or campaigns, in short
// transactions. It returns how many there were. Their unsubscribe links go on working.
func (s *Service) Purge(ctx context.Context, before time.Time, most int) (int, error) {
	ids, err := s.ids(ctx, "")
	if err != nil {
		return 0, err
	}
	gone := 0
	for _, id := range ids {
		if gone >= most {
			break
		}
		r, err := s.readID(ctx, id)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return gone, err
		}
		if !ended(r.State) || !r.Finished.Before(before) {
			continue
		}
		n, err := s.remove(ctx, id)
		gone += n
		if err != nil {
			return gone, fmt.Errorf("purge campaign %s: %w", formatID(id), err)
		}
	}
	return gone, nil
}

// Delete forgets a draft, or a campaign that has ended. What happened to its mail stays in the history.
func (s *Service) Delete(ctx context.Context, account, id string) error {
	r, err := s.read(ctx, account, id)
	if err != nil {
		return err
	}
	if r.State == Draft { // so that nobody starts it while its rows go
		if _, err = s.Cancel(ctx, account, id); err != nil {
			return err
		}
	} else if !ended(r.State) {
		return &StateError{"delete", r.State}
	}
	if _, err = s.remove(ctx, r.ID); err != nil {
		return fmt.Errorf("delete campaign: %w", err)
	}
	s.log.Info("campaign.removed", "campaign", id, "account", r.Account)
	return nil
}

// remove takes all rows of an ended campaign away, its own last, so that what a crash interrupts can be done again.
func (s *Service) remove(ctx context.Context, id mail.QueueID) (int, error) {
	gone := 0
	for _, table := range []kv.Table{tableLater, tableRecipient, tableFailed, tableRetried} {
		for {
			n := 0
			err := s.db.Update(ctx, func(tx kv.Tx) error {
				var keys [][]byte
				err := tx.Scan(table, id[:], kv.PrefixEnd(id[:]), func(k, _ []byte) (bool, error) {
					keys = append(keys, append([]byte(nil), k...))
					return len(keys) < removeSlice, nil
				})
				if err != nil {
					return err
				}
				for _, k := range keys {
					if err := tx.Delete(table, k); err != nil {
						return err
					}
				}
				n = len(keys)
				return nil
			})
			if err != nil {
				return gone, err
			}
			gone += n
			if n < removeSlice {
				break
			}
		}
	}
	err := s.db.Update(ctx, func(tx kv.Tx) error {
		r, err := getRecord(tx, id)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		for n := range r.Chunks {
			if err := tx.Delete(tableContent, contentKey(id, n)); err != nil {
				return err
			}
		}
		var counts [][]byte
		err = tx.Scan(tableCount, id[:], kv.PrefixEnd(id[:]), func(k, _ []byte) (bool, error) {
			counts = append(counts, append([]byte(nil), k...))
			return true, nil
		})
		if err != nil {
			return err
		}
		for _, k := range counts {
			if err := tx.Delete(tableCount, k); err != nil {
				return err
			}
		}
		if err := tx.Delete(tableAccount, append(append([]byte(r.Account), 0), id[:]...)); err != nil {
			return err
		}
		return tx.Delete(tableCampaign, append([]byte(nil), id[:]...))
	})
	return gone + 1, err
}
