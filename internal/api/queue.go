package api

import (
	"time"

	"relayd/internal/mail"
)

// QueueItem is one envelope: one message to one recipient.
type QueueItem struct {
	ID          string      `json:"id"`      // queueID.n
	Message     string      `json:"message"` // queue ID
	State       string      `json:"state"`   // ready, deferred, held, leased, or an outcome
	Account     string      `json:"account"`
	Stream      string      `json:"stream"`
	Campaign    string      `json:"campaign,omitempty"`
	Class       string      `json:"class"`
	From        string      `json:"from"` // reverse-path, "" for the null one
	To          string      `json:"to"`
	Attempts    int         `json:"attempts"`
	InDoubt     int         `json:"in_doubt,omitempty"`
	AcceptedAt  time.Time   `json:"accepted_at,omitzero"`
	NextAttempt time.Time   `json:"next_attempt,omitzero"`
	ExpiresAt   time.Time   `json:"expires_at,omitzero"`
	SettledAt   time.Time   `json:"settled_at,omitzero"`
	LastReply   *mail.Reply `json:"last_reply,omitempty"`
	LastHost    string      `json:"last_host,omitempty"`
	TLS         string      `json:"tls,omitempty"`
	Reason      string      `json:"reason,omitempty"`
	Subject     string      `json:"subject,omitempty"`
	MessageID   string      `json:"message_id,omitempty"`
	Size        int64       `json:"size,omitempty"`
	Site        string      `json:"site,omitempty"`     // where it goes to: set of MX hosts, by the first one, or smarthost; "" where not known
	Timeline    []QueueStep `json:"timeline,omitempty"` // of GET /v1/queue/{id}, for messages of few envelopes
}

// QueueStep is one thing that happened to an envelope.
type QueueStep struct {
	At      time.Time   `json:"at"`
	Event   string      `json:"event"` // accepted, deferred, held, released, retried, moved, or the outcome
	Attempt int         `json:"attempt,omitempty"`
	Reply   *mail.Reply `json:"reply,omitempty"`
	Host    string      `json:"host,omitempty"`
	TLS     string      `json:"tls,omitempty"`
	Reason  string      `json:"reason,omitempty"`
	Who     string      `json:"who,omitempty"` // of an action
	Why     string      `json:"why,omitempty"`
}

// QueueWhy says for each envelope of a message what it waits for.
type QueueWhy struct {
	ID         string         `json:"id"`
	Account    string         `json:"account"`
	Stream     string         `json:"stream"`
	Campaign   string         `json:"campaign,omitempty"`
	From       string         `json:"from"`
	AcceptedAt time.Time      `json:"accepted_at"`
	ExpiresAt  time.Time      `json:"expires_at,omitzero"`
	Envelopes  []EnvelopeWhy  `json:"envelopes"`           // those that wait first, at most 100
	Waiting    map[string]int `json:"waiting"`             // envelopes by reason
	Truncated  bool           `json:"truncated,omitempty"` // it has more envelopes than are shown
}

// EnvelopeWhy is the one answer for one envelope.
type EnvelopeWhy struct {
	ID     string `json:"id"`
	To     string `json:"to"`
	State  string `json:"state"`          // ready, deferred, held, leased, or an outcome
	Reason string `json:"reason"`         // finished, attempt, held, paused, retry, scheduled, suspended, suspended_by_operator, rate, pace, dns, connections, window, turn
	Text   string `json:"text"`           // the same for people
	Site   string `json:"site,omitempty"` // set of MX hosts, by the first one
	// LimitedBy names the limit that holds, such as "provider google", "account acme" or "delivery.max_connections".
	LimitedBy string      `json:"limited_by,omitempty"`
	Since     time.Time   `json:"since,omitzero"`
	Until     time.Time   `json:"until,omitzero"`
	Attempts  int         `json:"attempts"`
	Replies   []QueueStep `json:"replies"` // the last three, oldest first
}

// QueueMessage is a message with its envelopes, the finished ones too.
type QueueMessage struct {
	ID         string      `json:"id"`
	Account    string      `json:"account"`
	Stream     string      `json:"stream"`
	Campaign   string      `json:"campaign,omitempty"`
	Class      string      `json:"class"`
	From       string      `json:"from"`
	MessageID  string      `json:"message_id,omitempty"`
	Subject    string      `json:"subject,omitempty"`
	Size       int64       `json:"size"`
	Credential string      `json:"credential,omitempty"`
	ClientIP   string      `json:"client_ip,omitempty"`
	AcceptedAt time.Time   `json:"accepted_at"`
	ExpiresAt  time.Time   `json:"expires_at,omitzero"`
	Header     string      `json:"header,omitempty"`
	Envelopes  []QueueItem `json:"envelopes"`
	Truncated  bool        `json:"truncated,omitempty"` // it has more envelopes than are shown
}

