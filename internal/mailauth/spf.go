package mailauth

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/spf"

	"relayd/internal/mail"
	"relayd/internal/resolver"
)

// Result is the verdict of an SPF check (RFC 7208 section 2.6).
type Result string

// The results.
const (
	Pass      Result = "pass"
	Fail      Result = "fail"
	SoftFail  Result = "softfail"
	Neutral   Result = "neutral"
	None      Result = "none"
	TempError Result = "temperror"
	PermError Result = "permerror"
)

// SPFResult tells what a domain says of an address and why.
type SPFResult struct {
	Result      Result `json:"result"`
	Domain      string `json:"domain"`              // whose record was judged
	Record      string `json:"record,omitempty"`    // as published, cleaned for showing
	Mechanism   string `json:"mechanism,omitempty"` // the term that decided, as written; of an include, "include:x > ip4:y"
	Explanation string `json:"explanation"`         // in plain words
}

// spfTime bounds one evaluation; RFC 7208 section 4.6.4 asks for at least 20 seconds.
const spfTime = 20 * time.Second

// CheckSPF tells whether ip may send mail with the reverse-path mailFrom, "local@domain" or only a domain; of the null
// reverse-path ("" or "<>") the HELO name is judged (RFC 7208 section 2.4). At most 10 terms that need the DNS, 2 void
// look-ups and 10 exchangers of an mx term are followed (section 4.6.4).
func CheckSPF(ctx context.Context, r Resolver, ip netip.Addr, helo, mailFrom string) SPFResult {
	ip = ip.Unmap().WithZone("")
	local, domain := splitSender(helo, mailFrom)
	res := SPFResult{Result: None, Domain: mail.CleanText(domain, 255)}
	if !ip.IsValid() {
		res.Result, res.Explanation = PermError, "the IP address is not valid"
		return res
	}
	name, err := mail.ParseDomain(domain, false)
	if err != nil || !strings.Contains(name, ".") {
		res.Explanation = fmt.Sprintf("%q is no domain name that can have an SPF record", res.Domain) // section 4.3
		return res
	}
	res.Domain = name
	ctx, cancel := context.WithTimeout(ctx, spfTime)
	defer cancel()
	e := &evaluation{r: r, ip: ip, domain: name}
	verdict, err := spf.CheckHostWithSender(net.IP(ip.AsSlice()), helo, local+"@"+name,
		spf.WithContext(ctx), spf.WithResolver(e), spf.WithTraceFunc(e.trace))
	res.Result, res.Record, res.Mechanism = Result(verdict), mail.CleanText(e.record, 1000), e.mechanism()
	res.Explanation = e.explain(res, err)
	return res
}

// splitSender returns the local part and the domain that are judged. The local part is "postmaster" where there is none
// (RFC 7208 section 4.3); an "@" in it, which only a quoted one can hold, must not hide the domain from the evaluation.
func splitSender(helo, mailFrom string) (local, domain string) {
	mailFrom = strings.TrimSuffix(strings.TrimPrefix(mailFrom, "<"), ">")
	if mailFrom == "" {
		return "postmaster", helo
	}
	i := strings.LastIndexByte(mailFrom, '@')
	if i <= 0 {
		return "postmaster", mailFrom[i+1:]
	}
	return strings.ReplaceAll(mailFrom[:i], "@", "_"), mailFrom[i+1:]
}

// evaluation is the resolver of one check and what it found out.
type evaluation struct {
	r      Resolver
	ip     netip.Addr
	domain string

	record  string   // of domain
	deeds   []string // terms that decided, the innermost first
	syntax  error    // of a record
	several string   // the name that has more than one record
	failed  error    // what the DNS did not tell
	absent  bool     // the domain does not exist

	validated []string // names of ip that have ip; nil: not asked yet
}

// trace listens to the library for the terms that decide. Its format is not a promise of the library; the table test
// tells when it changes, and only the explanation depends on it.
func (e *evaluation) trace(format string, a ...any) {
	switch {
	case format == "fallback to neutral":
		e.deeds = append(e.deeds, "") // nothing decided
	case format == "all: %v" && len(a) == 1:
		q := map[any]string{spf.Pass: "+all", spf.Fail: "-all", spf.SoftFail: "~all", spf.Neutral: "?all"}
		e.deeds = append(e.deeds, q[a[0]])
	case strings.HasPrefix(format, "%q") && strings.HasSuffix(format, "%v, %v") && len(a) == 3:
		if term, ok := a[0].(string); ok {
			e.deeds = append(e.deeds, strings.ReplaceAll(term, slash, "/"))
		}
	}
}

// mechanism returns the term that decided with the way to it.
func (e *evaluation) mechanism() string {
	var way []string
	for _, deed := range slices.Backward(e.deeds) {
		if deed == "" {
			break
		}
		way = append(way, deed)
		lower := strings.ToLower(deed)
		if !strings.HasPrefix(lower, "include:") && !strings.HasPrefix(lower, "redirect=") {
			break // deeds of includes that did not match stand below
		}
	}
	return mail.CleanText(strings.Join(way, " > "), 300)
}

