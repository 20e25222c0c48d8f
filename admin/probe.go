package admin

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"relayd/internal/kv"
)

// publicRoute is served without the API's authentication.
type publicRoute struct {
	pattern string
	serve   http.HandlerFunc
}

func (s *Server) public() []publicRoute {
	return []publicRoute{
		{"GET /healthz", s.health},
		{"GET /readyz", s.ready},
		{"GET /metrics", s.metricsPage},
		{"GET /v1/openapi.json", s.openAPIPage},
		{"GET /v1/backup", s.downloadBackup}, // of the admin socket
		{"GET /robots.txt", s.robots},
		{"GET /a/{token}/{name}", s.serveAsset},
		{"GET /u/{token}", s.showUnsubscribe},
		{"POST /u/{token}", s.postUnsubscribe},
	}
}

// health tells that the process answers.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n"))
}

// readiness is the answer of /readyz. Reasons are names only: what is behind them stands in the log.
type readiness struct {
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons"`
}

// ready tells whether mail would be accepted now: 503 names what is in the way.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	out := readiness{Reasons: []string{}}
	if s.stopping.Load() {
		out.Reasons = append(out.Reasons, "shutting_down")
	}
	ctx, cancel := context.WithTimeout(r.Context(), probeTimeout)
	defer cancel()
	if err := s.probe.check(ctx, s.deps.DB, s.now); err != nil {
		s.log.Warn("readiness.lost", "reason", "store", "err", err)
		out.Reasons = append(out.Reasons, "store")
	}
	for _, name := range slices.Sorted(maps.Keys(s.deps.Checks)) {
		if err := s.deps.Checks[name](ctx); err != nil {
			s.log.Warn("readiness.lost", "reason", name, "err", err)
			out.Reasons = append(out.Reasons, name)
		}
	}
	out.Ready = len(out.Reasons) == 0
	b, err := json.Marshal(out)
	if err != nil {
		b = []byte(`{"ready":false}`)
	}
	w.Header().Set("Content-Type", "application/json")
	if !out.Ready {
		w.Header().Set("Retry-After", "10")
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write(append(b, '\n'))
}

const (
	probeTimeout = 3 * time.Second
	probeEvery   = 5 * time.Second
)

// storeProbe writes to the store, at most once in five seconds, for nothing else shows that it takes writes.
type storeProbe struct {
	mu   sync.Mutex
	last time.Time
	err  error
}

func (p *storeProbe) check(ctx context.Context, db kv.DB, now func() time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := now(); p.last.IsZero() || t.Sub(p.last) >= probeEvery || t.Before(p.last) {
		err := db.Update(ctx, func(tx kv.Tx) error { return tx.Put(table, []byte("probe"), []byte{1}) })
		if errors.Is(err, context.Canceled) { // the one who asked has gone: that says nothing of the store
			return err
		}
		p.last, p.err = t, err
	}
	return p.err
}

// metricsPage serves Prometheus. Without a key it answers only callers on this machine who came here themselves: a
// proxy that serves the unsubscribe pages to the world shows in the header that it forwards.
func (s *Server) metricsPage(w http.ResponseWriter, r *http.Request) {
	if !infoOf(r).trusted && !isLocal(r) {
		c, err := s.authenticate(r)
		if err == nil {
			err = c.authorize("stats:read")
		}
		if err != nil {
			s.problem(w, r, err)
			return
		}
	}
	promhttp.HandlerFor(s.deps.Gatherer, promhttp.HandlerOpts{}).ServeHTTP(w, r)
}

func isLocal(r *http.Request) bool {
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via"} {
		if r.Header.Get(name) != "" {
			return false
		}
	}
	ip := net.ParseIP(remoteIP(r))
	return ip != nil && ip.IsLoopback()
}

func (s *Server) openAPIPage(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(s.openapi)
}

func (s *Server) robots(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("User-agent: *\nDisallow: /\n"))
}