// HistoryQuery asks for final outcomes: exactly one of To, MessageID and ID is given.
type HistoryQuery struct {
	To        string
	MessageID string
	ID        string // queue ID or envelope ID
	Account   string // for callers with rights on all
}

// QueueStats counts envelopes. Outcomes are since the store was made.
type QueueStats struct {
	Queued   int64            `json:"queued"`
	Ready    int64            `json:"ready"`
	Deferred int64            `json:"deferred"`
	Held     int64            `json:"held"`
	Leased   int64            `json:"leased"`
	InDoubt  int64            `json:"in_doubt"` // found under lease when relayd started: possible duplicates
	Accepted int64            `json:"accepted"` // ever
	Outcomes map[string]int64 `json:"outcomes"`
	Queues   []QueueCount     `json:"queues,omitempty"` // the largest ones, with ?queues=N
	Sites    []SiteCount      `json:"sites,omitempty"`  // the largest ones, with ?sites=N
}

// SiteCount counts the envelopes that go to one site.
type SiteCount struct {
	Site     string `json:"site"` // set of MX hosts, by the first one, or smarthost; "" for the domains whose site is not known
	Domains  int    `json:"domains"`
	Ready    int    `json:"ready"`
	Deferred int    `json:"deferred"`
	Held     int    `json:"held"`
	Leased   int    `json:"leased"`
}

// QueueCount counts the envelopes of one queue.
type QueueCount struct {
	Account  string    `json:"account"`
	Stream   string    `json:"stream"`
	Domain   string    `json:"domain"`
	Ready    int       `json:"ready"`
	Deferred int       `json:"deferred"`
	Held     int       `json:"held"`
	Leased   int       `json:"leased"`
	Paused   bool      `json:"paused,omitempty"`
	Oldest   time.Time `json:"oldest,omitzero"`
	NextDue  time.Time `json:"next_due,omitzero"`
}

// QueueSelector chooses envelopes. All fields that are set must match.
type QueueSelector struct {
	Query            string `json:"query,omitempty"` // text form: `domain=example.com state=deferred age>2h reply="mailbox full"`
	Account          string `json:"account,omitempty"`
	Message          string `json:"message,omitempty"` // queue ID
	Stream           string `json:"stream,omitempty"`
	Campaign         string `json:"campaign,omitempty"`
	Domain           string `json:"domain,omitempty"` // of the recipient
	Site             string `json:"site,omitempty"`   // that the mail goes to, as counted by ?sites=N
	From             string `json:"from,omitempty"`   // reverse-path, "<>" for the null one, or "@domain"
	To               string `json:"to,omitempty"`
	State            string `json:"state,omitempty"` // ready, deferred, held, leased
	Class            string `json:"class,omitempty"` // urgent, transactional, bulk
	OlderThanSeconds int64  `json:"older_than_seconds,omitempty"`
	Reply            string `json:"reply,omitempty"` // part of the last reply
	All              bool   `json:"all,omitempty"`   // must be set to act on everything
}

// QueueAction is the body of POST /v1/queue/actions: either IDs or a selector.
type QueueAction struct {
	Action   string         `json:"action"`          // hold, release, retry, fail, move
	Route    string         `json:"route,omitempty"` // of move: the name of a smarthost, "default" for the recipient's own route
	IDs      []string       `json:"ids,omitempty"`   // envelope IDs or queue IDs, at most 1000
	Selector *QueueSelector `json:"selector,omitempty"`
	DryRun   bool           `json:"dry_run,omitempty"`
	Reason   string         `json:"reason,omitempty"` // for the event log
	Notify   bool           `json:"notify,omitempty"` // of fail: senders get a delivery status notification
}

// QueueActionResult says what an action did, or with dry_run would do.
type QueueActionResult struct {
	Action    string `json:"action"`
	DryRun    bool   `json:"dry_run"`
	Matched   int    `json:"matched"`
	Changed   int    `json:"changed"`
	InFlight  int    `json:"in_flight"`                 // being attempted: hold takes effect if the attempt defers them
	Unchanged int    `json:"unchanged"`                 // nothing to do
	Notices   int    `json:"notices,omitempty"`         // with notify: notifications to senders
	Unknown   int    `json:"unknown_domains,omitempty"` // with a site: queued domains left out because their site could not be looked up
}
