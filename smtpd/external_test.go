package smtpd

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/account"
)

// authority signs client certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T, file string) *authority {
	t.Helper()
	a := &authority{t: t, file: file}
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Clients " + rand.Text()}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &a.key.PublicKey, a.key)
	require.NoError(t, err)
	a.cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return a
}

// issue signs a certificate; change makes it special.
func (a *authority) issue(change func(c *x509.Certificate)) *tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	change(tmpl)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	require.NoError(a.t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// upgradeWith is upgrade with a client certificate.
func (c *client) upgradeWith(cert *tls.Certificate) {
	c.t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // a test
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	conn := tls.Client(c.Conn, cfg)
	require.NoError(c.t, conn.Handshake())
	c.Conn, c.r = conn, bufio.NewReader(conn)
}

// startExternal is a server with client_ca_file at its TLS listeners, and the credentials app, app@example.com, and
// host.example.com.
func startExternal(t *testing.T, file string) *fixture {
	t.Helper()
	f := start(t, func(c *Config) { c.Listeners[starttls].ClientCAFile, c.Listeners[implicit].ClientCAFile = file, file })
	u, ok := f.deps.Authenticator.(users)
	require.True(t, ok)
	for _, name := range []string{"app@example.com", "host.example.com"} {
		u[name] = account.Credential{Username: name, Account: "default", Domains: []string{"example.com"}}
	}
	return f
}

func TestExternal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ours, others := newAuthority(t, filepath.Join(dir, "ca.pem")), newAuthority(t, filepath.Join(dir, "others.pem"))
	f := startExternal(t, ours.file)
	cn := func(name string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.Subject.CommonName = name }
	}
	const offered, absent = "EXTERNAL", ""
	for _, tc := range []struct {
		name  string
		cert  *tls.Certificate
		offer string
		auth  string
		want  string
	}{
		{"common_name", ours.issue(cn("app")), offered, "AUTH EXTERNAL =", "235 2.7.0"},
		{"authorization_identity", ours.issue(cn("app")), offered, "AUTH EXTERNAL " + b64("app"), "235 2.7.0"},
		{"another_identity", ours.issue(cn("app")), offered, "AUTH EXTERNAL " + b64("app@example.com"), "535 5.7.8"},
		{"identity_with_NUL", ours.issue(cn("app")), offered, "AUTH EXTERNAL " + b64("app\x00"), "501 5.5.2"},
		{"mail_address", ours.issue(func(c *x509.Certificate) { c.EmailAddresses = []string{"app@example.com"} }), offered, "AUTH EXTERNAL =", "235 2.7.0"},
		{"dns_name", ours.issue(func(c *x509.Certificate) { c.DNSNames = []string{"x.example", "HOST.example.com"} }), offered, "AUTH EXTERNAL =", "235 2.7.0"},
		{"several_without_identity", ours.issue(func(c *x509.Certificate) {
			c.Subject.CommonName, c.EmailAddresses = "app", []string{"app@example.com"}
		}), offered, "AUTH EXTERNAL =", "535 5.7.8 The certificate names several credentials"},
		{"several_with_identity", ours.issue(func(c *x509.Certificate) {
			c.Subject.CommonName, c.EmailAddresses = "app", []string{"app@example.com"}
		}), offered, "AUTH EXTERNAL " + b64("app"), "235 2.7.0"},
		{"the_same_twice", ours.issue(func(c *x509.Certificate) {
			c.Subject.CommonName, c.DNSNames = "host.example.com", []string{"host.example.com"}
		}), offered, "AUTH EXTERNAL =", "235 2.7.0"},
		{"nobody", ours.issue(cn("who")), absent, "AUTH EXTERNAL =", "504 5.5.4"},
		{"no_certificate", nil, absent, "AUTH EXTERNAL =", "504 5.5.4"},
		{"other_authority", others.issue(cn("app")), absent, "AUTH EXTERNAL =", "504 5.5.4"},
		{"expired", ours.issue(func(c *x509.Certificate) {
			c.Subject.CommonName, c.NotAfter = "app", time.Now().Add(-time.Minute)
		}), absent, "AUTH EXTERNAL =", "504 5.5.4"},
		{"not_yet_valid", ours.issue(func(c *x509.Certificate) {
			c.Subject.CommonName, c.NotBefore = "app", time.Now().Add(30*time.Minute)
		}), absent, "AUTH EXTERNAL =", "504 5.5.4"},
		{"for_servers_only", ours.issue(func(c *x509.Certificate) {
			c.Subject.CommonName, c.ExtKeyUsage = "app", []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), absent, "AUTH EXTERNAL =", "504 5.5.4"},
		{"a_password_instead", others.issue(cn("app")), absent, "AUTH PLAIN " + plainIR("app", "secret"), "235 2.7.0"},
	} {
		for _, listener := range []int{starttls, implicit} {
			t.Run(tc.name+map[int]string{starttls: "_starttls", implicit: "_implicit"}[listener], func(t *testing.T) {
				t.Parallel()
				c := f.dial(t, listener)
				if listener == implicit {
					c.upgradeWith(tc.cert)
				}
				c.expect("220 ")
				if listener == starttls {
					require.NotContains(t, c.cmd("EHLO x", "250 "), "EXTERNAL")
					c.cmd("STARTTLS", "220 ")
					c.upgradeWith(tc.cert)
				}
				got := c.cmd("EHLO x", "250 ")
				if tc.offer == "" {
					require.NotContains(t, got, "EXTERNAL")
				} else {
					require.Contains(t, got, "SCRAM-SHA-256-PLUS EXTERNAL\r\n")
				}
				c.cmd(tc.auth, tc.want)
				if tc.want[0] == '2' {
					c.transaction()
				}
			})
		}
	}
}

