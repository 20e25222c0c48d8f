package resolver

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is the [dns] table.
type Config struct {
	// Servers are the resolvers to ask, "address" or "address:port", in order. Default: those of the system.
	Servers []string `toml:"servers"`
}

// DefaultConfig asks the system's resolvers.
func DefaultConfig() Config { return Config{} }

// Validate reports every wrong server.
func (c Config) Validate() error { return nil }

// Deps is what a Resolver needs from outside. The zero value works.
type Deps struct {
	Now     func() time.Time      // default time.Now
	Metrics prometheus.Registerer // default: none
}
