package campaign

import (
	"context"
	"fmt"
	"time"

	contacts "relayd/internal/contact"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// Paused is what Blocked says of campaigns that are paused: the envelope goes back to its queue.
const blockedPaused = "paused"

// Blocked is asked right before MAIL FROM, for an envelope that was leased some time ago. It says "cancelled" or "paused"
// where its campaign is that, "unsubscribed" where the contact does not want it any more or is gone, "erased" where bulk
// mail, of a campaign or not, would go to somebody who asked to be forgotten, else "". A time means that the envelope is
// wanted, but not before then: the recipient's quiet hours.
func (s *Service) Blocked(ctx context.Context, m *spool.Message, e *spool.Envelope) (reason string, notBefore time.Time, err error) {
	var j job
	s.mu.Lock()
	if p := s.jobs[m.ID]; p != nil {
		j.state, j.list, j.topic, j.quiet = p.state, p.list, p.topic, p.quiet
	}
	s.mu.Unlock()
	switch j.state {
	case Cancelling:
		return Cancelled, notBefore, nil
	case Paused:
		return blockedPaused, notBefore, nil
	}
	if m.Class == spool.Bulk && s.contacts != nil {
		if reason, err := s.unwanted(ctx, m.Account, &j, e.To); err != nil || reason != "" {
			return reason, notBefore, err
		}
	}
	if j.quiet == nil {
		return "", notBefore, nil
	}
	_, attributes, err := readSnapshot(e.Data)
	if err != nil {
		return "", notBefore, nil //nolint:nilerr // rendering tells it
	}
	now := s.now()
	if until := j.quiet.after(now, s.zones.zoneOf(attributes)); until.After(now) {
		s.hush(m.ID, until)
		return "", until, nil
	}
	return "", notBefore, nil
}

const (
	reasonUnsubscribed = "unsubscribed"
	reasonErased       = "erased"
)

// unwanted tells why a mailbox gets no bulk mail: it was erased, or its contact does not want that of a campaign to a
// list; "" for it is wanted.
func (s *Service) unwanted(ctx context.Context, account string, j *job, to mail.Path) (reason string, err error) {
	err = s.db.View(ctx, func(tx kv.Tx) error {
		reason = ""
		if erased, err := s.contacts.ErasedTx(tx, account, to); err != nil || erased {
			reason = reasonErased
			return err
		}
		if j.list == (contacts.ListID{}) {
			return nil
		}
		w, err := s.contacts.WantedTx(tx, j.list, j.topic, to)
		if err == nil && !w.OK {
			reason = reasonUnsubscribed
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("ask for contact: %w", err)
	}
	return reason, nil
}

// hush notes until when a campaign has recipients that wait for the morning.
func (s *Service) hush(id mail.QueueID, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[id]; j != nil && until.After(j.hushed) {
		j.hushed = until
	}
}

// isQuiet tells that recipients of a campaign wait for the end of their quiet hours, and are no sign of trouble.
func (s *Service) isQuiet(id mail.QueueID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[id]
	return j != nil && s.now().Before(j.hushed.Add(quietRest))
}

// quietRest is how long the backlog of a night may take before it counts as deferred.
const quietRest = 30 * time.Minute

// Parallel is how many SMTP transactions of a campaign may run at a time; 0 means no bound of its own.
func (s *Service) Parallel(campaign string) int {
	id, err := parseID(campaign)
	if err != nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[id]; j != nil {
		return j.parallel
	}
	return 0
}
