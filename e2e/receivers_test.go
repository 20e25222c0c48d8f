package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"
)

// peersDir holds receiving MTAs that cannot be installed beside each other; .ci/run unpacks them there.
const peersDir = "/var/tmp/relayd-peers"

// receiver starts an MTA that is the MX of dest.example: it knows ann@dest.example alone, offers STARTTLS with the
// certificate and hands what it takes on to the sink.
type receiver struct {
	name   string
	starts func(t *testing.T, dir, cert string, sink int) int
	broken bool // it offers TLS and cannot shake hands: Debian's OpenSMTPD 6.8 with OpenSSL 3
}

func TestReceivers(t *testing.T) {
	t.Parallel()
	for _, mta := range []receiver{
		{"postfix", startPostfixMX, false}, {"opensmtpd", startOpenSMTPD, true}, {"exim", startExim, false},
	} {
		for _, chunking := range []bool{false, true} {
			if chunking && mta.name == "opensmtpd" { // does not offer it
				continue
			}
			t.Run(fmt.Sprintf("%s_chunking_%v", mta.name, chunking), func(t *testing.T) {
				t.Parallel()
				receive(t, mta, chunking)
			})
		}
	}
}

func receive(t *testing.T, mta receiver, chunking bool) {
	needsRoot(t, "a receiving MTA")
	dir := openDir(t)
	final := newSink(t, "", nil)
	cert := (&relay{t: t, dir: dir}).certificate()
	port := mta.starts(t, dir, cert, final.port)
	listens(t, mta.name, port)
	r := newRelay(t, options{mxPort: port, deliv: fmt.Sprintf("chunking = %v", chunking)})
	r.mx("dest.example")
	l := r.domain("shop.example")
	body := strings.Repeat(".a line that begins with a dot\r\n", 2000) + "..\r\n. \r\nend\r\n"
	letters := map[string]string{
		"small":  plain("news@shop.example", "ann@dest.example", "small"),
		"dots":   "From: news@shop.example\r\nTo: ann@dest.example\r\nSubject: dots\r\n\r\n" + body,
		"korean": "From: news@shop.example\r\nTo: ann@dest.example\r\nSubject: korean\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n안녕하세요\r\n",
	}
	for name, letter := range letters {
		to := []string{"ann@dest.example"}
		if name == "small" {
			to = append(to, "gone@dest.example")
		}
		r.submit(l, "news@shop.example", to, letter)
	}
	wait(t, "the letters behind "+mta.name, 60*time.Second, func() bool { return final.count() >= len(letters) })
	out := r.settled(30 * time.Second).Outcomes
	require.Equal(t, len(letters), out["delivered"])
	require.Equal(t, 2, out["bounced"], "gone, and the notice to a sender without MX: %v", out)
	seen := map[string]int{}
	for _, d := range final.all() {
		require.Equal(t, "ann@dest.example", d.To)
		require.Equal(t, "news@shop.example", d.From)
		require.Equal(t, 2, r.verify(d.Data), "both signatures hold behind %s", mta.name)
		for name := range letters {
			if strings.Contains(string(d.Data), "\r\nSubject: "+name+"\r\n") {
				seen[name]++
			}
			if name == "dots" && strings.Contains(string(d.Data), "\r\nSubject: dots\r\n") {
				require.Contains(t, string(d.Data), body)
			}
		}
	}
	require.Equal(t, map[string]int{"small": 1, "dots": 1, "korean": 1}, seen)
	wait(t, "the refusal in the log", 5*time.Second, func() bool { return strings.Contains(r.logText(), `"code":550`) })
	log := r.logText()
	if mta.broken {
		require.Contains(t, log, `"session.downgraded"`)
	} else {
		require.Contains(t, log, `"tls":"TLS1.3"`)
	}
}

// peer is a program of peersDir.
func peer(t *testing.T, name string) string {
	t.Helper()
	file := filepath.Join(peersDir, "usr/sbin", name)
	if _, err := os.Stat(file); err != nil {
		if os.Getenv("RELAYD_E2E") == "full" {
			t.Fatalf("%s is missing, and RELAYD_E2E=full asks for it: .ci/run unpacks it", file)
		}
		t.Skipf("%s is missing; .ci/run unpacks it", file)
	}
	return file
}

