package delivery

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"relayd/internal/mail"
	"relayd/spool"
)

// Config of delivery. Reload replaces what is marked "Reloaded"; the rest holds until relayd starts again.
type Config struct {
	// Route is "mx" (look up the recipient's domain) or the name of a smarthost. Default "mx". Reloaded.
	Route string `toml:"route"`
	// Fallback is the route taken while the site of Route is suspended: "mx" or the name of a smarthost. Default "": mail
	// waits for the site. Reloaded.
	Fallback string `toml:"fallback"`
	// Rules choose another route, source or level of TLS for some mail. Reloaded.
	Rules []Rule `toml:"rule"`
	// Sources are the addresses that rules may send from. Reloaded.
	Sources []Source `toml:"source"`
	// MXPort is the port of MX hosts. Default 25. Reloaded.
	MXPort int `toml:"mx_port"`
	// AllowPrivateMX lets an MX host stand on a loopback, private or link-local address. Only for tests. Default false.
	AllowPrivateMX bool `toml:"allow_private_mx"`
	// MaxConnections bounds the outgoing connections in all, idle ones included. A tenth is kept for mail that is not
	// bulk. Default 500. Reloaded: of more that are open each ends after its message.
	MaxConnections int `toml:"max_connections"`
	// MaxConnectionsPerSite bounds the connections to one site. One in ten is kept for mail that is not bulk. Default 20.
	// Reloaded.
	MaxConnectionsPerSite int `toml:"max_connections_per_site"`
	// MaxMessagesPerConnection closes a connection after so many messages. Default 100. Reloaded.
	MaxMessagesPerConnection int `toml:"max_messages_per_connection"`
	// MaxRecipients bounds the recipients of one transaction, 1 to 100 (RFC 5321 section 4.5.3.1.8). Default 100.
	// Reloaded.
	MaxRecipients int `toml:"max_recipients_per_transaction"`
	// Chunking sends messages with BDAT instead of DATA to hosts that offer CHUNKING (RFC 3030). Default false. Reloaded.
	Chunking bool `toml:"chunking"`
	// IdleTimeout is how long an open connection waits for more mail. Default 5s.
	IdleTimeout time.Duration `toml:"idle_timeout"`
	// ConnectTimeout bounds one TCP connect, 60s at most. Default 30s.
	ConnectTimeout time.Duration `toml:"connect_timeout"`
	// ConnectTries is how often the hosts of a site are gone through within one attempt while they refuse or break the
	// connection: 1 s apart, doubling. Default 3.
	ConnectTries int `toml:"connect_tries"`
	// SuspendFirst is the first pause of a site that cannot be reached or throttles; it doubles up to SuspendMax, ±10 %.
	// Defaults 30s and 30m. Reloaded.
	SuspendFirst time.Duration `toml:"suspend_first"`
	SuspendMax   time.Duration `toml:"suspend_max"`
	// Grace is how long attempts may finish when relayd stops. Default 30s.
	Grace time.Duration `toml:"grace"`
	// DelayNotice tells a sender once that a message is still on its way, when an attempt fails that long after its
	// acceptance: mail without NOTIFY, or with NOTIFY=DELAY. Default 0: never. Reloaded.
	DelayNotice time.Duration `toml:"delay_notice"`
	// ReplyRulesFile holds rules that are asked before those of rules.txt, in the same form. Default "": none. Reloaded.
	ReplyRulesFile string `toml:"reply_rules_file"`
	// ProvidersFile holds rules that roll sites up to providers, in place of the built-in ones: see providers.txt. Default "".
	// Reloaded, and read again with each Reload.
	ProvidersFile string `toml:"providers_file"`
	// Limits are ceilings by site, provider, source address, account and campaign; they come before those of the rules.
	// Reloaded.
	Limits Limits `toml:"limits"`
	// Retry is the default policy. Reloaded but for its max_age, which messages get when they are accepted.
	Retry Retry `toml:"retry"`
	// Smarthosts are the upstream relays that Route may name. Reloaded.
	Smarthosts []Smarthost `toml:"smarthost"`

	// Policies are the named policies, [retry.<name>]. One that is named like a stream, or else like a class
	// (urgent, transactional, bulk), holds for its messages. Reloaded.
	Policies map[string]Retry `toml:"-"`
	// ReplyRules is what ReplyRulesFile holds, put here by whoever reads the file.
	ReplyRules string `toml:"-"`
	// Timeouts bound each wait of a session.
	Timeouts Timeouts `toml:"-"`
	// Now is the clock; nil: time.Now.
	Now func() time.Time `toml:"-"`
}

