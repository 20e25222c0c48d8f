package dkim

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"relayd/internal/mail"
)

// Algorithm is how a key signs. A key file that was made elsewhere may hold a longer RSA key, "rsa3072" or "rsa4096".
type Algorithm string

// The algorithms that keys are made for.
const (
	RSA2048 Algorithm = "rsa2048" // rsa-sha256, RFC 6376 section 3.3.3; verified by everyone
	Ed25519 Algorithm = "ed25519" // ed25519-sha256, RFC 8463; as a second signature only
)

// State of a key.
type State string

// The states.
const (
	Pending State = "pending" // made; to be published; does not sign yet
	Active  State = "active"  // signs
	Retired State = "retired" // signs no more; stays published until the mail that it signed has arrived
)

// Key is a signing key of one domain. It never changes: a new state is a new Key.
type Key struct {
	Domain    string // canonical: lower case, A-labels
	Selector  string
	Algorithm Algorithm
	State     State
	CreatedAt time.Time // zero for a key that the configuration names
	ChangedAt time.Time // when it came into State

	signer crypto.Signer
	tags   string // of its signatures, up to and with s=
}

// Limits on RSA keys in bits. RFC 8301 section 3.2 asks for 1024 at least and 2048 where one can; keys above 4096 make
// records and signatures that many receivers do not take.
const (
	minRSABits = 2048
	maxRSABits = 4096
)

// newKey returns an active key. The names must be canonical.
func newKey(domain, selector string, signer crypto.Signer) (*Key, error) {
	k := &Key{Domain: domain, Selector: selector, State: Active, signer: signer}
	switch pub := signer.Public().(type) {
	case *rsa.PublicKey:
		if n := pub.N.BitLen(); n < minRSABits || n > maxRSABits {
			return nil, fmt.Errorf("RSA key of %d bits: it must have %d to %d", n, minRSABits, maxRSABits)
		}
		k.Algorithm = Algorithm(fmt.Sprintf("rsa%d", pub.N.BitLen()))
	case ed25519.PublicKey:
		k.Algorithm = Ed25519
	default:
		return nil, fmt.Errorf("key of type %T: it must be RSA or Ed25519", pub)
	}
	k.tags = signatureTags(k)
	return k, nil
}

// generate makes an active key.
func generate(domain, selector string, alg Algorithm) (*Key, error) {
	var signer crypto.Signer
	var err error
	switch alg {
	case RSA2048:
		signer, err = rsa.GenerateKey(rand.Reader, 2048)
	case Ed25519:
		_, signer, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = errors.New("no such algorithm: it must be rsa2048 or ed25519")
	}
	if err != nil {
		return nil, fmt.Errorf("generate %s key for %s: %w", alg, domain, err)
	}
	return newKey(domain, selector, signer)
}

// RecordName returns the DNS name of the public key, without a final dot.
func (k *Key) RecordName() string { return k.Selector + "._domainkey." + k.Domain }

// RecordValue returns the TXT value of the public key (RFC 6376 section 3.6.1, RFC 8463 section 4.2) as one string. That
// of an RSA key is longer than the 255 octets that one character-string holds: SplitTXT cuts it for a zone file.
func (k *Key) RecordValue() string {
	switch pub := k.signer.Public().(type) {
	case *rsa.PublicKey:
		der, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil { // of no RSA key
			return ""
		}
		return "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der)
	case ed25519.PublicKey:
		return "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(pub)
	}
	return ""
}

// SplitTXT cuts a TXT value into character-strings of at most 255 octets (RFC 1035 section 3.3) and quotes them as they
// stand in a zone file.
func SplitTXT(value string) string {
	var b strings.Builder
	for {
		part := value[:min(len(value), 255)]
		value = value[len(part):]
		b.WriteString(`"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(part) + `"`)
		if value == "" {
			return b.String()
		}
		b.WriteByte(' ')
	}
}

// signatureAlgorithm is the a= tag.
func (k *Key) signatureAlgorithm() string {
	if k.Algorithm == Ed25519 {
		return "ed25519-sha256"
	}
	return "rsa-sha256"
}

// sign signs the SHA-256 hash of the header. RFC 8463 section 3: Ed25519 signs the hash as its message.
func (k *Key) sign(hash []byte) ([]byte, error) {
	opts := crypto.SHA256
	if k.Algorithm == Ed25519 {
		opts = 0
	}
	return k.signer.Sign(rand.Reader, hash, opts)
}

// in returns the key in another state.
func (k *Key) in(s State, now time.Time) *Key {
	c := *k
	c.State, c.ChangedAt = s, now
	return &c
}

// ReadFile reads a private key: PEM of PKCS #8, or of PKCS #1 for RSA. A file that anyone but its owner may read is
// refused. The key is active and in no Keyring.
func ReadFile(domain, selector, path string) (*Key, error) {
	domain, selector, err := parseNames(domain, selector)
	if err != nil {
		return nil, err
	}
	b, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	signer, err := parsePEM(b)
	if err != nil {
		return nil, fmt.Errorf("read DKIM key %s: %w", path, err)
	}
	k, err := newKey(domain, selector, signer)
	if err != nil {
		return nil, fmt.Errorf("read DKIM key %s: %w", path, err)
	}
	return k, nil
}

const maxKeyFile = 64 << 10

func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read DKIM key: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read DKIM key: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("read DKIM key %s: not a file", path)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("read DKIM key %s: %w (mode %04o): run `chmod 600 %s`, and rotate the key if others could read it",
			path, ErrExposed, st.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("read DKIM key %s: %w", path, err)
	}
	return b, nil
}

func parsePEM(b []byte) (crypto.Signer, error) {
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			return nil, errors.New("no private key in PEM form in it")
		}
		switch block.Type {
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, err
			}
			signer, ok := key.(crypto.Signer)
			if !ok {
				return nil, fmt.Errorf("key of type %T: it must be RSA or Ed25519", key)
			}
			return signer, nil
		case "RSA PRIVATE KEY":
			return x509.ParsePKCS1PrivateKey(block.Bytes)
		}
		b = rest
	}
}

// encodePEM returns the private key as PKCS #8.
func (k *Key) encodePEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	if err != nil {
		return nil, fmt.Errorf("encode DKIM key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// parseNames returns the canonical names. A selector is one or more DNS labels (RFC 6376 section 3.1).
func parseNames(domain, selector string) (d, s string, err error) {
	if d, err = mail.ParseDomain(domain, false); err != nil {
		return "", "", fmt.Errorf("domain of a DKIM key: %w", err)
	}
	s = strings.ToLower(selector)
	for label := range strings.SplitSeq(s, ".") {
		ok := label != "" && len(label) <= 63 && label[0] != '-' && label[len(label)-1] != '-' &&
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
		if !ok || len(s) > 100 {
			return "", "", fmt.Errorf("DKIM selector %q: it must be letters, digits and hyphens, such as r20261", mail.CleanText(selector, 80))
		}
	}
	return d, s, nil
}
