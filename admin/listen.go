package admin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// ErrSocketInUse is returned by New when another process answers on the admin socket.
var ErrSocketInUse = errors.New("admin socket is in use by another process")

// unixListener removes its socket when it is closed, unless another process has put its own in its place.
type unixListener struct {
	*net.UnixListener
	path string
	file os.FileInfo
}

// listenUnix makes the socket with mode 0600 from its first moment: it is made in a directory of mode 0700 and then
// renamed into its place, where it replaces the socket of a process that died. umask is not touched: it belongs to the
// whole process.
func listenUnix(path string) (*unixListener, error) {
	if err := replaceable(path); err != nil {
		return nil, err
	}
	dir := filepath.Join(filepath.Dir(path), ".s"+rand.Text()[:6])
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory for admin socket: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	made := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on admin socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	u := &unixListener{UnixListener: l, path: path}
	if err = os.Chmod(made, 0o600); err == nil {
		if u.file, err = os.Lstat(made); err == nil {
			err = os.Rename(made, path)
		}
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("place admin socket %s: %w", path, err)
	}
	return u, nil
}

// replaceable tells that there is nothing at path, or a socket on which nobody answers.
func replaceable(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at admin socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("admin socket %s: there is something else than a socket", path)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("%w: %s", ErrSocketInUse, path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s does not refuse: %w", ErrSocketInUse, path, err)
	}
	return nil
}

func (l *unixListener) Close() error {
	if info, err := os.Lstat(l.path); err == nil && os.SameFile(info, l.file) {
		_ = os.Remove(l.path)
	}
	return l.UnixListener.Close()
}
