package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"relayd/campaign"
	"relayd/dkim"
	"relayd/internal/account"
	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/event"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/kv/kvtest"
	"relayd/internal/resolver/resolvertest"
	"relayd/internal/suppression"
	"relayd/spool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// harness is a Server on a loopback port and a socket, in front of real stores.
type harness struct {
	*Server
	t        testing.TB
	dir      string
	db       kv.DB
	accounts *account.Store
	events   *event.Log
	spool    *spool.Store
	list     *suppression.List
	contacts *contact.Store
	keys     *dkim.Keyring
	dns      *resolvertest.Fake
	campaign *campaign.Service
	logs     *syncBuffer
	url      string
	root     *api.Client // over the socket
	http     *http.Client
	failing  error        // of Unsubscribe and of the readiness check
	offset   atomic.Int64 // of the Server's clock
	mu       sync.Mutex
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newHarness(t testing.TB) *harness {
	t.Helper()
	dir, err := os.MkdirTemp("", "relayd") // t.TempDir is too long for a socket under a long test name
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &harness{t: t, dir: dir, logs: &syncBuffer{}}
	bolt, err := kv.OpenBolt(filepath.Join(dir, "db"), kv.BoltOptions{NoSync: true})
	require.NoError(t, err)
	h.db = kvtest.Twice(bolt)
	h.accounts, err = account.Open(t.Context(), h.db, nil)
	require.NoError(t, err)
	h.events, err = event.Open(h.db, nil)
	require.NoError(t, err)
	h.spool, err = spool.Open(t.Context(), h.db, h.events, spool.DefaultConfig())
	require.NoError(t, err)
	h.list = suppression.New(h.db, nil)
	h.contacts, err = contact.New(t.Context(), contact.Deps{DB: h.db, Events: h.events, TempDir: t.TempDir()})
	require.NoError(t, err)
	h.keys, err = dkim.Open(filepath.Join(dir, "dkim"))
	require.NoError(t, err)
	h.dns = &resolvertest.Fake{
		TXT: map[string][]string{}, IP: map[string][]netip.Addr{"relay.example": {netip.MustParseAddr("192.0.2.10")}},
	}
	door, err := intake.New(intake.DefaultConfig(), intake.Deps{
		Spool: h.spool, Keys: h.keys, Domains: h.accounts, Suppression: h.list, Hostname: "relay.example",
	})
	require.NoError(t, err)
	metrics := prometheus.NewRegistry()
	log := slog.New(slog.NewJSONHandler(h.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	campaigns := newCampaigns(t, h, door, metrics)
	h.campaign = campaigns
	sources := newSources(t, h)
	cfg := DefaultConfig()
	cfg.Address, cfg.Socket, cfg.ShutdownGrace = "127.0.0.1:0", filepath.Join(dir, "admin.sock"), time.Second
	h.Server, err = New(cfg, Deps{
		DB: h.db, Accounts: h.accounts, Events: h.events, Queue: h.spool, Keys: h.keys, Suppression: h.list, Intake: door,
		Contacts: h.contacts, Campaigns: campaigns, Sources: sources, Templates: campaigns, Assets: campaigns, Unsubscribe: failingUnsubscriber{campaigns, h}, Resolver: h.dns, Hostname: "relay.example",
		Checks:  map[string]func(context.Context) error{"test": func(context.Context) error { return h.failure() }},
		Version: api.Version{Version: "test"}, Log: log, Metrics: metrics, Gatherer: metrics,
		Now: func() time.Time { return time.Now().Add(time.Duration(h.offset.Load())) },
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	h.url = "http://" + h.Addr().String()
	h.root = api.NewUnixClient(cfg.Socket)
	h.http = &http.Client{
		Transport:     &http.Transport{},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("redirected") },
	}
	t.Cleanup(func() {
		h.root.Close()
		h.http.CloseIdleConnections()
		cancel()
		require.NoError(t, <-done)
		require.NoError(t, campaigns.Close())
		require.NoError(t, h.db.Close())
	})
	return h
}

// failingUnsubscriber is the real one until the harness is told to fail.
type failingUnsubscriber struct {
	Unsubscriber
	h *harness
}

func (f failingUnsubscriber) Unsubscribe(ctx context.Context, token string) (campaign.Unsubscribed, error) {
	if err := f.h.failure(); err != nil {
		return campaign.Unsubscribed{}, err
	}
	return f.Unsubscriber.Unsubscribe(ctx, token)
}

func (h *harness) failure() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failing
}

func (h *harness) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failing = err
}

func newCampaigns(t testing.TB, h *harness, door *intake.Intake, metrics prometheus.Registerer) *campaign.Service {
	t.Helper()
	cfg := campaign.DefaultConfig()
	cfg.PublicURL, cfg.Hostname, cfg.DataDir = "https://u.example", "relay.example", h.dir
	s, err := campaign.New(cfg, campaign.Deps{
		DB: h.db, Spool: h.spool, Intake: door, Keys: h.keys, Domains: h.accounts, Suppression: h.list, Events: h.events, Contacts: h.contacts,
		Log: slog.New(slog.NewJSONHandler(h.logs, nil)), Metrics: metrics,
	})
	require.NoError(t, err)
	return s
}

// key makes a key of an account and returns its token.
func (h *harness) key(account string, scopes ...string) string {
	h.t.Helper()
	_, token, err := h.accounts.CreateKey(h.t.Context(), account, "", scopes)
	require.NoError(h.t, err)
	return token
}

// client makes a client with a new key.
func (h *harness) client(account string, scopes ...string) *api.Client {
	h.t.Helper()
	c, err := api.NewClient(h.url, h.key(account, scopes...))
	require.NoError(h.t, err)
	h.t.Cleanup(c.Close)
	return c
}

// answer is what a raw request got.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) problem(t testing.TB) api.Problem {
	t.Helper()
	require.Equal(t, "application/problem+json", a.header.Get("Content-Type"), a.body)
	var p api.Problem
	require.NoError(t, json.Unmarshal([]byte(a.body), &p))
	require.Equal(t, a.status, p.Status)
	require.NotEmpty(t, p.Code)
	require.NotEmpty(t, p.Title)
	require.Equal(t, a.header.Get("X-Request-Id"), p.RequestID)
	return p
}

// raw sends a request over TCP; header holds pairs.
func (h *harness) raw(method, path, token, body string, header ...string) answer {
	h.t.Helper()
	return h.rawReader(method, path, token, strings.NewReader(body), header...)
}

func (h *harness) rawReader(method, path, token string, body io.Reader, header ...string) answer {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), method, h.url+path, body)
	require.NoError(h.t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := h.http.Do(req)
	require.NoError(h.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(h.t, err)
	return answer{res.StatusCode, res.Header, string(b)}
}

// post sends JSON with a key of scope all.
func (h *harness) post(path, token, body string, header ...string) answer {
	h.t.Helper()
	return h.raw(http.MethodPost, path, token, body, append([]string{"Content-Type", "application/json"}, header...)...)
}

func requireCode(t testing.TB, err error, code string) *api.Problem {
	t.Helper()
	var p *api.Problem
	require.ErrorAs(t, err, &p)
	require.Equal(t, code, p.Code, "%v", p)
	return p
}

func TestSocketHasMode0600AndFullRights(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	info, err := os.Stat(filepath.Join(h.dir, "admin.sock"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	entries, err := filepath.Glob(filepath.Join(h.dir, ".s*"))
	require.NoError(t, err)
	require.Empty(t, entries, "the directory in which it was made is gone")
	v, err := h.root.Version(t.Context())
	require.NoError(t, err)
	require.Equal(t, "test", v.Version)
	_, err = h.root.Keys(t.Context(), "", api.List{})
	require.NoError(t, err)
}

func TestSocketOfALivingProcessIsNotTaken(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, err := listenUnix(filepath.Join(h.dir, "admin.sock"))
	require.ErrorIs(t, err, ErrSocketInUse)
	_, err = h.root.Version(t.Context())
	require.NoError(t, err)
}

func TestStaleSocketIsReplacedAndOtherFilesAreNot(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := listenUnix(path)
	require.NoError(t, err)
	require.NoError(t, l.UnixListener.Close()) // as a killed process leaves it
	require.FileExists(t, path)
	l, err = listenUnix(path)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.NoFileExists(t, path)

	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	_, err = listenUnix(path)
	require.ErrorContains(t, err, "something else")
	require.FileExists(t, path)
}

func TestCloseLeavesTheSocketOfASuccessor(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	old, err := listenUnix(path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	successor, err := listenUnix(path)
	require.NoError(t, err)
	require.NoError(t, old.Close())
	require.FileExists(t, path)
	require.NoError(t, successor.Close())
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	require.NoError(t, DefaultConfig().Validate())
	for name, change := range map[string]func(*Config){
		"address_without_port": func(c *Config) { c.Address = "127.0.0.1" },
		"public_url_http":      func(c *Config) { c.PublicURL = "http://news.example.com" },
		"public_url_relative":  func(c *Config) { c.PublicURL = "/u" },
		"public_url_query":     func(c *Config) { c.PublicURL = "https://x.example/?a" },
		"no_connections":       func(c *Config) { c.MaxConnections = 0 },
	} {
		c := DefaultConfig()
		change(&c)
		require.ErrorContains(t, c.Validate(), "admin.", name)
	}
	for _, good := range []string{"https://news.example.com", "https://x.example/mail", "http://127.0.0.1:8080", "http://localhost"} {
		c := DefaultConfig()
		c.PublicURL = good
		require.NoError(t, c.Validate(), good)
	}
}

func TestProbes(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	require.Equal(t, http.StatusOK, h.raw("GET", "/healthz", "", "").status)
	require.JSONEq(t, `{"ready":true,"reasons":[]}`, h.raw("GET", "/readyz", "", "").body)
	h.fail(errors.New("disk /dev/sda1 is full"))
	a := h.raw("GET", "/readyz", "", "")
	require.Equal(t, http.StatusServiceUnavailable, a.status)
	require.JSONEq(t, `{"ready":false,"reasons":["test"]}`, a.body, "names, no insides")
	h.fail(nil)
	h.stopping.Store(true)
	require.Contains(t, h.raw("GET", "/readyz", "", "").body, "shutting_down")
}

func TestStoreThatRefusesWritesIsNotReady(t *testing.T) {
	t.Parallel()
	var p storeProbe
	db, err := kv.OpenBolt(filepath.Join(t.TempDir(), "db"), kv.BoltOptions{NoSync: true})
	require.NoError(t, err)
	at := time.Now()
	now := func() time.Time { return at }
	require.NoError(t, p.check(t.Context(), db, now))
	require.NoError(t, db.Close())
	require.NoError(t, p.check(t.Context(), db, now), "asked a moment ago")
	at = at.Add(probeEvery)
	require.Error(t, p.check(t.Context(), db, now))
}

func TestMetricsNeedAKeyWhereAProxyForwards(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.raw("GET", "/v1/queue", "", "")
	a := h.raw("GET", "/metrics", "", "")
	require.Equal(t, http.StatusOK, a.status)
	require.Contains(t, a.body, `relayd_admin_requests_total{class="4xx",route="GET /v1/queue"} 1`)
	require.Contains(t, a.body, `relayd_admin_requests_total{class="5xx",route="POST /v1/keys"} 0`, "all labels are initialised")
	for _, name := range []string{"X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"} {
		require.Equal(t, http.StatusUnauthorized, h.raw("GET", "/metrics", "", "", name, "x").status, name)
		require.Equal(t, http.StatusForbidden, h.raw("GET", "/metrics", h.key("", "queue:read"), "", name, "x").status, name)
		require.Equal(t, http.StatusOK, h.raw("GET", "/metrics", h.key("", "stats:read"), "", name, "x").status, name)
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := h.key("", "all")
	for _, path := range []string{"/", "/v1", "/v1/", "/v2/queue", "/v1/queue/", "//v1/queue", "/v1/../v1/queue", "/u", "/u/", "/u/a/b", "/.git/config"} {
		a := h.raw("GET", path, token, "")
		require.Equal(t, http.StatusNotFound, a.status, path)
		require.Empty(t, a.header.Get("Location"), path)
		a.problem(t)
	}
	for path, allow := range map[string]string{
		"/v1/queue": "GET", "/v1/queue/actions": "GET, POST", "/v1/keys/key_x": "DELETE", "/u/token": "GET, POST", "/healthz": "GET",
	} {
		for _, method := range []string{"PUT", "PATCH", "OPTIONS", "PROPFIND"} {
			a := h.raw(method, path, token, "")
			require.Equal(t, http.StatusMethodNotAllowed, a.status, "%s %s", method, path)
			require.Equal(t, allow, a.header.Get("Allow"), path)
			require.Equal(t, api.CodeMethodNotAllowed, a.problem(t).Code)
		}
	}
}

func TestPanicIsAnsweredAndLogged(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.Server.deps.Queue = nil // whatever a handler may trip over
	a := h.raw("GET", "/v1/queue/stats", h.key("", "all"), "")
	require.Equal(t, http.StatusInternalServerError, a.status)
	require.NotContains(t, a.body, "goroutine")
	require.NotContains(t, a.body, ".go")
	require.Contains(t, h.logs.String(), "request.panicked")
	require.Equal(t, http.StatusOK, h.raw("GET", "/healthz", "", "").status)
}

func TestOpenAPIListsEveryRoute(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	a := h.raw("GET", "/v1/openapi.json", "", "")
	require.Equal(t, http.StatusOK, a.status)
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]struct{ OperationID string }
		Components struct{ Schemas map[string]any }
	}
	require.NoError(t, json.Unmarshal([]byte(a.body), &doc))
	require.Equal(t, "3.1.0", doc.OpenAPI)
	seen := map[string]bool{}
	for _, rt := range h.routes {
		op, ok := doc.Paths[rt.path][strings.ToLower(rt.method)]
		require.True(t, ok, rt.pattern())
		require.False(t, seen[op.OperationID], op.OperationID)
		seen[op.OperationID] = true
	}
	for _, name := range []string{"Problem", "CreateCampaign", "QueueAction", "PageQueueItem", "Mailbox"} {
		require.Contains(t, doc.Components.Schemas, name)
	}
	require.NotContains(t, a.body, "http://", "no foreign schema URLs")
}
