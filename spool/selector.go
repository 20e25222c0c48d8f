package spool

import (
	"time"

	"relayd/internal/mail"
)

// Selector selects envelopes. Its fields are joined by "and"; a zero field selects everything.
type Selector struct {
	Domain    string // of the recipient
	Sender    string // reverse-path, "<>" for the null one, or "@domain"
	Recipient string // forward-path
	Account   string
	Stream    string
	Campaign  string
	State     string        // ready, deferred, held, leased
	Class     string        // urgent, transactional, bulk
	OlderThan time.Duration // since acceptance
	NewerThan time.Duration
	Reply     string // substring of the last reply, any case
	Messages  []mail.QueueID
	Envelopes []mail.EnvelopeID
}

// ParseSelector reads the text form, terms with blanks between them: `domain=example.com state=deferred age>2h
// reply="mailbox full" id=06f1…`. The error names the term.
func ParseSelector(s string) (Selector, error) { panic("stub") }

// String is the inverse of ParseSelector.
func (s Selector) String() string { panic("stub") }

// IsZero tells that the selector selects every envelope.
func (s Selector) IsZero() bool { panic("stub") }
