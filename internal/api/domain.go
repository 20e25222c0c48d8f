package api

import "time"

// Domain is a sender domain and what DNS must say about it.
type Domain struct {
	Name        string      `json:"name"`
	Account     string      `json:"account"`
	Sign        string      `json:"sign"`       // required or none
	Configured  bool        `json:"configured"` // from the configuration file: not editable here
	CreatedAt   time.Time   `json:"created_at,omitzero"`
	Keys        []DKIMKey   `json:"keys"`
	DNSRecords  []DNSRecord `json:"dns_records"`
	Ready       bool        `json:"ready"`             // every required record was ok when last verified
	Reasons     []string    `json:"reasons,omitempty"` // why it is not: dkim_missing, spf_mismatch…
	LastChecked time.Time   `json:"last_checked_at,omitzero"`
}

// DKIMKey is a signing key of a domain, without its secret part.
type DKIMKey struct {
	Selector  string `json:"selector"`
	Algorithm string `json:"algorithm"`
	State     string `json:"state"` // pending, active, retired
}

// DNSRecord is one record that the domain needs.
type DNSRecord struct {
	Purpose  string   `json:"purpose"` // dkim, spf, dmarc
	Type     string   `json:"type"`
	Name     string   `json:"name"`
	Value    string   `json:"value"`
	Required bool     `json:"required"`
	Status   string   `json:"status"`       // unchecked, ok, missing, mismatch, temporary_failure
	IP       string   `json:"ip,omitempty"` // spf: the sending address that the status is about
	Observed []string `json:"observed,omitempty"`
	Detail   string   `json:"detail,omitempty"`
}

// Values of DNSRecord.Status.
const (
	RecordUnchecked = "unchecked"
	RecordOK        = "ok"
	RecordMissing   = "missing"
	RecordMismatch  = "mismatch"
	RecordTempFail  = "temporary_failure"
)

// CreateDomain is the body of POST /v1/domains.
type CreateDomain struct {
	Name    string `json:"name"`
	Account string `json:"account,omitempty"`
	Sign    string `json:"sign,omitempty"` // required (default) or none
}

// ActivateKey is the body of POST /v1/domains/{name}/dkim/activate.
type ActivateKey struct {
	Selector string `json:"selector"`
}

// SPFCheck is what `relayctl spf check` prints.
type SPFCheck struct {
	IP          string `json:"ip"`
	MailFrom    string `json:"mail_from"`
	Helo        string `json:"helo,omitempty"`
	Domain      string `json:"domain,omitempty"`
	Result      string `json:"result"` // pass, fail, softfail, neutral, none, temperror, permerror
	Explanation string `json:"explanation"`
}

// DKIMVerification is one signature of a message, as `relayctl dkim verify` prints it.
type DKIMVerification struct {
	Domain    string `json:"domain"`
	Selector  string `json:"selector"`
	Algorithm string `json:"algorithm"`
	Result    string `json:"result"`
	Error     string `json:"error,omitempty"`
}
