package spool

import "time"

// Config of the spool.
type Config struct {
	Now func() time.Time `toml:"-"` // the clock; nil: time.Now
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{} }
