//go:build !linux

package kv

import (
	"errors"
	"fmt"
	"os"
)

// fdatasync makes the content of f durable.
func fdatasync(f *os.File) error {
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync: %w", errors.Unwrap(err)) // without its *fs.PathError: see failure
	}
	return nil
}
