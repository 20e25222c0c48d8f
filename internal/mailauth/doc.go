// Package mailauth judges what a domain publishes about its mail: who may send it (SPF, RFC 7208), with which keys it
// is signed (DKIM, RFC 6376) and what receivers shall do with the rest (DMARC, RFC 9989).
//
// # SPF and the official test cases
//
// The evaluation is that of blitiri.com.ar/go/spf, whose own tests pass over 31 of the 203 cases of the RFC 7208 test
// suite. Why, and what is done about it here:
//
//   - 25 are records with a wrong syntax behind, or within, what decides: it reads terms one by one and stops at the
//     first that matches, and it does not check characters, top labels, redirect= and exp=. RFC 7208 section 4.6 wants
//     permerror for them, and receivers do that. checkSyntax reads every record whole before the evaluation does.
//   - One expects that records of the abolished type SPF are asked for. They are not; the case comes out right anyway.
//   - Four have a "/" within a domain name, and one uses the p macro, which section 7.2 tells publishers not to use. The
//     record is rewritten before the evaluation sees it (spfrewrite.go).
//
// TestF5OfficialSPFCases runs all of them, with the suite's verdicts and without an exception.
package mailauth

import (
	"context"
	"net/netip"

	"relayd/internal/resolver"
)

// Resolver is what the checks ask; *resolver.Resolver is one. Errors are those of package resolver.
type Resolver interface {
	LookupMXRecords(ctx context.Context, domain string) ([]resolver.MX, error)
	LookupIP(ctx context.Context, host string) ([]netip.Addr, error)
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupPTR(ctx context.Context, ip netip.Addr) ([]string, error)
}
