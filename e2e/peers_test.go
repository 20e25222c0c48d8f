package e2e

import (
	"bytes"
	"fmt"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"
)

const greeting = "From: Shop <news@shop.example>\r\nTo: ann@dest.example\r\nSubject: hello\r\nMIME-Version: 1.0\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\n\r\nOne line\r\n.a dot first\r\n\r\nend\r\n"

// way is how a client comes to us: plain text on loopback, STARTTLS, implicit TLS.
type way struct {
	name string
	port func(r *relay) int
}

func ways() []way {
	return []way{
		{"plain", func(r *relay) int { return r.plain }},
		{"starttls", func(r *relay) int { return r.submission }},
		{"implicit", func(r *relay) int { return r.implicit }},
	}
}

// TestPeersSubmit has clients of other people hand in one message, each in every way that it knows; the message arrives
// once, whole and signed.
func TestPeersSubmit(t *testing.T) {
	t.Parallel()
	clients := map[string]func(t *testing.T, r *relay, l login, w way){
		"msmtp": msmtpSubmit, "nodemailer": nodemailerSubmit, "postfix": postfixSubmit, "go_smtp": goSMTPSubmit,
		"python_smtplib": pythonPeerSubmit, "swaks": swaksPeerSubmit, "exim": eximSubmit,
	}
	for name, submit := range clients {
		for _, w := range ways() {
			t.Run(name+"_"+w.name, func(t *testing.T) {
				t.Parallel()
				s := newSink(t, "", nil)
				r := newRelay(t, options{mxPort: s.port})
				r.mx("dest.example")
				l := r.domain("shop.example")
				submit(t, r, l, w)
				wait(t, "the message", 30*time.Second, func() bool { return s.count() >= 1 })
				d := s.all()[0]
				require.Equal(t, "ann@dest.example", d.To)
				require.Equal(t, "news@shop.example", d.From)
				m, err := mail.ReadMessage(bytes.NewReader(d.Data))
				require.NoError(t, err)
				require.Equal(t, "hello", m.Header.Get("Subject"))
				require.Contains(t, string(d.Data), "\r\n.a dot first\r\n")
				require.Equal(t, 2, r.verify(d.Data))
				with := "ESMTPSA"
				if w.name == "plain" {
					with = "ESMTPA"
				}
				require.Contains(t, m.Header["Received"][0], "with "+with)
				require.Equal(t, 1, s.count(), "once")
			})
		}
	}
}

func program(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s: %s", name, out)
	return string(out)
}

func unixText(s string) string { return strings.ReplaceAll(s, "\r\n", "\n") }

func msmtpSubmit(t *testing.T, r *relay, l login, w way) {
	needs(t, "msmtp")
	tls := map[string]string{"plain": "tls off", "starttls": "tls on\ntls_starttls on", "implicit": "tls on\ntls_starttls off"}[w.name]
	if w.name != "plain" {
		tls += "\ntls_trust_file " + r.ca
	}
	conf := filepath.Join(t.TempDir(), "msmtprc")
	writeFile(t, conf, fmt.Sprintf("account default\nhost localhost\nport %d\nfrom news@shop.example\nauth plain\nuser %s\npassword %s\n%s\n",
		w.port(r), l.Username, l.Password, tls))
	program(t, unixText(greeting), "msmtp", "--file="+conf, "ann@dest.example")
}

func nodemailerSubmit(t *testing.T, r *relay, l login, w way) {
	needs(t, "node")
	if _, err := os.Stat("testdata/nodemailer/node_modules/nodemailer"); err != nil {
		if os.Getenv("RELAYD_E2E") == "full" {
			t.Fatal("nodemailer is missing: npm ci --prefix e2e/testdata/nodemailer")
		}
		t.Skip("nodemailer is missing: npm ci --prefix e2e/testdata/nodemailer")
	}
	script := `const t=require('./testdata/nodemailer/node_modules/nodemailer').createTransport({host:'127.0.0.1',port:+process.argv[1],
secure:process.argv[2]=='implicit',requireTLS:process.argv[2]=='starttls',ignoreTLS:process.argv[2]=='plain',
tls:{servername:'localhost',ca:require('fs').readFileSync(process.argv[5])},auth:{user:process.argv[3],pass:process.argv[4]}});
t.sendMail({envelope:{from:'news@shop.example',to:['ann@dest.example']},raw:require('fs').readFileSync(0)})
.then(i=>{console.log(i.response)},e=>{console.error(e);process.exit(1)})`
	out := program(t, greeting, "node", "-e", script, itoa(w.port(r)), w.name, l.Username, l.Password, r.ca)
	require.Contains(t, out, "250 2.0.0 Ok: queued as ")
}

