package delivery

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gosmtp "github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
	"relayd/internal/testutil"
	"relayd/spool"
)

// sink is a host that takes everything and costs next to nothing: it looks at line ends only as far as it must.
type sink struct {
	l        net.Listener
	messages atomic.Int64
	target   atomic.Int64
	reached  chan struct{}
	latency  time.Duration
}

func newSink(b testing.TB) *sink {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	s := &sink{l: l, reached: make(chan struct{}, 1)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
	b.Cleanup(func() { _ = l.Close() })
	return s
}

func (s *sink) port() int { return s.l.Addr().(*net.TCPAddr).Port }

func (s *sink) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	buf := make([]byte, 64<<10)
	n, data := 0, false
	_, _ = io.WriteString(c, "220 sink\r\n")
	for {
		m, err := c.Read(buf[n:])
		if err != nil {
			return
		}
		n += m
		var out []byte
		if data {
			if n < 5 || string(buf[n-5:n]) != "\r\n.\r\n" {
				if n > len(buf)/2 {
					n = copy(buf, buf[n-4:n])
				}
				continue
			}
			n, data = 0, false
			out = []byte("250 ok\r\n")
			if s.messages.Add(1) == s.target.Load() {
				s.reached <- struct{}{}
			}
		} else {
			text := string(buf[:n])
			i := strings.LastIndexByte(text, '\n')
			if i < 0 {
				continue
			}
			n = copy(buf, buf[i+1:n])
			for line := range strings.SplitSeq(text[:i], "\n") {
				switch line[:4] {
				case "EHLO":
					out = append(out, "250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n"...)
				case "DATA":
					data = true
					out = append(out, "354 go\r\n"...)
				case "QUIT":
					return
				default:
					out = append(out, "250 ok\r\n"...)
				}
			}
		}
		if s.latency > 0 {
			time.Sleep(s.latency)
		}
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

// BenchmarkSend measures one session against one of go-smtp's client, to the same sink, in the same run.
func BenchmarkSend(b *testing.B) {
	for _, size := range []int{4 << 10, 100 << 10} {
		text := testutil.Message("a@sender.example", "b@dest.example", "bench", size)
		s := newSink(b)
		addr := netip.MustParseAddrPort(s.l.Addr().String())
		var ours, theirs float64
		b.Run(fmt.Sprintf("ours/%dKB", size>>10), func(b *testing.B) {
			session, err := newOpener().open(b.Context(), target{host: "sink", addr: addr})
			require.NoError(b, err)
			defer session.Close()
			tx := message(text, "b@dest.example")
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				answers, err := session.Send(b.Context(), tx)
				if err != nil || answers[0].Reply.Code != 250 {
					b.Fatal(answers, err)
				}
			}
			ours = float64(b.Elapsed()) / float64(b.N)
		})
		b.Run(fmt.Sprintf("go-smtp/%dKB", size>>10), func(b *testing.B) {
			c, err := gosmtp.Dial(addr.String())
			require.NoError(b, err)
			defer func() { _ = c.Close() }()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				require.NoError(b, c.SendMail("a@sender.example", []string{"b@dest.example"}, strings.NewReader(text)))
			}
			theirs = float64(b.Elapsed()) / float64(b.N)
		})
		if ours > 0 && theirs > 0 {
			b.Logf("%d KB: %.1f times go-smtp's client", size>>10, theirs/ours)
		}
	}
}

// BenchmarkDeliver measures the whole way of a queued message through the real, syncing spool to a local sink.
func BenchmarkDeliver(b *testing.B) {
	for _, size := range []int{4 << 10, 100 << 10} {
		for _, rcpts := range []int{1, 50} {
			b.Run(fmt.Sprintf("%dKB/%drcpt", size>>10, rcpts), func(b *testing.B) { benchDeliver(b, size, rcpts) })
		}
	}
}

func benchDeliver(b *testing.B, size, rcpts int) {
	s := newSink(b)
	r := newRig(b, s.port(), zone())
	r.deps.Log = slog.New(slog.DiscardHandler)
	var to []string
	for i := range rcpts {
		to = append(to, fmt.Sprintf("u%d@dest.example", i))
	}
	raw := testutil.Message("sender@sender.example", to[0], "bench", size)
	header, body, _ := strings.Cut(raw, "\r\n\r\n")
	now := time.Now()
	for range b.N {
		id := mail.NewQueueID(now)
		m := &spool.Message{
			ID: id, Account: "default", Stream: "transactional", Class: spool.Transactional, Header: []byte(header + "\r\n"),
			Size: int64(len(raw)), AcceptedAt: now, ExpiresAt: now.Add(time.Hour), ReversePath: mail.MustParsePath("s@sender.example"),
		}
		var envs []*spool.Envelope
		for i, a := range to {
			envs = append(envs, &spool.Envelope{
				ID: mail.EnvelopeID{Message: id, N: uint64(i)}, Queue: spool.Queue{Account: "default", Stream: "transactional", Domain: "dest.example"},
				Class: spool.Transactional, To: mail.MustParsePath(a), NextAttempt: now,
			})
		}
		w := r.store.NewBody(b.Context(), id)
		_, err := w.Write([]byte(body))
		require.NoError(b, err)
		require.NoError(b, r.store.Commit(b.Context(), m, w, envs, nil))
	}
	s.target.Store(int64(b.N))
	b.ResetTimer()
	r.start()
	<-s.reached
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	b.ReportMetric(0, "ns/op")
}
