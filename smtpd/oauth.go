package smtpd

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/emersion/go-sasl"

	"relayd/internal/account"
)

// Credentials finds a credential by its user name: account.Store. It is needed for OAUTHBEARER.
type Credentials interface {
	Credential(username string) (account.Credential, bool)
}

// issuer checks the tokens of one OAuth issuer: JSON web tokens (RFC 7519) signed with RS256, ES256 or EdDSA.
type issuer struct {
	cfg    OAuth
	people Credentials
	keys   *watched[map[string]crypto.PublicKey] // by "kid"
	log    *slog.Logger
}

const clockSkew = time.Minute

func newIssuer(cfg OAuth, people Credentials, log *slog.Logger) (*issuer, error) {
	keys, err := newWatched("key set", cfg.JWKSFile, parseKeySet)
	if err != nil {
		return nil, err
	}
	return &issuer{cfg: cfg, people: people, keys: keys, log: log}, nil
}

// check returns the credential that the token stands for. Everything that is wrong with a token looks alike. Where the key
// set has changed and cannot be read, the keys of before go on checking.
func (i *issuer) check(token string, now time.Time) (*account.Credential, string, error) {
	keys, err := i.keys.get()
	if err != nil {
		i.log.Warn("keyset.unread", "err", err)
	}
	claims, ok := verifyToken(token, keys)
	if !ok || !i.accepts(claims, now) {
		return nil, "", errAuthFailed
	}
	var username string
	if json.Unmarshal(claims[i.cfg.Claim], &username) != nil || username == "" {
		return nil, "", errAuthFailed
	}
	c, known := i.people.Credential(username)
	if !known {
		return nil, username, errAuthFailed
	}
	return &c, username, nil
}

// accepts tells whether the token is meant for us, now (RFC 7519 section 4.1).
func (i *issuer) accepts(claims map[string]json.RawMessage, now time.Time) bool {
	var iss string
	var exp, nbf float64
	if json.Unmarshal(claims["iss"], &iss) != nil || iss != i.cfg.Issuer || json.Unmarshal(claims["exp"], &exp) != nil {
		return false
	}
	if raw, ok := claims["nbf"]; ok && json.Unmarshal(raw, &nbf) != nil {
		return false
	}
	at := float64(now.Unix())
	if at > exp+clockSkew.Seconds() || at < nbf-clockSkew.Seconds() {
		return false
	}
	var one string
	var many []string
	if json.Unmarshal(claims["aud"], &one) == nil {
		many = []string{one}
	} else if json.Unmarshal(claims["aud"], &many) != nil {
		return false
	}
	return slices.Contains(many, i.cfg.Audience)
}

// verifyToken returns the claims of a token whose signature is right. The algorithm is that of the key: the token has no
// say in it.
func verifyToken(token string, keys map[string]crypto.PublicKey) (claims map[string]json.RawMessage, ok bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, false
	}
	var raw [3][]byte
	for n, part := range parts {
		var err error
		if raw[n], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil {
			return nil, false
		}
	}
	var head struct {
		Alg  string          `json:"alg"`
		Kid  string          `json:"kid"`
		Crit json.RawMessage `json:"crit"`
	}
	if json.Unmarshal(raw[0], &head) != nil || head.Crit != nil {
		return nil, false
	}
	signed := []byte(parts[0] + "." + parts[1])
	sum := sha256.Sum256(signed)
	switch key := keys[head.Kid].(type) {
	case *rsa.PublicKey:
		ok = head.Alg == "RS256" && rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], raw[2]) == nil
	case *ecdsa.PublicKey:
		ok = head.Alg == "ES256" && len(raw[2]) == 64 &&
			ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(raw[2][:32]), new(big.Int).SetBytes(raw[2][32:]))
	case ed25519.PublicKey:
		ok = head.Alg == "EdDSA" && ed25519.Verify(key, signed, raw[2])
	}
	return claims, ok && json.Unmarshal(raw[1], &claims) == nil
}

