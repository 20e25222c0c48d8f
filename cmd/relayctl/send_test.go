package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"
)

const password = "correct horse"

// peer is a submission server that refuses recipients named no… and messages with REFUSE in them.
type peer struct {
	addr, caFile string
	got          chan string // messages
}

func newPeer(t *testing.T, offerTLS, implicit bool) *peer {
	t.Helper()
	p := &peer{got: make(chan string, 10)}
	s := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return &peerSession{p: p}, nil }))
	s.Domain, s.AllowInsecureAuth, s.ErrorLog = "relay.example.com", true, log.New(io.Discard, "", 0)
	s.ReadTimeout, s.WriteTimeout = 10*time.Second, 10*time.Second
	cert, caPEM := certificate(t)
	p.caFile = filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(p.caFile, caPEM, 0o600))
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if offerTLS {
		s.TLSConfig = cfg
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p.addr = ln.Addr().String()
	if implicit {
		ln = tls.NewListener(ln, cfg)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		_ = ln.Close() // Close knows nothing of a listener that Serve has not come to yet, and Serve would wait for ever
		<-done
	})
	return p
}

func certificate(t *testing.T) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

type peerSession struct{ p *peer }

func (s *peerSession) Reset()                               {}
func (s *peerSession) Logout() error                        { return nil }
func (s *peerSession) Mail(string, *smtp.MailOptions) error { return nil }
func (s *peerSession) AuthMechanisms() []string             { return []string{sasl.Plain} }

func (s *peerSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, pass string) error {
		if user != "shop" || pass != password {
			return &smtp.SMTPError{Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "Wrong user name or password"}
		}
		return nil
	}), nil
}

func (s *peerSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	if strings.HasPrefix(to, "no") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "No such \x1b[31muser"}
	}
	return nil
}

func (s *peerSession) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s.p.got <- string(b)
	if strings.Contains(string(b), "REFUSE") {
		return &smtp.SMTPError{Code: 554, EnhancedCode: smtp.EnhancedCode{5, 6, 0}, Message: "Not that one"}
	}
	return nil
}

func passwordFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(file, []byte(text+"\n"), 0o600))
	return file
}

