package smtpd

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"relayd/internal/mail"
)

// Kinds of listener.
const (
	Submission = "submission" // AUTH required; mail of our own applications
	Inbound    = "inbound"    // bounces, complaints and unsubscribe mail for addresses that we issued
)

// Ways of a listener to TLS.
const (
	StartTLS = "starttls" // offered in EHLO, and required before AUTH
	Implicit = "implicit" // from the first byte, RFC 8314
	NoTLS    = "none"     // loopback addresses only
)

// Config is the table [smtp].
type Config struct {
	// Listeners are the addresses on which relayd speaks SMTP.
	Listeners []Listener `toml:"listener"`
	// MaxMessageBytes bounds one message, header and body, in octets. Advertised as SIZE by submission listeners. Default 25 MiB.
	MaxMessageBytes int64 `toml:"max_message_bytes"`
	// MaxRecipients bounds the recipients of one message; those beyond get 452 4.5.3, and when they are more than that again
	// they count as errors. Default 1000.
	MaxRecipients int `toml:"max_recipients"`
	// MaxConnections bounds the open connections of all listeners together. Those of inbound listeners get no more than
	// StressPercent of them, and no more have those of submission listeners that have not authenticated: one of these is closed
	// for a newcomer where there is no room. Default 2000.
	MaxConnections int `toml:"max_connections"`
	// MaxConnectionsPerIP bounds the open connections of one IPv4 address or one IPv6 /64. Default 50.
	MaxConnectionsPerIP int `toml:"max_connections_per_ip"`
	// MaxConnectionsPerAccount bounds the open connections that have authenticated for one account. Default 1000.
	MaxConnectionsPerAccount int `toml:"max_connections_per_account"`
	// StressPercent is the share of MaxConnections from which on relayd waits for no client longer than StressTimeout and
	// ends sessions after two errors, until it falls below; for clients that have authenticated, those that have not on
	// submission listeners are not counted. Default 80.
	StressPercent int `toml:"stress_percent"`
	// StressTimeout takes the place of CommandTimeout, DataTimeout and HandshakeTimeout under stress. Default 10s.
	StressTimeout time.Duration `toml:"stress_timeout"`
	// MaxMessagesPerSession bounds the messages of one connection; then it gets 421. Default 100000.
	MaxMessagesPerSession int `toml:"max_messages_per_session"`
	// MaxErrors bounds the commands and messages of a session that were refused since its last accepted message, messages
	// for good alone; an authenticated session may make ten times as many. Default 20.
	MaxErrors int `toml:"max_errors"`
	// MaxJunkCommands bounds EHLO, RSET, NOOP, VRFY and HELP since the last accepted message. Default 100.
	MaxJunkCommands int `toml:"max_junk_commands"`
	// MaxAuthFailures is the number of failed AUTH commands with which a session ends. Default 3.
	MaxAuthFailures int `toml:"max_auth_failures"`
	// AuthDelay is the longest time by which the answer to a failed AUTH is held back. It doubles from AuthDelay/32 with
	// each failure of one IPv4 address or IPv6 /64, or of one user name, and is forgotten after ten minutes without one. Right
	// passwords are never held back. Default 1s.
	AuthDelay time.Duration `toml:"auth_delay"`
	// GreetDelay is how long a client is watched for talking before the banner. Default 2ms.
	GreetDelay time.Duration `toml:"greet_delay"`
	// HandshakeTimeout bounds the TLS handshake. Default 30s.
	HandshakeTimeout time.Duration `toml:"handshake_timeout"`
	// CommandTimeout bounds the wait for one complete command line. Default 5m (RFC 5321 section 4.5.3.2.7).
	CommandTimeout time.Duration `toml:"command_timeout"`
	// DataTimeout bounds each wait for a piece of a message. Default 3m (RFC 5321 section 4.5.3.2.5).
	DataTimeout time.Duration `toml:"data_timeout"`
	// MinDataRate is how many octets per second a client must send of a message. It may be behind by DataTimeout; what it
	// sent faster pays for no longer wait. Default 500.
	MinDataRate int `toml:"min_data_rate"`
	// WriteTimeout bounds each write of replies. Default 1m.
	WriteTimeout time.Duration `toml:"write_timeout"`
	// AcceptTimeout bounds the work of storing one message after its end was read. Default 5m.
	AcceptTimeout time.Duration `toml:"accept_timeout"`
	// HideClientAddress leaves name and address of submitting clients out of Received; the spool and the log keep them.
	// Default false.
	HideClientAddress bool `toml:"hide_client_address"`
	// ReturnPathHost is the domain of the return paths that relayd issues, which inbound listeners accept. Default: the
	// host name where there is an inbound listener; without one, none are issued.
	ReturnPathHost string `toml:"return_path_host"`
	// OperatorAddress gets the mail for postmaster and abuse that comes in. Default "": it is refused.
	OperatorAddress string `toml:"operator_address"`
	// MaxInboundBytes bounds one inbound message, which is held in memory and takes two octets for each of its own; all of
	// them together may take 16 times as much, those of one IPv4 address or IPv6 /64 a third of what they leave free. The
	// smaller of it and MaxMessageBytes is advertised as SIZE by inbound listeners. Default 5 MiB.
	MaxInboundBytes int64 `toml:"max_inbound_bytes"`
	// OAuth lets clients authenticate with a token of an issuer. Default none.
	OAuth OAuth `toml:"oauth"`
}

