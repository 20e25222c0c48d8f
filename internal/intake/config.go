package intake

import (
	"errors"
	"fmt"
	"time"
)

// Config of the door. It has no table of its own: the wiring fills it from other tables.
type Config struct {
	// MaxAge is how long after its acceptance a message expires where its submission does not say so. Default 24h.
	MaxAge time.Duration `toml:"-"`
	// MaxHeaderBytes bounds the header section as it is handed in. Default 256 KiB.
	MaxHeaderBytes int `toml:"-"`
	// MaxHops bounds the Received fields of a message; more are a loop (RFC 5321 section 6.3). Default 50.
	MaxHops int `toml:"-"`
	// HideClient leaves name and address of the client out of Received. Default false.
	HideClient bool `toml:"-"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{MaxAge: 24 * time.Hour, MaxHeaderBytes: 256 << 10, MaxHops: 50}
}

// Validate returns all errors joined.
func (c Config) Validate() error {
	var errs []error
	if c.MaxAge <= 0 {
		errs = append(errs, fmt.Errorf("max_age: %s is not positive", c.MaxAge))
	}
	if c.MaxHeaderBytes < 1<<10 {
		errs = append(errs, fmt.Errorf("max header: %d octets are too few", c.MaxHeaderBytes))
	}
	if c.MaxHops < 1 {
		errs = append(errs, fmt.Errorf("max hops: %d is not positive", c.MaxHops))
	}
	return errors.Join(errs...)
}
