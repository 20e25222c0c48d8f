package smtpd

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/intake"
	"relayd/internal/mail"
)

// discard is an Accepter that reads and forgets.
type discard struct{}

func (discard) Accept(_ context.Context, s *intake.Submission) (mail.QueueID, error) {
	_, err := io.Copy(io.Discard, s.Body)
	return mail.QueueID{}, err
}

// BenchmarkAccept compares messages per second into a discarding accepter with go-smtp's server: the same client, in
// turns within one run. The limits are 1.8 times its DATA at 10 KB and 4 times at 100 KB, for our DATA and our BDAT.
// (go-smtp copies chunks block by block, so that its BDAT at 100 KB is limited by the kernel as ours is.)
func BenchmarkAccept(b *testing.B) {
	line := strings.Repeat("x", 76) + "\r\n"
	for _, size := range []struct {
		name   string
		bytes  int
		limit  float64
		chunks bool
	}{{"10KB", 10_000, 1.8, false}, {"100KB", 100_000, 4, false}, {"10KB_BDAT", 10_000, 1.8, true}, {"100KB_BDAT", 100_000, 4, true}} {
		b.Run(size.name, func(b *testing.B) {
			content := "Subject: x\r\n\r\n" + strings.Repeat(line, size.bytes/len(line))
			rival := []byte(string(transactionBytes) + "DATA\r\n\x00" + content + ".\r\n")
			message := rival
			if size.chunks {
				message = []byte(string(transactionBytes) + bdat(content, true))
			}
			box := &inbox{read: func(r io.Reader) ([]byte, error) { _, err := io.Copy(io.Discard, r); return nil, err }}
			theirs := startGoSMTP(b, box, time.Minute)
			ours := startDiscarding(b)
			var took [2]time.Duration
			b.ResetTimer()
			n := max(b.N, 400)
			const rounds = 20
			for range rounds {
				took[0] += sendMany(b, theirs, rival, n/rounds)
				took[1] += sendMany(b, ours, message, n/rounds)
			}
			rate := func(d time.Duration) float64 { return float64(n/rounds*rounds) / d.Seconds() }
			b.ReportMetric(rate(took[0]), "go-smtp/s")
			b.ReportMetric(rate(took[1]), "relayd/s")
			b.ReportMetric(rate(took[1])/rate(took[0]), "ratio")
			b.ReportMetric(size.limit, "limit")
		})
	}
}

func startDiscarding(b *testing.B) string {
	b.Helper()
	cfg := testConfig()
	cfg.Listeners = cfg.Listeners[:1]
	deps := testDeps(nil, io.Discard)
	deps.Accepter = discard{}
	// As relayd writes its log: a line for each message, no dialogue. (Not io.Discard itself: lint wants no handler then.)
	deps.Log = slog.New(slog.NewTextHandler(struct{ io.Writer }{io.Discard}, nil))
	s, err := New(cfg, deps)
	require.NoError(b, err)
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background()) }()
	b.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return s.Addr(0).String()
}

// sendMany sends n messages over four connections, pipelined as RFC 2920 allows, and returns how long it took.
func sendMany(b *testing.B, addr string, message []byte, n int) time.Duration {
	b.Helper()
	const conns = 4
	var clients [conns]*client
	for i := range clients {
		conn, err := net.Dial("tcp", addr)
		require.NoError(b, err)
		c := &client{t: b, Conn: conn, r: bufio.NewReader(conn), theirs: true}
		c.expect("220")
		c.cmd("EHLO x", "250")
		c.cmd("AUTH PLAIN "+plainIR("app", "secret"), "235")
		clients[i] = c
	}
	began := time.Now()
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			for range (n + i) / conns {
				if !c.message(message) {
					b.Error("refused")
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	for _, c := range clients {
		_ = c.Close()
	}
	return took
}

var transactionBytes = []byte("MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\n")

// message sends what may be pipelined, and behind a NUL what must wait for the reply to DATA.
func (c *client) message(message []byte) bool {
	want := []byte("222")
	if head, rest, found := bytes.Cut(message, []byte{0}); found {
		if _, err := c.Write(head); err != nil {
			return false
		}
		for _, code := range []byte("223") {
			if line, err := c.r.ReadSlice('\n'); err != nil || line[0] != code {
				return false
			}
		}
		message, want = rest, want[:1]
	}
	for len(message) > 0 { // as clients write that read from a file
		n, err := c.Write(message[:min(len(message), 32<<10)])
		if err != nil {
			return false
		}
		message = message[n:]
	}
	for _, code := range want {
		if line, err := c.r.ReadSlice('\n'); err != nil || line[0] != code {
			return false
		}
	}
	return true
}