// Retry is a policy of attempts: see spool.RetryPolicy.
type Retry struct {
	Attempts   int           `toml:"attempts"`    // in all; default 3
	FirstDelay time.Duration `toml:"first_delay"` // between the first and the second; default 15m
	Multiplier float64       `toml:"multiplier"`  // of each further delay; default 16
	MaxAge     time.Duration `toml:"max_age"`     // no attempt after this age; default 24h
}

// Policy returns the policy in the spool's words.
func (r Retry) Policy() spool.RetryPolicy {
	return spool.RetryPolicy{Attempts: r.Attempts, First: r.FirstDelay, Multiplier: r.Multiplier, MaxAge: r.MaxAge}
}

// Smarthost is an upstream relay: one site, reached with verified TLS.
type Smarthost struct {
	Name         string `toml:"name"`          // the value of Route; lower case letters, digits and '-'
	Address      string `toml:"address"`       // host:port
	TLS          string `toml:"tls"`           // starttls | implicit | none (none: loopback addresses only); default starttls
	Username     string `toml:"username"`      // empty: no AUTH
	PasswordFile string `toml:"password_file"` // read when relayd starts

	// Password is what PasswordFile holds, put here by whoever reads the file.
	Password string `toml:"-"`
}

// Timeouts bound each wait of a session (RFC 5321 section 4.5.3.2).
type Timeouts struct {
	Greeting  time.Duration // the 220, default 5m
	Command   time.Duration // EHLO, MAIL, RCPT, RSET…, default 5m
	Handshake time.Duration // TLS, default 1m
	DataInit  time.Duration // 354, default 2m
	DataBlock time.Duration // each block written, default 3m
	DataDone  time.Duration // the reply to the final dot, never less than 10m but in tests
}

// DefaultTimeouts returns the figures of RFC 5321.
func DefaultTimeouts() Timeouts {
	return Timeouts{
		Greeting: 5 * time.Minute, Command: 5 * time.Minute, Handshake: time.Minute,
		DataInit: 2 * time.Minute, DataBlock: 3 * time.Minute, DataDone: 10 * time.Minute,
	}
}

func (t Timeouts) withDefaults() Timeouts {
	d := DefaultTimeouts()
	for _, f := range []struct{ v, d *time.Duration }{
		{&t.Greeting, &d.Greeting},
		{&t.Command, &d.Command},
		{&t.Handshake, &d.Handshake},
		{&t.DataInit, &d.DataInit},
		{&t.DataBlock, &d.DataBlock},
		{&t.DataDone, &d.DataDone},
	} {
		if *f.v <= 0 {
			*f.v = *f.d
		}
	}
	return t
}

// DefaultRetry returns the default policy: 0, 15 minutes, about 4 hours.
func DefaultRetry() Retry {
	return Retry{Attempts: 3, FirstDelay: 15 * time.Minute, Multiplier: 16, MaxAge: 24 * time.Hour}
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Route: RouteMX, MXPort: 25, MaxConnections: 500, MaxConnectionsPerSite: 20, MaxMessagesPerConnection: 100,
		MaxRecipients: 100, IdleTimeout: 5 * time.Second, ConnectTimeout: 30 * time.Second, ConnectTries: 3,
		SuspendFirst: 30 * time.Second, SuspendMax: 30 * time.Minute, Grace: 30 * time.Second,
		Retry: DefaultRetry(), Timeouts: DefaultTimeouts(),
	}
}

