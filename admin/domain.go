package admin

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"relayd/dkim"
	"relayd/internal/account"
	"relayd/internal/api"
	"relayd/internal/mail"
	"relayd/internal/mailauth"
)

// lookupTimeout bounds all look-ups of one verification.
const lookupTimeout = 20 * time.Second

func (s *Server) listDomains(_ *request, l list) ([]api.Domain, string, error) {
	found, next := cut(l, s.deps.Accounts.Domains(l.account), func(d account.Domain) string { return d.Name })
	return each(found, s.domainOf), next, nil
}

// domain finds the domain that the path names, in any spelling.
func (s *Server) domain(r *request) (account.Domain, error) {
	name, err := mail.ParseDomain(r.PathValue("name"), false)
	if err != nil {
		return account.Domain{}, notFound("domain")
	}
	d, ok := s.deps.Accounts.Domain(name)
	if !ok || !r.caller.sees(d.Account) {
		return d, notFound("domain")
	}
	return d, nil
}

func (s *Server) createDomain(r *request, in *api.CreateDomain) (api.Domain, error) {
	owner, err := r.caller.account(in.Account)
	if err != nil {
		return api.Domain{}, err
	}
	name, err := mail.ParseDomain(in.Name, false)
	if err != nil {
		return api.Domain{}, invalid("/name", api.CodeInvalidParameter, sentence(err.Error()))
	}
	if !strings.Contains(name, ".") {
		return api.Domain{}, invalid("/name", api.CodeInvalidParameter, "This is not a domain such as example.com.")
	}
	if in.Sign != "" && in.Sign != account.SignRequired && in.Sign != account.SignNone {
		return api.Domain{}, invalid("/sign", api.CodeInvalidParameter, "sign must be required or none.")
	}
	if _, ok := s.deps.Accounts.Domain(name); ok {
		return api.Domain{}, account.ErrExists
	}
	// Keys first: a domain that is known can sign. After a crash in between the same request finds its keys.
	if in.Sign != account.SignNone {
		if _, err := s.deps.Keys.AddDomain(name); err != nil {
			return api.Domain{}, err
		}
	}
	if err := s.deps.Accounts.AddDomain(r.Context(), account.Domain{Name: name, Account: owner, Sign: in.Sign}); err != nil {
		return api.Domain{}, err
	}
	d, _ := s.deps.Accounts.Domain(name)
	r.w.Header().Set("Location", "/v1/domains/"+name)
	return s.domainOf(d), nil
}

func (s *Server) showDomain(r *request) (api.Domain, error) {
	d, err := s.domain(r)
	if err != nil {
		return api.Domain{}, err
	}
	return s.domainOf(d), nil
}

func (s *Server) removeDomain(r *request) error {
	d, err := s.domain(r)
	if err != nil {
		return err
	}
	return s.deps.Accounts.RemoveDomain(r.Context(), d.Name)
}

func (s *Server) rotateKeys(r *request) (api.Domain, error) {
	d, err := s.domain(r)
	if err != nil {
		return api.Domain{}, err
	}
	if _, err := s.deps.Keys.Rotate(d.Name); err != nil {
		return api.Domain{}, err
	}
	return s.domainOf(d), nil
}

func (s *Server) activateKey(r *request, in *api.ActivateKey) (api.Domain, error) {
	d, err := s.domain(r)
	if err != nil {
		return api.Domain{}, err
	}
	if !slices.ContainsFunc(s.deps.Keys.AllKeys(d.Name), func(k *dkim.Key) bool { return k.Selector == in.Selector }) {
		return api.Domain{}, notFound("DKIM key")
	}
	if err := s.deps.Keys.Activate(d.Name, in.Selector); err != nil {
		return api.Domain{}, err
	}
	return s.domainOf(d), nil
}