func goSMTPSubmit(t *testing.T, r *relay, l login, w way) {
	addr := "127.0.0.1:" + itoa(w.port(r))
	conf := r.trust()
	c, err := map[string]func() (*smtp.Client, error){
		"plain":    func() (*smtp.Client, error) { return smtp.Dial(addr) },
		"starttls": func() (*smtp.Client, error) { return smtp.DialStartTLS(addr, conf) },
		"implicit": func() (*smtp.Client, error) { return smtp.DialTLS(addr, conf) },
	}[w.name]()
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.Auth(sasl.NewPlainClient("", l.Username, l.Password)))
	require.NoError(t, c.SendMail("news@shop.example", []string{"ann@dest.example"}, strings.NewReader(greeting)))
	require.NoError(t, c.Quit())
}

func pythonPeerSubmit(t *testing.T, r *relay, l login, w way) {
	needs(t, "python3")
	class, upgrade := "SMTP", ""
	switch w.name {
	case "starttls":
		upgrade = "s.starttls(context=ssl.create_default_context(cafile=sys.argv[3]))\n"
	case "implicit":
		class = "SMTP_SSL"
	}
	context := ""
	if class == "SMTP_SSL" {
		context = ",context=ssl.create_default_context(cafile=sys.argv[3])"
	}
	program(t, greeting, "python3", "-c", "import smtplib,ssl,sys\ns=smtplib."+class+"('localhost',"+itoa(w.port(r))+context+")\n"+upgrade+
		"s.login(sys.argv[1],sys.argv[2])\ns.sendmail('news@shop.example',['ann@dest.example'],sys.stdin.buffer.read())\ns.quit()\n",
		l.Username, l.Password, r.ca)
}

func swaksPeerSubmit(t *testing.T, r *relay, l login, w way) {
	needs(t, "swaks")
	file := filepath.Join(t.TempDir(), "letter")
	writeFile(t, file, unixText(greeting))
	args := []string{
		"--server", "localhost", "--port", itoa(w.port(r)), "--from", "news@shop.example", "--to", "ann@dest.example", "--auth", "PLAIN",
		"--auth-user", l.Username, "--auth-password", l.Password, "--data", "@" + file, "--pipeline",
	}
	switch w.name {
	case "starttls":
		args = append(args, "--tls", "--tls-ca-path", r.ca, "--tls-verify")
	case "implicit":
		args = append(args, "--tls-on-connect", "--tls-ca-path", r.ca, "--tls-verify")
	}
	program(t, "", "swaks", args...)
}

// postfixSubmit has a Postfix of its own relay through us, with AUTH. It is offered CHUNKING, which its client never uses.
func postfixSubmit(t *testing.T, r *relay, l login, w way) {
	p := newPostfix(t, r, l, w)
	c, err := smtp.Dial("127.0.0.1:" + itoa(p.port))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SendMail("news@shop.example", []string{"ann@dest.example"}, strings.NewReader(greeting)))
	require.NoError(t, c.Quit())
	wait(t, "Postfix to hand it on", 30*time.Second, func() bool {
		return strings.Contains(p.log(), "status=sent (250 2.0.0 Ok: queued as ")
	})
}

// postfix is an instance of Postfix with directories of its own.
type postfix struct {
	t         *testing.T
	dir, conf string
	port      int
}

