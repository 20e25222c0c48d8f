package kv

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
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

// maxParts is how many parts the kernel takes at once.
const maxParts = 1024

// writeParts writes parts, one behind the other, at off. It changes parts.
func writeParts(f *os.File, parts [][]byte, off int64) error {
	for len(parts) > 0 {
		n, err := unix.Pwritev(int(f.Fd()), parts[:min(len(parts), maxParts)], off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return &os.PathError{Op: "pwritev", Path: f.Name(), Err: err}
		}
		off += int64(n)
		for len(parts) > 0 && n >= len(parts[0]) {
			n -= len(parts[0])
			parts = parts[1:]
		}
		if n > 0 {
			parts[0] = parts[0][n:]
		}
	}
	return nil
}