func TestSend(t *testing.T) {
	t.Parallel()
	t.Run("starttls_where_it_is_offered", func(t *testing.T) {
		t.Parallel()
		p := newPeer(t, true, false)
		code, out, errOut := ctl(t, nil, "", "send", "--server", p.addr, "--user", "shop", "--password-file", passwordFile(t, password),
			"--from", "a@example.com", "--to", "b@example.net,c@example.net", "--size", "4KB")
		require.Zero(t, code, errOut)
		require.Contains(t, out, "C: STARTTLS\n")
		require.Contains(t, out, "   (TLS begins)\nC: EHLO localhost\n")
		require.Contains(t, out, "C: AUTH PLAIN ***\n")
		require.Contains(t, out, "C: RCPT TO:<c@example.net>")
		require.Contains(t, out, "C: QUIT\nS: 221")
		require.NotContains(t, out, "AHNob3A", "the password in base64")
		m := <-p.got
		require.Contains(t, out, "C: (")
		require.Contains(t, m, "Subject: relayctl test message\r\n")
		require.InDelta(t, 4000, len(m), 4)
	})
	t.Run("json_is_one_value", func(t *testing.T) {
		t.Parallel()
		p := newPeer(t, true, false)
		code, out, errOut := ctl(t, nil, "", "send", "--server", p.addr, "--from", "a@example.com", "--to", "b@example.net", "-o", "json", "--ca-file", p.caFile)
		require.Zero(t, code, errOut)
		requireOneValue(t, out)
		var s sent
		require.NoError(t, json.Unmarshal([]byte(out), &s))
		require.True(t, s.Accepted)
		require.Equal(t, "TLS1.3", s.TLS)
		require.Equal(t, []sentRecipient{{Address: "b@example.net", Accepted: true}}, s.Recipients)
		require.NotEmpty(t, s.Dialogue)
	})
	t.Run("without_tls_on_loopback", func(t *testing.T) {
		t.Parallel()
		p := newPeer(t, false, false)
		for _, mode := range []string{"", "none"} {
			code, out, errOut := ctl(t, nil, "", "send", "--server", p.addr, "--from", "a@example.com", "--to", "b@example.net", "--tls", mode,
				"--user", "shop", "--password-file", passwordFile(t, password))
			require.Zero(t, code, errOut)
			require.NotContains(t, out, "STARTTLS\n")
			require.Contains(t, out, "C: AUTH PLAIN ***\n")
		}
		code, _, errOut := ctl(t, nil, "", "send", "--server", p.addr, "--from", "a@example.com", "--to", "b@example.net", "--tls", "starttls")
		require.Equal(t, 1, code)
		require.Contains(t, errOut, "doesn't support STARTTLS")
	})
	t.Run("implicit_tls_with_its_ca", func(t *testing.T) {
		t.Parallel()
		p := newPeer(t, false, true)
		code, out, errOut := ctl(t, nil, "", "send", "--server", p.addr, "--from", "<>", "--to", "b@example.net", "--tls", "implicit", "--ca-file", p.caFile)
		require.Zero(t, code, errOut)
		require.Contains(t, out, "C: MAIL FROM:<>")
	})
	t.Run("unknown_certificate", func(t *testing.T) {
		t.Parallel()
		p, other := newPeer(t, true, false), newPeer(t, true, false)
		for _, mode := range []string{"starttls", ""} {
			code, out, errOut := ctl(t, nil, "", "send", "--server", p.addr, "--from", "a@example.com", "--to", "b@example.net", "--tls", mode, "--ca-file", other.caFile)
			require.Equal(t, 1, code)
			require.Contains(t, errOut, "certificate")
			require.NotContains(t, out, "MAIL FROM", "no second try without TLS")
		}
	})
	t.Run("wrong_password", func(t *testing.T) {
		t.Parallel()
		p := newPeer(t, true, false)
		code, _, errOut := ctl(t, nil, "", "send", "--server", p.addr, "--from", "a@example.com", "--to", "b@example.net",
			"--user", "shop", "--password-file", passwordFile(t, "wrong"))
		require.Equal(t, 1, code)
		require.Equal(t, "relayctl: authentication refused: 535 5.7.8 Wrong user name or password\n", errOut)
	})
	t.Run("refused_recipient", func(t *testing.T) {
		t.Parallel()
		p := newPeer(t, true, false)
		code, out, errOut := ctl(t, nil, "", "send", "--server", p.addr, "--from", "a@example.com", "--to", "b@example.net", "--to", "no@example.net")
		require.Equal(t, 1, code)
		require.Equal(t, "relayctl: 1 of 2 recipients were refused: no@example.net: 550 5.1.1 No such ?[31muser\n", errOut)
		require.NotContains(t, out, "\x1b")
		<-p.got // the other one got it
		code, _, errOut = ctl(t, nil, "", "send", "--server", p.addr, "--from", "a@example.com", "--to", "no@example.net")
		require.Equal(t, 1, code)
		require.Contains(t, errOut, "every recipient was refused: 550 5.1.1")
	})
	t.Run("refused_message_from_standard_input", func(t *testing.T) {
		t.Parallel()
		p := newPeer(t, true, false)
		code, out, errOut := ctl(t, nil, "Subject: x\n\nREFUSE\n.dot\n", "send", "--server", p.addr, "--from", "a@example.com", "--to", "b@example.net",
			"--message", "-", "-o", "json")
		require.Equal(t, 1, code)
		require.Equal(t, "relayctl: message refused: 554 5.6.0 Not that one\n", errOut)
		requireOneValue(t, out)
		require.Equal(t, "Subject: x\r\n\r\nREFUSE\r\n.dot\r\n", <-p.got)
	})
	t.Run("nobody_listens", func(t *testing.T) {
		t.Parallel()
		code, _, errOut := ctl(t, nil, "", "send", "--server", "127.0.0.1:1", "--from", "a@example.com", "--to", "b@example.net")
		require.Equal(t, 1, code)
		require.Contains(t, errOut, "connection refused")
	})
	t.Run("silent_server_meets_the_deadline", func(t *testing.T) {
		t.Parallel()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer ln.Close()
		code, _, _ := ctl(t, nil, "", "send", "--server", ln.Addr().String(), "--from", "a@example.com", "--to", "b@example.net", "--timeout", "50ms")
		require.Equal(t, 1, code)
	})
}

