package campaign

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// The flags of a recipient whom we failed say how.
const (
	flagFailed  = 2
	flagRender  = 4
	flagExpired = 8
)

// retryable returns the flag of outcomes after which a recipient may be tried again in a new mail: those that are ours. 0
// for the others: what a host refused for good is never sent to it again.
func retryable(r *spool.Result) byte {
	switch {
	case r.Outcome == spool.Expired:
		return flagExpired
	case r.Outcome == spool.Failed && r.Reason == "render_failed":
		return flagRender
	case r.Outcome == spool.Failed:
		return flagFailed
	}
	return 0
}

// keepFailed keeps a recipient whom we failed, with the merge data of its envelope.
func keepFailed(tx kv.Tx, e *spool.Envelope, flag byte) error {
	_, attributes, err := cutSnapshot(e.Data)
	if err != nil {
		return nil //nolint:nilerr // its merge data cannot be read: it fails again whenever it is tried
	}
	b := append(appendText([]byte{recordVersion, flag}, e.To.String()), attributes...)
	if err := tx.Put(tableFailed, recipientKey(e.ID.Message, e.ID.N), b); err != nil {
		return fmt.Errorf("keep failed recipient: %w", err)
	}
	return nil
}

// retrySlice is how many recipients one transaction takes back.
const retrySlice = 1000

// RetryFailed sends again to those whom we failed: outcome failed, render_failed or expired. What bounced, was suppressed
// or cancelled stays as it is. The campaign must have completed with failures.
func (s *Service) RetryFailed(ctx context.Context, account, id string) (api.Campaign, error) {
	r, err := s.move(ctx, account, id, "retry-failed", func(tx kv.Tx, r *record) error {
		if r.Retries > 0 && (r.State == Preparing || r.State == Running) {
			return nil // repeated
		}
		if r.State != CompletedWithFailures {
			return &StateError{"retry-failed", r.State}
		}
		left := false
		err := tx.Scan(tableFailed, r.ID[:], kv.PrefixEnd(r.ID[:]), func(_, _ []byte) (bool, error) {
			left = true
			return false, nil
		})
		if err != nil {
			return fmt.Errorf("read failed recipients: %w", err)
		}
		if !left {
			return &Invalid{
				Code: api.CodeAudienceEmpty, Detail: "nobody is left to retry: what a recipient's host refused for good is not sent again",
			}
		}
		r.State, r.Again, r.Retries = Preparing, s.now().UTC(), r.Retries+1
		r.Finished, r.Placed, r.Queued, r.Retrying = time.Time{}, false, false, true
		return s.tell(tx, r, "campaign.resumed")
	})
	return s.answer(ctx, r, err)
}

// takeBack moves a slice of failed recipients to those that are not queued yet, and lets the campaign run when none is
// left. They get new numbers, so that their first envelopes and what became of them stay in the history.
func (s *Service) takeBack(ctx context.Context, id mail.QueueID) error {
	var r *record
	err := s.db.Update(ctx, func(tx kv.Tx) (err error) {
		if r, err = getRecord(tx, id); err != nil || r.State != Preparing || !r.Retrying {
			return err
		}
		n, err := s.takeBackTx(tx, r)
		if err != nil || n == retrySlice {
			return err
		}
		r.State, r.Retrying = Running, false
		if err := s.rebase(tx, r); err != nil {
			return err
		}
		return r.put(tx)
	})
	if err != nil {
		return fmt.Errorf("retry failed recipients: %w", err)
	}
	s.follow(r)
	return nil
}

func (s *Service) takeBackTx(tx kv.Tx, r *record) (int, error) {
	var keys, values [][]byte
	err := tx.Scan(tableFailed, r.ID[:], kv.PrefixEnd(r.ID[:]), func(k, v []byte) (bool, error) {
		keys, values = append(keys, append([]byte(nil), k...)), append(values, append([]byte(nil), v...))
		return len(keys) < retrySlice, nil
	})
	if err != nil {
		return 0, fmt.Errorf("read failed recipients: %w", err)
	}
	var back tally
	for i, k := range keys {
		rec, attributes, err := decodeRecipient(string(values[i]))
		if err != nil {
			return 0, err
		}
		switch values[i][1] {
		case flagRender:
			back.renderFailed++
		case flagExpired:
			back.expired++
		default:
			back.failed++
		}
		n := number(r.ID, fmt.Sprintf("%s\x00retry %d", rec.to.Key(), r.Retries))
		b := append(appendText([]byte{recordVersion, 0}, rec.to.String()), attributes...)
		if err := tx.Put(tableRecipient, recipientKey(r.ID, n), b); err != nil {
			return 0, err
		}
		if err := tx.Put(tableRetried, k, []byte{recordVersion}); err != nil {
			return 0, err
		}
		if err := tx.Delete(tableFailed, k); err != nil {
			return 0, err
		}
	}
	return len(keys), s.change(tx, r.ID, func(t *tally) {
		t.failed -= back.failed
		t.renderFailed -= back.renderFailed
		t.expired -= back.expired
		t.queued -= int64(len(keys))
	})
}

// retried returns the numbers from n on, at most so many, of envelopes whose recipients got another one.
func retried(tx kv.Tx, id mail.QueueID, n uint64, most int) (gone []uint64, err error) {
	err = tx.Scan(tableRetried, recipientKey(id, n), kv.PrefixEnd(id[:]), func(k, _ []byte) (bool, error) {
		gone = append(gone, binary.BigEndian.Uint64(k[12:]))
		return len(gone) < most, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read retried recipients: %w", err)
	}
	return gone, nil
}
