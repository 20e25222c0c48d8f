package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/resolver/resolvertest"
)

// binDir holds the binaries under test.
var binDir string

func TestMain(m *testing.M) {
	if os.Getenv("RELAYD_E2E") == "off" {
		fmt.Println("left out: RELAYD_E2E=off")
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "relayd-e2e-*")
	if err != nil {
		panic(err)
	}
	binDir = dir
	build := exec.Command("go", "build", "-o", dir+"/", "../cmd/relayd", "../cmd/relayctl")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	code := 1
	if err := build.Run(); err == nil {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// needs skips a test whose foreign program is missing, unless everything must be there.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("RELAYD_E2E") == "full" {
				t.Fatalf("%s is missing, and RELAYD_E2E=full asks for it", p)
			}
			t.Skipf("%s is not installed; RELAYD_E2E=full makes this a failure", p)
		}
	}
}

// needsRoot skips a test of what only root may start, unless everything must be there.
func needsRoot(t *testing.T, what string) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("RELAYD_E2E") == "full":
		t.Fatalf("%s needs root, and RELAYD_E2E=full asks for it", what)
	default:
		t.Skipf("%s needs root; RELAYD_E2E=full makes this a failure", what)
	}
}

// wait polls cond, which looks at something outside of this process, until it holds. most is long for a machine that has
// nothing else to do; one that has, or that stood still, gets five times as long, and a last look.
func wait(t *testing.T, what string, most time.Duration, cond func() bool) {
	t.Helper()
	most *= 5
	for deadline := time.Now().Add(most); ; pause() {
		late := time.Now().After(deadline)
		if cond() {
			return
		}
		if late {
			t.Fatalf("waited %v for %s", most, what)
		}
	}
}

// pause is the one place where these tests sleep: what they wait for happens in another process.
func pause() {
	c := make(chan struct{})
	time.AfterFunc(20*time.Millisecond, func() { close(c) })
	<-c
}

var nextPort atomic.Int32

// freePort returns a loopback port that nobody has and nobody gets by chance while relayd is down between two runs: it
// lies below the range from which the kernel takes local ports. No child that is between fork and exec then keeps it taken.
func freePort(t *testing.T) int {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	nextPort.CompareAndSwap(0, int32(12000+os.Getpid()%12000)) //nolint:gosec // small
	for range 2000 {
		port := int(nextPort.Add(1))
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// relay is one relayd process with its directory, its DNS and its doors.
type relay struct {
	t    *testing.T
	dir  string
	data string // directory
	dns  *resolvertest.Server
	conf string
	env  []string
	wrap []string // in front of the daemon's command line; it must exec

	submission int // port, starttls
	implicit   int
	plain      int // loopback without TLS
	http       int
	mxPort     int
	ca         string // certificate of the listeners, PEM file

	mu  sync.Mutex
	cmd *exec.Cmd
	log *bytes.Buffer
	end chan struct{}
}

// options of a relay.
type options struct {
	mxPort  int
	level   string // of the log, "debug"
	extra   string // appended to the configuration
	retry   string // [delivery.retry] table body
	deliv   string // keys of [delivery]
	suspend string // its suspend_first; suspend_max is five times as long
	host    string // relay.example
	env     []string
	domains []string                   // with an MX before relayd starts
	data    string                     // data directory, if not one of its own
	wrap    []string                   // in front of the daemon's command line; it must exec
	dns     func(server string) string // body of [dns], told the address of the relay's DNS server; nil: that one is asked
	public  bool                       // MX hosts on loopback and private addresses are refused, as outside of tests
}

// newRelay writes a configuration and starts relayd.
func newRelay(t *testing.T, o options) *relay {
	t.Helper()
	r := &relay{
		t: t, dir: t.TempDir(), submission: freePort(t), implicit: freePort(t), plain: freePort(t), http: freePort(t),
		mxPort: o.mxPort, env: o.env, wrap: o.wrap, data: o.data,
	}
	if r.data == "" {
		r.data = filepath.Join(r.dir, "data")
	}
	var err error
	r.dns, err = resolvertest.NewServer(nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.dns.Close() })
	r.mx(o.domains...)
	r.ca = r.certificate()
	if o.dns == nil {
		o.dns = func(server string) string { return fmt.Sprintf("servers = [%q]", server) }
	}
	if o.retry == "" {
		o.retry = "attempts = 3\nfirst_delay = \"300ms\"\nmultiplier = 2.0\nmax_age = \"5m\""
	}
	first, err := time.ParseDuration(cmp.Or(o.suspend, "200ms"))
	require.NoError(t, err)
	r.conf = fmt.Sprintf(`hostname = %q
data_dir = %q
[log]
format = "json"
level = %q
[[smtp.listener]]
kind = "submission"
address = "127.0.0.1:%d"
tls = "starttls"
[[smtp.listener]]
kind = "submission"
address = "127.0.0.1:%d"
tls = "implicit"
[[smtp.listener]]
kind = "submission"
address = "127.0.0.1:%d"
tls = "none"
[tls]
cert_file = %q
key_file = %q
[admin]
address = "127.0.0.1:%d"
public_url = "http://127.0.0.1:%d"
[dns]
%s
[delivery]
mx_port = %d
allow_private_mx = %t
suspend_first = "%s"
suspend_max = "%s"
%s
[delivery.retry]
%s
%s
`, cmp.Or(o.host, "relay.example"), r.data, cmp.Or(o.level, "debug"), r.submission, r.implicit, r.plain, r.ca, r.ca, r.http, r.http, o.dns(r.dns.Addr),
		o.mxPort, !o.public, first, 5*first, o.deliv, o.retry, o.extra)
	require.NoError(t, os.WriteFile(filepath.Join(r.dir, "relayd.toml"), []byte(r.conf), 0o600))
	r.start()
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Logf("relayd log:\n%s", tail(r.logText(), 8000))
		}
	})
	return r
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// certificate writes a self-signed certificate with its key for localhost.
func (r *relay) certificate() string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(r.t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), DNSNames: []string{"localhost", "relay.example"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	require.NoError(r.t, err)
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(r.t, err)
	file := filepath.Join(r.dir, "cert.pem")
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})...)
	require.NoError(r.t, os.WriteFile(file, text, 0o600))
	return file
}

