package smtpd

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"strconv"
	"strings"

	"github.com/emersion/go-sasl"

	"relayd/internal/account"
)

// Names of the SCRAM mechanisms.
const (
	scramSHA256     = "SCRAM-SHA-256"
	scramSHA256Plus = "SCRAM-SHA-256-PLUS"
)

// scramServer is SCRAM-SHA-256 (RFC 5802, RFC 7677), with or without channel binding. The password never crosses the
// wire, and with channel binding nobody can sit between the two TLS sessions.
type scramServer struct {
	// find returns the verifier of a user: one that no password fits where there is no such user.
	find func(username string) account.Scram
	// right is called when the proof was right.
	right func()
	// binding returns the channel binding of that type; false where the connection has none.
	binding func(kind string) ([]byte, bool)
	plus    bool   // the mechanism is the one with channel binding
	offered bool   // so the client was offered it
	nonce   string // ours

	step        int
	header      string // gs2-header of the client
	bound       []byte // channel binding data behind it
	clientFirst string // without the header
	serverFirst string
	all         string // nonce of both
	verifier    account.Scram
}

// Next implements sasl.Server.
func (m *scramServer) Next(response []byte) (challenge []byte, done bool, err error) {
	if response == nil && m.step == 0 {
		return []byte{}, false, nil
	}
	m.step++
	switch m.step {
	case 1:
		challenge, err = m.first(string(response))
		return challenge, false, err
	case 2:
		challenge, err = m.final(string(response))
		return challenge, false, err
	case 3:
		if len(response) == 0 {
			return nil, true, nil
		}
	}
	return nil, false, sasl.ErrUnexpectedClientResponse
}

var errScram = refuse(501, 5, 2, "Response is not one of SCRAM")

// first reads client-first-message and returns server-first-message.
func (m *scramServer) first(s string) ([]byte, error) {
	flag, rest, ok1 := strings.Cut(s, ",")
	authzid, bare, ok2 := strings.Cut(rest, ",")
	if !ok1 || !ok2 {
		return nil, errScram
	}
	m.header, m.clientFirst = s[:len(s)-len(bare)], bare
	kind, named := strings.CutPrefix(flag, "p=")
	switch {
	case named != m.plus:
		return nil, errScram
	case named:
		var ok bool
		if m.bound, ok = m.binding(kind); !ok {
			return nil, refuse(501, 5, 2, "Channel binding type is not known here")
		}
	case flag == "y" && m.offered: // somebody has hidden the other mechanism from the client
		return nil, errAuthFailed
	case flag != "y" && flag != "n":
		return nil, errScram
	}
	attrs := strings.Split(bare, ",")
	if len(attrs) < 2 || len(s) > 2048 {
		return nil, errScram
	}
	user, okUser := strings.CutPrefix(attrs[0], "n=")
	nonce, okNonce := strings.CutPrefix(attrs[1], "r=")
	if !okUser || !okNonce || nonce == "" || !isPrintable(nonce) {
		return nil, errScram
	}
	username, ok := unescapeName(user)
	if !ok || authzid != "" && authzid != "a="+user { // nobody may act for another
		return nil, errAuthFailed
	}
	m.verifier = m.find(username)
	m.all = nonce + m.nonce
	m.serverFirst = "r=" + m.all + ",s=" + base64.StdEncoding.EncodeToString(m.verifier.Salt) + ",i=" + strconv.Itoa(m.verifier.Iterations)
	return []byte(m.serverFirst), nil
}

// final reads client-final-message and returns server-final-message.
func (m *scramServer) final(s string) ([]byte, error) {
	at := strings.LastIndex(s, ",p=")
	if at < 0 {
		return nil, errScram
	}
	without := s[:at]
	proof, err := base64.StdEncoding.DecodeString(s[at+3:])
	if err != nil || len(proof) != sha256.Size {
		return nil, errScram
	}
	attrs := strings.Split(without, ",")
	if len(attrs) < 2 {
		return nil, errScram
	}
	binding := base64.StdEncoding.EncodeToString(append([]byte(m.header), m.bound...))
	if attrs[0] != "c="+binding || attrs[1] != "r="+m.all {
		return nil, errAuthFailed
	}
	message := m.clientFirst + "," + m.serverFirst + "," + without
	key := mac(m.verifier.StoredKey, message)
	subtle.XORBytes(key, key, proof)
	stored := sha256.Sum256(key)
	if subtle.ConstantTimeCompare(stored[:], m.verifier.StoredKey) != 1 {
		return nil, errAuthFailed
	}
	m.right()
	return []byte("v=" + base64.StdEncoding.EncodeToString(mac(m.verifier.ServerKey, message))), nil
}

func mac(key []byte, message string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(message))
	return h.Sum(nil)
}

func isPrintable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// unescapeName reads a saslname: "=2C" is a comma, "=3D" an equals sign.
func unescapeName(s string) (string, bool) {
	name := strings.ReplaceAll(s, "=2C", ",")
	if strings.Contains(strings.ReplaceAll(name, "=3D", ""), "=") || name == "" || len(name) > 255 {
		return "", false
	}
	return strings.ReplaceAll(name, "=3D", "="), true
}

func newNonce() string { return rand.Text() }

// channelBinding returns the data that names the TLS connection: tls-exporter (RFC 9266), or tls-server-end-point
// (RFC 5929 section 4) for clients that know no better.
func channelBinding(state *tls.ConnectionState, cert *tls.Certificate, kind string) ([]byte, bool) {
	if state == nil {
		return nil, false
	}
	switch kind {
	case "tls-exporter":
		b, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
		return b, err == nil
	case "tls-server-end-point":
		if cert == nil || len(cert.Certificate) == 0 {
			return nil, false
		}
		leaf := cert.Leaf
		if leaf == nil {
			var err error
			if leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
				return nil, false
			}
		}
		switch leaf.SignatureAlgorithm {
		case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
			sum := sha512.Sum384(leaf.Raw)
			return sum[:], true
		case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
			sum := sha512.Sum512(leaf.Raw)
			return sum[:], true
		default: // SHA-256, and what RFC 5929 lifts to it
			sum := sha256.Sum256(leaf.Raw)
			return sum[:], true
		}
	}
	return nil, false
}