func (e *evaluation) explain(res SPFResult, err error) string {
	at := ""
	if res.Mechanism != "" {
		at = " (" + res.Mechanism + ")"
	}
	switch res.Result {
	case Pass:
		return fmt.Sprintf("%s may send mail of %s%s", e.ip, e.domain, at)
	case Fail:
		return fmt.Sprintf("%s may not send mail of %s: nothing that allows it stands before %s", e.ip, e.domain, orTerm(res.Mechanism, "-all"))
	case SoftFail:
		return fmt.Sprintf("%s should not send mail of %s, receivers are asked to be wary: nothing that allows it stands before %s",
			e.ip, e.domain, orTerm(res.Mechanism, "~all"))
	case Neutral:
		if res.Mechanism == "" {
			return fmt.Sprintf("%s says nothing of %s: no term of its record matches, and it does not end in -all or ~all", e.domain, e.ip)
		}
		return fmt.Sprintf("%s leaves open whether %s may send its mail%s", e.domain, e.ip, at)
	case None:
		if e.absent {
			return fmt.Sprintf("%s does not exist", e.domain)
		}
		return fmt.Sprintf("%s has no SPF record", e.domain)
	case TempError:
		return fmt.Sprintf("the record of %s could not be found out now: %s", e.domain, mail.CleanText(errText(e.failed, err), 300))
	}
	return fmt.Sprintf("the record of %s is wrong, so that receivers take no notice of it: %s", e.domain, e.wrong(res, err))
}

func (e *evaluation) wrong(res SPFResult, err error) string {
	switch {
	case e.syntax != nil:
		return mail.CleanText(e.syntax.Error(), 300)
	case e.several != "":
		return e.several + " has more than one SPF record"
	case errors.Is(err, spf.ErrLookupLimitReached):
		return "it needs more than 10 DNS look-ups"
	case errors.Is(err, spf.ErrVoidLookupLimitReached):
		return "more than 2 of its DNS look-ups find nothing"
	case errors.Is(err, spf.ErrTooManyMXRecords):
		return "a domain of an mx term has more than 10 exchangers"
	case errors.Is(err, spf.ErrNoResult):
		return orTerm(res.Mechanism, "an included domain") + ": there is no SPF record"
	}
	return mail.CleanText(errText(err, nil), 300)
}

func orTerm(term, otherwise string) string {
	if term != "" {
		return term
	}
	return otherwise
}

func errText(errs ...error) string {
	for _, err := range errs {
		if err != nil {
			return err.Error()
		}
	}
	return "unknown reason"
}

// LookupTXT is a method of spf.DNSResolver; it only ever asks for SPF records.
func (e *evaluation) LookupTXT(ctx context.Context, name string) ([]string, error) {
	name = strings.ReplaceAll(name, slash, "/")
	txts, err := e.r.LookupTXT(ctx, name)
	if err != nil {
		e.absent = e.absent || strings.EqualFold(name, e.domain) && errors.Is(err, resolver.ErrNXDomain)
		return nil, e.dnsError(name, err)
	}
	var records []string
	for _, txt := range txts {
		if isSPF(txt) {
			records = append(records, txt)
		}
	}
	if e.record == "" && len(records) > 0 && name == e.domain {
		e.record = strings.Join(records, "\n")
	}
	if len(records) > 1 {
		e.several = name
		return records, nil // the library makes it a permerror
	}
	for i, record := range records {
		if err := checkSyntax(record); err != nil {
			e.syntax = fmt.Errorf("record of %s: %w", name, err)
			return nil, &net.DNSError{Err: e.syntax.Error(), Name: name}
		}
		records[i] = e.rewrite(ctx, name, record)
	}
	return records, nil
}

// LookupMX is a method of spf.DNSResolver. There is no implicit exchanger here (RFC 7208 section 5.4).
func (e *evaluation) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	name = strings.ReplaceAll(name, slash, "/")
	records, err := e.r.LookupMXRecords(ctx, name)
	if err != nil {
		return nil, e.dnsError(name, err)
	}
	mx := make([]*net.MX, 0, len(records))
	for _, rec := range records {
		mx = append(mx, &net.MX{Host: rec.Host, Pref: rec.Pref})
	}
	return mx, nil
}

// LookupIPAddr is a method of spf.DNSResolver. IPv6 addresses are nothing to an IPv4 client (RFC 7208 section 5).
func (e *evaluation) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	host = strings.ReplaceAll(host, slash, "/")
	ips, err := e.r.LookupIP(ctx, host)
	if err != nil {
		return nil, e.dnsError(host, err)
	}
	addrs := make([]net.IPAddr, 0, len(ips))
	for _, ip := range ips {
		if ip = ip.Unmap(); ip.Is4() || e.ip.Is6() {
			addrs = append(addrs, net.IPAddr{IP: ip.AsSlice()})
		}
	}
	if len(addrs) == 0 {
		return nil, e.dnsError(host, resolver.ErrNoData)
	}
	return addrs, nil
}

// LookupAddr is a method of spf.DNSResolver.
func (e *evaluation) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, &net.DNSError{Err: err.Error(), Name: addr, IsNotFound: true}
	}
	names, err := e.r.LookupPTR(ctx, ip)
	if err != nil {
		return nil, e.dnsError(addr, err)
	}
	return names, nil
}

// dnsError says it in the words of package net, which the library knows.
func (e *evaluation) dnsError(name string, err error) error {
	notFound := errors.Is(err, resolver.ErrNXDomain) || errors.Is(err, resolver.ErrNoData)
	if !notFound {
		e.failed = err
	}
	return &net.DNSError{Err: err.Error(), Name: name, IsNotFound: notFound, IsTemporary: !notFound}
}
