package demo

import (
	"fmt"
	"strings"

	"relayd/internal/api"
	"relayd/internal/mail"
	"relayd/internal/resolver/resolvertest"
)

// Names of the demo's little world.
const (
	senderDomain = "shop.example"
	relayHost    = "relay.shop.example"
	inboxHost    = "mx.inbox.example"
)

// newZones serves the DNS of the demo: every customer's domain has the inbox as its MX. All other names do not exist.
func newZones() (*resolvertest.Server, error) {
	zones := map[string][]string{
		senderDomain:    {"relay 300 IN A 127.0.0.1", "@ 300 IN A 127.0.0.1"},
		"inbox.example": {"mx 300 IN A 127.0.0.1"},
	}
	for _, d := range Domains() {
		name, err := mail.ParseDomain(d, false)
		if err != nil {
			return nil, err
		}
		zones[name] = []string{"@ 300 IN MX 10 " + inboxHost + "."}
	}
	s, err := resolvertest.NewServer(zones)
	if err != nil {
		return nil, fmt.Errorf("start name server: %w", err)
	}
	return s, nil
}

// publish puts the TXT records that relayd asks for into the zone, as an operator does at his DNS provider.
func publish(s *resolvertest.Server, records []api.DNSRecord) error {
	for _, r := range records {
		if r.Type != "TXT" || r.Value == "" {
			continue
		}
		if err := s.Add(strings.TrimSuffix(r.Name, ".") + ". 300 IN TXT " + txtStrings(r.Value)); err != nil {
			return fmt.Errorf("publish %s: %w", r.Name, err)
		}
	}
	return nil
}

// txtStrings quotes a TXT value, split into strings of at most 255 octets (RFC 1035 section 3.3).
func txtStrings(value string) string {
	var parts []string
	for len(value) > 0 {
		n := min(255, len(value))
		parts = append(parts, `"`+strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(value[:n])+`"`)
		value = value[n:]
	}
	return strings.Join(parts, " ")
}
