package mailauth

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"relayd/internal/mail"
	"relayd/internal/resolver"
)

// DMARC is a published DMARC record (RFC 9989 section 4.7).
type DMARC struct {
	Name            string   `json:"name"`                  // where it was found, _dmarc.<domain>
	Record          string   `json:"record"`                // as published, cleaned for showing
	Policy          string   `json:"policy"`                // none, quarantine or reject: that of the domain that holds it
	SubdomainPolicy string   `json:"subdomain_policy"`      // that of its subdomains (sp=, or Policy)
	Effective       string   `json:"effective_policy"`      // that of the domain that was asked for
	Reports         []string `json:"reports,omitempty"`     // rua=
	Testing         bool     `json:"testing,omitempty"`     // t=y: receivers apply the next weaker policy
	StrictDKIM      bool     `json:"strict_dkim,omitempty"` // adkim=s
	StrictSPF       bool     `json:"strict_spf,omitempty"`  // aspf=s
	Warnings        []string `json:"warnings,omitempty"`    // in plain words

	psd string // y, n or u
	np  string // policy of subdomains that do not exist, "" for that of subdomains
}

// ErrBadDMARC says that there is a DMARC record that receivers take no notice of.
var ErrBadDMARC = errors.New("bad DMARC record")

// maxDMARCLabels is from where on names that are too long are shortened at once (RFC 9989 section 4.10): at most eight
// names are asked for.
const maxDMARCLabels = 7

