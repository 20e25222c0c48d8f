package smtpd

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/account"
)

// TestScramOfRFC7677 replays the example of RFC 7677 section 3.
func TestScramOfRFC7677(t *testing.T) {
	t.Parallel()
	salt, err := base64.StdEncoding.DecodeString("W22ZaJ0SNY7soEsUEjb6gQ==")
	require.NoError(t, err)
	v, err := account.NewScram("pencil", salt, 4096)
	require.NoError(t, err)
	right := false
	m := &scramServer{
		find:  func(u string) account.Scram { require.Equal(t, "user", u); return v },
		right: func() { right = true }, nonce: "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
	}
	c, done, err := m.Next(nil)
	require.NoError(t, err)
	require.False(t, done)
	require.Empty(t, c)
	c, _, err = m.Next([]byte("n,,n=user,r=rOprNGfwEbeRWgbNEkqO"))
	require.NoError(t, err)
	require.Equal(t, "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", string(c))
	c, done, err = m.Next([]byte("c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="))
	require.NoError(t, err)
	require.False(t, done)
	require.Equal(t, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", string(c))
	require.True(t, right)
	_, done, err = m.Next([]byte{})
	require.NoError(t, err)
	require.True(t, done)
}

// scramLogin is the client's side.
func (c *client) scramLogin(mechanism, gs2 string, bound []byte, user, password string) string {
	c.t.Helper()
	if refused := c.scramProof(mechanism, gs2, bound, user, password); refused != "" {
		return refused
	}
	if line := c.reply(); !strings.HasPrefix(line, "334 ") {
		return line
	}
	c.send("\r\n")
	return c.reply()
}

// scramProof is the client's side as far as its proof, which it has sent if there was a challenge.
func (c *client) scramProof(mechanism, gs2 string, bound []byte, user, password string) (refused string) {
	c.t.Helper()
	b64 := base64.StdEncoding
	bare := "n=" + user + ",r=clientnonce"
	c.send("AUTH " + mechanism + " " + b64.EncodeToString([]byte(gs2+bare)) + "\r\n")
	line := c.reply()
	if !strings.HasPrefix(line, "334 ") {
		return line
	}
	first, err := b64.DecodeString(strings.TrimSpace(line[4:]))
	require.NoError(c.t, err)
	attrs := strings.Split(string(first), ",")
	salt, err := b64.DecodeString(attrs[1][2:])
	require.NoError(c.t, err)
	salted, err := pbkdf2.Key(sha256.New, password, salt, 4096, 32)
	require.NoError(c.t, err)
	sum := func(key []byte, s string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(s))
		return m.Sum(nil)
	}
	key := sum(salted, "Client Key")
	stored := sha256.Sum256(key)
	without := "c=" + b64.EncodeToString(append([]byte(gs2), bound...)) + "," + attrs[0]
	proof := make([]byte, 32)
	subtle.XORBytes(proof, key, sum(stored[:], bare+","+string(first)+","+without))
	c.send(b64.EncodeToString([]byte(without+",p="+b64.EncodeToString(proof))) + "\r\n")
	return ""
}

func TestScram(t *testing.T) {
	t.Parallel()
	f := start(t)
	dial := func(t *testing.T) (*client, tls.ConnectionState) {
		t.Helper()
		c := f.dial(t, implicit)
		c.upgrade()
		c.expect("220")
		c.cmd("EHLO x", "250 ")
		secure, ok := c.Conn.(*tls.Conn)
		require.True(t, ok)
		return c, secure.ConnectionState()
	}
	exporter := func(st tls.ConnectionState) []byte {
		b, err := st.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
		require.NoError(t, err)
		return b
	}
	endPoint := func(st tls.ConnectionState) []byte {
		sum := sha256.Sum256(st.PeerCertificates[0].Raw)
		return sum[:]
	}
	none := func(tls.ConnectionState) []byte { return nil }
	tests := []struct {
		name, mechanism, gs2 string
		bound                func(tls.ConnectionState) []byte
		user, password, want string
	}{
		{"right", scramSHA256, "n,,", none, "app", "secret", "235"},
		{"own_authzid", scramSHA256, "n,a=app,", none, "app", "secret", "235"},
		{"other_authzid", scramSHA256, "n,a=root,", none, "app", "secret", "535"},
		{"wrong_password", scramSHA256, "n,,", none, "app", "wrong", "535 5.7.8 Authentication credentials are invalid\r\n"},
		{"unknown_user", scramSHA256, "n,,", none, "nobody", "secret", "535 5.7.8 Authentication credentials are invalid\r\n"},
		{"downgrade_is_noticed", scramSHA256, "y,,", none, "app", "secret", "535"},
		{"exporter", scramSHA256Plus, "p=tls-exporter,,", exporter, "app", "secret", "235"},
		{"end_point", scramSHA256Plus, "p=tls-server-end-point,,", endPoint, "app", "secret", "235"},
		{"somebody_between", scramSHA256Plus, "p=tls-exporter,,", func(tls.ConnectionState) []byte { return make([]byte, 32) }, "app", "secret", "535"},
		{"unknown_binding", scramSHA256Plus, "p=tls-unique,,", none, "app", "secret", "501"},
		{"plus_without_binding", scramSHA256Plus, "n,,", none, "app", "secret", "501"},
		{"binding_without_plus", scramSHA256, "p=tls-exporter,,", exporter, "app", "secret", "501"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, st := dial(t)
			got := c.scramLogin(tc.mechanism, tc.gs2, tc.bound(st), tc.user, tc.password)
			require.True(t, strings.HasPrefix(got, tc.want), got)
			want := "530 5.7.0"
			if tc.want == "235" {
				want = "250 2.1.0"
			}
			c.cmd("MAIL FROM:<a@example.com>", want)
		})
	}
	c := f.dial(t, plain)
	c.expect("220")
	c.cmd("EHLO x", "250 ")
	c.cmd("AUTH SCRAM-SHA-256-PLUS", "504") // no TLS, no binding
	for _, s := range []string{"", "n", "n,,", "n,,n=app", "n,,m=x,n=app,r=x", "n,,n=a=b,r=x", "n,,n=app,r=", "z,,n=app,r=x"} {
		c = f.dial(t, plain)
		c.expect("220")
		c.cmd("EHLO x", "250 ")
		c.send("AUTH SCRAM-SHA-256\r\n" + base64.StdEncoding.EncodeToString([]byte(s)) + "\r\n")
		c.expect("334")
		require.Contains(t, "5", c.reply()[:1], s)
	}
}
