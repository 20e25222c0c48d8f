package mail

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// keySize is the length of a secret in a key file.
const keySize = 32

// KeyFile holds numbered secrets of 32 bytes, of which the newest makes new tokens while the older ones go on checking
// those that are out in the world. K is what a user derives from a secret. Each line of the file is a number from 1 to
// 255 and the secret in hexadecimal; the last line is the newest. Its methods may be called from many goroutines.
type KeyFile[K any] struct {
	path   string
	what   string // for errors: "return-path keys"
	derive func(secret []byte) (K, error)

	mu     sync.RWMutex
	text   string // of the file
	keys   map[byte]K
	newest byte
}

// OpenKeyFile reads the file, or makes it with one key. A file that others may read is refused.
func OpenKeyFile[K any](path, what string, derive func(secret []byte) (K, error)) (*KeyFile[K], error) {
	f := &KeyFile[K]{path: path, what: what, derive: derive, keys: map[byte]K{}}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, f.Rotate()
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", what, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("open %s: %s is open to others (mode %04o): chmod 600 it", what, path, info.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", what, err)
	}
	f.text = string(b)
	for i, line := range strings.Split(f.text, "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		if err := f.add(line); err != nil {
			return nil, fmt.Errorf("open %s: %s line %d: %w", what, path, i+1, err)
		}
	}
	if len(f.keys) == 0 {
		return nil, fmt.Errorf("open %s: %s holds no key", what, path)
	}
	return f, nil
}

func (f *KeyFile[K]) add(line string) error {
	number, text, _ := strings.Cut(line, " ")
	id, err := strconv.ParseUint(number, 10, 8)
	if err != nil || id == 0 {
		return errors.New("does not begin with a key number from 1 to 255")
	}
	secret, err := hex.DecodeString(strings.TrimSpace(text))
	if err != nil || len(secret) != keySize {
		return errors.New("does not hold a key of 32 bytes in hexadecimal")
	}
	if _, ok := f.keys[byte(id)]; ok {
		return fmt.Errorf("key %d is there twice", id)
	}
	key, err := f.derive(secret)
	if err != nil {
		return err
	}
	f.keys[byte(id)], f.newest = key, byte(id)
	return nil
}

// Rotate adds a new key to the file, durably, and uses it from now on. The file is replaced as a whole: a crash leaves
// the old one or the new one.
func (f *KeyFile[K]) Rotate() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.newest == 255 {
		return fmt.Errorf("rotate %s: 255 keys are in use: remove the oldest lines of %s", f.what, f.path)
	}
	secret := make([]byte, keySize)
	_, _ = rand.Read(secret) // never fails since Go 1.24
	line := fmt.Sprintf("%d %s", f.newest+1, hex.EncodeToString(secret))
	text := f.text
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	text += line + "\n"
	if err := replaceFile(f.path, text); err != nil {
		return fmt.Errorf("rotate %s: %w", f.what, err)
	}
	f.text = text
	return f.add(line)
}

// replaceFile puts text in the place of a file, durably, mode 0600.
func replaceFile(path, text string) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // its mode is 0600
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(text)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Newest returns the key for new tokens and its number.
func (f *KeyFile[K]) Newest() (number byte, key K) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.newest, f.keys[f.newest]
}

// Key returns the key of that number.
func (f *KeyFile[K]) Key(number byte) (key K, ok bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	key, ok = f.keys[number]
	return key, ok
}
