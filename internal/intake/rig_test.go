package intake

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/dkim"
	"relayd/internal/account"
	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/suppression"
	"relayd/spool"
)

// fixture is a door with everything real behind it.
type fixture struct {
	*Intake
	db      *kv.Bolt
	spool   *spool.Store
	keys    *dkim.Keyring
	domains *account.Store
	list    *suppression.List
}

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// open has example.com with two keys, unsigned.example with sign none, keyless.example without a key, and
// other.example of another account.
func open(t testing.TB) *fixture {
	t.Helper()
	dir := t.TempDir()
	db, err := kv.OpenBolt(filepath.Join(dir, "spool.db"), kv.BoltOptions{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	now := func() time.Time { return noon }
	log, err := event.Open(db, now)
	require.NoError(t, err)
	f := &fixture{db: db}
	f.spool, err = spool.Open(t.Context(), db, log, spool.Config{Now: now})
	require.NoError(t, err)
	f.keys, err = dkim.Open(filepath.Join(dir, "dkim"))
	require.NoError(t, err)
	_, err = f.keys.AddDomain("example.com")
	require.NoError(t, err)
	f.domains, err = account.Open(t.Context(), db, now)
	require.NoError(t, err)
	for _, d := range []account.Domain{
		{Name: "example.com", Account: "default", Sign: "required"},
		{Name: "xn--bcher-kva.example", Account: "default", Sign: "none"},
		{Name: "unsigned.example", Account: "default", Sign: "none"},
		{Name: "keyless.example", Account: "default", Sign: "required"},
		{Name: "other.example", Account: "other", Sign: "none"},
	} {
		require.NoError(t, f.domains.AddDomain(t.Context(), d))
	}
	f.list = suppression.New(db, now)
	f.Intake, err = New(DefaultConfig(), Deps{
		Spool: f.spool, Keys: f.keys, Domains: f.domains, Suppression: f.list, Erasures: erased{"e@example.net"},
		Hostname: "relay.example.com", Now: now,
	})
	require.NoError(t, err)
	return f
}

// erased are mailboxes whose owners asked to be forgotten.
type erased []string

func (e erased) ErasedMany(_ context.Context, account string, to []mail.Path) ([]bool, error) {
	return e.ErasedManyTx(nil, account, to)
}

func (e erased) ErasedManyTx(_ kv.Tx, _ string, to []mail.Path) ([]bool, error) {
	found := make([]bool, len(to))
	for i, p := range to {
		found[i] = slices.Contains(e, p.Key())
	}
	return found, nil
}

func submission(message string, to ...string) *Submission {
	if len(to) == 0 {
		to = []string{"b@example.net"}
	}
	s := &Submission{
		Account: "default", Credential: "app", Class: spool.Transactional, ReversePath: mail.MustParsePath("a@example.com"),
		Trace: Trace{Helo: "client.example", ClientIP: "192.0.2.1", With: "ESMTPSA", TLS: "TLS1.3 TLS_AES_128_GCM_SHA256"},
		Body:  strings.NewReader(message),
	}
	for _, r := range to {
		s.Recipients = append(s.Recipients, Recipient{To: mail.MustParsePath(r)})
	}
	return s
}

// stored returns the message as it leaves.
func (f *fixture) stored(t testing.TB, id mail.QueueID) (*spool.Message, string) {
	t.Helper()
	m, _, err := f.spool.Get(t.Context(), id)
	require.NoError(t, err)
	var b bytes.Buffer
	b.Write(m.Header)
	b.WriteString("\r\n")
	_, err = f.spool.WriteBody(t.Context(), id, &b)
	require.NoError(t, err)
	require.EqualValues(t, b.Len(), m.Size)
	return m, b.String()
}

func (f *fixture) queued(t testing.TB) int {
	t.Helper()
	st, err := f.spool.Stats(t.Context())
	require.NoError(t, err)
	return int(st.Queued)
}

// zone answers with the records of the keys.
type zone map[string][]string

func (z zone) LookupTXT(_ context.Context, name string) ([]string, error) { return z[name], nil }

func (f *fixture) verify(t testing.TB, message string) []dkim.Verification {
	t.Helper()
	z := zone{}
	for _, d := range f.keys.Domains() {
		for _, k := range f.keys.AllKeys(d) {
			z[k.RecordName()] = []string{k.RecordValue()}
		}
	}
	v, err := dkim.Verify(t.Context(), strings.NewReader(message), z)
	require.NoError(t, err)
	return v
}

const plain = "From: App <a@example.com>\r\nTo: b@example.net\r\nSubject: =?utf-8?q?caf=C3=A9?=\r\n\r\nHello\r\n.dot\r\n"
