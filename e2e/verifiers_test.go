package e2e

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// asResolver makes the relay's DNS the system resolver of the commands that it returns: the verifiers read
// /etc/resolv.conf and ask port 53. It needs root and a mount namespace of its own.
func (r *relay) asResolver() func(stdin []byte, name string, args ...string) (string, int) {
	r.t.Helper()
	const addr = "127.0.0.77:53"
	pc, err := net.ListenPacket("udp", addr)
	require.NoError(r.t, err)
	l, err := net.Listen("tcp", addr)
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = pc.Close(); _ = l.Close() })
	go r.forwardUDP(pc)
	go r.forwardTCP(l)
	conf := filepath.Join(r.dir, "resolv.conf")
	writeFile(r.t, conf, "nameserver 127.0.0.77\n")
	require.NoError(r.t, os.Chmod(conf, 0o644))
	return func(stdin []byte, name string, args ...string) (string, int) {
		script := `mount --bind "$0" /etc/resolv.conf && exec "$@"`
		cmd := exec.CommandContext(r.t.Context(), "unshare", append([]string{"-m", "sh", "-c", script, conf, name}, args...)...)
		cmd.Stdin = bytes.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			require.NoError(r.t, err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
}

func (r *relay) forwardUDP(pc net.PacketConn) {
	buf := make([]byte, 4096)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		c, err := net.Dial("udp", r.dns.Addr)
		if err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err = c.Write(buf[:n]); err == nil {
			answer := make([]byte, 4096)
			if n, err = c.Read(answer); err == nil {
				_, _ = pc.WriteTo(answer[:n], from)
			}
		}
		_ = c.Close()
	}
}

func (r *relay) forwardTCP(l net.Listener) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			out, err := net.Dial("tcp", r.dns.Addr)
			if err != nil {
				return
			}
			defer out.Close()
			go func() { _, _ = io.Copy(out, in) }()
			_, _ = io.Copy(in, out)
		}()
	}
}

var signature = regexp.MustCompile(`(?s)^DKIM-Signature:.*?\r\n(?:[ \t].*?\r\n)*`)

// alone returns the message with only its i-th signature.
func alone(t *testing.T, data []byte, i int) []byte {
	t.Helper()
	var sigs [][]byte
	for bytes.HasPrefix(data, []byte("DKIM-Signature:")) {
		s := signature.Find(data)
		sigs, data = append(sigs, s), data[len(s):]
	}
	require.Greater(t, len(sigs), i)
	return append(bytes.Clone(sigs[i]), data...)
}

func TestOtherPeoplesVerifiersAcceptBothSignatures(t *testing.T) {
	needs(t, "dkimverify", "opendkim-testmsg", "unshare")
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port})
	r.mx("dest.example")
	l := r.domain("shop.example")
	r.submit(l, "news@shop.example", []string{"ann@dest.example"}, korean)
	r.campaign(short(true, "bob@dest.example"))
	wait(t, "a submitted message and one of a campaign", 20*time.Second, func() bool { return s.count() == 2 })
	run := r.asResolver()
	for _, d := range s.all() {
		for i, alg := range []string{"a=rsa-sha256", "a=ed25519-sha256"} {
			msg := alone(t, d.Data, i)
			require.Contains(t, string(msg[:200]), alg)
			bad := bytes.Replace(msg, []byte("\r\n\r\n"), []byte("\r\n\r\nx"), 1)

			out, code := run(msg, "dkimverify")
			require.Zero(t, code, "%s for %s by dkimverify: %s", alg, d.To, out)
			require.Contains(t, out, "signature ok")
			_, code = run(bad, "dkimverify")
			require.NotZero(t, code, "a changed body is noticed")

			out, code = run(msg, "opendkim-testmsg")
			require.Zero(t, code, "%s for %s by opendkim-testmsg: %s", alg, d.To, out)
			_, code = run(bad, "opendkim-testmsg")
			require.NotZero(t, code, "a changed body is noticed")
		}
	}
}