// start runs relayd and waits until it is ready.
func (r *relay) start() {
	r.t.Helper()
	r.launch()
	r.ready()
}

// launch runs relayd.
func (r *relay) launch() {
	r.t.Helper()
	line := append(slices.Clip(r.wrap), filepath.Join(binDir, "relayd"), "run", "--config", filepath.Join(r.dir, "relayd.toml"))
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = append(os.Environ(), r.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	buf := &bytes.Buffer{}
	lw := lockedWriter{&r.mu, buf}
	cmd.Stdout, cmd.Stderr = lw, lw
	require.NoError(r.t, cmd.Start())
	end := make(chan struct{})
	go func() { _ = cmd.Wait(); close(end) }()
	r.mu.Lock()
	r.cmd, r.log, r.end = cmd, buf, end
	r.mu.Unlock()
}

// ready waits until the admin socket answers.
func (r *relay) ready() {
	r.t.Helper()
	end := r.end
	wait(r.t, "relayd to be ready", 20*time.Second, func() bool {
		select {
		case <-end:
			r.t.Fatalf("relayd ended at start:\n%s", r.logText())
		default:
		}
		c, err := net.DialTimeout("unix", r.socket(), time.Second)
		if err != nil {
			return false
		}
		_ = c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err = r.client().Version(ctx)
		return err == nil
	})
}

type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (r *relay) logText() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

// kill is kill -9; it returns when the process is gone.
func (r *relay) kill() {
	_ = r.cmd.Process.Kill()
	<-r.end
}

// stop asks relayd to end and waits for it.
func (r *relay) stop() {
	select {
	case <-r.end:
		return
	default:
	}
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.end:
	case <-time.After(60 * time.Second):
		r.t.Errorf("relayd did not stop within a minute")
		r.kill()
	}
}

func (r *relay) socket() string { return filepath.Join(r.data, "admin.sock") }

func (r *relay) client() *api.Client { return api.NewUnixClient(r.socket()) }

// mx publishes an MX record of domain that points at a name with address 127.0.0.1.
func (r *relay) mx(domains ...string) {
	for _, d := range domains {
		require.NoError(r.t, r.dns.Add(d+". 60 IN MX 10 mx."+d+"."))
		require.NoError(r.t, r.dns.Add("mx."+d+". 60 IN A 127.0.0.1"))
	}
}

// ctl runs relayctl on this relay's socket and returns what it prints and its exit code.
func (r *relay) ctl(args ...string) (stdout, stderr string, code int) {
	r.t.Helper()
	return r.tool("relayctl", append([]string{"--socket", r.socket()}, args...)...)
}

func (r *relay) tool(name string, args ...string) (stdout, stderr string, code int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	path := name
	if _, err := os.Stat(filepath.Join(binDir, name)); err == nil {
		path = filepath.Join(binDir, name)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		r.t.Fatalf("%s: %v", name, err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// json runs relayctl -o json, which must succeed, and decodes its one value.
func (r *relay) json(v any, args ...string) {
	r.t.Helper()
	out, stderr, code := r.ctl(append([]string{"-o", "json"}, args...)...)
	require.Zero(r.t, code, "relayctl %s: %s", strings.Join(args, " "), stderr)
	if v != nil {
		require.NoError(r.t, json.Unmarshal([]byte(out), v), out)
	}
}

// login is a credential made by relayctl.
type login struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// domain registers a sender domain, publishes its DKIM records, and makes a credential for it.
func (r *relay) domain(name string) login {
	r.t.Helper()
	var d struct {
		Name       string `json:"name"`
		DNSRecords []struct {
			Purpose, Type, Name, Value, Status string
		} `json:"dns_records"`
	}
	r.json(&d, "domain", "add", name)
	require.Equal(r.t, name, d.Name)
	published := 0
	for _, rec := range d.DNSRecords {
		if rec.Purpose == "dkim" {
			r.txt(rec.Name, rec.Value)
			published++
		}
	}
	require.Equal(r.t, 2, published, "two DKIM keys")
	var l login
	r.json(&l, "credential", "create", "--domain", name)
	require.NotEmpty(r.t, l.Password)
	return l
}

// txt publishes a TXT record, split into strings of at most 255 bytes.
func (r *relay) txt(name, value string) {
	var parts []string
	for len(value) > 255 {
		parts = append(parts, value[:255])
		value = value[255:]
	}
	parts = append(parts, value)
	require.NoError(r.t, r.dns.Add(strings.TrimSuffix(name, ".")+`. 60 IN TXT "`+strings.Join(parts, `" "`)+`"`))
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
}

func itoa(n int) string { return strconv.Itoa(n) }
