package resolver

import "errors"

// What a look-up can end in. Every error of a Resolver is an *Error that wraps one of them: test with errors.Is.
var (
	// ErrNXDomain: the name does not exist (5.1.2 for a recipient's domain).
	ErrNXDomain = errors.New("no such domain")
	// ErrNoData: the name exists and has no record of that type.
	ErrNoData = errors.New("no such record")
	// ErrNullMX: the domain says that it takes no mail (RFC 7505; 5.1.10).
	ErrNullMX = errors.New("domain accepts no mail (null MX)")
	// ErrNoMX: the domain exists and has neither an MX nor an address record, or no MX record that names a host.
	ErrNoMX = errors.New("domain has no mail exchanger and no address")
	// ErrTemporary: the answer could not be found out (SERVFAIL, no answer in time, ended context). It may be known later.
	ErrTemporary = errors.New("temporary DNS failure")
)

// Error tells which question had no good answer and why.
type Error struct {
	Name   string // what was asked, without the final dot
	Type   string // MX, A, AAAA, TXT, PTR
	Err    error  // one of the sentinels
	Detail error  // what happened in the network; may be nil
}

func (e *Error) Error() string {
	s := "look up " + e.Type + " of " + e.Name + ": " + e.Err.Error()
	if e.Detail != nil {
		s += ": " + e.Detail.Error()
	}
	return s
}

// Unwrap gives the sentinel and the detail.
func (e *Error) Unwrap() []error {
	if e.Detail == nil {
		return []error{e.Err}
	}
	return []error{e.Err, e.Detail}
}

// Temporary tells whether asking later may help.
func (e *Error) Temporary() bool { return errors.Is(e.Err, ErrTemporary) }
