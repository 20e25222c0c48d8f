// Package config composes the configuration of every package into one file, reads it strictly, and tells every error
// with its line. It opens nothing but the file and the secrets that the file names.
package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"unicode"
	"unicode/utf8"

	"relayd/admin"
	"relayd/campaign"
	"relayd/delivery"
	"relayd/internal/account"
	"relayd/internal/mail"
	"relayd/internal/resolver"
	"relayd/internal/source"
	"relayd/smtpd"
	"relayd/spool"
)

// Config is the whole configuration. SIGHUP puts into force what the doc comment of a field says, nothing else.
type Config struct {
	// Hostname is the EHLO name, the "by" of Received and the host of DSNs. Default: the machine's host name.
	Hostname string `toml:"hostname"`
	// DataDir holds the spool, the DKIM keys, the keys of unsubscribe links and the admin socket. It is made with mode
	// 0700. Default "/var/lib/relayd".
	DataDir string `toml:"data_dir"`
	// Instance names this relayd among copies of it. A store that belongs to another instance is refused, until relayd run
	// --adopt. Default: the ID of the machine, /etc/machine-id.
	Instance string `toml:"instance"`
	// Log says what the operator log holds.
	Log Log `toml:"log"`
	// SMTP is the front door.
	SMTP smtpd.Config `toml:"smtp"`
	// Spool is the store of what is queued.
	Spool spool.Config `toml:"spool"`
	// Quota bounds what accounts and credentials may hand in.
	Quota account.QuotaConfig `toml:"quota"`
	// TLS is the certificate of the SMTP listeners. Read again on SIGHUP and when a file has changed.
	TLS TLS `toml:"tls"`
	// Admin is the HTTP side.
	Admin admin.Config `toml:"admin"`
	// Campaign bounds campaigns.
	Campaign campaign.Config `toml:"campaign"`
	// Source bounds the syncs of lists from databases.
	Source source.Config `toml:"source"`
	// DNS says whom to ask.
	DNS resolver.Config `toml:"dns"`
	// Delivery is the way out. SIGHUP puts into force what its own fields say.
	Delivery delivery.Config `toml:"delivery"`
	// Retry holds named policies beside delivery.retry. Reloaded on SIGHUP.
	Retry map[string]delivery.Retry `toml:"retry"`
	// Domains may send. Others are added over the API.
	Domains []Domain `toml:"domain"`
}

// Log says what the operator log holds.
type Log struct {
	// Level is debug, info, warn or error. Default "info".
	Level string `toml:"level"`
	// Format is text or json. Default "text".
	Format string `toml:"format"`
}

// TLS is one certificate with its key, PEM files.
type TLS struct {
	CertFile string `toml:"cert_file"`
	KeyFile  string `toml:"key_file"`
}

// Domain is one [[domain]]: a sender domain of the account "default".
type Domain struct {
	Name string `toml:"name"`
	// Sign is "required" or "none": unsigned only where the operator says so. Default "required".
	Sign string    `toml:"sign"`
	DKIM []DKIMKey `toml:"dkim"`
}

// DKIMKey names one signing key. KeyFile is relative to data_dir.
type DKIMKey struct {
	Selector string `toml:"selector"`
	KeyFile  string `toml:"key_file"`
}

// Default returns the configuration of an empty file. It listens on the admin socket and on a loopback address, on no
// SMTP port.
func Default() *Config {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	return &Config{
		Hostname: host,
		DataDir:  "/var/lib/relayd",
		Log:      Log{Level: "info", Format: "text"},
		SMTP:     smtpd.DefaultConfig(),
		Spool:    spool.DefaultConfig(),
		Admin:    admin.DefaultConfig(),
		Campaign: campaign.DefaultConfig(),
		Source:   source.DefaultConfig(),
		DNS:      resolver.DefaultConfig(),
		Delivery: delivery.DefaultConfig(),
	}
}

// Find returns the file to use: name if it is given, else RELAYD_CONFIG, else the first that exists of ./relayd.toml
// and /etc/relayd/relayd.toml.
func Find(name string) (string, error) {
	if name != "" {
		return name, nil
	}
	if name = os.Getenv("RELAYD_CONFIG"); name != "" {
		return name, nil
	}
	for _, f := range []string{"relayd.toml", "/etc/relayd/relayd.toml"} {
		if _, err := os.Stat(f); err == nil {
			return f, nil
		}
	}
	return "", errors.New("no configuration: neither ./relayd.toml nor /etc/relayd/relayd.toml exists; name one with --config FILE")
}

