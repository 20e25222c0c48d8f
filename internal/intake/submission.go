package intake

import (
	"io"
	"time"

	"relayd/internal/mail"
	"relayd/spool"
)

// Submission is one message that somebody hands in: an SMTP session, the API, or our own DSN composer.
type Submission struct {
	Account     string   // owner; "default" where there is one
	Credential  string   // name of the SMTP credential or API key that submits, "" for our own mail
	Domains     []string // sender domains that the credential may use; nil: every domain of the account
	Stream      string   // "" means "transactional"
	Class       spool.Class
	ReversePath mail.Path // null only for our own DSNs
	Recipients  []Recipient
	EnvelopeID  string    // ENVID
	RetHeaders  bool      // RET=HDRS
	RetFull     bool      // RET=FULL
	UTF8        bool      // SMTPUTF8: addresses and header fields may hold UTF-8 (RFC 6531)
	RequireTLS  bool      // REQUIRETLS (RFC 8689)
	Binary      bool      // BODY=BINARYMIME (RFC 3030): parts that say so may hold any octets.
	SendAt      time.Time // no attempt before; zero: now. A later X-Relay-Send-At wins
	ExpiresAt   time.Time // no attempt after; zero: MaxAge after acceptance or SendAt. X-Relay-TTL wins
	Tags        []string  // as X-Relay-Tags, which adds to them
	Trace       Trace
	Internal    bool // our own DSN: no sender check; signed with the key of the From domain or, failing that, of the hostname
	// Body is the whole message, header first, CRLF line ends only (but in binary parts), dots unstuffed. Accept reads it to the end or
	// returns early with an error; the caller drains what is left.
	Body io.Reader
}

// Recipient is one forward-path and what RFC 3461 lets the client ask for it.
type Recipient struct {
	To     mail.Path
	Notify string
	ORCPT  string
}

// Trace is what the Received field tells of the session (RFC 5321 section 4.4).
type Trace struct {
	Helo     string // as given, already checked
	ClientIP string
	With     string // "ESMTPSA", "HTTP"…
	TLS      string // "TLS1.3 TLS_AES_128_GCM_SHA256", "" for none
	At       time.Time
}
