package spool

import (
	"context"
	"fmt"
	"slices"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// CancelCampaign settles the envelopes of a campaign that wait or are held as cancelled, in slices, and tells how
// many. Leased ones are left to their attempt. The caller has ended the fan-out before.
func (s *Store) CancelCampaign(ctx context.Context, campaign string) (int, error) {
	total := 0
	for _, q := range s.queues.ofStream(campaign) {
		for {
			versions := s.queues.versions([]Queue{q})
			n, err := s.cancelSlice(ctx, campaign, q)
			if err != nil {
				return total, fmt.Errorf("cancel campaign %s: %w", campaign, err)
			}
			if total += n; n == 0 {
				s.queues.corrected([]Queue{q}, versions, [][classes]int64{{never, never, never}})
				break
			}
		}
	}
	return total, nil
}

// cancelSlice cancels some envelopes of one queue.
func (s *Store) cancelSlice(ctx context.Context, campaign string, q Queue) (n int, err error) {
	var moves []move
	r := Result{Outcome: Cancelled, Reason: "campaign_cancelled", At: s.now()}
	err = s.db.Update(ctx, func(tx kv.Tx) error {
		n, moves = 0, moves[:0]
		if err := s.checkOwner(tx); err != nil {
			return err
		}
		ids, err := idsOfQueue(tx, q, actSlice)
		if err != nil || len(ids) == 0 {
			return err
		}
		found, err := locate(tx, ids)
		if err != nil {
			return err
		}
		found = slices.DeleteFunc(found, func(l located) bool { return l.message.Campaign != campaign })
		n, moves, err = s.settleWaiting(tx, found, r, nil, moves)
		return err
	})
	if err != nil {
		return 0, err
	}
	s.queues.apply(moves)
	s.countMoves(moves, Cancelled)
	return n, nil
}

// idsOfQueue lists envelopes of a queue that wait or are held.
func idsOfQueue(tx kv.Tx, q Queue, most int) ([]mail.EnvelopeID, error) {
	var ids []mail.EnvelopeID
	for class := range classes {
		prefix := appendQueueKey(nil, q, class)
		for _, table := range [...]kv.Table{tableDue, tableHeld} {
			if len(ids) >= most {
				return ids, nil
			}
			err := tx.Scan(table, prefix, kv.PrefixEnd(prefix), func(k, _ []byte) (bool, error) {
				id, err := mail.EnvelopeIDFromKey(k[max(0, len(k)-mail.EnvelopeKeySize):])
				ids = append(ids, id)
				return len(ids) < most, err
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return ids, nil
}

// ofStream lists the queues of a stream or campaign.
func (t *queueTable) ofStream(stream string) []Queue {
	t.mu.Lock()
	defer t.mu.Unlock()
	names := make([]Queue, 0, len(t.streams[stream]))
	for q := range t.streams[stream] {
		names = append(names, q.name)
	}
	return names
}
