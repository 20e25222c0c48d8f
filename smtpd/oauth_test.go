package smtpd

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// startOAuth is start with an issuer whose one key is Ed25519, of ID 1; token is one of its tokens for "app".
func startOAuth(t *testing.T) (f *fixture, token string) {
	t.Helper()
	f, private := startIssuer(t)
	return f, signedToken(t, private, tokenHead, tokenClaims(nil))
}

func startIssuer(t *testing.T) (*fixture, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "jwks.json")
	set := `{"keys":[{"kty":"oct","kid":"h","k":"AAAA"},{"kty":"OKP","crv":"Ed25519","kid":"1","x":"` +
		base64.RawURLEncoding.EncodeToString(public) + `"}]}`
	require.NoError(t, os.WriteFile(file, []byte(set), 0o600))
	return start(t, func(c *Config) {
		c.OAuth = OAuth{Issuer: "https://id.example", Audience: "relay", JWKSFile: file, Claim: "sub"}
	}), private
}

const tokenHead = `{"alg":"EdDSA","kid":"1"}`

func tokenClaims(change func(m map[string]any)) map[string]any {
	m := map[string]any{"iss": "https://id.example", "aud": []string{"other", "relay"}, "sub": "app", "exp": time.Now().Add(time.Hour).Unix()}
	if change != nil {
		change(m)
	}
	return m
}

func signedToken(t *testing.T, key ed25519.PrivateKey, head string, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	require.NoError(t, err)
	text := base64.RawURLEncoding.EncodeToString([]byte(head)) + "." + base64.RawURLEncoding.EncodeToString(payload)
	return text + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(key, []byte(text)))
}

func TestOAuthBearer(t *testing.T) {
	t.Parallel()
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	f, private := startIssuer(t)
	now := time.Now()
	claims := tokenClaims
	token := func(key ed25519.PrivateKey, head string, m map[string]any) string {
		return signedToken(t, key, head, m)
	}
	const head = tokenHead
	tests := map[string]struct {
		token string
		right bool
	}{
		"right":          {token(private, head, claims(nil)), true},
		"one_audience":   {token(private, head, claims(func(m map[string]any) { m["aud"] = "relay" })), true},
		"other_key":      {token(stranger, head, claims(nil)), false},
		"unknown_kid":    {token(private, `{"alg":"EdDSA","kid":"2"}`, claims(nil)), false},
		"alg_none":       {strings.TrimRight(token(private, `{"alg":"none","kid":"1"}`, claims(nil)), "x"), false},
		"alg_hs256":      {token(private, `{"alg":"HS256","kid":"1"}`, claims(nil)), false},
		"crit":           {token(private, `{"alg":"EdDSA","kid":"1","crit":["x"]}`, claims(nil)), false},
		"other_issuer":   {token(private, head, claims(func(m map[string]any) { m["iss"] = "https://evil.example" })), false},
		"other_audience": {token(private, head, claims(func(m map[string]any) { m["aud"] = "other" })), false},
		"no_audience":    {token(private, head, claims(func(m map[string]any) { delete(m, "aud") })), false},
		"over":           {token(private, head, claims(func(m map[string]any) { m["exp"] = now.Add(-2 * time.Minute).Unix() })), false},
		"no_end":         {token(private, head, claims(func(m map[string]any) { delete(m, "exp") })), false},
		"too_early":      {token(private, head, claims(func(m map[string]any) { m["nbf"] = now.Add(time.Hour).Unix() })), false},
		"nobody":         {token(private, head, claims(func(m map[string]any) { m["sub"] = "who" })), false},
		"nonsense":       {"a.b", false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := f.dial(t, implicit)
			c.upgrade()
			c.expect("220")
			require.Contains(t, c.cmd("EHLO x", "250 "), "OAUTHBEARER")
			c.send("AUTH OAUTHBEARER " + base64.StdEncoding.EncodeToString([]byte("n,,\x01auth=Bearer "+tc.token+"\x01\x01")) + "\r\n")
			if tc.right {
				c.expect("235")
				c.cmd("MAIL FROM:<a@example.com>", "250")
				return
			}
			c.expect("334")
			c.cmd("AQ==", "535 5.7.8")
			c.cmd("MAIL FROM:<a@example.com>", "530")
		})
	}
	for _, bad := range []string{"", "{}", `{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`, `{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`} {
		_, err := parseKeySet([]byte(bad))
		require.Error(t, err, bad)
	}
}
