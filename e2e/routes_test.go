package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// This file shows the ways on which mail leaves (docs/configuration.md, "Which way mail goes").

// eximAuth are authenticators of Exim. LOGIN has the prompts of Exim's manual; a server may prompt as it likes.
var eximAuth = map[string]string{
	"LOGIN": "driver = plaintext\nserver_prompts = User Name : Password\n" +
		"server_condition = ${if and{{eq{$auth1}{relay}}{eq{$auth2}{s3cret}}}}",
	"CRAM-MD5": "driver = cram_md5\nserver_secret = ${if eq{$auth1}{relay}{s3cret}fail}",
}

// TestSmarthostWithAuthOfExim logs in at an Exim that offers one mechanism, and that under TLS only: first with a wrong password,
// which stops the route and bounces nothing, then with the right one.
func TestSmarthostWithAuthOfExim(t *testing.T) {
	t.Parallel()
	for mechanism, lines := range eximAuth {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			needsRoot(t, "Exim")
			dir := openDir(t)
			cert := (&relay{t: t, dir: dir}).certificate()
			certFile, keyFile := split(t, dir, cert)
			runProgram(t, "chown", "Debian-exim", certFile, keyFile)
			final := newSink(t, "", nil)
			port := exim{
				name: "up.example", main: "tls_advertise_hosts = *\ntls_certificate = " + certFile + "\ntls_privatekey = " + keyFile,
				rcpt: "accept authenticated = *\n  deny message = 5.7.1 Who are you", to: final.port,
				transport: "\nbegin authenticators\nonly:\n" + lines + "\npublic_name = " + mechanism +
					"\nserver_set_id = $auth1\nserver_advertise_condition = ${if def:tls_in_cipher}",
			}.start(t, dir)
			listens(t, "Exim", port)
			said := func() string {
				text, _ := os.ReadFile(filepath.Join(dir, "log", "mainlog"))
				return string(text)
			}

			pw := filepath.Join(t.TempDir(), "pw")
			writeFile(t, pw, "wrong\n")
			r := newRelay(t, options{mxPort: 25, deliv: `route = "up"`, env: []string{"SSL_CERT_FILE=" + cert}, extra: fmt.Sprintf(
				"[[delivery.smarthost]]\nname = \"up\"\naddress = \"localhost:%d\"\nusername = \"relay\"\npassword_file = %q\n", port, pw)})
			r.domain("shop.example")
			first := r.handIn("ann@a.example")
			alarm := r.record("route.auth_refused", "site", "up")
			require.Equal(t, "ERROR", alarm["level"])
			require.InDelta(t, 535, alarm["code"], 0)
			second := r.handIn("bob@b.example")
			e := r.deferred(t, first, 0)
			require.Equal(t, 535, e.LastReply.Code)
			require.Zero(t, e.Attempts)
			st := r.stats()
			require.Equal(t, 2, st.Queued)
			require.Empty(t, positive(st.Outcomes))
			require.Zero(t, final.count())
			wait(t, "Exim's word on the refusal", 20*time.Second, func() bool { return strings.Contains(said(), "535 Incorrect authentication data") })
			require.NotContains(t, said(), " <= ")

			writeFile(t, pw, "s3cret\n")
			require.NoError(t, r.cmd.Process.Signal(syscall.SIGHUP))
			r.record("configuration.loaded")
			for _, id := range []string{first, second} {
				e := r.until(id, "delivered")
				require.Equal(t, 1, e.Attempts)
				require.Equal(t, "TLS1.3", e.TLS)
			}
			wait(t, "both letters", 20*time.Second, func() bool { return final.count() == 2 })
			for line := range strings.Lines(said()) {
				if strings.Contains(line, " <= ") {
					require.Contains(t, line, " A=only:relay ", "it came with the password")
					require.Contains(t, line, " X=TLS1.3:", "and under TLS")
				}
			}
			require.NotContains(t, r.logText(), "s3cret")
		})
	}
}