func newPostfix(t *testing.T, r *relay, l login, w way) *postfix {
	t.Helper()
	needs(t, "postfix", "postmap")
	needsRoot(t, "Postfix")
	dir := openDir(t)
	p := &postfix{t, dir, filepath.Join(dir, "etc"), freePort(t)}
	p.directories()
	ca, err := os.ReadFile(r.ca)
	require.NoError(t, err)
	writeFile(t, filepath.Join(p.conf, "ca.pem"), string(ca))
	nextHop := fmt.Sprintf("[127.0.0.1]:%d", w.port(r))
	writeFile(t, filepath.Join(p.conf, "sasl"), nextHop+" "+l.Username+":"+l.Password+"\n")
	tls := map[string]string{
		"plain":    "smtp_tls_security_level = none",
		"starttls": "smtp_tls_security_level = secure\nsmtp_tls_secure_cert_match = relay.example",
		"implicit": "smtp_tls_security_level = secure\nsmtp_tls_wrappermode = yes\nsmtp_tls_secure_cert_match = relay.example",
	}[w.name]
	p.configure(fmt.Sprintf(`mydestination =
relayhost = %[2]s
disable_dns_lookups = yes
smtpd_relay_restrictions = permit_mynetworks,reject
smtp_sasl_auth_enable = yes
smtp_sasl_password_maps = texthash:%[1]s/etc/sasl
smtp_sasl_security_options = noanonymous
smtp_tls_CAfile = %[1]s/etc/ca.pem
smtp_discard_ehlo_keywords =
%[3]s
`, dir, nextHop, tls))
	for _, f := range []string{"etc/sasl", "etc/ca.pem"} {
		require.NoError(t, os.Chmod(filepath.Join(dir, f), 0o644)) //nolint:gosec // see above
	}
	p.start()
	return p
}

// directories makes those of an instance, once.
func (p *postfix) directories() {
	t, dir := p.t, p.dir
	t.Helper()
	if _, err := os.Stat(p.conf); err == nil {
		return
	}
	for _, sub := range []string{"etc", "spool", "data"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, sub), 0o755)) //nolint:gosec // see above
	}
	program(t, "", "chown", "postfix", filepath.Join(dir, "data"))
}

// configure writes main.cf, with what is special to this instance, and master.cf.
func (p *postfix) configure(special string) {
	t, dir := p.t, p.dir
	t.Helper()
	p.directories()
	writeFile(t, filepath.Join(p.conf, "main.cf"), fmt.Sprintf(`compatibility_level = 3.6
queue_directory = %[1]s/spool
data_directory = %[1]s/data
mail_owner = postfix
setgid_group = postdrop
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
myhostname = postfix.shop.example
local_recipient_maps =
alias_maps =
mynetworks = 127.0.0.0/8
inet_interfaces = loopback-only
inet_protocols = ipv4
smtpd_peername_lookup = no
maillog_file = %[1]s/mail.log
maillog_file_prefixes = %[1]s
%[2]s
`, dir, special))
	master, err := os.ReadFile("/usr/share/postfix/master.cf.dist")
	if err != nil {
		t.Fatal("Postfix came without its master.cf.dist")
	}
	lines := strings.Split(string(master), "\n")
	for i, line := range lines {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "smtp" && f[1] == "inet" {
			lines[i] = fmt.Sprintf("127.0.0.1:%d inet n - n - - smtpd", p.port)
		} else if len(f) > 4 && !strings.HasPrefix(line, "#") && f[4] == "y" {
			lines[i] = strings.Replace(line, "  y  ", "  n  ", 1) // no chroot
		}
	}
	if !strings.Contains(string(master), "\npostlog") {
		lines = append(lines, "postlog unix-dgram n - n - 1 postlogd")
	}
	writeFile(t, filepath.Join(p.conf, "master.cf"), strings.Join(lines, "\n")+"\n")
	for _, f := range []string{"etc/main.cf", "etc/master.cf"} {
		require.NoError(t, os.Chmod(filepath.Join(dir, f), 0o644)) //nolint:gosec // read by the user postfix
	}
}

// start runs the instance until the test ends.
func (p *postfix) start() {
	t := p.t
	t.Helper()
	_ = exec.CommandContext(t.Context(), "postfix", "-c", p.conf, "set-permissions").Run()
	program(t, "", "postfix", "-c", p.conf, "start")
	t.Cleanup(func() {
		_ = exec.Command("postfix", "-c", p.conf, "stop").Run()
		if t.Failed() {
			t.Logf("Postfix log:\n%s", tail(p.log(), 4000))
		}
	})
	listens(t, "Postfix", p.port)
}

func (p *postfix) log() string {
	b, _ := os.ReadFile(filepath.Join(p.dir, "mail.log"))
	return string(b)
}
