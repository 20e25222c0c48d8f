package kv

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// fdatasync makes the content of f durable, and of its metadata what is needed to read it. Its error is never isNoSpace
// as failure means it: what the kernel still has of the content is unknown.
func fdatasync(f *os.File) error {
	for {
		err := syscall.Fdatasync(int(f.Fd()))
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("fdatasync %s: %w", f.Name(), err)
		}
	}
}
