package dkim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	stateFile    = "keys.json"
	stateVersion = 1
	newPrefix    = ".new-" // of files that are being written
)

type keyState struct {
	Domain    string    `json:"domain"`
	Selector  string    `json:"selector"`
	Algorithm Algorithm `json:"algorithm"`
	State     State     `json:"state"`
	CreatedAt time.Time `json:"created_at"`
	ChangedAt time.Time `json:"changed_at"`
}

type ringState struct {
	Version int        `json:"version"`
	Keys    []keyState `json:"keys"`
}

// makeDir makes the directory, or checks that nobody else may put keys into it, and removes what a crash left.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make DKIM key directory: %w", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("open DKIM key directory: %w", err)
	}
	if st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("open DKIM key directory %s: others than the owner may write to it (mode %04o): run `chmod 700 %s`",
			dir, st.Mode().Perm(), dir)
	}
	left, err := filepath.Glob(filepath.Join(dir, newPrefix+"*"))
	if err != nil {
		return fmt.Errorf("open DKIM key directory: %w", err)
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("open DKIM key directory: %w", err)
		}
	}
	return nil
}

// readState reads keys.json and the key files that it names. A retired key may be gone.
func readState(dir string) (map[string][]*Key, error) {
	keys := map[string][]*Key{}
	path := filepath.Join(dir, stateFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return keys, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read DKIM keys: %w", err)
	}
	var state ringState
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&state); err != nil {
		return nil, fmt.Errorf("read DKIM keys: %s: %w", path, err)
	}
	if state.Version != stateVersion {
		return nil, fmt.Errorf("read DKIM keys: %s has version %d, this program knows %d", path, state.Version, stateVersion)
	}
	var errs []error
	for _, s := range state.Keys {
		key, err := readKey(dir, s)
		if s.State == Retired && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		keys[key.Domain] = append(keys[key.Domain], key)
	}
	return keys, errors.Join(errs...)
}

func readKey(dir string, s keyState) (*Key, error) {
	if s.State != Pending && s.State != Active && s.State != Retired {
		return nil, fmt.Errorf("read DKIM key %s of %s: unknown state %q in %s", s.Selector, s.Domain, s.State, stateFile)
	}
	// Names become parts of a path: parse them before.
	domain, selector, err := parseNames(s.Domain, s.Selector)
	if err != nil {
		return nil, err
	}
	key, err := ReadFile(domain, selector, filepath.Join(dir, domain+"."+selector+".pem"))
	if err != nil {
		return nil, err
	}
	if key.Algorithm != s.Algorithm {
		return nil, fmt.Errorf("read DKIM key %s of %s: the file holds %s, %s says %s", selector, domain, key.Algorithm, stateFile, s.Algorithm)
	}
	key = key.in(s.State, s.ChangedAt)
	key.CreatedAt = s.CreatedAt
	return key, nil
}

// writeState replaces keys.json; it is durable or unchanged.
func writeState(dir string, keys map[string][]*Key) error {
	state := ringState{Version: stateVersion, Keys: []keyState{}}
	for _, d := range slices.Sorted(maps.Keys(keys)) {
		for _, k := range keys[d] {
			state.Keys = append(state.Keys, keyState{k.Domain, k.Selector, k.Algorithm, k.State, k.CreatedAt, k.ChangedAt})
		}
	}
	b, err := json.MarshalIndent(state, "", "\t")
	if err != nil {
		return fmt.Errorf("write DKIM keys: %w", err)
	}
	path := filepath.Join(dir, stateFile)
	tmp, err := writeNew(dir, append(b, '\n'))
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(fmt.Errorf("write DKIM keys: %w", err), os.Remove(tmp))
	}
	return syncDir(dir)
}

// createFile makes a file that did not exist: a private key is never written over.
func createFile(path string, b []byte) error {
	dir := filepath.Dir(path)
	tmp, err := writeNew(dir, b)
	if err != nil {
		return err
	}
	err = os.Link(tmp, path)
	if errors.Is(err, os.ErrExist) {
		err = fmt.Errorf("%w: file %s", ErrExists, path)
	} else if err != nil {
		err = fmt.Errorf("write DKIM key: %w", err)
	}
	return errors.Join(err, os.Remove(tmp), syncDir(dir))
}

// writeNew writes a file of mode 0600 under a passing name and flushes it to stable storage.
func writeNew(dir string, b []byte) (path string, err error) {
	f, err := os.CreateTemp(dir, newPrefix) // made with mode 0600
	if err != nil {
		return "", fmt.Errorf("write DKIM key: %w", err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("write DKIM key: %w", err), os.Remove(f.Name()))
	}
	return f.Name(), nil
}

func syncDir(dir string) error {
	d, err := os.Open(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return fmt.Errorf("flush DKIM key directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("flush DKIM key directory: %w", err)
	}
	return nil
}