func TestDialogueMasksSecrets(t *testing.T) {
	t.Parallel()
	d := &dialogue{}
	for _, s := range []string{
		"220 hi\r\n", "EHLO x\r\n", "250-a\r\n250 AUTH LOGIN\r\n", "AUTH LOGIN\r\n", "334 VXNlcm5hbWU6\r\n", "dXNl", "cg==\r\n",
		"334 UGFzc3dvcmQ6\r\n", "c2VjcmV0\r\n", "235 ok\r\n", "auth plain AHUAcA==\r\n", "503 again\r\n", "MAIL FROM:<a@b>\r\n",
	} {
		_, err := d.Write([]byte(s))
		require.NoError(t, err)
	}
	require.Equal(t, []string{
		"S: 220 hi", "C: EHLO x", "S: 250-a", "S: 250 AUTH LOGIN", "C: AUTH LOGIN", "S: 334 VXNlcm5hbWU6", "C: ***",
		"S: 334 UGFzc3dvcmQ6", "C: ***", "S: 235 ok", "C: auth plain ***", "S: 503 again", "C: MAIL FROM:<a@b>",
	}, d.lines)
}

func TestParseSize(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int64{"0": 0, "4096": 4096, "4KB": 4000, "4 kb": 4000, "1MiB": 1 << 20, "2KiB": 2048, "7B": 7} {
		n, err := parseSize(in)
		require.NoError(t, err, in)
		require.Equal(t, want, n, in)
	}
	for _, in := range []string{"", "KB", "-1", "1.5MB", "4XB", "99999999999"} {
		_, err := parseSize(in)
		require.Error(t, err, in)
	}
}

func TestMessageIsNeverCutOff(t *testing.T) {
	t.Parallel()
	b, err := readMessage(strings.NewReader("Subject: x\n\nhi\n"), 15)
	require.NoError(t, err)
	require.Equal(t, "Subject: x\r\n\r\nhi\r\n", string(b))
	_, err = readMessage(strings.NewReader("Subject: x\n\nhi\n"), 14)
	require.ErrorContains(t, err, "--message has more than 14 bytes")
}

func TestReadSecretIsBounded(t *testing.T) {
	t.Parallel()
	s, err := readSecret(passwordFile(t, strings.Repeat("x", 10_000)))
	require.NoError(t, err)
	require.Len(t, s, 4<<10)
	_, err = readSecret(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestSendCertificateFlags(t *testing.T) {
	t.Parallel()
	p := newPeer(t, false, false)
	file := filepath.Join(t.TempDir(), "client.pem")
	require.NoError(t, os.WriteFile(file, []byte("none"), 0o600))
	common := []string{"send", "--server", p.addr, "--from", "a@example.com", "--to", "b@example.net", "--cert-file", file}
	for _, more := range [][]string{{"--tls", "none"}, {"--user", "shop", "--password-file", passwordFile(t, password)}} {
		code, _, errOut := ctl(t, nil, "", slices.Concat(common, more)...)
		require.Equal(t, 2, code)
		require.Contains(t, errOut, "--cert-file needs TLS, and goes without --password-file")
	}
	code, _, errOut := ctl(t, nil, "", common...)
	require.Equal(t, 1, code)
	require.Contains(t, errOut, "load "+file)
}
