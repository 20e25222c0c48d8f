package spool

import "context"

// Action is what an operator does to envelopes.
type Action string

// The actions.
const (
	ActionHold    Action = "hold"    // no attempt until released
	ActionRelease Action = "release" // ends a hold
	ActionRetry   Action = "retry"   // due now
	ActionFail    Action = "fail"    // settles as failed
)

// ActResult counts what an action met.
type ActResult struct {
	Matched   int `json:"matched"`   // envelopes that the selector selected
	Changed   int `json:"changed"`   // those that the action changed; with dry run: that it would change
	InFlight  int `json:"in_flight"` // leased: hold takes effect if the attempt defers them; retry and fail do not
	Unchanged int `json:"unchanged"` // nothing to do
}

// Act applies an action to the envelopes that sel selects, in slices, each of them one transaction that is atomic
// against delivery. who and why stand in the events. With dryRun it only counts.
func (s *Store) Act(ctx context.Context, a Action, sel Selector, who, why string, dryRun bool) (ActResult, error) {
	panic("stub")
}

// CancelCampaign settles the envelopes of a campaign that wait or are held as cancelled, in slices, and tells how
// many. Leased ones are left to their attempt.
func (s *Store) CancelCampaign(ctx context.Context, campaign string) (int, error) { panic("stub") }

// PauseStream makes Take pass over the queues of a stream or campaign until it is called with false. It lasts as long
// as the process: the owner of the pause applies it again after a restart.
func (s *Store) PauseStream(stream string, paused bool) { panic("stub") }
