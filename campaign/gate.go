package campaign

import (
	"context"
	"time"

	contacts "relayd/internal/contact"
	"relayd/internal/mail"
	"relayd/spool"
)

// Paused is what Blocked says of campaigns that are paused: the envelope goes back to its queue.
const blockedPaused = "paused"

// Blocked is asked right before MAIL FROM, for an envelope that was leased some time ago. It says "cancelled" or "paused"
// where its campaign is that, "unsubscribed" where the contact does not want it any more or is gone, else "". A time means
// that the envelope is wanted, but not before then: the recipient's quiet hours.
func (s *Service) Blocked(ctx context.Context, m *spool.Message, e *spool.Envelope) (reason string, notBefore time.Time, err error) {
	s.mu.Lock()
	j := s.jobs[m.ID]
	if j == nil {
		s.mu.Unlock()
		return "", notBefore, nil
	}
	state, list, topic, quiet := j.state, j.list, j.topic, j.quiet
	s.mu.Unlock()
	switch state {
	case Cancelling:
		return Cancelled, notBefore, nil
	case Paused:
		return blockedPaused, notBefore, nil
	}
	if list != (contacts.ListID{}) {
		if reason, err := s.wanted(ctx, list, topic, e.To); err != nil || reason != "" {
			return reason, notBefore, err
		}
	}
	if quiet == nil {
		return "", notBefore, nil
	}
	_, attributes, err := readSnapshot(e.Data)
	if err != nil {
		return "", notBefore, nil //nolint:nilerr // rendering tells it
	}
	now := s.now()
	if until := quiet.after(now, s.zones.zoneOf(attributes)); until.After(now) {
		s.hush(m.ID, until)
		return "", until, nil
	}
	return "", notBefore, nil
}

const reasonUnsubscribed = "unsubscribed"

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
