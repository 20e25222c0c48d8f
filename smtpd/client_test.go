package smtpd

import (
	"crypto/tls"
	netsmtp "net/smtp"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"
)

var insecure = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // a test

const letter = "From: a@example.com\r\nTo: b@example.net\r\nSubject: x\r\n\r\nHello\r\n.dot\r\n..dots\r\n"

func TestGoSMTPClient(t *testing.T) {
	t.Parallel()
	f := start(t)
	dial := map[string]func() (*smtp.Client, error){
		"none":     func() (*smtp.Client, error) { return smtp.Dial(f.Addr(plain).String()) },
		"starttls": func() (*smtp.Client, error) { return smtp.DialStartTLS(f.Addr(starttls).String(), insecure) },
		"implicit": func() (*smtp.Client, error) { return smtp.DialTLS(f.Addr(implicit).String(), insecure) },
	}
	for name, fn := range dial {
		for _, auth := range []sasl.Client{sasl.NewPlainClient("", "app", "secret"), sasl.NewLoginClient("app", "secret")} {
			c, err := fn()
			require.NoError(t, err, name)
			require.NoError(t, c.Auth(auth))
			require.NoError(t, c.SendMail("a@example.com", []string{"b@example.net", "c@example.net"}, strings.NewReader(letter)))
			require.NoError(t, c.Quit())
		}
	}
	got := f.rec.all()
	require.Len(t, got, 6)
	for _, m := range got {
		require.Equal(t, letter, m.body)
	}
	c, err := smtp.Dial(f.Addr(plain).String())
	require.NoError(t, err)
	err = c.Auth(sasl.NewPlainClient("", "app", "wrong"))
	require.ErrorContains(t, err, "invalid")
	require.NoError(t, c.Close())
}

func TestNetSMTPClient(t *testing.T) {
	t.Parallel()
	f := start(t)
	c, err := netsmtp.Dial(f.Addr(starttls).String())
	require.NoError(t, err)
	require.NoError(t, c.Hello("client.example"))
	require.NoError(t, c.StartTLS(insecure))
	require.NoError(t, c.Auth(netsmtp.PlainAuth("", "app", "secret", "127.0.0.1")))
	require.NoError(t, c.Mail("a@example.com"))
	require.NoError(t, c.Rcpt("b@example.net"))
	w, err := c.Data()
	require.NoError(t, err)
	_, err = w.Write([]byte(letter))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, c.Quit())
	require.Equal(t, letter, f.rec.all()[0].body)
}