// Load reads file, then the environment (RELAYD_SECTION_KEY), then the secrets that it names, and checks everything. The
// error is a *Problems with every fault.
func Load(file string) (*Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(file, text, os.Environ())
}

// Parse is Load for text that is already read; environ holds NAME=VALUE.
func Parse(file string, text []byte, environ []string) (*Config, error) {
	c := Default()
	var d decoder
	d.decode(text, c)
	if d.lines != nil { // else the file has no structure to check
		d.environment(environ, c)
		c.settle(&d)
		for _, p := range c.check() {
			d.fail(p.Key, "%s", p.Msg)
		}
	}
	if len(d.problems) > 0 {
		sortByLine(d.problems)
		return nil, &Problems{File: file, List: d.problems}
	}
	return c, nil
}

// settle fills what follows from other keys and reads the secrets.
func (c *Config) settle(d *decoder) {
	c.Delivery.Policies = c.Retry
	for i := range c.SMTP.Listeners {
		if c.SMTP.Listeners[i].TLS == "" {
			c.SMTP.Listeners[i].TLS = smtpd.StartTLS
		}
	}
	for i := range c.Delivery.Smarthosts {
		h := &c.Delivery.Smarthosts[i]
		if h.TLS == "" {
			h.TLS = delivery.TLSStart
		}
		if h.PasswordFile != "" {
			secret, err := readSecret(h.PasswordFile)
			if err != nil {
				d.fail(fmt.Sprintf("delivery.smarthost[%d].password_file", i), "%v", err)
			}
			h.Password = secret
		}
	}
	if f := c.Delivery.ReplyRulesFile; f != "" {
		rules, err := readText(f, maxRulesFile)
		if err != nil {
			d.fail("delivery.reply_rules_file", "%v", err)
		}
		c.Delivery.ReplyRules = rules
	}
	for i := range c.Domains {
		if c.Domains[i].Sign == "" {
			c.Domains[i].Sign = "required"
		}
	}
	if c.Admin.Socket == "" {
		c.Admin.Socket = filepath.Join(c.DataDir, "admin.sock")
	}
	c.Admin.MaxMessageBytes = c.SMTP.MaxMessageBytes
	c.Campaign.Hostname, c.Campaign.DataDir = c.Hostname, c.DataDir
	if u := c.Admin.PublicURL; split("admin", c.Admin.Validate()) == nil {
		c.Campaign.PublicURL = u
	}
}

// maxRulesFile bounds a file of reply rules, in octets.
const maxRulesFile = 1 << 20

// readText reads a file of at most most octets.
func readText(file string, most int64) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	switch {
	case err != nil:
		return "", err
	case int64(len(b)) > most:
		return "", fmt.Errorf("%s has more than %d octets", file, most)
	case !utf8.Valid(b):
		return "", fmt.Errorf("%s is not UTF-8 text", file)
	}
	return string(b), nil
}

// readSecret reads one line.
func readSecret(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	s := strings.TrimRight(string(b), "\r\n")
	if s == "" || len(s) > 4096 || strings.ContainsAny(s, "\r\n\x00") {
		return "", fmt.Errorf("%s must hold one line", file)
	}
	return s, nil
}

// check returns every fault that the types do not show.
func (c *Config) check() []Problem {
	var out []Problem
	add := func(key, format string, args ...any) {
		out = append(out, Problem{Key: key, Msg: fmt.Sprintf(format, args...)})
	}
	if _, err := mail.ParseDomain(c.Hostname, false); err != nil {
		add("hostname", "%q is not a host name", c.Hostname)
	}
	if c.DataDir == "" {
		add("data_dir", "must be given")
	}
	if len(c.Instance) > 200 || strings.ContainsFunc(c.Instance, unicode.IsControl) {
		add("instance", "must be a name of at most 200 bytes")
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Log.Level)); err != nil {
		add("log.level", "%q is none of debug, info, warn, error", c.Log.Level)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		add("log.format", "%q is neither text nor json", c.Log.Format)
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		add("tls", "cert_file and key_file go together")
	}
	for i, l := range c.SMTP.Listeners {
		if l.TLS != smtpd.NoTLS && c.TLS.CertFile == "" {
			add(fmt.Sprintf("smtp.listener[%d].tls", i), "%s needs [tls] cert_file and key_file", l.TLS)
		}
	}
	out = append(out, c.checkDomains()...)
	out = append(out, split("smtp", c.SMTP.Validate())...)
	out = append(out, split("spool", c.Spool.Validate())...)
	out = append(out, split("quota", c.Quota.Validate())...)
	out = append(out, split("admin", c.Admin.Validate())...)
	out = append(out, split("campaign", c.Campaign.Validate())...)
	out = append(out, split("source", c.Source.Validate())...)
	out = append(out, split("dns", c.DNS.Validate())...)
	out = append(out, split("delivery", c.Delivery.Validate())...)
	return out
}

