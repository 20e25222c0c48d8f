package campaign

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// Config of campaigns. PublicURL, Hostname, DataDir and Node are set by whoever wires relayd: in the configuration file
// they are keys of other sections.
type Config struct {
	PublicURL string `toml:"-"` // https base of unsubscribe pages (admin.public_url); "": campaigns cannot start
	Hostname  string `toml:"-"` // in Message-ID
	DataDir   string `toml:"-"` // holds unsubscribe.keys
	// UnsubscribeMailbox is an address for List-Unsubscribe beside the link, which takes a token in its subject; "": none.
	UnsubscribeMailbox string        `toml:"-"`
	Node               string        `toml:"-"`           // name of this process among those that share the store; default "0"
	PageSize           int           `toml:"page_size"`   // recipients queued in one transaction; default 4000
	TTL                time.Duration `toml:"ttl"`         // no attempt later than this after the start; default 24h
	CacheBytes         int64         `toml:"cache_bytes"` // compiled campaigns kept in memory; default 64 MiB, one always stays
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{Node: "0", PageSize: 4000, TTL: 24 * time.Hour, CacheBytes: 64 << 20}
}

// Validate tells everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	if c.PageSize < 1 || c.PageSize > 10000 {
		errs = append(errs, fmt.Errorf("campaign.page_size: %d is not between 1 and 10000", c.PageSize))
	}
	if c.TTL < time.Minute || c.TTL > 30*24*time.Hour {
		errs = append(errs, fmt.Errorf("campaign.ttl: %s is not between 1m and 720h", c.TTL))
	}
	if c.CacheBytes < 1<<20 {
		errs = append(errs, fmt.Errorf("campaign.cache_bytes: %d is less than 1048576", c.CacheBytes))
	}
	if c.PublicURL != "" {
		if err := checkPublicURL(c.PublicURL); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// checkPublicURL takes https, and http for loopback hosts only: mailbox providers offer one-click for https alone
// (RFC 8058 section 3.1).
func checkPublicURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || strings.ContainsAny(s, "<>,\" \t\r\n"):
		return fmt.Errorf("admin.public_url: %q is not a plain URL such as https://mail.example.com", s)
	case u.Scheme == "https", u.Scheme == "http" && isLoopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("admin.public_url: %q must begin with https://", s)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
