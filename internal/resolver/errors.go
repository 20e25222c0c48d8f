package resolver

import "errors"

// What a look-up can end in. Test with errors.Is.
var (
	// ErrNXDomain: the name does not exist.
	ErrNXDomain = errors.New("no such domain")
	// ErrNoData: the name exists, but has no record of that type.
	ErrNoData = errors.New("no such record")
	// ErrNullMX: the domain says that it takes no mail (RFC 7505).
	ErrNullMX = errors.New("domain accepts no mail (null MX)")
	// ErrNoMX: the domain exists, but has neither MX nor address. It wraps nothing; see also ErrNXDomain.
	ErrNoMX = errors.New("domain has neither MX nor address records")
	// ErrTemporary: the answer could not be found out; asking again later may help.
	ErrTemporary = errors.New("temporary DNS failure")
)
