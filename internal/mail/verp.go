package mail

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrBadReturnPath tells that an address is not a return path that we issued, or that its time is over.
var ErrBadReturnPath = errors.New("not a return path of ours")

const (
	verpPrefix  = "b."
	verpMACSize = 10 // 80 bits: a guess a microsecond finds one in 10^10 years
	verpSize    = 1 + EnvelopeKeySize + 2 + verpMACSize
	verpDay     = 24 * time.Hour
	verpKeySize = 32
	// VERPLife is how long a return path is accepted after it was issued: longer than any host keeps mail in its queue.
	VERPLife = 30 * verpDay
)

// verpText survives hosts that change the case of local parts.
var verpText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// VERP makes and checks the return paths of envelopes: variable reverse-paths, with a MAC, so that a bounce tells which
// envelope it is about and nobody can invent one. All is in the address: nothing is stored. A return path is
//
//	b.BASE32(key number (1) ‖ envelope ID (20) ‖ day of issue (2) ‖ HMAC-SHA-256 over these, truncated (10))
//
// which makes a local part of 55 characters, of which the case does not matter. New ones are made with the newest key
// of the file, older keys go on checking. Its methods may be called from many goroutines.
type VERP struct {
	path string

	mu     sync.RWMutex
	keys   map[byte][]byte
	newest byte
}

// OpenVERP reads the key file, or makes it with one key. Each of its lines is a key's number, from 1 to 255, and its 32
// bytes in hexadecimal; the last line is the newest. A file that others may read is refused.
func OpenVERP(path string) (*VERP, error) {
	v := &VERP{path: path, keys: map[byte][]byte{}}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return v, v.Rotate()
	}
	if err != nil {
		return nil, fmt.Errorf("open return-path keys: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("open return-path keys: %s is open to others (mode %04o): chmod 600 it", path, info.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("open return-path keys: %w", err)
	}
	for i, line := range strings.Split(string(b), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		if err := v.add(line); err != nil {
			return nil, fmt.Errorf("open return-path keys: %s line %d: %w", path, i+1, err)
		}
	}
	if len(v.keys) == 0 {
		return nil, fmt.Errorf("open return-path keys: %s holds no key", path)
	}
	return v, nil
}

func (v *VERP) add(line string) error {
	number, text, _ := strings.Cut(line, " ")
	id, err := strconv.ParseUint(number, 10, 8)
	if err != nil || id == 0 {
		return errors.New("does not begin with a key number from 1 to 255")
	}
	key, err := hex.DecodeString(strings.TrimSpace(text))
	if err != nil || len(key) != verpKeySize {
		return errors.New("does not hold a key of 32 bytes in hexadecimal")
	}
	if v.keys[byte(id)] != nil {
		return fmt.Errorf("key %d is there twice", id)
	}
	v.keys[byte(id)], v.newest = key, byte(id)
	return nil
}

// Rotate appends a new key to the file, durably, and uses it from now on.
func (v *VERP) Rotate() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.newest == 255 {
		return errors.New("rotate return-path keys: 255 keys are in use: remove the oldest lines of " + v.path)
	}
	key := make([]byte, verpKeySize)
	_, _ = rand.Read(key) // never fails since Go 1.24
	line := fmt.Sprintf("%d %s", v.newest+1, hex.EncodeToString(key))
	if err := appendLine(v.path, line+"\n"); err != nil {
		return fmt.Errorf("rotate return-path keys: %w", err)
	}
	return v.add(line)
}

// appendLine makes a line of a file durable, with the file's name.
func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Path is the return path of an envelope that is sent at that time. The same day gives the same path.
func (v *VERP) Path(id EnvelopeID, at time.Time, domain string) Path {
	v.mu.RLock()
	number := v.newest
	key := v.keys[number]
	v.mu.RUnlock()
	b := make([]byte, 0, verpSize)
	b = id.AppendKey(append(b, number))
	b = binary.BigEndian.AppendUint16(b, verpDayOf(at))
	return Path{verpPrefix + verpText.EncodeToString(append(b, verpMAC(key, b)...)), domain}
}

func verpDayOf(t time.Time) uint16 { return uint16(t.Unix() / int64(verpDay/time.Second)) } //nolint:gosec // until the year 2149

func verpMAC(key, b []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte("relayd return path 1\x00"))
	h.Write(b)
	return h.Sum(nil)[:verpMACSize]
}

// IsVERP tells whether a local part looks like a return path. Only Open tells whether it is one.
func IsVERP(local string) bool {
	return len(local) >= len(verpPrefix) && strings.EqualFold(local[:len(verpPrefix)], verpPrefix)
}

// Open checks the local part of a return path and returns its envelope. Every defect, an unknown key and an age of more
// than VERPLife are ErrBadReturnPath. It does no I/O.
func (v *VERP) Open(local string, now time.Time) (EnvelopeID, error) {
	if !IsVERP(local) || len(local) != len(verpPrefix)+verpText.EncodedLen(verpSize) {
		return EnvelopeID{}, ErrBadReturnPath
	}
	text := strings.ToLower(local[len(verpPrefix):])
	b, err := verpText.DecodeString(text)
	if err != nil || verpText.EncodeToString(b) != text { // the spare bits of the last character must be zero
		return EnvelopeID{}, ErrBadReturnPath
	}
	v.mu.RLock()
	key := v.keys[b[0]]
	v.mu.RUnlock()
	signed, mac := b[:verpSize-verpMACSize], b[verpSize-verpMACSize:]
	if key == nil || !hmac.Equal(mac, verpMAC(key, signed)) {
		return EnvelopeID{}, ErrBadReturnPath
	}
	issued := time.Unix(int64(binary.BigEndian.Uint16(signed[1+EnvelopeKeySize:]))*int64(verpDay/time.Second), 0)
	if now.Before(issued.Add(-verpDay)) || now.After(issued.Add(VERPLife+verpDay)) {
		return EnvelopeID{}, ErrBadReturnPath
	}
	return EnvelopeIDFromKey(signed[1 : 1+EnvelopeKeySize])
}
