package campaign

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"relayd/internal/mail"
)

// purpose keeps tokens of one kind from working as another.
type purpose byte

const (
	forUnsubscribe purpose = 1
)

const (
	tokenVersion   = 1
	sivSize        = 16
	maxToken       = 640
	tokenKeyFile   = "unsubscribe.keys"
	tokenRootSize  = 32
	tokenFixedSize = 2 + 12 + 1 // version, purpose, campaign, length of the account
)

// tokenText survives gateways that change the case of addresses.
var tokenText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// claim is what a token says: who wants to hear no more of whom. All of it is in the token, so that it works after the
// campaign's records are gone and after a restore.
type claim struct {
	campaign mail.QueueID
	account  string
	address  string
}

// tokenKeys are the keys that tokens are made and checked with. New tokens use the newest; older keys go on checking.
type tokenKeys struct {
	mu     sync.RWMutex
	path   string
	keys   map[byte]*tokenKey
	newest byte
}

type tokenKey struct {
	mac   []byte
	block cipher.Block
}

// openTokenKeys reads the key file, or makes it with one key. Each of its lines is a key's number and its 32 bytes in
// hexadecimal.
func openTokenKeys(dir string) (*tokenKeys, error) {
	k := &tokenKeys{path: filepath.Join(dir, tokenKeyFile), keys: map[byte]*tokenKey{}}
	info, err := os.Stat(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, k.rotate()
	}
	if err != nil {
		return nil, fmt.Errorf("open unsubscribe keys: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("open unsubscribe keys: %s is open to others (mode %04o): chmod 600 it", k.path, info.Mode().Perm())
	}
	b, err := os.ReadFile(k.path)
	if err != nil {
		return nil, fmt.Errorf("open unsubscribe keys: %w", err)
	}
	for i, line := range strings.Split(string(b), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		if err := k.add(line); err != nil {
			return nil, fmt.Errorf("open unsubscribe keys: %s line %d: %w", k.path, i+1, err)
		}
	}
	if len(k.keys) == 0 {
		return nil, fmt.Errorf("open unsubscribe keys: %s holds no key", k.path)
	}
	return k, nil
}

func (k *tokenKeys) add(line string) error {
	number, root, _ := strings.Cut(line, " ")
	id, err := strconv.ParseUint(number, 10, 8)
	if err != nil || id == 0 {
		return errors.New("does not begin with a key number from 1 to 255")
	}
	secret, err := hex.DecodeString(strings.TrimSpace(root))
	if err != nil || len(secret) != tokenRootSize {
		return errors.New("does not hold a key of 32 bytes in hexadecimal")
	}
	if k.keys[byte(id)] != nil {
		return fmt.Errorf("key %d is there twice", id)
	}
	key, err := newTokenKey(secret)
	if err != nil {
		return err
	}
	k.keys[byte(id)], k.newest = key, byte(id)
	return nil
}

func newTokenKey(root []byte) (*tokenKey, error) {
	mac, err := hkdf.Key(sha256.New, root, nil, "relayd token mac", 32)
	if err != nil {
		return nil, fmt.Errorf("derive token key: %w", err)
	}
	enc, err := hkdf.Key(sha256.New, root, nil, "relayd token encryption", 32)
	if err != nil {
		return nil, fmt.Errorf("derive token key: %w", err)
	}
	block, err := aes.NewCipher(enc)
	if err != nil {
		return nil, fmt.Errorf("derive token key: %w", err)
	}
	return &tokenKey{mac, block}, nil
}

// rotate appends a new key to the file, durably, and uses it for new tokens.
func (k *tokenKeys) rotate() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.newest == 255 {
		return errors.New("rotate unsubscribe keys: 255 keys are in use: remove the oldest lines of " + k.path)
	}
	root := make([]byte, tokenRootSize)
	_, _ = rand.Read(root) // never fails since Go 1.24
	line := fmt.Sprintf("%d %s", k.newest+1, hex.EncodeToString(root))
	if err := appendDurably(k.path, line+"\n"); err != nil {
		return fmt.Errorf("rotate unsubscribe keys: %w", err)
	}
	return k.add(line)
}

// appendDurably writes a line to the end of a file, which is made where it is not there, and syncs file and directory.
func appendDurably(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// seal makes the token of a claim: SIV construction, so that the same claim gives the same token, nothing of it can be
// read, and nobody without the key makes another.
func (k *tokenKeys) seal(p purpose, c claim) string {
	payload := make([]byte, 0, tokenFixedSize+len(c.account)+len(c.address))
	payload = append(payload, tokenVersion, byte(p))
	payload = append(payload, c.campaign[:]...)
	payload = append(payload, byte(len(c.account)))
	payload = append(payload, c.account...)
	payload = append(payload, c.address...)

	k.mu.RLock()
	id := k.newest
	key := k.keys[id]
	k.mu.RUnlock()
	token := make([]byte, 1+sivSize+len(payload))
	token[0] = id
	siv := key.siv(id, payload)
	copy(token[1:], siv)
	cipher.NewCTR(key.block, siv).XORKeyStream(token[1+sivSize:], payload)
	return tokenText.EncodeToString(token)
}

func (k *tokenKey) siv(id byte, payload []byte) []byte {
	h := hmac.New(sha256.New, k.mac)
	h.Write([]byte("relayd token 1\x00"))
	h.Write([]byte{id})
	h.Write(payload)
	return h.Sum(nil)[:sivSize]
}

// open checks a token and returns its claim. Every defect is ErrBadToken.
func (k *tokenKeys) open(p purpose, token string) (claim, error) {
	if len(token) > maxToken {
		return claim{}, ErrBadToken
	}
	b, err := tokenText.DecodeString(strings.ToLower(token))
	if err != nil || len(b) < 1+sivSize+tokenFixedSize || tokenText.EncodeToString(b) != strings.ToLower(token) {
		return claim{}, ErrBadToken
	}
	k.mu.RLock()
	key := k.keys[b[0]]
	k.mu.RUnlock()
	if key == nil {
		return claim{}, ErrBadToken
	}
	siv, payload := b[1:1+sivSize], b[1+sivSize:]
	cipher.NewCTR(key.block, siv).XORKeyStream(payload, payload)
	if !hmac.Equal(siv, key.siv(b[0], payload)) {
		return claim{}, ErrBadToken
	}
	if payload[0] != tokenVersion || purpose(payload[1]) != p {
		return claim{}, ErrBadToken
	}
	c := claim{campaign: mail.QueueID(payload[2:14])}
	n, rest := int(payload[14]), payload[15:]
	if n > len(rest) {
		return claim{}, ErrBadToken
	}
	c.account, c.address = string(rest[:n]), string(rest[n:])
	return c, nil
}
