package source

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Config of sources.
type Config struct {
	// MaxRunning is how many sources are read at the same time. Default 2.
	MaxRunning int `toml:"max_running"`
	// DSNRefs lists what API keys may name as dsn_ref: "ACCOUNT env:NAME" or "ACCOUNT file:/PATH". The admin socket and
	// keys of scope admin may name any. Default none.
	DSNRefs []string `toml:"dsn_refs"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{MaxRunning: 2, DSNRefs: []string{}} }

// Validate tells everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	if c.MaxRunning < 1 || c.MaxRunning > 64 {
		errs = append(errs, fmt.Errorf("source.max_running: %d is not between 1 and 64", c.MaxRunning))
	}
	for i, entry := range c.DSNRefs {
		account, ref, ok := strings.Cut(entry, " ")
		if !ok || account == "" || checkRef(ref) != "" {
			errs = append(errs, fmt.Errorf("source.dsn_refs: entry %d is not like \"default env:CRM_DSN\" or \"default file:/etc/relayd/crm.dsn\"", i+1))
		}
	}
	return errors.Join(errs...)
}

// allows tells whether a key of the account may name a reference.
func (c Config) allows(account, ref string) bool {
	return slices.Contains(c.DSNRefs, account+" "+ref)
}