// Validate returns every fault of the configuration, joined. Names of keys are those of the section [delivery].
func (c Config) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	within := func(key string, v, low, high int) {
		if v < low || v > high {
			add("delivery.%s: %d is not within %d and %d", key, v, low, high)
		}
	}
	lasting := func(key string, v, low, high time.Duration) {
		if v < low || v > high {
			add("delivery.%s: %s is not within %s and %s", key, v, low, high)
		}
	}
	within("mx_port", c.MXPort, 1, 65535)
	within("max_connections", c.MaxConnections, 1, 100_000)
	within("max_connections_per_site", c.MaxConnectionsPerSite, 1, 10_000)
	within("max_messages_per_connection", c.MaxMessagesPerConnection, 1, 1_000_000)
	within("max_recipients_per_transaction", c.MaxRecipients, 1, 100)
	within("connect_tries", c.ConnectTries, 1, 10)
	lasting("idle_timeout", c.IdleTimeout, 0, 5*time.Minute)
	lasting("connect_timeout", c.ConnectTimeout, time.Millisecond, time.Minute)
	lasting("suspend_first", c.SuspendFirst, time.Millisecond, 24*time.Hour)
	lasting("suspend_max", c.SuspendMax, c.SuspendFirst, 24*time.Hour)
	lasting("grace", c.Grace, 0, 10*time.Minute)
	if _, err := c.providers(); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, c.Retry.validate("delivery.retry"))
	for name, r := range c.Policies {
		errs = append(errs, r.validate("retry."+name))
	}
	names := map[string]bool{RouteMX: true, RouteDiscard: true, "default": true}
	for i, h := range c.Smarthosts {
		key := fmt.Sprintf("delivery.smarthost[%d]", i)
		switch {
		case !isRouteName(h.Name):
			add("%s.name: %q is not 1 to 64 letters, digits, '-' and '_'", key, mail.CleanText(h.Name, 80))
		case names[h.Name]:
			add("%s.name: %q is used twice, or one of mx, discard, default", key, h.Name)
		}
		names[h.Name] = true
		errs = append(errs, h.validate(key))
	}
	delete(names, RouteDiscard)
	delete(names, "default")
	if !names[c.Route] {
		add("delivery.route: %q is neither %q nor the name of a smarthost", c.Route, RouteMX)
	}
	checkFallback(c.Route, c.Fallback, names, func(key, format string, args ...any) {
		add("delivery."+key+": "+format, args...)
	})
	called := map[string]bool{}
	for i := range c.Sources {
		key := fmt.Sprintf("delivery.source[%d]", i)
		if called[c.Sources[i].Name] {
			add("%s.name: %q is used twice", key, c.Sources[i].Name)
		}
		called[c.Sources[i].Name] = true
		errs = append(errs, c.Sources[i].validate(key))
	}
	c.validateRules(add, names)
	if c.DelayNotice != 0 {
		lasting("delay_notice", c.DelayNotice, time.Minute, 30*24*time.Hour)
	}
	if _, err := NewClassifier(c.ReplyRules); err != nil {
		add("delivery.reply_rules_file: %w", err)
	}
	return errors.Join(errs...)
}

func (r Retry) validate(key string) error {
	var errs []error
	add := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s."+format, append([]any{key}, args...)...))
	}
	if r.Attempts < 1 || r.Attempts > 1000 {
		add("attempts: %d is not within 1 and 1000", r.Attempts)
	}
	if r.FirstDelay <= 0 || r.FirstDelay > 30*24*time.Hour {
		add("first_delay: %s is not within 0s and 720h", r.FirstDelay)
	}
	if r.Multiplier < 1 || r.Multiplier > 100 {
		add("multiplier: %g is not within 1 and 100", r.Multiplier)
	}
	if r.MaxAge <= 0 || r.MaxAge > 30*24*time.Hour {
		add("max_age: %s is not within 0s and 720h", r.MaxAge)
	}
	return errors.Join(errs...)
}

func (h Smarthost) validate(key string) error {
	var errs []error
	add := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s."+format, append([]any{key}, args...)...))
	}
	host, port, err := net.SplitHostPort(h.Address)
	if err != nil || host == "" || port == "" {
		add("address: %q is not host:port", h.Address)
	}
	switch h.TLS {
	case TLSStart, TLSImplicit, "":
	case TLSNone:
		if !isLoopbackHost(host) {
			add("tls: none is for loopback addresses only, not %s", mail.CleanText(h.Address, 80))
		}
	default:
		add("tls: %q is none of starttls, implicit, none", h.TLS)
	}
	if h.Username == "" && (h.PasswordFile != "" || h.Password != "") {
		add("username: missing where password_file is given")
	}
	if h.Username != "" && h.PasswordFile == "" && h.Password == "" {
		add("password_file: missing where username is given")
	}
	if strings.ContainsAny(h.Username, "\r\n\x00") {
		add("username: holds a control character")
	}
	return errors.Join(errs...)
}

// The ways to reach a smarthost.
const (
	TLSStart    = "starttls"
	TLSImplicit = "implicit"
	TLSNone     = "none"
)
