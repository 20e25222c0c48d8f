package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"
)

// exim is what one Exim of ours has beside what all of them have: it sends whatever it takes to a port on loopback.
type exim struct {
	name      string // primary_hostname
	main      string // further lines of the main section
	rcpt      string // the ACL of RCPT
	to        int
	transport string // further lines of the transport, and what follows
}

// start runs it in dir, which its user may enter, and returns the port on which it will listen.
func (x exim) start(t *testing.T, dir string) int {
	t.Helper()
	program := peer(t, "exim4")
	for _, sub := range []string{"spool", "log"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, sub), 0o750))
	}
	runProgram(t, "chown", "-R", "Debian-exim", filepath.Join(dir, "spool"), filepath.Join(dir, "log"))
	port := freePort(t)
	conf := filepath.Join(dir, "exim.conf")
	writeFile(t, conf, fmt.Sprintf(`exim_path = %[1]s
spool_directory = %[2]s/spool
log_file_path = %[2]s/log/%%slog
pid_file_path = %[2]s/exim.pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = %[3]d
primary_hostname = %[4]s
host_lookup =
rfc1413_hosts =
keep_environment =
deliver_drop_privilege = true
acl_smtp_rcpt = rcpt
acl_smtp_data = data
%[5]s
begin acl
rcpt:
  %[6]s
data:
  accept
begin routers
out:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = smtp
begin transports
smtp:
  driver = smtp
  port = %[7]d
  allow_localhost
  hosts_try_dane =
  %[8]s
`, program, dir, port, x.name, x.main, x.rcpt, x.to, x.transport))
	require.NoError(t, os.Chmod(conf, 0o644)) //nolint:gosec // read by the MTA's user
	background(t, dir, program, "-C", conf, "-bdf", "-q1m")
	return port
}

// eximSubmit has an Exim of its own relay through us, with AUTH: of the peers, it is the one whose client sends BDAT.
func eximSubmit(t *testing.T, r *relay, l login, w way) {
	needsRoot(t, "Exim")
	dir := openDir(t)
	ca, err := os.ReadFile(r.ca)
	require.NoError(t, err)
	trusted := filepath.Join(dir, "ca.pem")
	writeFile(t, trusted, string(ca))
	require.NoError(t, os.Chmod(trusted, 0o644)) //nolint:gosec // see above
	tls := map[string]string{"plain": "hosts_avoid_tls = *", "starttls": "hosts_require_tls = *", "implicit": "protocol = smtps"}[w.name]
	if w.name != "plain" {
		tls += "\n  tls_verify_hosts = *\n  tls_verify_cert_hostnames =\n  tls_verify_certificates = " + trusted
	}
	port := exim{
		name: "exim.shop.example", main: "log_selector = +pipelining\ntls_advertise_hosts =", rcpt: "accept", to: w.port(r),
		transport: "hosts_require_auth = *\n  " + tls + "\nbegin authenticators\nplain:\n  driver = plaintext\n  public_name = PLAIN\n" +
			"  client_send = ^" + l.Username + "^" + l.Password,
	}.start(t, dir)
	listens(t, "Exim", port)
	c, err := smtp.Dial("127.0.0.1:" + itoa(port))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SendMail("news@shop.example", []string{"ann@dest.example"}, strings.NewReader(greeting)))
	require.NoError(t, c.Quit())
	var line string
	wait(t, "Exim to hand it on", 30*time.Second, func() bool {
		text, _ := os.ReadFile(filepath.Join(dir, "log", "mainlog"))
		_, line, _ = strings.Cut(string(text), " => ann@dest.example ")
		line, _, _ = strings.Cut(line, "\n")
		return strings.Contains(line, `C="250`)
	})
	t.Log(line)
	require.Contains(t, line, "2.0.0 Ok: queued as ")
	require.Contains(t, line, " K ", "it used CHUNKING")
	require.Contains(t, line, " L ", "and PIPELINING")
}