// openDir is a directory that an MTA's own user may enter: the parents of t.TempDir are closed to it.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "relayd-mta-*")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755)) //nolint:gosec // see above
	return dir
}

// listens waits for an MTA's greeting.
func listens(t *testing.T, name string, port int) {
	t.Helper()
	wait(t, name+" to listen", 30*time.Second, func() bool {
		c, err := smtp.Dial("127.0.0.1:" + itoa(port))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// background runs an MTA in the foreground of its own process group until the test ends.
func background(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := os.Create(filepath.Join(dir, "output"))
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = out, out
	require.NoError(t, cmd.Start())
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-done
		}
		_ = out.Close()
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "output"))
			t.Logf("%s:\n%s", name, tail(string(text), 4000))
		}
	})
}

// split writes certificate and key into files of their own.
func split(t *testing.T, dir, cert string) (certFile, keyFile string) {
	t.Helper()
	text, err := os.ReadFile(cert)
	require.NoError(t, err)
	i := strings.Index(string(text), "-----BEGIN PRIVATE KEY")
	certFile, keyFile = filepath.Join(dir, "mx.crt"), filepath.Join(dir, "mx.key")
	writeFile(t, certFile, string(text[:i]))
	writeFile(t, keyFile, string(text[i:]))
	return certFile, keyFile
}

func startOpenSMTPD(t *testing.T, dir, cert string, sink int) int {
	program := peer(t, "smtpd")
	needs(t, "unshare")
	port := freePort(t)
	certFile, keyFile := split(t, dir, cert)
	conf := filepath.Join(dir, "smtpd.conf")
	writeFile(t, conf, fmt.Sprintf(`pki box cert "%s"
pki box key "%s"
table users {"ann@dest.example"}
listen on 127.0.0.1 port %d tls pki box hostname mx.dest.example
action "out" relay host smtp://127.0.0.1:%d
match from any for rcpt-to <users> action "out"
match from any for domain "dest.example" reject
`, certFile, keyFile, port, sink))
	// its spool, socket and empty directory have fixed names: it gets a view of the file system of its own
	background(t, dir, "unshare", "--mount", "sh", "-c", `for d in /var/spool /run /var/lib; do mount -t tmpfs tmpfs $d || exit 1; done
mkdir -p /var/spool/smtpd /var/lib/opensmtpd/empty && chmod 711 /var/spool/smtpd && exec "$0" -d -f "$1"`, program, conf)
	return port
}

func startExim(t *testing.T, dir, cert string, sink int) int {
	certFile, keyFile := split(t, dir, cert)
	runProgram(t, "chown", "Debian-exim", certFile, keyFile)
	return exim{
		name: "mx.dest.example", main: "tls_advertise_hosts = *\ntls_certificate = " + certFile + "\ntls_privatekey = " + keyFile,
		rcpt: "accept recipients = ann@dest.example\n  deny message = 5.1.1 No such user", to: sink,
	}.start(t, dir)
}

func runProgram(t *testing.T, name string, args ...string) {
	t.Helper()
	program(t, "", name, args...)
}

func startPostfixMX(t *testing.T, dir, cert string, sink int) int {
	needs(t, "postfix", "postmap")
	port := freePort(t)
	certFile, keyFile := split(t, dir, cert)
	p := &postfix{t: t, dir: dir, conf: filepath.Join(dir, "etc"), port: port}
	p.configure(fmt.Sprintf(`mydestination =
relay_domains = dest.example
relay_recipient_maps = inline:{ann@dest.example=ok}
relayhost = [127.0.0.1]:%d
disable_dns_lookups = yes
smtpd_relay_restrictions = reject_unauth_destination
smtpd_tls_security_level = may
smtpd_tls_cert_file = %s
smtpd_tls_key_file = %s
smtp_tls_security_level = none
`, sink, certFile, keyFile))
	p.start()
	return port
}
