package smtpd

import (
	"crypto"
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
	change, private := issuerOf(t)
	return start(t, change), private
}

// issuerOf makes the key of an issuer, and the configuration that trusts it.
func issuerOf(t *testing.T) (func(*Config), ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "jwks.json")
	set := `{"keys":[{"kty":"oct","kid":"h","k":"AAAA"},{"kty":"OKP","crv":"Ed25519","kid":"1","x":"` +
		base64.RawURLEncoding.EncodeToString(public) + `"}]}`
	require.NoError(t, os.WriteFile(file, []byte(set), 0o600))
	return func(c *Config) {
		c.OAuth = OAuth{Issuer: "https://id.example", Audience: "relay", JWKSFile: file, Claim: "sub"}
	}, private
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

// TestOAuthKeySetThatCannotBeRead is told once, however many log in, and once more for another reason; the keys of before go
// on checking until there are others.
func TestOAuthKeySetThatCannotBeRead(t *testing.T) {
	t.Parallel()
	change, private := issuerOf(t)
	cfg := Config{}
	change(&cfg)
	file := cfg.OAuth.JWKSFile
	good, err := os.ReadFile(file)
	require.NoError(t, err)
	f := start(t, change)
	token := signedToken(t, private, tokenHead, tokenClaims(nil))
	login := func(want string) {
		t.Helper()
		for range 3 {
			c := f.dial(t, plain)
			c.expect("220")
			c.cmd("EHLO x", "250 ")
			c.cmd("AUTH OAUTHBEARER "+b64("n,,\x01auth=Bearer "+token+"\x01\x01"), want)
		}
	}
	told := func() int { return strings.Count(f.log.String(), "level=WARN msg=keyset.unread") }
	login("235")
	require.Zero(t, told())
	for i, spoil := range []func() error{
		func() error { return os.WriteFile(file, good[:len(good)/2], 0o600) },
		func() error { return os.WriteFile(file, []byte(`{"keys":[]}`), 0o600) },
		func() error { return os.WriteFile(file, make([]byte, maxWatched+1), 0o600) },
		func() error { return os.Remove(file) },
	} {
		require.NoError(t, spoil())
		login("235")
		require.Equal(t, i+1, told())
	}
	require.Contains(t, f.log.String(), "load key set "+file)
	require.NoError(t, os.WriteFile(file, good, 0o600))
	login("235")
	require.NoError(t, os.Remove(file))
	login("235")
	require.Equal(t, 5, told(), "it could be read in between")
	_, other := issuerOf(t)
	public, ok := other.Public().(ed25519.PublicKey)
	require.True(t, ok)
	require.NoError(t, os.WriteFile(file, []byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"1","x":"`+base64.RawURLEncoding.EncodeToString(public)+`"}]}`), 0o600))
	login("334")
	require.Equal(t, 5, told())
}

// TestOAuthBearerDialogue (RFC 7628 section 3): whom the client wants to act as, what it answers to the reason of a refusal,
// and what is no response at all.
func TestOAuthBearerDialogue(t *testing.T) {
	t.Parallel()
	f, token := startOAuth(t)
	const unknown = "\x01auth=Bearer a.b.c\x01\x01"
	known := "\x01auth=Bearer " + token + "\x01\x01"
	reason := "334 " + b64(`{"status":"invalid_token"}`) + "\r\n"
	const mail = "MAIL FROM:<a@example.com>"
	for name, d := range map[string][]string{ // sent, expected
		"nobody_else":                {b64("n,," + known), "235", mail, "250"},
		"itself":                     {b64("n,a=app," + known), "235", mail, "250"},
		"would_bind_channels":        {b64("y,," + known), "235", mail, "250"},
		"host_and_port":              {b64("n,,\x01host=relay.example.com\x01port=465" + known), "235", mail, "250"},
		"bearer_in_lower_case":       {b64("n,," + strings.Replace(known, "Bearer", "bearer", 1)), "235", mail, "250"},
		"acting_for_another":         {b64("n,a=other," + known), reason, "AQ==", "535 5.7.8", mail, "530"},
		"refused":                    {b64("n,," + unknown), reason, "AQ==", "535 5.7.8", mail, "530"},
		"refused_and_cancelled":      {b64("n,," + unknown), reason, "*", "535 5.7.8", mail, "530"},
		"refused_and_tried_again":    {b64("n,," + unknown), reason, b64("n,," + known), "535 5.7.8", mail, "530"},
		"refused_and_no_base64":      {b64("n,," + unknown), reason, mail, "535 5.7.8", mail, "530"},
		"binds_channels":             {b64("p=tls-exporter,," + known), "501 5.5.2", mail, "530"},
		"no_header":                  {b64(known), "501 5.5.2", mail, "530"},
		"header_without_end":         {b64("n," + known), "501 5.5.2", mail, "530"},
		"identity_without_end":       {b64("n,a=app" + known), "501 5.5.2", mail, "530"},
		"identity_of_another_kind":   {b64("n,b=app," + known), "501 5.5.2", mail, "530"},
		"two_identities":             {b64("n,a=app,a=root," + known), "501 5.5.2", mail, "530"},
		"escape_that_is_none":        {b64("n,a=a=pp," + known), "501 5.5.2", mail, "530"},
		"no_token":                   {b64("n,,\x01host=x\x01\x01"), "501 5.5.2", mail, "530"},
		"password_instead":           {b64("n,,\x01auth=Basic c2VjcmV0\x01\x01"), "501 5.5.2", mail, "530"},
		"cut_off":                    {b64("n,,\x01auth=Bearer " + token), "501 5.5.2", mail, "530"},
		"failures_count_like_others": {b64("n,," + unknown), reason, "*", "535", "AUTH OAUTHBEARER " + b64("n,,"+unknown), reason, "AQ==", "535", "AUTH PLAIN " + plainIR("app", "x"), "421 4.7.0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := f.dial(t, implicit)
			c.upgrade()
			c.expect("220")
			c.cmd("EHLO x", "250 ")
			c.cmd("AUTH OAUTHBEARER", "334 \r\n")
			for i := 0; i < len(d); i += 2 {
				c.cmd(d[i], d[i+1])
			}
		})
	}
}

// FuzzBearer: no response and no token makes anybody of a stranger, and no key set a panic.
func FuzzBearer(f *testing.F) {
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(f, err)
	text := base64.RawURLEncoding.EncodeToString([]byte(tokenHead)) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"app"}`))
	right := text + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(private, []byte(text)))
	for _, s := range []string{
		"n,,\x01auth=Bearer " + right + "\x01\x01", "n,a=app,\x01host=x\x01auth=Bearer a.b.c\x01\x01", "y,a=a=2Cb=3D,\x01auth=\x01\x01", "\x01",
		`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},{"kty":"OKP","crv":"Ed25519","x":"AA"}]}`,
	} {
		f.Add([]byte(s))
	}
	keys := map[string]crypto.PublicKey{"1": public}
	f.Fuzz(func(t *testing.T, in []byte) {
		_, _ = parseKeySet(in)
		passed := false
		m := &bearerServer{check: func(_, token string) error {
			if _, passed = verifyToken(token, keys); !passed {
				return errAuthFailed
			}
			require.Equal(t, right, token)
			return nil
		}}
		_, done, err := m.Next(in)
		require.Equal(t, passed, done)
		if m.failed != nil {
			require.False(t, done)
			require.NoError(t, err)
			_, done, err = m.Next(in)
			require.False(t, done)
			require.ErrorIs(t, err, errAuthFailed)
		}
	})
}
