package mailauth

import (
	"context"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The evaluation that we use does not know two things that RFC 7208 allows: a "/" in a domain name, and the p macro.
// Its view of a record is rewritten before it reads it, and names are written back before the DNS is asked.

// slash stands for a "/" within a domain name. No record that passes checkSyntax holds it.
const slash = "\x7f"

var (
	// domainTerm is a term with a domain name and, behind it, maybe a prefix length (RFC 7208 section 12).
	domainTerm = regexp.MustCompile(`(?i)^([-+~?]?(?:a|mx|ptr|exists|include):|redirect=|exp=)(.*?)((?:/\d{1,3})?(?://\d{1,3})?)$`)
	pMacro     = regexp.MustCompile(`(?i)%\{p(\d*)(r?)([-.+,/_=]*)\}`)
)

// rewrite returns the record of a domain as the evaluation can read it.
func (e *evaluation) rewrite(ctx context.Context, domain, record string) string {
	if !strings.Contains(record, "/") && !pMacro.MatchString(record) {
		return record
	}
	terms := strings.Split(record, " ")
	for i, term := range terms {
		if pMacro.MatchString(term) {
			term = pMacro.ReplaceAllStringFunc(term, func(macro string) string {
				return expandP(macro, e.validatedName(ctx, domain))
			})
		}
		if m := domainTerm.FindStringSubmatch(term); m != nil {
			term = m[1] + slashesOutsideMacros(m[2]) + m[3]
		}
		terms[i] = term
	}
	return strings.Join(terms, " ")
}

// slashesOutsideMacros leaves the delimiters of macros alone.
func slashesOutsideMacros(s string) string {
	var b strings.Builder
	depth := 0
	for _, c := range s {
		switch {
		case c == '{':
			depth++
		case c == '}':
			depth--
		case c == '/' && depth == 0:
			b.WriteString(slash)
			continue
		}
		b.WriteRune(c)
	}
	return b.String()
}

// maxPTR bounds the names of one address that are looked at (RFC 7208 section 4.6.4).
const maxPTR = 10

// validatedName is the value of the p macro (RFC 7208 section 7.3): a name of the client's address that has the
// address, the domain itself before its subdomains before others. "unknown" where there is none or the DNS fails.
func (e *evaluation) validatedName(ctx context.Context, domain string) string {
	if e.validated != nil {
		return bestName(e.validated, domain)
	}
	e.validated = []string{}
	names, err := e.r.LookupPTR(ctx, e.ip)
	if err != nil {
		return bestName(nil, domain)
	}
	for _, name := range names[:min(len(names), maxPTR)] {
		ips, err := e.r.LookupIP(ctx, name)
		if err == nil && slices.ContainsFunc(ips, func(ip netip.Addr) bool { return ip.Unmap() == e.ip }) {
			e.validated = append(e.validated, strings.TrimSuffix(name, "."))
		}
	}
	return bestName(e.validated, domain)
}

func bestName(names []string, domain string) string {
	best, rank := "unknown", 0
	for _, name := range names {
		r := 1
		switch lower := strings.ToLower(name); {
		case strings.EqualFold(name, domain):
			r = 3
		case strings.HasSuffix(lower, "."+strings.ToLower(domain)):
			r = 2
		}
		if r > rank {
			best, rank = name, r
		}
	}
	return best
}

// expandP applies the transformers of a macro (RFC 7208 section 7.1).
func expandP(macro, value string) string {
	m := pMacro.FindStringSubmatch(macro)
	delimiters := m[3]
	if delimiters == "" {
		delimiters = "."
	}
	parts := strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(delimiters, r) })
	if m[2] != "" {
		slices.Reverse(parts)
	}
	if n, err := strconv.Atoi(m[1]); err == nil && n < len(parts) {
		parts = parts[len(parts)-n:]
	}
	value = strings.Join(parts, ".")
	if macro[2] == 'P' {
		value = url.QueryEscape(value)
	}
	return value
}
