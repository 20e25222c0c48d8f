package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"
)

const korean = "Subject: =?utf-8?B?7ZWc6rWt7Ja0?=\r\nFrom: Shop <news@shop.example>\r\nTo: ann@dest.example\r\n" +
	"Bcc: secret@dest.example\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" +
	"안녕하세요\r\n.leading dot\r\n\r\ntrailing blanks  \r\n\r\n\r\n"

// dial opens an authenticated go-smtp session over STARTTLS.
func (r *relay) dial(l login) *smtp.Client {
	r.t.Helper()
	c, err := smtp.DialStartTLS(fmt.Sprintf("127.0.0.1:%d", r.submission), r.trust())
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = c.Close() })
	require.NoError(r.t, c.Auth(sasl.NewPlainClient("", l.Username, l.Password)))
	return c
}

// trust is a client's TLS configuration that knows the relay's certificate.
func (r *relay) trust() *tls.Config {
	r.t.Helper()
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(r.ca)
	require.NoError(r.t, err)
	require.True(r.t, pool.AppendCertsFromPEM(pem))
	return &tls.Config{RootCAs: pool, ServerName: "localhost"}
}

// submit sends one message and requires that it is accepted.
func (r *relay) submit(l login, from string, to []string, msg string) {
	r.t.Helper()
	c := r.dial(l)
	require.NoError(r.t, c.SendMail(from, to, strings.NewReader(msg)))
	require.NoError(r.t, c.Quit())
}

func plain(from, to, subject string) string {
	return "From: " + from + "\r\nTo: " + to + "\r\nSubject: " + subject + "\r\n\r\nHello.\r\n"
}

// verify checks every signature of a delivered message against the relay's DNS and returns how many pass.
func (r *relay) verify(data []byte) int {
	r.t.Helper()
	vs, err := dkim.VerifyWithOptions(bytes.NewReader(data), &dkim.VerifyOptions{LookupTXT: r.lookupTXT})
	require.NoError(r.t, err)
	for _, v := range vs {
		require.NoError(r.t, v.Err, "signature of %s", v.Domain)
	}
	return len(vs)
}

func (r *relay) lookupTXT(name string) ([]string, error) {
	res := &net.Resolver{PreferGo: true, Dial: r.dialDNS}
	return res.LookupTXT(r.t.Context(), name)
}

func TestSubmissionByOtherPeoplesClients(t *testing.T) {
	t.Parallel()
	clients := map[string]func(t *testing.T, r *relay, l login, msg string){
		"go_smtp_starttls": func(_ *testing.T, r *relay, l login, msg string) {
			r.submit(l, "news@shop.example", []string{"ann@dest.example", "bob@dest.example"}, msg)
		},
		"python_smtplib_starttls": func(t *testing.T, r *relay, l login, msg string) {
			pythonSubmit(t, l, msg, fmt.Sprintf("s=smtplib.SMTP('127.0.0.1',%d); s.ehlo('client.example'); s.starttls(); s.ehlo('client.example')", r.submission))
		},
		"python_smtplib_implicit_login": func(t *testing.T, r *relay, l login, msg string) {
			pythonSubmit(t, l, msg, fmt.Sprintf("s=smtplib.SMTP_SSL('127.0.0.1',%d); s.esmtp_features={}; s.ehlo('client.example'); s.esmtp_features['auth']='LOGIN'", r.implicit))
		},
		"swaks_starttls": func(t *testing.T, r *relay, l login, msg string) {
			swaks(t, l, msg, "--port", fmt.Sprint(r.submission), "--tls", "--auth", "PLAIN")
		},
		"swaks_implicit_tls": func(t *testing.T, r *relay, l login, msg string) {
			swaks(t, l, msg, "--port", fmt.Sprint(r.implicit), "--tls-on-connect", "--auth", "LOGIN")
		},
	}
	for name, send := range clients {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSink(t, "", nil)
			r := newRelay(t, options{mxPort: s.port})
			r.mx("dest.example")
			l := r.domain("shop.example")
			send(t, r, l, korean)
			wait(t, "both copies", 10*time.Second, func() bool { return s.count() == 2 })
			for _, d := range s.all() {
				require.Equal(t, "news@shop.example", d.From)
				m, err := mail.ReadMessage(bytes.NewReader(d.Data))
				require.NoError(t, err)
				require.Empty(t, m.Header.Get("Bcc"))
				require.NotEmpty(t, m.Header.Get("Date"))
				require.NotEmpty(t, m.Header.Get("Message-Id"))
				require.Len(t, m.Header["Dkim-Signature"], 2)
				require.Equal(t, "quoted-printable", m.Header.Get("Content-Transfer-Encoding"))
				body, err := io.ReadAll(quotedprintable.NewReader(m.Body))
				require.NoError(t, err)
				require.Contains(t, string(body), "안녕하세요\r\n.leading dot\r\n\r\ntrailing blanks")
				require.Equal(t, 2, r.verify(d.Data), "both signatures verify")
			}
		})
	}
}