// domainOf shows a domain with the records that it needs, as far as that is known without asking DNS.
func (s *Server) domainOf(d account.Domain) api.Domain {
	out := api.Domain{
		Name: d.Name, Account: d.Account, Sign: d.Sign, Configured: d.Configured, CreatedAt: d.CreatedAt,
		Keys: []api.DKIMKey{}, DNSRecords: []api.DNSRecord{},
	}
	for _, k := range s.deps.Keys.AllKeys(d.Name) {
		out.Keys = append(out.Keys, api.DKIMKey{Selector: k.Selector, Algorithm: string(k.Algorithm), State: string(k.State)})
		if k.State != dkim.Retired {
			out.DNSRecords = append(out.DNSRecords, api.DNSRecord{
				Purpose: "dkim", Type: "TXT", Name: k.RecordName(), Value: k.RecordValue(), Required: k.Algorithm != dkim.Ed25519,
				Status: api.RecordUnchecked,
			})
		}
	}
	out.DNSRecords = append(out.DNSRecords,
		api.DNSRecord{
			Purpose: "spf", Type: "TXT", Name: d.Name, Value: s.spfRecord(), Required: true, Status: api.RecordUnchecked,
		},
		api.DNSRecord{
			Purpose: "dmarc", Type: "TXT", Name: "_dmarc." + d.Name, Value: "v=DMARC1; p=none", Required: true,
			Status: api.RecordUnchecked,
		})
	return out
}

// spfRecord is what a domain without a record may publish.
func (s *Server) spfRecord() string {
	if len(s.deps.SendingIPs) == 0 {
		return "v=spf1 a:" + s.deps.Hostname + " ~all"
	}
	var b strings.Builder
	b.WriteString("v=spf1")
	for _, ip := range s.deps.SendingIPs {
		if ip = ip.Unmap(); ip.Is4() {
			b.WriteString(" ip4:" + ip.String())
		} else {
			b.WriteString(" ip6:" + ip.String())
		}
	}
	return b.String() + " ~all"
}

// verifyDomain asks DNS. Nothing is stored: the answer is what is published now.
func (s *Server) verifyDomain(r *request) (api.Domain, error) {
	d, err := s.domain(r)
	if err != nil {
		return api.Domain{}, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), lookupTimeout)
	defer cancel()
	out := s.domainOf(d)
	ask := mailauth.Domain{Name: d.Name, IPs: s.sendingIPs(ctx), HELO: s.deps.Hostname}
	optional := map[string]bool{}
	for _, rec := range out.DNSRecords {
		if rec.Purpose == "dkim" {
			ask.Keys = append(ask.Keys, mailauth.Record{Name: rec.Name, Value: rec.Value})
			optional[rec.Name] = !rec.Required
		}
	}
	out.DNSRecords, out.Ready, out.LastChecked = nil, true, s.now().UTC()
	for _, check := range mailauth.Verify(ctx, s.deps.Resolver, ask) {
		rec := api.DNSRecord{
			Purpose: check.Purpose, Type: "TXT", Name: check.Name, Value: check.Expected, Status: string(check.Status),
			Required: check.Required && !optional[check.Name], IP: check.IP, Observed: check.Observed,
			Detail: strings.Join(append([]string{check.Explanation}, check.Warnings...), " "),
		}
		if rec.Value == "" && rec.Purpose == "spf" {
			rec.Value = s.spfRecord()
		}
		out.DNSRecords = append(out.DNSRecords, rec)
		if rec.Required && rec.Status != api.RecordOK {
			out.Ready = false
			out.Reasons = append(out.Reasons, rec.Purpose+"_"+rec.Status)
		}
	}
	if out.DNSRecords == nil {
		out.DNSRecords = []api.DNSRecord{}
	}
	return out, nil
}

// sendingIPs are the configured addresses, or those of our name.
func (s *Server) sendingIPs(ctx context.Context) []netip.Addr {
	if len(s.deps.SendingIPs) > 0 {
		return s.deps.SendingIPs
	}
	ips, err := s.deps.Resolver.LookupIP(ctx, s.deps.Hostname)
	if err != nil {
		return nil
	}
	return ips
}
