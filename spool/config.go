package spool

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config of the spool.
type Config struct {
	// Retention is how long final outcomes, with their history, and events are kept. Default "720h" (30 days).
	Retention time.Duration `toml:"retention"`
	// MinFreeBytes is the free space, on disk and inside the spool's file, below which nothing new is taken (452, HTTP
	// 507); deliveries go on. On a small file system it is a twentieth of that. 0: no floor. Default "512MiB".
	MinFreeBytes int64 `toml:"min_free_bytes"`
	// MinMemoryBytes is the available memory, of the machine or of the control group, below which nothing new is taken
	// (451, HTTP 503). 0: no floor. Default "32MiB".
	MinMemoryBytes int64 `toml:"min_memory_bytes"`
	// MaxCommitLatency is how long one commit in a hundred may take before nothing new is taken (451, HTTP 503) for some
	// seconds. 0: any time. Default "5s".
	MaxCommitLatency time.Duration `toml:"max_commit_latency"`

	Now     func() time.Time      `toml:"-"` // the clock; nil: time.Now
	Log     *slog.Logger          `toml:"-"` // nil: silent
	Metrics prometheus.Registerer `toml:"-"` // nil: not registered
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{Retention: 720 * time.Hour, MinFreeBytes: 512 << 20, MinMemoryBytes: 32 << 20, MaxCommitLatency: 5 * time.Second}
}

// Validate returns all errors joined.
func (c Config) Validate() error {
	var errs []error
	if c.Retention < time.Hour {
		errs = append(errs, fmt.Errorf("retention: %s is below one hour", c.Retention))
	}
	if c.MinFreeBytes < 0 {
		errs = append(errs, fmt.Errorf("min_free_bytes: %d is below 0", c.MinFreeBytes))
	}
	if c.MinMemoryBytes < 0 {
		errs = append(errs, fmt.Errorf("min_memory_bytes: %d is below 0", c.MinMemoryBytes))
	}
	if c.MaxCommitLatency < 0 {
		errs = append(errs, fmt.Errorf("max_commit_latency: %s is below 0", c.MaxCommitLatency))
	}
	return errors.Join(errs...)
}