func pythonSubmit(t *testing.T, l login, msg, open string) {
	t.Helper()
	needs(t, "python3")
	script := "import smtplib,sys\n" + open + "\ns.login(sys.argv[1],sys.argv[2])\n" +
		"s.sendmail('news@shop.example',['ann@dest.example','bob@dest.example'],sys.stdin.buffer.read())\ns.quit()\n"
	cmd := exec.CommandContext(t.Context(), "python3", "-c", script, l.Username, l.Password)
	cmd.Stdin = strings.NewReader(msg)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
}

func swaks(t *testing.T, l login, msg string, args ...string) {
	t.Helper()
	needs(t, "swaks")
	file := filepath.Join(t.TempDir(), "msg")
	require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(msg, "\r\n", "\n")), 0o600))
	args = append([]string{
		"--server", "127.0.0.1", "--from", "news@shop.example", "--to", "ann@dest.example,bob@dest.example",
		"--auth-user", l.Username, "--auth-password", l.Password, "--data", "@" + file,
	}, args...)
	out, err := exec.CommandContext(t.Context(), "swaks", args...).CombinedOutput()
	require.NoError(t, err, string(out))
	require.Regexp(t, `250 2\.0\.0 .*[0-9a-z]{20}`, string(out), "the queue ID is in the reply")
}

func TestSubmissionRefuses(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port})
	r.mx("dest.example")
	l := r.domain("shop.example")
	r.domain("other.example")

	t.Run("without_auth", func(t *testing.T) {
		c, err := smtp.Dial(fmt.Sprintf("127.0.0.1:%d", r.plain))
		require.NoError(t, err)
		defer c.Close()
		require.ErrorContains(t, c.Mail("news@shop.example", nil), "530")
	})
	t.Run("auth_without_tls", func(t *testing.T) {
		c, err := smtp.Dial(fmt.Sprintf("127.0.0.1:%d", r.submission))
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.Hello("client.example"))
		ok, _ := c.Extension("AUTH")
		require.False(t, ok, "AUTH is not offered before STARTTLS")
		require.Error(t, c.Auth(sasl.NewPlainClient("", l.Username, l.Password)))
	})
	t.Run("reverse_path_of_another_domain", func(t *testing.T) {
		require.ErrorContains(t, r.dial(l).Mail("x@other.example", nil), "55")
	})
	t.Run("from_of_another_domain", func(t *testing.T) {
		err := r.dial(l).SendMail("news@shop.example", []string{"ann@dest.example"}, strings.NewReader(plain("x@other.example", "ann@dest.example", "spoof")))
		require.ErrorContains(t, err, "55")
	})
	t.Run("two_from_addresses", func(t *testing.T) {
		err := r.dial(l).SendMail("news@shop.example", []string{"ann@dest.example"}, strings.NewReader(plain("news@shop.example, x@other.example", "ann@dest.example", "two")))
		require.ErrorContains(t, err, "55")
	})
	t.Run("wrong_password", func(t *testing.T) {
		c, err := smtp.Dial(fmt.Sprintf("127.0.0.1:%d", r.plain))
		require.NoError(t, err)
		defer c.Close()
		require.ErrorContains(t, c.Auth(sasl.NewPlainClient("", l.Username, "wrong")), "535")
	})
	require.Zero(t, s.count())
	var stats struct{ Queued int }
	r.json(&stats, "queue", "stats")
	require.Zero(t, stats.Queued, "nothing was queued")
}

func TestDomainWithoutKeyIsRefusedAtTheDoor(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port, extra: "[[domain]]\nname = \"keyless.example\"\n[[domain]]\nname = \"bare.example\"\nsign = \"none\"\n"})
	r.mx("dest.example")
	var l login
	r.json(&l, "credential", "create", "--domain", "keyless.example", "--domain", "bare.example")
	err := r.dial(l).SendMail("a@keyless.example", []string{"ann@dest.example"}, strings.NewReader(plain("a@keyless.example", "ann@dest.example", "x")))
	require.ErrorContains(t, err, "keyless.example")
	require.ErrorContains(t, err, "550")

	r.submit(l, "a@bare.example", []string{"ann@dest.example"}, plain("a@bare.example", "ann@dest.example", "x"))
	wait(t, "the unsigned message", 10*time.Second, func() bool { return s.count() == 1 })
	require.NotContains(t, string(s.all()[0].Data), "DKIM-Signature")
}
