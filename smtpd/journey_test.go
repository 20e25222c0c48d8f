package smtpd

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"

	"relayd/dkim"
	"relayd/internal/account"
	"relayd/internal/event"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/suppression"
	"relayd/spool"
)

// TestJourney: with everything real behind the door, an authenticated client's mail is durable, signed and queued; what
// it may not send is refused and leaves nothing.
func TestJourney(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db, err := kv.OpenBolt(filepath.Join(dir, "spool.db"), kv.BoltOptions{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	log, err := event.Open(db, nil)
	require.NoError(t, err)
	store, err := spool.Open(t.Context(), db, log, spool.DefaultConfig())
	require.NoError(t, err)
	keys, err := dkim.Open(filepath.Join(dir, "dkim"))
	require.NoError(t, err)
	_, err = keys.AddDomain("example.com")
	require.NoError(t, err)
	accounts, err := account.Open(t.Context(), db, nil)
	require.NoError(t, err)
	for _, name := range []string{"example.com", "keyless.example"} {
		require.NoError(t, accounts.AddDomain(t.Context(), account.Domain{Name: name, Account: "default", Sign: "required"}))
	}
	cred, password, err := accounts.CreateCredential(t.Context(), "default", []string{"example.com", "keyless.example"})
	require.NoError(t, err)
	door, err := intake.New(intake.DefaultConfig(), intake.Deps{
		Spool: store, Keys: keys, Domains: accounts, Suppression: suppression.New(db, nil), Hostname: "relay.example.com",
	})
	require.NoError(t, err)
	deps := testDeps(nil, io.Discard)
	deps.Accepter, deps.Authenticator, deps.Senders = door, accounts, door
	s, err := New(testConfig(), deps)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background()) }()
	t.Cleanup(func() {
		require.NoError(t, s.Shutdown(context.Background()))
		require.NoError(t, <-done)
	})

	c, err := smtp.DialStartTLS(s.Addr(starttls).String(), insecure)
	require.NoError(t, err)
	require.NoError(t, c.Auth(sasl.NewPlainClient("", cred.Username, password)))
	send := func(from, message string) (string, error) {
		if err := c.Mail(from, nil); err != nil {
			return "", err
		}
		if err := c.Rcpt("b@example.net", nil); err != nil {
			return "", err
		}
		w, err := c.Data()
		if err != nil {
			return "", err
		}
		if _, err := io.WriteString(w, message); err != nil {
			return "", err
		}
		r, err := w.CloseWithResponse()
		if err != nil {
			return "", err
		}
		return r.StatusText, nil
	}
	text, err := send("a@example.com", letter)
	require.NoError(t, err)
	id, err := mail.ParseQueueID(text[strings.LastIndex(text, " ")+1:])
	require.NoError(t, err, text)
	m, infos, err := store.Get(t.Context(), id)
	require.NoError(t, err)
	require.Len(t, infos, 1)
	require.Equal(t, 2, bytes.Count(m.Header, []byte("DKIM-Signature:")))
	require.Contains(t, string(m.Header), " with ESMTPSA\r\n\t(TLS1.3 TLS_")
	require.Equal(t, cred.Username, m.Credential)

	_, err = send("a@elsewhere.example", letter)
	require.ErrorContains(t, err, "Sender domain elsewhere.example is not registered")
	_, err = send("a@example.com", strings.Replace(letter, "a@example.com", "ceo@elsewhere.example", 1))
	require.ErrorContains(t, err, "From domain elsewhere.example is not registered")
	require.NoError(t, c.Reset())
	_, err = send("a@keyless.example", strings.Replace(letter, "a@example.com", "a@keyless.example", 1))
	require.ErrorContains(t, err, "No DKIM key for keyless.example: run relayctl domain add keyless.example")
	require.NoError(t, c.Quit())
	st, err := store.Stats(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, st.Queued)
}

// BenchmarkIdle tells what an idle session costs; the client's side of the connection is in it as well. The limit is
// 30 KB: 5,000 under 150 MB.
func BenchmarkIdle(b *testing.B) {
	f := start(b, func(c *Config) { c.MaxConnectionsPerIP, c.MaxConnections = 10_000, 10_000 })
	var before, after runtime.MemStats
	const n = 1000
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		conns := make([]net.Conn, n)
		banner := make([]byte, 64)
		for i := range conns {
			conn, err := net.Dial("tcp", f.Addr(plain).String())
			require.NoError(b, err)
			_, err = conn.Read(banner)
			require.NoError(b, err)
			conns[i] = conn
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
	used := func(m *runtime.MemStats) float64 { return float64(m.HeapInuse + m.StackInuse) }
	b.ReportMetric((used(&after)-used(&before))/n, "B/session")
}
