package delivery

import (
	"crypto/hmac"
	"crypto/md5" //nolint:gosec // the mechanism asks for it, under TLS
	"encoding/hex"

	"github.com/emersion/go-sasl"
)

const cramMD5 = "CRAM-MD5"

// loginClient is LOGIN, which has no RFC: the server asks twice, in words of its own (Exim's manual has "User Name" and
// "Password"), and need not take a name before it has asked. That of go-sasl insists on "Password:".
type loginClient struct {
	username, password string
	named              bool
}

// Start has nothing to say before the first question.
func (c *loginClient) Start() (mech string, ir []byte, err error) { return sasl.Login, nil, nil }

// Next answers the first question with the name, the second one with the password.
func (c *loginClient) Next([]byte) ([]byte, error) {
	if c.named {
		return []byte(c.password), nil
	}
	c.named = true
	return []byte(c.username), nil
}

// cramClient is CRAM-MD5 (RFC 2195), which go-sasl does not have.
type cramClient struct{ username, password string }

// Start has nothing to say before the challenge.
func (c *cramClient) Start() (mech string, ir []byte, err error) { return cramMD5, nil, nil }

// Next answers the challenge.
func (c *cramClient) Next(challenge []byte) ([]byte, error) {
	m := hmac.New(md5.New, []byte(c.password))
	m.Write(challenge)
	return []byte(c.username + " " + hex.EncodeToString(m.Sum(nil))), nil
}
