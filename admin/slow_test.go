package admin

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// pipes is a listener whose connections live in memory, so that time is the test's.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// drip sends a byte every ten seconds until the connection breaks, and tells how long that took.
func drip(t *testing.T, conn net.Conn, begin string) (time.Duration, string) {
	t.Helper()
	started := time.Now()
	got := make(chan string)
	go func() {
		b, _ := io.ReadAll(conn)
		got <- string(b)
	}()
	_, err := conn.Write([]byte(begin))
	for err == nil {
		time.Sleep(10 * time.Second) // of the bubble's time
		_, err = conn.Write([]byte("x"))
		if time.Since(started) > time.Hour {
			t.Fatal("still connected after an hour")
		}
	}
	took := time.Since(started)
	_ = conn.Close()
	return took, <-got
}

func TestSlowClientsAreCut(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		begin string
		most  time.Duration
	}{
		"nothing": {"", 30 * time.Second},
		"header":  {"GET /v1/version HTTP/1.1\r\nHost: x\r\nX-A: ", 30 * time.Second},
		"json": {
			"POST /v1/keys HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{", 2 * time.Minute,
		},
		"large_json": {
			"POST /v1/campaigns HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 30000000\r\n\r\n{", 2 * time.Minute,
		},
		"upload": {
			"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 30000000\r\n\r\nemail\n", 2 * time.Minute,
		},
		"unsubscribe": {
			"POST /u/token HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n", 2 * time.Minute,
		},
		"idle_after_a_request": {"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 2 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &Server{cfg: DefaultConfig(), log: slog.New(slog.DiscardHandler), now: time.Now, bodies: make(chan struct{}, 1)}
				s.routes = append(s.table(), route{
					method: "POST", path: "/upload", upload: true, status: 200, limit: 1,
					call: streams(func(r *request) error {
						_, err := io.Copy(io.Discard, s.upload(r))
						return err
					}),
				})
				s.metrics = newMetrics(prometheus.NewRegistry(), s.routes, s.public())
				s.pages, _ = newPages()
				s.mux = s.newMux()
				srv := s.newServer(true)
				l := &pipes{make(chan net.Conn, 1), make(chan struct{})}
				done := make(chan error, 1)
				go func() { done <- srv.Serve(l) }()
				defer func() {
					_ = srv.Close()
					<-done
				}()
				client, server := net.Pipe()
				l.conns <- server
				took, got := drip(t, client, c.begin)
				require.LessOrEqual(t, took, c.most)
				if strings.HasPrefix(c.begin, "POST") {
					res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(got)), nil)
					require.NoError(t, err, "%q", got)
					require.Equal(t, http.StatusRequestTimeout, res.StatusCode)
					_ = res.Body.Close()
				}
			})
		})
	}
}
