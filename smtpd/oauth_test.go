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

func TestOAuthBearer(t *testing.T) {
	t.Parallel()
	b64 := base64.RawURLEncoding
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "jwks.json")
	set := `{"keys":[{"kty":"oct","kid":"h","k":"AAAA"},{"kty":"OKP","crv":"Ed25519","kid":"1","x":"` + b64.EncodeToString(public) + `"}]}`
	require.NoError(t, os.WriteFile(file, []byte(set), 0o600))
	f := start(t, func(c *Config) {
		c.OAuth = OAuth{Issuer: "https://id.example", Audience: "relay", JWKSFile: file, Claim: "sub"}
	})
	now := time.Now()
	claims := func(change func(m map[string]any)) map[string]any {
		m := map[string]any{"iss": "https://id.example", "aud": []string{"other", "relay"}, "sub": "app", "exp": now.Add(time.Hour).Unix()}
		if change != nil {
			change(m)
		}
		return m
	}
	token := func(key ed25519.PrivateKey, head string, m map[string]any) string {
		payload, err := json.Marshal(m)
		require.NoError(t, err)
		text := b64.EncodeToString([]byte(head)) + "." + b64.EncodeToString(payload)
		return text + "." + b64.EncodeToString(ed25519.Sign(key, []byte(text)))
	}
	const head = `{"alg":"EdDSA","kid":"1"}`
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
