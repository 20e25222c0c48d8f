package spool

import (
	"context"
	"time"

	"relayd/internal/mail"
)

// State is where a live envelope is.
type State uint8

// The states of a live envelope, and of one that is finished.
const (
	StateReady    State = iota // due, or due as soon as it was queued
	StateDeferred              // deferred or scheduled: it was queued for a later time
	StateHeld                  // by an operator
	StateLeased                // being attempted
	StateFinished              // it has an outcome
)

var stateNames = [...]string{"ready", "deferred", "held", "leased", "finished"}

// String returns the name used in selectors, logs and the API.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "unknown"
}

// Info is what a listing shows of one envelope.
type Info struct {
	Envelope  Envelope // without Data
	State     State
	From      mail.Path // reverse-path
	Campaign  string
	MessageID string
	Subject   string
	Size      int64
	Account   string
	Stream    string
	Credential,
	ClientIP string
	AcceptedAt time.Time
	ExpiresAt  time.Time
	Outcome    *OutcomeRecord // of a finished envelope, nil for a live one
}

// OutcomeRecord is the final result of one envelope, kept for the retention period.
type OutcomeRecord struct {
	ID         mail.EnvelopeID
	Queue      Queue
	To         mail.Path
	Outcome    Outcome
	Reason     string
	Reply      mail.Reply
	Host       string
	TLS        string
	Attempts   int
	InDoubt    int
	AcceptedAt time.Time
	SettledAt  time.Time
}

// Stats counts the envelopes of the store. Queued is the sum of the four counts behind it.
type Stats struct {
	Queued   int64
	Ready    int64
	Deferred int64
	Held     int64
	Leased   int64
	Accepted int64            // durable: every envelope ever accepted
	Outcomes map[string]int64 // durable, by name of the outcome; Accepted = Queued + their sum
}

// QueueStat counts the envelopes of one queue.
type QueueStat struct {
	Queue    Queue
	Ready    int
	Deferred int
	Held     int
	Leased   int
	Paused   bool
	Oldest   time.Time // acceptance of the oldest envelope, to the minute; zero when there is none
	NextDue  time.Time // zero when nothing waits
}

// Stats returns the counts of the whole store.
func (s *Store) Stats(ctx context.Context) (Stats, error) { panic("stub") }

// QueueStats returns one entry per queue that has envelopes, sorted by name. It touches no disk.
func (s *Store) QueueStats() []QueueStat { panic("stub") }

// CampaignStats counts the live envelopes of a campaign from memory. Held ones count as deferred.
func (s *Store) CampaignStats(campaign string) (waiting, deferred, leased int) { panic("stub") }

// InDoubt is the number of envelopes that Open found under lease: each may be delivered twice.
func (s *Store) InDoubt() int { panic("stub") }

// List returns live envelopes that sel selects, in the order of acceptance, and a cursor for what follows, "" at the
// end. A page may be short, even empty, before the end: one call examines a bounded number of envelopes. limit is 1 to
// 1,000. It is correct while mail flows: an envelope that is live all the while is listed exactly once.
func (s *Store) List(ctx context.Context, sel Selector, cursor string, limit int) ([]Info, string, error) {
	panic("stub")
}

// Get returns one message and its envelopes, live and finished, at most 1,000. ErrNotFound when nothing is known of
// it. The message is nil when only outcomes are left.
func (s *Store) Get(ctx context.Context, id mail.QueueID) (*Message, []Info, error) { panic("stub") }

// ListEnvelopes returns the live envelopes of a message with N above after, at most limit; after is ^uint64(0) for
// the beginning.
func (s *Store) ListEnvelopes(ctx context.Context, id mail.QueueID, after uint64, limit int) ([]Info, error) {
	panic("stub")
}

// ListOutcomes returns the outcomes of the envelopes of a message with N above after, at most limit; after is
// ^uint64(0) for the beginning.
func (s *Store) ListOutcomes(ctx context.Context, id mail.QueueID, after uint64, limit int) ([]OutcomeRecord, error) {
	panic("stub")
}

// Purge removes outcomes settled before a time, at most most of them, and tells how many it removed.
func (s *Store) Purge(ctx context.Context, before time.Time, most int) (int, error) { panic("stub") }
