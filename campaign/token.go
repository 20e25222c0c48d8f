package campaign

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"path/filepath"
	"strings"

	contacts "relayd/internal/contact"
	"relayd/internal/mail"
)

// purpose keeps tokens of one kind from working as another.
type purpose byte

const (
	forUnsubscribe purpose = 1
)

const (
	tokenVersion   = 1 // of a claim on all broadcasts
	listVersion    = 2 // of one on a list, which stands behind the campaign
	sivSize        = 16
	maxToken       = 640
	tokenKeyFile   = "unsubscribe.keys"
	tokenFixedSize = 2 + 12 + 1 // version, purpose, campaign, length of the account
)

// tokenText survives gateways that change the case of addresses.
var tokenText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// claim is what a token says: who wants to hear no more of whom. All of it is in the token, so that it works after the
// campaign's records are gone and after a restore.
type claim struct {
	campaign mail.QueueID
	list     contacts.ListID // zero: all broadcasts of the account
	account  string
	address  string
}

// tokenKeys are the keys that tokens are made and checked with.
type tokenKeys struct{ *mail.KeyFile[*tokenKey] }

type tokenKey struct {
	mac   *mail.MAC
	block cipher.Block
}

// openTokenKeys reads the key file, or makes it with one key.
func openTokenKeys(dir string) (*tokenKeys, error) {
	f, err := mail.OpenKeyFile(filepath.Join(dir, tokenKeyFile), "unsubscribe keys", newTokenKey)
	if err != nil {
		return nil, err
	}
	return &tokenKeys{f}, nil
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
	return &tokenKey{mail.NewMAC(mac), block}, nil
}

// seal makes the token of a claim: SIV construction, so that the same claim gives the same token, nothing of it can be
// read, and nobody without the key makes another.
func (k *tokenKeys) seal(p purpose, c claim) string {
	payload := make([]byte, 0, tokenFixedSize+len(c.list)+len(c.account)+len(c.address))
	payload = append(payload, tokenVersion, byte(p))
	payload = append(payload, c.campaign[:]...)
	if c.list != (contacts.ListID{}) {
		payload[0] = listVersion
		payload = append(payload, c.list[:]...)
	}
	payload = append(payload, byte(len(c.account)))
	payload = append(payload, c.account...)
	payload = append(payload, c.address...)

	id, key := k.Newest()
	token := make([]byte, 1+sivSize+len(payload))
	token[0] = id
	siv := key.siv(id, payload)
	copy(token[1:], siv)
	cipher.NewCTR(key.block, siv).XORKeyStream(token[1+sivSize:], payload)
	return tokenText.EncodeToString(token)
}

func (k *tokenKey) siv(id byte, payload []byte) []byte {
	return k.mac.Sum([]byte("relayd token 1\x00"), []byte{id}, payload)[:sivSize]
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
	key, ok := k.Key(b[0])
	if !ok {
		return claim{}, ErrBadToken
	}
	siv, payload := b[1:1+sivSize], b[1+sivSize:]
	cipher.NewCTR(key.block, siv).XORKeyStream(payload, payload)
	if !hmac.Equal(siv, key.siv(b[0], payload)) {
		return claim{}, ErrBadToken
	}
	c := claim{campaign: mail.QueueID(payload[2:14])}
	switch {
	case purpose(payload[1]) != p:
		return claim{}, ErrBadToken
	case payload[0] == tokenVersion:
	case payload[0] == listVersion && len(payload) >= tokenFixedSize+len(c.list):
		c.list = contacts.ListID(payload[14:26])
		payload = append(payload[:14:14], payload[26:]...)
	default:
		return claim{}, ErrBadToken
	}
	n, rest := int(payload[14]), payload[15:]
	if n > len(rest) {
		return claim{}, ErrBadToken
	}
	c.account, c.address = string(rest[:n]), string(rest[n:])
	return c, nil
}
