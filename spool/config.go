package spool

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config of the spool.
type Config struct {
	Now     func() time.Time      `toml:"-"` // the clock; nil: time.Now
	Log     *slog.Logger          `toml:"-"` // nil: silent
	Metrics prometheus.Registerer `toml:"-"` // nil: not registered
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{} }

// Validate finds nothing wrong: the spool has no options of its own.
func (c Config) Validate() error { return nil }
