package e2e

import (
	"context"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"
)

// TestCertificateIsReplacedWhileRelaydRuns with SIGHUP and without: openssl sees the new one in every new connection, by
// STARTTLS and from the first byte; those that were open go on; and a file that is no certificate changes nothing but
// the log.
func TestCertificateIsReplacedWhileRelaydRuns(t *testing.T) {
	t.Parallel()
	needs(t, "openssl")
	mx := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: mx.port, level: "info"})
	r.mx("dest.example")
	l := r.domain("shop.example")
	file := r.ca
	clients := func() []*smtp.Client {
		c, err := smtp.DialTLS("127.0.0.1:"+itoa(r.implicit), r.trust())
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		require.NoError(t, c.Auth(sasl.NewPlainClient("", l.Username, l.Password)))
		return []*smtp.Client{r.dial(l), c}
	}
	open, letters := clients(), 0
	serves := func(want string) {
		t.Helper()
		require.Equal(t, want, r.shown("-starttls", "smtp", "-connect", "127.0.0.1:"+itoa(r.submission)))
		require.Equal(t, want, r.shown("-connect", "127.0.0.1:"+itoa(r.implicit)))
		for _, c := range slices.Concat(open, clients()) {
			letter := plain("news@shop.example", "ann@dest.example", "Letter "+itoa(letters))
			require.NoError(t, c.SendMail("news@shop.example", []string{"ann@dest.example"}, strings.NewReader(letter)))
			letters++
		}
		wait(t, "the letters", 20*time.Second, func() bool { return mx.count() == letters })
	}
	// replace puts a file in the place of the certificate's, as programs do that renew them, and waits for the event.
	replace := func(text, event string, hup bool) {
		t.Helper()
		n := strings.Count(r.logText(), `"`+event+`"`)
		next := filepath.Join(r.dir, "next.pem")
		require.NoError(t, os.WriteFile(next, []byte(text), 0o600))
		require.NoError(t, os.Rename(next, file))
		if hup {
			require.NoError(t, r.cmd.Process.Signal(syscall.SIGHUP))
		}
		wait(t, event, 90*time.Second, func() bool { return strings.Count(r.logText(), `"`+event+`"`) > n })
	}
	first, err := os.ReadFile(file)
	require.NoError(t, err)
	serves(firstCertificate(t, string(first)))

	for _, hup := range []bool{true, false} {
		r.ca = (&relay{t: t, dir: t.TempDir()}).certificate() // which new connections trust
		b, err := os.ReadFile(r.ca)
		require.NoError(t, err)
		renewed := string(b)
		replace(renewed, "certificate.loaded", hup)
		serves(firstCertificate(t, renewed))
		replace(strings.Replace(renewed, "-----END CERTIFICATE-----", "", 1), "certificate.kept", hup)
		serves(firstCertificate(t, renewed))
	}
	require.Regexp(t, `"level":"ERROR","msg":"certificate\.kept","err":"load certificate [^"]*/cert\.pem: [^"]+"`, r.logText())
	require.Equal(t, 2, strings.Count(r.logText(), `"certificate.kept"`), "each is told once")
}

// shown is the certificate that openssl sees, DER.
func (r *relay) shown(args ...string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "openssl", append([]string{"s_client", "-servername", "localhost"}, args...)...).Output()
	require.NoError(r.t, err)
	return firstCertificate(r.t, string(out))
}

// firstCertificate is the first one in PEM, DER.
func firstCertificate(t *testing.T, text string) string {
	t.Helper()
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			return string(block.Bytes)
		}
	}
	t.Fatalf("no certificate in %q", text)
	return ""
}