// OAuth is the table [smtp.oauth]: whose tokens OAUTHBEARER (RFC 7628) takes. Without an issuer it is not offered.
type OAuth struct {
	// Issuer is the "iss" of its tokens.
	Issuer string `toml:"issuer"`
	// Audience must be among the "aud" of a token.
	Audience string `toml:"audience"`
	// JWKSFile holds the issuer's public keys (RFC 7517): RSA, P-256 and Ed25519. Read again when it has changed; where
	// that fails, the keys of before stay in use.
	JWKSFile string `toml:"jwks_file"`
	// Claim is the one that names the SMTP credential. Default "sub".
	Claim string `toml:"claim"`
}

// Listener is one [[smtp.listener]].
type Listener struct {
	// Kind is submission or inbound.
	Kind string `toml:"kind"`
	// Address is an IP address and a port, "0.0.0.0:587".
	Address string `toml:"address"`
	// TLS is starttls, implicit or none. Default starttls.
	TLS string `toml:"tls"`
	// Proxy are the networks of load balancers, as 192.0.2.0/24 or one address. A connection from there must begin with a
	// PROXY protocol header, version 1 or 2, which names the client. A connection from elsewhere is the client's own, and
	// a header in it is no command. Default none.
	Proxy []string `toml:"proxy"`
	// ClientCAFile holds certificate authorities, PEM. A submission listener with TLS then asks its clients for a
	// certificate; one of these authorities lets the client authenticate with EXTERNAL, as the credential that its
	// subjectAltName (mail address or DNS name) or common name is. Without one, or with another, clients authenticate as
	// ever. Read again when it has changed. Default none.
	ClientCAFile string `toml:"client_ca_file"`
}

