package admin

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// Config of the HTTP face.
type Config struct {
	// Address is where the API (with a key), the unsubscribe pages, /healthz, /readyz and /metrics are served. Empty: only
	// the socket is. Default "127.0.0.1:8080".
	Address string `toml:"address"`
	// Socket is the path of the unix socket that gives full rights to who may open it (mode 0600). Default: admin.sock in
	// the data directory.
	Socket string `toml:"socket"`
	// PublicURL is the https base of unsubscribe pages, as recipients reach it. Campaigns need it.
	PublicURL string `toml:"public_url"`
	// MaxConnections bounds the connections of each listener. Default 512.
	MaxConnections int `toml:"max_connections"`
	// MaxUploadBytes bounds one upload of recipients or suppressions. Default 1 GiB.
	MaxUploadBytes int64 `toml:"-"`
	// MaxMessageBytes bounds one message of POST /v1/messages; smtp.max_message_bytes sets it. Default 25 MiB.
	MaxMessageBytes int64 `toml:"-"`
	// ShutdownGrace is how long requests may go on after Run's context ends. Default 10s.
	ShutdownGrace time.Duration `toml:"-"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Address:         "127.0.0.1:8080",
		MaxConnections:  512,
		MaxUploadBytes:  1 << 30,
		MaxMessageBytes: 25 << 20,
		ShutdownGrace:   10 * time.Second,
	}
}

// Validate returns all that is wrong, joined.
func (c Config) Validate() error {
	var errs []error
	if c.Address != "" {
		if _, port, err := net.SplitHostPort(c.Address); err != nil || port == "" {
			errs = append(errs, fmt.Errorf("admin.address: %q is not host:port", c.Address))
		}
	}
	if c.PublicURL != "" {
		if err := checkPublicURL(c.PublicURL); err != nil {
			errs = append(errs, err)
		}
	}
	if c.MaxConnections < 1 {
		errs = append(errs, errors.New("admin.max_connections: must be at least 1"))
	}
	return errors.Join(errs...)
}

// checkPublicURL wants https (RFC 8058 section 3.1); http is taken for loopback hosts, for trying things out.
func checkPublicURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("admin.public_url: %q is not like https://news.example.com", s)
	}
	ip := net.ParseIP(u.Hostname())
	loopback := u.Hostname() == "localhost" || strings.HasSuffix(u.Hostname(), ".localhost") || ip != nil && ip.IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback) {
		return fmt.Errorf("admin.public_url: %q is not https: mailbox providers only follow https (RFC 8058)", s)
	}
	return nil
}
