package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// Config is the [dns] table.
type Config struct {
	// Servers are the resolvers to ask, "address" or "address:port", the first one that answers. Default: those of the
	// system.
	Servers []string `toml:"servers"`
	// Timeout is how long one server may take for one answer; each is asked twice. Default 3s.
	Timeout time.Duration `toml:"timeout"`
}

// DefaultConfig asks the system's resolvers.
func DefaultConfig() Config { return Config{Timeout: 3 * time.Second} }

const maxServers = 8

// Validate reports every wrong key.
func (c Config) Validate() error {
	_, err := c.addresses()
	errs := []error{err}
	if c.Timeout < 0 || c.Timeout > time.Minute {
		errs = append(errs, fmt.Errorf("dns.timeout %v: it must be at most 1m", c.Timeout))
	}
	return errors.Join(errs...)
}

func (c Config) addresses() ([]netip.AddrPort, error) {
	var addrs []netip.AddrPort
	var errs []error
	for _, s := range c.Servers {
		a, err := parseServer(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("dns.servers %q: it must be an IP address, or address:port", s))
		}
		addrs = append(addrs, a)
	}
	if len(addrs) > maxServers {
		errs = append(errs, fmt.Errorf("dns.servers has %d servers, at most %d", len(addrs), maxServers))
	}
	return addrs, errors.Join(errs...)
}

func parseServer(s string) (netip.AddrPort, error) {
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(ip, 53), nil
	}
	return netip.ParseAddrPort(s)
}

// systemServers reads the name servers of resolv.conf(5); without any it is the local one, as for the C library.
func systemServers(path string) []netip.AddrPort {
	var addrs []netip.AddrPort
	if conf, err := dns.ClientConfigFromFile(path); err == nil {
		for _, s := range conf.Servers {
			if a, err := parseServer(s); err == nil && len(addrs) < maxServers {
				addrs = append(addrs, a)
			}
		}
	}
	if len(addrs) == 0 {
		addrs = append(addrs, netip.MustParseAddrPort("127.0.0.1:53"))
	}
	return addrs
}

// Deps is what a Resolver needs from outside. The zero value works.
type Deps struct {
	Now     func() time.Time      // default time.Now
	Metrics prometheus.Registerer // default: not registered
}
