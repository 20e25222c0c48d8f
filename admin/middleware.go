package admin

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"relayd/internal/api"
)

// request is one call of the API on its way through this package.
type request struct {
	*http.Request
	w      http.ResponseWriter
	id     string
	route  *route
	caller caller
	body   []byte // of a route that takes JSON
	status int    // of a good answer; the route's unless the handler sets another
}

// statusWriter remembers how a request was answered.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

type contextKey struct{}

// scope is what the middleware knows of a request before it has a route.
type requestInfo struct {
	id      string
	trusted bool   // came over the admin socket
	route   string // pattern, for log and metrics
	account string // of the caller, for the log
	key     string // ID of the caller's key, for the log
}

func infoOf(r *http.Request) *requestInfo {
	info, ok := r.Context().Value(contextKey{}).(*requestInfo)
	if !ok {
		info = &requestInfo{}
	}
	return info
}

// handler is the outermost one of a listener.
func (s *Server) handler(trusted bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started := s.now()
		info := &requestInfo{id: "req_" + strings.ToLower(rand.Text()[:20]), trusted: trusted, route: otherRoute}
		r = r.WithContext(withInfo(r.Context(), info))
		sw := &statusWriter{ResponseWriter: w}
		h := w.Header()
		h.Set("X-Request-Id", info.id)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		defer func() {
			if p := recover(); p != nil {
				s.panicked(sw, r, info, p)
			}
			s.served(r, info, sw.status, s.now().Sub(started))
		}()
		if !isCleanPath(r.URL.EscapedPath()) { // ServeMux would redirect, which an unsubscribe link must never do
			s.notFound(sw, r)
			return
		}
		s.mux.ServeHTTP(sw, r)
	})
}

// panicked answers a request whose handler panicked. The connection is closed: nobody knows what was read of it.
func (s *Server) panicked(w *statusWriter, r *http.Request, info *requestInfo, p any) {
	if p == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
		panic(p)
	}
	s.metrics.panics.Inc()
	s.log.Error("request.panicked", "session", info.id, "reason", info.route,
		"err", fmt.Sprintf("%v\n%s", p, debug.Stack()))
	if w.status == 0 {
		w.Header().Set("Connection", "close")
		s.writeProblem(w, r, &api.Problem{Status: http.StatusInternalServerError, Code: api.CodeInternal})
	}
}

// served counts and logs one request. What a caller may choose, such as the path with its addresses and tokens, is not
// logged: the route is.
func (s *Server) served(r *http.Request, info *requestInfo, status int, took time.Duration) {
	if status == 0 {
		status = http.StatusOK
	}
	s.metrics.served(info.route, status, took)
	level := slog.LevelDebug
	if r.Method != http.MethodGet && r.Method != http.MethodHead && status < 400 && strings.Contains(info.route, " /v1/") {
		level = slog.LevelInfo
	}
	if !s.log.Enabled(r.Context(), level) {
		return
	}
	listener, ip := "admin", ""
	if info.trusted {
		listener = "admin socket"
	} else {
		ip = remoteIP(r)
	}
	s.log.Log(r.Context(), level, "request.served", "session", info.id, "listener", listener, "reason", info.route,
		"code", status, "account", info.account, "from", info.key, "ip", ip)
}

func remoteIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}

// isCleanPath tells that ServeMux would take the path as it is.
func isCleanPath(p string) bool {
	if p == "" || p[0] != '/' {
		return false
	}
	for segment := range strings.SplitSeq(p[1:], "/") {
		if segment == "." || segment == ".." || segment == "" && p != "/" {
			return false
		}
	}
	return true
}
