package spool

import (
	"time"

	"relayd/internal/mail"
)

// Class orders the work inside a queue and between queues: lower goes first.
type Class uint8

// The classes, most urgent first.
const (
	Urgent        Class = iota // sign-up codes
	Transactional              // receipts, notices; the default of submission
	Bulk                       // campaigns
)

// Message is one body and its header, stored once for all its envelopes. A campaign's message has no body: its
// envelopes are rendered when they are leased.
type Message struct {
	ID          mail.QueueID
	Account     string      // the tenant, "default" where there is one
	Stream      string      // stream name, or the campaign ID of a campaign's message
	Campaign    string      // campaign ID, "" for a submitted message
	Class       Class       //
	ReversePath mail.Path   // null for DSNs
	Header      []byte      // complete header section as it leaves, signatures first, CRLF, without the empty line; nil for a campaign
	Size        int64       // octets of header, empty line and body as they leave; 0 for a campaign
	EightBit    bool        // body has octets above 127: needs 8BITMIME
	UTF8        bool        // header has UTF-8: needs SMTPUTF8 (RFC 6531)
	RequireTLS  bool        // never in clear, and only to hosts that keep it so (RFC 8689)
	MessageID   string      // with angle brackets; "" for a campaign
	Subject     string      // decoded and cleaned, at most 200 bytes, for listings
	EnvelopeID  string      // ENVID of RFC 3461, "" for none
	RetHeaders  bool        // RET=HDRS of RFC 3461
	RetFull     bool        // RET=FULL
	AcceptedAt  time.Time   //
	ExpiresAt   time.Time   // no attempt after this
	Deadline    bool        // not even the one that mail is owed which relayd was down for: its sender named the time
	Retry       RetryPolicy // zero: the queue's default
	Credential  string      // who submitted it, for queue listings
	ClientIP    string      //
	Tags        []string    // of the submitter, for events and listings; at most 16
	Keep        bool        // settle does not remove it with its last envelope (campaigns remove theirs)

	chunks uint32 // of its body; set by the spool
}

// RetryPolicy spaces the attempts of an envelope: attempt n+1 comes First * Multiplier^(n-1) after attempt n.
type RetryPolicy struct {
	Attempts   int           // tries in all, 0 means that the whole policy is unset
	First      time.Duration // wait after the first attempt
	Multiplier float64
	MaxAge     time.Duration // counted from AcceptedAt
}

// Envelope is one message to one recipient.
type Envelope struct {
	ID          mail.EnvelopeID
	Queue       Queue
	Class       Class
	To          mail.Path // forward-path
	Notify      string    // NOTIFY of RFC 3461 as given, "" for none
	ORCPT       string    // ORCPT of RFC 3461 as given, "" for none
	Data        []byte    // campaign: snapshot of the recipient's merge data, opaque to the spool
	NextAttempt time.Time
	Attempts    int        // transactions in which it was presented
	InDoubt     int        // times a crash left it leased: possible duplicates
	Deferred    bool       // it was queued for a later time: after an attempt, or scheduled; set by the spool
	Held        bool       // by an operator
	LastReply   mail.Reply // of the last attempt
	LastHost    string     // that gave LastReply
	LastAt      time.Time

	known bool // set by PutTx: see Known
}

// Known tells, after PutTx of a campaign's page, that the envelope had been stored or finished before: PutTx has left
// it alone, and Added does not count it.
func (e *Envelope) Known() bool { return e.known }

// Outcome is how an envelope ended. Every accepted envelope ends in exactly one.
type Outcome uint8

// The closed set of outcomes.
const (
	Deferred   Outcome = iota // not an outcome: it waits for its next attempt
	Delivered                 // the next hop took responsibility
	Bounced                   // refused by the recipient's side
	Failed                    // could not be sent: rendering, no route, by an operator
	Expired                   // its time was over before it could be delivered
	Suppressed                // on the suppression list, or unsubscribed
	Cancelled                 // by an operator, or with its campaign
)

var outcomeNames = [...]string{"deferred", "delivered", "bounced", "failed", "expired", "suppressed", "cancelled"}

// String returns the name used in logs, events and the API.
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return "unknown"
}

// final tells an outcome from Deferred.
func (o Outcome) final() bool { return o > Deferred && int(o) < len(outcomeNames) }

// Result says what became of one leased envelope.
type Result struct {
	ID          mail.EnvelopeID
	Outcome     Outcome    // Deferred: it goes back to its queue for NextAttempt
	Presented   bool       // it was part of a transaction: counts as an attempt
	NextAttempt time.Time  // for Deferred
	Reply       mail.Reply // last reply, ours where the remote gave none
	Host        string     // MX host or smarthost that gave it, with its address: mx.example.com[192.0.2.1]
	TLS         string     // "TLS1.3", "" for none
	Reason      string     // closed set for counters: "unsubscribed", "render_failed", "in_doubt"…, "" for none
	Suppress    bool       // the verdict on Reply says that the mailbox does not exist: suppress it
	At          time.Time
}

// Settled is what the settling transaction shows its hooks: the envelope as it was, and its result.
type Settled struct {
	Message  *Message
	Envelope *Envelope // Attempts, LastReply… already brought up to date
	Result   Result
}
