package mailauth

import "context"

// DMARC is a published DMARC record (RFC 9989).
type DMARC struct {
	Name            string   `json:"name"`              // where it was found, _dmarc.<domain>
	Record          string   `json:"record"`            // as published
	Domain          string   `json:"domain"`            // whose record it is
	Policy          string   `json:"policy"`            // none, quarantine or reject
	SubdomainPolicy string   `json:"subdomain_policy"`  // the same as Policy unless sp= says otherwise
	Reports         []string `json:"reports,omitempty"` // rua
	Testing         bool     `json:"testing,omitempty"` // t=y
	StrictDKIM      bool     `json:"strict_dkim,omitempty"`
	StrictSPF       bool     `json:"strict_spf,omitempty"`
	Warnings        []string `json:"warnings,omitempty"`
}

// LookupDMARC finds the record that holds for a domain; nil when there is none.
func LookupDMARC(ctx context.Context, r Resolver, domain string) (*DMARC, error) {
	panic("CONTRACT STUB")
}
