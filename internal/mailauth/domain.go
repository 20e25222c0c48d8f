package mailauth

import (
	"context"
	"net/netip"
)

// Domain is what Verify compares with the DNS.
type Domain struct {
	Name string       // the domain of the senders' addresses
	IPs  []netip.Addr // from which mail leaves
	HELO string       // our EHLO name
	Keys []Record     // the DKIM records to be published
}

// Record is a TXT record to be published.
type Record struct{ Name, Value string }

// Status of a check.
type Status string

// The statuses.
const (
	StatusOK               Status = "ok"
	StatusMissing          Status = "missing"
	StatusMismatch         Status = "mismatch"
	StatusTemporaryFailure Status = "temporary_failure"
)

// Check is one finding of Verify.
type Check struct {
	Purpose     string   `json:"purpose"` // spf, dkim or dmarc
	Name        string   `json:"name"`    // the DNS name asked
	IP          string   `json:"ip,omitempty"`
	Expected    string   `json:"expected,omitempty"`
	Observed    []string `json:"observed,omitempty"`
	Status      Status   `json:"status"`
	Required    bool     `json:"required"`
	Explanation string   `json:"explanation"` // what was found and what to do, in plain words
	Warnings    []string `json:"warnings,omitempty"`
}

// Verify compares what a domain publishes with what mail sent through us needs.
func Verify(ctx context.Context, r Resolver, d Domain) []Check { panic("CONTRACT STUB") }