func (c *Config) checkDomains() []Problem {
	var out []Problem
	seen := map[string]bool{}
	for i, d := range c.Domains {
		key := fmt.Sprintf("domain[%d]", i)
		add := func(sub, format string, args ...any) {
			out = append(out, Problem{Key: key + sub, Msg: fmt.Sprintf(format, args...)})
		}
		name, err := mail.ParseDomain(d.Name, false)
		switch {
		case err != nil || !strings.Contains(name, "."):
			add(".name", "%q is not a domain name", d.Name)
		case seen[name]:
			add(".name", "%s stands here twice", name)
		default:
			seen[name] = true
			c.Domains[i].Name = name
		}
		if d.Sign != "required" && d.Sign != "none" {
			add(".sign", "%q is neither required nor none", d.Sign)
		}
		for j, k := range d.DKIM {
			if k.Selector == "" || k.KeyFile == "" {
				add(fmt.Sprintf(".dkim[%d]", j), "selector and key_file must be given")
			}
		}
	}
	return out
}

// split turns the joined errors of a package into problems. Their text begins with the key, with or without the
// package's table, and a colon or an equals sign.
func split(table string, err error) []Problem {
	var out []Problem
	for _, text := range flatten("", err) {
		end := strings.IndexAny(text, ": =")
		if end < 0 {
			out = append(out, Problem{Key: table, Msg: text})
			continue
		}
		key, msg := text[:end], strings.TrimLeft(text[end:], ": ")
		// "smtp.listener[0]: kind: …" names the key in two steps
		if next, rest, ok := strings.Cut(msg, ": "); ok && strings.HasSuffix(key, "]") && !strings.ContainsAny(next, " =") {
			key, msg = key+"."+next, rest
		}
		if !strings.HasPrefix(key, table+".") && !strings.HasPrefix(key, "retry.") {
			key = table + "." + key
		}
		out = append(out, Problem{Key: key, Msg: msg})
	}
	return out
}

// flatten returns the texts of all errors joined in err, each with the text that wraps it.
func flatten(before string, err error) []string {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // looks at this level only
		var out []string
		for _, e := range many.Unwrap() {
			out = append(out, flatten(before, e)...)
		}
		return out
	}
	if inner := errors.Unwrap(err); inner != nil && strings.Contains(inner.Error(), "\n") {
		return flatten(before+strings.TrimSuffix(err.Error(), inner.Error()), inner)
	}
	return []string{before + err.Error()}
}

// environment sets scalar keys from variables such as RELAYD_ADMIN_ADDRESS. Keys of lists and of named tables have none.
func (d *decoder) environment(environ []string, c *Config) {
	keys := map[string]scalar{}
	scalars("", reflect.ValueOf(c).Elem(), keys)
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, "RELAYD_") || name == "RELAYD_CONFIG" || strings.HasPrefix(name, "RELAYD_E2E") {
			continue
		}
		s, ok := keys[name]
		if !ok {
			d.problems = append(d.problems, Problem{Key: name, Msg: "no configuration key has this environment variable"})
			continue
		}
		d.value(s.key, parseScalar(value, s.v), s.v)
	}
}

type scalar struct {
	key string
	v   reflect.Value
}

func scalars(prefix string, v reflect.Value, out map[string]scalar) {
	for key, f := range fields(v) {
		full := join(prefix, key)
		switch f.Kind() {
		case reflect.Struct:
			scalars(full, f, out)
		case reflect.Slice, reflect.Map:
		default:
			out["RELAYD_"+strings.ToUpper(strings.ReplaceAll(full, ".", "_"))] = scalar{full, f}
		}
	}
}