// proxies parses Proxy.
func (l Listener) proxies() (list []netip.Prefix, err error) {
	for _, text := range l.Proxy {
		p, perr := netip.ParsePrefix(text)
		if perr != nil {
			a, aerr := netip.ParseAddr(text)
			if aerr != nil || a.Zone() != "" {
				return nil, fmt.Errorf("%q is neither a network nor an address", text)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		list = append(list, p.Masked())
	}
	return list, nil
}

// label names the listener in metrics: kind and port.
func (l Listener) label() string {
	addr, err := netip.ParseAddrPort(l.Address)
	if err != nil {
		return l.Kind
	}
	return l.Kind + "-" + strconv.Itoa(int(addr.Port()))
}

// DefaultConfig returns the defaults, without a listener.
func DefaultConfig() Config {
	return Config{
		MaxMessageBytes:          25 << 20,
		MaxRecipients:            1000,
		MaxConnections:           2000,
		MaxConnectionsPerIP:      50,
		MaxConnectionsPerAccount: 1000,
		StressPercent:            80,
		StressTimeout:            10 * time.Second,
		MaxMessagesPerSession:    100_000,
		MaxErrors:                20,
		MaxJunkCommands:          100,
		MaxAuthFailures:          3,
		AuthDelay:                time.Second,
		GreetDelay:               2 * time.Millisecond,
		HandshakeTimeout:         30 * time.Second,
		CommandTimeout:           5 * time.Minute,
		DataTimeout:              3 * time.Minute,
		MinDataRate:              500,
		WriteTimeout:             time.Minute,
		AcceptTimeout:            5 * time.Minute,
		OAuth:                    OAuth{Claim: "sub"},
		MaxInboundBytes:          5 << 20,
	}
}

// Validate returns all errors joined.
func (c Config) Validate() error {
	var errs []error
	for i, l := range c.Listeners {
		if err := l.validate(); err != nil {
			errs = append(errs, fmt.Errorf("smtp.listener[%d]: %w", i, err))
		}
	}
	positive := func(key string, v int64) {
		if v <= 0 {
			errs = append(errs, fmt.Errorf("smtp.%s: %d is not positive", key, v))
		}
	}
	positive("max_message_bytes", c.MaxMessageBytes)
	positive("max_inbound_bytes", c.MaxInboundBytes)
	positive("max_recipients", int64(c.MaxRecipients))
	positive("max_connections", int64(c.MaxConnections))
	positive("max_connections_per_ip", int64(c.MaxConnectionsPerIP))
	positive("max_connections_per_account", int64(c.MaxConnectionsPerAccount))
	positive("stress_timeout", int64(c.StressTimeout))
	positive("max_messages_per_session", int64(c.MaxMessagesPerSession))
	positive("max_errors", int64(c.MaxErrors))
	positive("max_junk_commands", int64(c.MaxJunkCommands))
	positive("max_auth_failures", int64(c.MaxAuthFailures))
	positive("min_data_rate", int64(c.MinDataRate))
	positive("handshake_timeout", int64(c.HandshakeTimeout))
	positive("command_timeout", int64(c.CommandTimeout))
	positive("data_timeout", int64(c.DataTimeout))
	positive("write_timeout", int64(c.WriteTimeout))
	positive("accept_timeout", int64(c.AcceptTimeout))
	if o := c.OAuth; o.Issuer != "" && (o.Audience == "" || o.JWKSFile == "" || o.Claim == "") {
		errs = append(errs, errors.New("smtp.oauth: audience, jwks_file and claim are needed beside issuer"))
	}
	if c.StressPercent < 1 || c.StressPercent > 100 {
		errs = append(errs, fmt.Errorf("smtp.stress_percent: %d is not between 1 and 100", c.StressPercent))
	}
	if c.AuthDelay < 0 || c.AuthDelay > time.Minute {
		errs = append(errs, fmt.Errorf("smtp.auth_delay: %s is not between 0s and 1m", c.AuthDelay))
	}
	if c.GreetDelay < 0 || c.GreetDelay > time.Minute {
		errs = append(errs, fmt.Errorf("smtp.greet_delay: %s is not between 0s and 1m", c.GreetDelay))
	}
	if c.ReturnPathHost != "" {
		if _, err := mail.ParseDomain(c.ReturnPathHost, false); err != nil {
			errs = append(errs, fmt.Errorf("smtp.return_path_host: %q is not a domain name", c.ReturnPathHost))
		}
	}
	if c.OperatorAddress != "" {
		if _, err := mail.ParsePath(c.OperatorAddress); err != nil {
			errs = append(errs, fmt.Errorf("smtp.operator_address: %q is not a mail address", c.OperatorAddress))
		}
	}
	return errors.Join(errs...)
}

// HasInbound tells whether mail can come in.
func (c Config) HasInbound() bool {
	return slices.ContainsFunc(c.Listeners, func(l Listener) bool { return l.Kind == Inbound })
}

func (l Listener) validate() error {
	var errs []error
	if l.Kind != Submission && l.Kind != Inbound {
		errs = append(errs, fmt.Errorf("kind: %q is neither submission nor inbound", l.Kind))
	}
	addr, err := netip.ParseAddrPort(l.Address)
	if err != nil {
		errs = append(errs, fmt.Errorf("address: %q is not an IP address and a port", l.Address))
	}
	if _, err := l.proxies(); err != nil {
		errs = append(errs, fmt.Errorf("proxy: %w", err))
	}
	switch l.TLS {
	case StartTLS, Implicit, "":
	case NoTLS:
		if err == nil && !addr.Addr().IsLoopback() && l.Kind == Submission {
			errs = append(errs, fmt.Errorf("tls: none is for loopback addresses only, not %s", l.Address))
		}
	default:
		errs = append(errs, fmt.Errorf("tls: %q is none of starttls, implicit, none", l.TLS))
	}
	if l.ClientCAFile != "" && (l.Kind != Submission || l.TLS == NoTLS) {
		errs = append(errs, errors.New("client_ca_file: is for submission listeners with TLS"))
	}
	return errors.Join(errs...)
}
