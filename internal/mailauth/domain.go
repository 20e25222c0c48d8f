package mailauth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"relayd/internal/mail"
	"relayd/internal/resolver"
)

// Domain is what Verify compares with the DNS.
type Domain struct {
	Name       string       // the domain of the senders' addresses
	ReturnPath string       // the domain of the reverse-path, whose SPF record counts; default Name
	IPs        []netip.Addr // from which mail leaves
	HELO       string       // our EHLO name
	Keys       []Record     // the DKIM records to be published
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
	Purpose     string   `json:"purpose"`            // spf, dkim or dmarc
	Name        string   `json:"name"`               // the DNS name that was asked for
	IP          string   `json:"ip,omitempty"`       // spf: the sending address
	Expected    string   `json:"expected,omitempty"` // the value to be published; spf and dmarc: a suggestion, when missing
	Observed    []string `json:"observed,omitempty"` // what is published, cleaned for showing
	Status      Status   `json:"status"`
	Required    bool     `json:"required"`    // large receivers refuse or distrust mail without it
	Explanation string   `json:"explanation"` // what was found and what to do, in plain words
	Warnings    []string `json:"warnings,omitempty"`
}

const maxObserved = 5

// Verify compares what a domain publishes with what mail sent through us needs: for each sending address whether SPF
// authorises it, for each key whether its record is published, and whether there is a DMARC record. It needs no error:
// what cannot be found out is a check with StatusTemporaryFailure.
func Verify(ctx context.Context, r Resolver, d Domain) []Check {
	if d.ReturnPath == "" {
		d.ReturnPath = d.Name
	}
	checks := make([]Check, 0, len(d.IPs)+len(d.Keys)+1)
	for _, ip := range d.IPs {
		checks = append(checks, verifySPF(ctx, r, d, ip))
	}
	for _, key := range d.Keys {
		checks = append(checks, verifyDKIM(ctx, r, key))
	}
	return append(checks, verifyDMARC(ctx, r, d.Name))
}

func verifySPF(ctx context.Context, r Resolver, d Domain, ip netip.Addr) Check {
	res := CheckSPF(ctx, r, ip, d.HELO, d.ReturnPath)
	c := Check{Purpose: "spf", Name: d.ReturnPath, IP: ip.String(), Required: true, Explanation: res.Explanation}
	if res.Record != "" {
		c.Observed = strings.Split(res.Record, "\n")
	}
	switch res.Result {
	case Pass:
		c.Status = StatusOK
		if strings.Contains(strings.ToLower(res.Mechanism), "+all") || strings.EqualFold(res.Mechanism, "all") {
			c.Warnings = append(c.Warnings, "+all allows every host in the world to send your mail")
		}
	case None:
		c.Status, c.Expected = StatusMissing, suggestSPF(d.IPs)
	case TempError:
		c.Status = StatusTemporaryFailure
	default:
		c.Status = StatusMismatch
		if res.Result != PermError {
			c.Explanation += ". Add " + ipTerm(ip) + " to the record"
		}
	}
	return c
}

func suggestSPF(ips []netip.Addr) string {
	terms := []string{"v=spf1"}
	for _, ip := range ips {
		terms = append(terms, ipTerm(ip))
	}
	return strings.Join(append(terms, "-all"), " ")
}

func ipTerm(ip netip.Addr) string {
	if ip = ip.Unmap(); ip.Is4() {
		return "ip4:" + ip.String()
	}
	return "ip6:" + ip.WithZone("").String()
}

func verifyDKIM(ctx context.Context, r Resolver, key Record) Check {
	c := Check{Purpose: "dkim", Name: key.Name, Expected: key.Value}
	ours, err := parseDKIMRecord(key.Value)
	// An Ed25519 signature is a second one (RFC 8463): many receivers do not verify it.
	c.Required = err == nil && ours.key != "ed25519"
	txts, err := r.LookupTXT(ctx, key.Name)
	c.Observed = observed(txts)
	switch {
	case errors.Is(err, resolver.ErrNXDomain), errors.Is(err, resolver.ErrNoData):
		c.Status, c.Explanation = StatusMissing, "the key is not published: add this TXT record"
	case err != nil:
		c.Status, c.Explanation = StatusTemporaryFailure, "the record could not be found out now: "+mail.CleanText(err.Error(), 300)
	case len(txts) > 1: // RFC 6376 section 3.6.2.2
		c.Status, c.Explanation = StatusMismatch, fmt.Sprintf("there are %d TXT records where one must be: remove the others", len(txts))
	default:
		testing, err := compareDKIM(txts[0], key.Value)
		if err != nil {
			c.Status, c.Explanation = StatusMismatch, "the published record does not fit the key: "+err.Error()
			break
		}
		c.Status, c.Explanation = StatusOK, "the published key is the one that signs"
		if testing {
			c.Warnings = append(c.Warnings, "t=y tells receivers to ignore the signature: remove it when testing is over")
		}
	}
	return c
}

func verifyDMARC(ctx context.Context, r Resolver, domain string) Check {
	c := Check{Purpose: "dmarc", Name: "_dmarc." + domain, Required: true}
	d, err := LookupDMARC(ctx, r, domain)
	switch {
	case errors.Is(err, resolver.ErrTemporary):
		c.Status, c.Explanation = StatusTemporaryFailure, "the record could not be found out now: "+mail.CleanText(err.Error(), 300)
	case err != nil:
		c.Status, c.Explanation = StatusMismatch, mail.CleanText(err.Error(), 300)
	case d == nil:
		c.Status = StatusMissing
		c.Expected = "v=DMARC1; p=none; rua=mailto:dmarc@" + domain
		c.Explanation = "there is no DMARC record: add this TXT record, and a stricter policy when the reports show only your own mail"
	default:
		c.Name, c.Observed, c.Warnings = d.Name, []string{d.Record}, d.Warnings
		c.Status, c.Explanation = StatusOK, "the policy for "+domain+" is p="+d.Effective
	}
	return c
}

func observed(txts []string) []string {
	var out []string
	for _, txt := range txts[:min(len(txts), maxObserved)] {
		out = append(out, mail.CleanText(txt, 1000))
	}
	return out
}