func TestExternalWithoutInitialResponse(t *testing.T) {
	t.Parallel()
	ours := newAuthority(t, filepath.Join(t.TempDir(), "ca.pem"))
	f := startExternal(t, ours.file)
	c := f.dial(t, implicit)
	c.upgradeWith(ours.issue(func(c *x509.Certificate) { c.Subject.CommonName = "app" }))
	c.expect("220 ")
	c.cmd("EHLO x", "250 ")
	c.cmd("AUTH EXTERNAL", "334 ")
	c.cmd("", "235 2.7.0") // RFC 4954 section 4: an empty line is an empty response
}

// TestClientAuthoritiesAreReadAgain when the file has changed; a file that is none is told and changes nothing.
func TestClientAuthoritiesAreReadAgain(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "ca.pem")
	first := newAuthority(t, file)
	f := startExternal(t, file)
	app := func(c *x509.Certificate) { c.Subject.CommonName = "app" }
	login := func(cert *tls.Certificate, want string) {
		t.Helper()
		c := f.dial(t, implicit)
		c.upgradeWith(cert)
		c.expect("220 ")
		c.cmd("EHLO x", "250 ")
		c.cmd("AUTH EXTERNAL =", want)
	}
	login(first.issue(app), "235")
	require.NoError(t, os.WriteFile(file, []byte("none"), 0o600))
	login(first.issue(app), "235")
	login(first.issue(app), "235")
	require.Equal(t, 1, strings.Count(f.log.String(), "msg=certificate.unread"))
	second := newAuthority(t, file)
	require.NoError(t, os.Chtimes(file, time.Time{}, time.Now().Add(time.Minute)))
	login(second.issue(app), "235")
	login(first.issue(app), "504")
	require.Contains(t, f.log.String(), "certificate.refused")

	_, err := New(Config{}, Deps{})
	require.Error(t, err)
	cfg := testConfig()
	cfg.Listeners[implicit].ClientCAFile = filepath.Join(t.TempDir(), "missing.pem")
	_, err = New(cfg, testDeps(&recorder{}, f.log))
	require.ErrorContains(t, err, "load client certificate authorities")
	cfg.Listeners[implicit].ClientCAFile, cfg.Listeners[inbound].ClientCAFile, cfg.Listeners[plain].ClientCAFile = "", file, file
	require.ErrorContains(t, cfg.Validate(), "smtp.listener[0]: client_ca_file: is for submission listeners with TLS")
	require.ErrorContains(t, cfg.Validate(), "smtp.listener[3]: client_ca_file")
}
