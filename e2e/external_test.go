package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// issue writes a certificate with its key, PEM, signed by parent (nil: by itself, an authority).
func issue(t *testing.T, file, name string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	if parent == nil {
		tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, parentKey = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, parentKey)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	writeFile(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))+
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})))
	return cert, key
}

// TestClientCertificateAuthenticates: Python's smtplib with a certificate of our authority needs no password, with one
// of another it does, and after the credential is revoked the certificate is of no use.
func TestClientCertificateAuthenticates(t *testing.T) {
	t.Parallel()
	needs(t, "python3")
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	cert, key := issue(t, ca, "Our clients", nil, nil)
	otherCert, otherKey := issue(t, filepath.Join(dir, "other-ca.pem"), "Other clients", nil, nil)
	s := newSink(t, "", nil)
	port := freePort(t)
	r := newRelay(t, options{mxPort: s.port, extra: fmt.Sprintf(
		"[[smtp.listener]]\nkind = \"submission\"\naddress = \"127.0.0.1:%d\"\ntls = \"starttls\"\nclient_ca_file = %q\n", port, ca)})
	r.mx("dest.example")
	l := r.domain("shop.example")
	mine, theirs := filepath.Join(dir, "client.pem"), filepath.Join(dir, "other.pem")
	issue(t, mine, l.Username, cert, key)
	issue(t, theirs, l.Username, otherCert, otherKey)
	const script = `import smtplib, ssl, sys
c = ssl.create_default_context(cafile=sys.argv[2]); c.load_cert_chain(sys.argv[3])
s = smtplib.SMTP('localhost', int(sys.argv[1])); s.starttls(context=c); s.ehlo()
if 'EXTERNAL' not in s.esmtp_features['auth']:
    print('not offered', s.docmd('AUTH EXTERNAL =')[0]); sys.exit()
print(s.auth('EXTERNAL', lambda challenge=None: '')[0])
s.sendmail('news@shop.example', ['ann@dest.example'], sys.stdin.buffer.read())
`
	run := func(cert string) string { return program(t, greeting, "python3", "-c", script, itoa(port), r.ca, cert) }
	require.Equal(t, "235\n", run(mine))
	wait(t, "the message", 20*time.Second, func() bool { return s.count() == 1 })
	require.Equal(t, 2, r.verify(s.all()[0].Data))
	require.Equal(t, "not offered 504\n", run(theirs))
	wait(t, "the refusal in the log", 5*time.Second, func() bool { return r.logged("certificate.refused") })
	send := []string{"send", "--server", "localhost:" + itoa(port), "--ca-file", r.ca, "--cert-file", mine, "--from", "news@shop.example", "--to", "ann@dest.example"}
	stdout, stderr, code := r.ctl(send...)
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "AUTH EXTERNAL")
	wait(t, "the test message", 20*time.Second, func() bool { return s.count() == 2 })
	_, stderr, code = r.ctl("credential", "revoke", l.Username)
	require.Zero(t, code, stderr)
	_, stderr, code = r.ctl(send...)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "authentication refused: 504 5.5.4")
	require.Equal(t, "not offered 504\n", run(mine))
}
