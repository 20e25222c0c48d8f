// Package tlspolicy says what TLS a session to a receiving host must have before mail goes over it. Today a rule of the
// operator sets the level for a recipient's domain. MTA-STS (RFC 8461) and DANE (RFC 7672) will be further givers of
// levels here: they are asked about the recipient's domain or the host before domains with equal hosts share a site, and
// sessions with different levels are never shared, so delivery need not know who set one.
package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
)

// Level is what a host must offer. The empty Level is Opportunistic.
type Level string

// The levels, the weakest first.
const (
	None          Level = "none"          // TLS is not asked for
	Opportunistic Level = "opportunistic" // whenever it is offered, with any certificate (RFC 7435)
	Require       Level = "require"       // encrypted or not at all, with any certificate
	Verify        Level = "verify"        // encrypted, with a valid certificate for the host's name
)

// Valid tells whether l is one of the levels, or empty.
func (l Level) Valid() bool {
	switch l {
	case "", None, Opportunistic, Require, Verify:
		return true
	}
	return false
}

// Strict tells whether a session in clear is none.
func (l Level) Strict() bool { return l == Require || l == Verify }

// Client configures the handshake with a host: TLS 1.2 at least (RFC 8996). nil roots are those of the system.
func (l Level) Client(host string, roots *x509.CertPool) *tls.Config {
	return &tls.Config{
		ServerName:         host,
		InsecureSkipVerify: l != Verify, //nolint:gosec // no policy asks for a name, and plain text would be worse
		RootCAs:            roots,
		MinVersion:         tls.VersionTLS12,
	}
}
