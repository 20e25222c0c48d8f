package mailauth

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"relayd/internal/mail"
	"relayd/internal/resolver"
)

// Identifiers are the domains that a message has proved (RFC 9989 section 4.4).
type Identifiers struct {
	SPF  string   // whose SPF record passed: of the reverse-path, or of HELO where that is null; "" for none
	DKIM []string // the d= of each signature that verifies
}

// DMARCResult is the verdict on one message.
type DMARCResult struct {
	Result      Result // pass, fail, none (no record), temperror, permerror
	From        string // the author domain
	Policy      string // none, quarantine or reject: what the record asks for in this case, "" without one
	Testing     bool   // t=y: the policy is to be applied one step weaker
	Aligned     string // the identifier that passed, "" for none
	Explanation string
}

// EvaluateDMARC tells whether one of the proved identifiers is aligned with the author domain, the one of the From
// field (RFC 9989 section 5.3).
func EvaluateDMARC(ctx context.Context, r Resolver, from string, ids Identifiers) DMARCResult {
	res := DMARCResult{Result: None, From: mail.CleanText(from, 255)}
	name, err := mail.ParseDomain(from, false)
	if err != nil {
		res.Result, res.Explanation = PermError, "the From field has no domain name"
		return res
	}
	res.From = name
	record, err := LookupDMARC(ctx, r, name)
	switch {
	case errors.Is(err, ErrBadDMARC):
		res.Result, res.Explanation = None, mail.CleanText(err.Error(), 300) // section 4.7: no notice is taken of it
		return res
	case err != nil:
		res.Result, res.Explanation = TempError, mail.CleanText(err.Error(), 300)
		return res
	case record == nil:
		res.Explanation = name + " has no DMARC record"
		return res
	}
	res.Policy, res.Testing = record.Effective, record.Testing
	if record.np != "" && record.Name != "_dmarc."+name {
		switch _, err := r.LookupIP(ctx, name); {
		case errors.Is(err, resolver.ErrNXDomain):
			res.Policy = record.np
		case errors.Is(err, resolver.ErrTemporary):
			res.Result, res.Explanation = TempError, mail.CleanText(err.Error(), 300)
			return res
		}
	}
	res.Aligned, err = aligned(ctx, r, name, record, ids)
	switch {
	case res.Aligned != "":
		res.Result, res.Explanation = Pass, fmt.Sprintf("%s is aligned with %s", res.Aligned, name)
	case err != nil:
		res.Result, res.Explanation = TempError, mail.CleanText(err.Error(), 300)
	default:
		res.Result, res.Explanation = Fail, "no identifier that passed is aligned with "+name
	}
	return res
}

// aligned returns the first identifier that is aligned. An error means that none is known to be.
func aligned(ctx context.Context, r Resolver, from string, record *DMARC, ids Identifiers) (string, error) {
	type identifier struct {
		domain string
		strict bool
	}
	var all []identifier
	for _, d := range ids.DKIM {
		all = append(all, identifier{d, record.StrictDKIM})
	}
	if ids.SPF != "" {
		all = append(all, identifier{ids.SPF, record.StrictSPF})
	}
	org := ""
	var failed error
	for _, id := range all {
		domain, err := mail.ParseDomain(id.domain, false)
		if err != nil {
			continue
		}
		if domain == from {
			return domain, nil
		}
		if id.strict || !sharesParent(domain, from) {
			continue
		}
		if org == "" {
			if org, err = organizationalDomain(ctx, r, from); err != nil {
				return "", err
			}
		}
		other, err := organizationalDomain(ctx, r, domain)
		if err != nil {
			failed = err
			continue
		}
		if other == org {
			return domain, nil
		}
	}
	return "", failed
}

// sharesParent spares the look-ups for domains that cannot have one organisational domain.
func sharesParent(a, b string) bool {
	return a[strings.LastIndexByte(a, '.')+1:] == b[strings.LastIndexByte(b, '.')+1:]
}

// organizationalDomain walks up the tree (RFC 9989 section 4.10.2): a record with psd=n decides, one with psd=y makes
// it the domain one label below, and else it is the domain with the fewest labels that has a record, or the domain itself.
func organizationalDomain(ctx context.Context, r Resolver, domain string) (string, error) {
	found := domain
	for i, name := range treeWalk(domain) {
		record, err := dmarcAt(ctx, r, name)
		switch {
		case errors.Is(err, ErrBadDMARC):
			continue
		case err != nil:
			return "", err
		case record == nil:
			continue
		}
		switch {
		case record.psd == "n":
			return name, nil
		case record.psd == "y" && i > 0:
			return childOf(name, domain), nil
		case record.psd == "y": // the walk stops there, and the domain has no other record
			return name, nil
		}
		found = name
	}
	return found, nil
}

// childOf returns the name one label longer than parent, on the way to domain.
func childOf(parent, domain string) string {
	rest := strings.TrimSuffix(domain, "."+parent)
	return rest[strings.LastIndexByte(rest, '.')+1:] + "." + parent
}