// parseKeySet reads a JWK set (RFC 7517, RFC 7518, RFC 8037). Keys of other kinds, and those that are not for
// signatures, are passed over.
func parseKeySet(text []byte) (map[string]crypto.PublicKey, error) {
	var set struct {
		Keys []struct {
			Kty string `json:"kty"`
			Use string `json:"use"`
			Kid string `json:"kid"`
			Crv string `json:"crv"`
			N   string `json:"n"`
			E   string `json:"e"`
			X   string `json:"x"`
			Y   string `json:"y"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(bytes.TrimSpace(text), &set); err != nil {
		return nil, err
	}
	field := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			return nil
		}
		return b
	}
	keys := map[string]crypto.PublicKey{}
	for _, k := range set.Keys {
		if k.Use != "" && k.Use != "sig" {
			continue
		}
		switch {
		case k.Kty == "RSA":
			n, e := new(big.Int).SetBytes(field(k.N)), new(big.Int).SetBytes(field(k.E))
			if n.BitLen() < 2048 || n.BitLen() > 8192 || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 {
				return nil, fmt.Errorf("key %q: not an RSA key of 2048 to 8192 bits", k.Kid)
			}
			keys[k.Kid] = &rsa.PublicKey{N: n, E: int(e.Int64())}
		case k.Kty == "EC" && k.Crv == "P-256":
			point := append(append([]byte{4}, field(k.X)...), field(k.Y)...)
			key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
			if err != nil {
				return nil, fmt.Errorf("key %q: %w", k.Kid, err)
			}
			keys[k.Kid] = key
		case k.Kty == "OKP" && k.Crv == "Ed25519":
			x := field(k.X)
			if len(x) != ed25519.PublicKeySize {
				return nil, fmt.Errorf("key %q: not an Ed25519 key", k.Kid)
			}
			keys[k.Kid] = ed25519.PublicKey(x)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no usable key")
	}
	return keys, nil
}

// bearerServer is OAUTHBEARER (RFC 7628). go-sasl's wants the reason of a refusal as an error that is no reply of ours.
type bearerServer struct {
	check  func(identity, token string) error
	failed error // why the token was refused, once it was
}

// Next implements sasl.Server. A refused token gets its reason as JSON, and the client's answer to that gets the reply.
func (b *bearerServer) Next(response []byte) (challenge []byte, done bool, err error) {
	switch {
	case b.failed != nil:
		return nil, false, b.failed
	case response == nil:
		return []byte{}, false, nil
	}
	header, rest, ok := strings.Cut(string(response), "\x01")
	identity, named := bearerIdentity(header)
	if !ok || !named || !strings.HasSuffix(rest, "\x01") {
		return nil, false, sasl.ErrUnexpectedClientResponse
	}
	for pair := range strings.SplitSeq(rest, "\x01") {
		value, found := strings.CutPrefix(pair, "auth=")
		if !found {
			continue
		}
		kind, token, _ := strings.Cut(value, " ")
		if !strings.EqualFold(kind, "Bearer") {
			break
		}
		if err := b.check(identity, strings.TrimSpace(token)); !errors.Is(err, errAuthFailed) {
			return nil, err == nil, err
		}
		b.failed = errAuthFailed
		return []byte(`{"status":"invalid_token"}`), false, nil
	}
	return nil, false, sasl.ErrUnexpectedClientResponse
}

// bearerIdentity reads the authorization identity, "" for none, in a gs2-header (RFC 5801 section 4) without channel
// binding.
func bearerIdentity(header string) (string, bool) {
	flag, rest, ok := strings.Cut(header, ",")
	name, end := strings.CutSuffix(rest, ",")
	if !ok || !end || flag != "n" && flag != "y" {
		return "", false
	}
	if name == "" {
		return "", true
	}
	name, ok = strings.CutPrefix(name, "a=")
	if !ok || strings.Contains(name, ",") {
		return "", false
	}
	return unescapeName(name)
}
