package mailauth

import (
	"context"
	"net/netip"
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
	Record      string `json:"record,omitempty"`    // as published
	Mechanism   string `json:"mechanism,omitempty"` // the one that decided, as written
	Explanation string `json:"explanation"`         // in plain words
}

// CheckSPF tells whether ip may send mail with the reverse-path mailFrom (RFC 7208 section 4).
func CheckSPF(ctx context.Context, r Resolver, ip netip.Addr, helo, mailFrom string) SPFResult {
	panic("CONTRACT STUB")
}