// LookupDMARC finds the record that holds for a domain: its own, or else that of its organisational domain, which the
// walk up the tree finds (RFC 9989 section 4.10). No record is nil without an error. Errors: ErrBadDMARC when there are
// only bad ones, resolver.ErrTemporary.
func LookupDMARC(ctx context.Context, r Resolver, domain string) (*DMARC, error) {
	domain, err := mail.ParseDomain(domain, false)
	if err != nil {
		return nil, fmt.Errorf("look up DMARC record: %w", err)
	}
	var bad error
	var last *DMARC // the one with the fewest labels so far
	var lastAt string
	for i, name := range treeWalk(domain) {
		rec, err := dmarcAt(ctx, r, name)
		if errors.Is(err, ErrBadDMARC) {
			if bad == nil {
				bad = err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if rec == nil {
			continue
		}
		if i == 0 {
			rec.Effective = rec.Policy
			return rec, nil
		}
		rec.Effective = rec.SubdomainPolicy
		switch rec.psd { // the walk stops at both
		case "n":
			return rec, nil
		case "y": // its record holds where the organisational domain, one label below, has none
			if last != nil && lastAt == childOf(name, domain) {
				return last, nil
			}
			return rec, nil
		}
		last, lastAt = rec, name
	}
	if last != nil && bad != nil {
		last.Warnings = append(last.Warnings, "a nearer record is passed over: "+bad.Error())
	}
	if last == nil {
		return nil, bad
	}
	return last, nil
}

// treeWalk returns the domain and the names above it that are asked for.
func treeWalk(domain string) []string {
	names := []string{domain}
	labels := strings.Split(domain, ".")
	for labels = labels[1:]; len(labels) > 0; labels = labels[1:] {
		if len(labels) <= maxDMARCLabels {
			names = append(names, strings.Join(labels, "."))
		}
	}
	return names
}

// dmarcAt returns the record of one name; nil when there is none.
func dmarcAt(ctx context.Context, r Resolver, domain string) (*DMARC, error) {
	name := "_dmarc." + domain
	txts, err := r.LookupTXT(ctx, name)
	if errors.Is(err, resolver.ErrNXDomain) || errors.Is(err, resolver.ErrNoData) {
		return nil, nil //nolint:nilnil // no record is no error
	}
	if err != nil {
		return nil, err
	}
	var found []string
	for _, txt := range txts {
		if isDMARC(txt) {
			found = append(found, txt)
		}
	}
	switch len(found) {
	case 0:
		return nil, nil //nolint:nilnil // no record is no error
	case 1:
		rec, err := ParseDMARC(found[0])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		rec.Name = name
		return rec, nil
	}
	return nil, fmt.Errorf("%s: %w: there are %d, so that receivers use none", name, ErrBadDMARC, len(found))
}

func isDMARC(txt string) bool {
	tag, _, _ := strings.Cut(txt, ";")
	name, value, ok := strings.Cut(tag, "=")
	return ok && strings.EqualFold(strings.TrimSpace(name), "v") && strings.TrimSpace(value) == "DMARC1"
}

// removedTags were part of RFC 7489 and are none of RFC 9989 (its appendix C).
var removedTags = map[string]string{
	"pct": "use t=y while testing",
	"rf":  "reports have one format",
	"ri":  "reports come once a day",
}

// ParseDMARC parses a record. Tags of which receivers take no notice become warnings. An error, ErrBadDMARC, means that
// receivers take no notice of all of it. Name and Effective are left empty.
func ParseDMARC(record string) (*DMARC, error) {
	d := &DMARC{Record: mail.CleanText(record, 1000), psd: "u"}
	if !isDMARC(record) {
		return nil, fmt.Errorf("%w: it does not start with v=DMARC1", ErrBadDMARC)
	}
	seen := map[string]bool{}
	for i, tag := range strings.Split(record, ";") {
		if strings.TrimSpace(tag) == "" || i == 0 {
			continue
		}
		name, value, ok := strings.Cut(tag, "=")
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		switch {
		case !ok || name == "":
			d.warn("%q is no tag", mail.CleanText(strings.TrimSpace(tag), 80))
		case seen[name]:
			return nil, fmt.Errorf("%w: tag %s stands twice", ErrBadDMARC, mail.CleanText(name, 40))
		default:
			seen[name] = true
			d.take(name, value)
		}
	}
	if d.Policy == "" {
		// A record without p=, or with an invalid one that asks for reports, counts as p=none (RFC 9989 section 4.7).
		if seen["p"] && len(d.Reports) == 0 {
			return nil, fmt.Errorf("%w: its p= is not none, quarantine or reject", ErrBadDMARC)
		}
		d.Policy = "none"
		d.warn("it has no valid p=, which counts as p=none; receivers that follow RFC 7489 use no such record")
	}
	if d.SubdomainPolicy == "" {
		d.SubdomainPolicy = d.Policy
	}
	if len(d.Reports) == 0 {
		d.warn("without rua= nobody tells you who sends mail in your name")
	}
	if d.Testing {
		d.warn("t=y: receivers apply a weaker policy than it says")
	}
	return d, nil
}

func (d *DMARC) take(name, value string) {
	lower := strings.ToLower(value)
	wrong := false
	switch name {
	case "p", "sp", "np":
		switch {
		case lower != "none" && lower != "quarantine" && lower != "reject":
			wrong = true
		case name == "p":
			d.Policy = lower
		case name == "sp":
			d.SubdomainPolicy = lower
		default:
			d.np = lower
		}
	case "rua", "ruf":
		for uri := range strings.SplitSeq(value, ",") {
			uri = strings.TrimSpace(uri)
			if u, err := url.Parse(uri); err != nil || u.Scheme == "" || u.Scheme == "mailto" && !strings.Contains(uri, "@") {
				d.warn("%s: %q is no URI such as mailto:dmarc@example.com", name, mail.CleanText(uri, 80))
			} else if name == "rua" {
				d.Reports = append(d.Reports, mail.CleanText(uri, 255))
			}
		}
	case "adkim", "aspf":
		wrong = lower != "r" && lower != "s"
		d.StrictDKIM = d.StrictDKIM || name == "adkim" && lower == "s"
		d.StrictSPF = d.StrictSPF || name == "aspf" && lower == "s"
	case "t":
		wrong = lower != "y" && lower != "n"
		d.Testing = lower == "y"
	case "psd":
		if wrong = lower != "y" && lower != "n" && lower != "u"; !wrong {
			d.psd = lower
		}
	case "fo":
	default:
		if why, ok := removedTags[name]; ok {
			d.warn("%s= was removed by RFC 9989 and has no effect: %s", name, why)
		} else {
			d.warn("unknown tag %s=", mail.CleanText(name, 40))
		}
	}
	if wrong {
		d.warn("%s= has the invalid value %q, which has no effect", name, mail.CleanText(value, 40))
	}
}

// maxWarnings bounds what a record of many wrong tags costs.
const maxWarnings = 20

func (d *DMARC) warn(format string, a ...any) {
	if len(d.Warnings) < maxWarnings {
		d.Warnings = append(d.Warnings, fmt.Sprintf(format, a...))
	}
}
