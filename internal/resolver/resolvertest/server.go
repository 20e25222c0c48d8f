// Package resolvertest has a DNS server for tests and demonstrations, and a resolver that is a struct of maps.
package resolvertest

// Server is a DNS server on a loopback address.
type Server struct {
	Addr string // host:port, the same port for UDP and TCP
}

// NewServer serves the zones, keyed by their apex; records are RFC 1035 lines with names relative to the apex.
func NewServer(zones map[string][]string) (*Server, error) { panic("CONTRACT STUB") }

// Add adds a record, an RFC 1035 line with a full name.
func (s *Server) Add(rr string) error { panic("CONTRACT STUB") }

// SetRcode makes every query for the name end in that response code.
func (s *Server) SetRcode(name string, rcode int) { panic("CONTRACT STUB") }

// Queries counts the queries so far for a name and type, or for all with "".
func (s *Server) Queries(name, typ string) int { panic("CONTRACT STUB") }

// Close stops the server and waits for its goroutines.
func (s *Server) Close() error { panic("CONTRACT STUB") }
