package spool_test

import (
	"bytes"
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/kv/kvtest"
	"relayd/internal/mail"
	"relayd/spool"
)

func TestMain(m *testing.M) {
	crashChild()
	goleak.VerifyTestMain(m)
}

// openStore opens a spool in the file at path; fast leaves out the syncing to disk.
func openStore(tb testing.TB, path string, fast bool) (*spool.Store, *kv.Bolt) {
	tb.Helper()
	db, err := kv.OpenBolt(path, kv.BoltOptions{NoSync: fast})
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, db.Close()) })
	log, err := event.Open(db, nil)
	require.NoError(tb, err)
	s, err := spool.Open(tb.Context(), db, log, spool.DefaultConfig())
	require.NoError(tb, err)
	return s, db
}

// epoch is the time at which the clocks of the tests start: a whole minute.
var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// fixture is a spool with a clock of its own, that can be closed and opened again.
type fixture struct {
	tb    testing.TB
	path  string
	clock atomic.Int64
	db    *kv.Bolt
	log   *event.Log
	*spool.Store
	hook spool.SettleHook
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{tb: t, path: filepath.Join(t.TempDir(), "spool.db")}
	f.clock.Store(epoch.UnixNano())
	f.open()
	t.Cleanup(func() { require.NoError(t, f.db.Close()) })
	return f
}

func (f *fixture) now() time.Time { return time.Unix(0, f.clock.Load()).UTC() }

func (f *fixture) advance(d time.Duration) { f.clock.Add(int64(d)) }

func (f *fixture) open() {
	f.tb.Helper()
	var err error
	f.db, err = kv.OpenBolt(f.path, kv.BoltOptions{NoSync: true})
	require.NoError(f.tb, err)
	db := kvtest.Twice(f.db)
	f.log, err = event.Open(db, f.now)
	require.NoError(f.tb, err)
	f.Store, err = spool.Open(context.Background(), db, f.log, spool.Config{Now: f.now})
	require.NoError(f.tb, err)
	if f.hook != nil {
		f.OnSettle(f.hook)
	}
}

func (f *fixture) reopen() {
	f.tb.Helper()
	require.NoError(f.tb, f.db.Close())
	f.open()
}

// message makes a message and one envelope per recipient, not stored yet.
func (f *fixture) message(to ...string) (*spool.Message, []*spool.Envelope) {
	m := &spool.Message{
		ID: mail.NewQueueID(f.now()), Account: "default", Stream: "transactional", Class: spool.Transactional,
		ReversePath: mail.MustParsePath("sender@example.com"), Header: []byte("Subject: Hello\r\n"), Size: 100,
		MessageID: "<1@example.com>", Subject: "Hello", AcceptedAt: f.now(), ExpiresAt: f.now().Add(24 * time.Hour),
	}
	envs := make([]*spool.Envelope, len(to))
	for i, addr := range to {
		p := mail.MustParsePath(addr)
		envs[i] = &spool.Envelope{
			ID:    mail.EnvelopeID{Message: m.ID, N: uint64(i)},
			Queue: spool.Queue{Account: m.Account, Stream: m.Stream, Domain: p.Domain}, Class: m.Class, To: p, NextAttempt: f.now(),
		}
	}
	return m, envs
}

// commit stores a message with a body.
func (f *fixture) commit(body string, to ...string) (*spool.Message, []*spool.Envelope) {
	f.tb.Helper()
	m, envs := f.message(to...)
	w := f.NewBody(context.Background(), m.ID)
	_, err := w.Write([]byte(body))
	require.NoError(f.tb, err)
	require.NoError(f.tb, f.Commit(context.Background(), m, w, envs, nil))
	return m, envs
}

// campaign stores a page of campaign envelopes under the message m, nil for a new one.
func (f *fixture) campaign(m *spool.Message, name string, to ...string) (*spool.Message, []*spool.Envelope) {
	f.tb.Helper()
	if m == nil {
		m = &spool.Message{
			ID: mail.NewQueueID(f.now()), Account: "default", Stream: name, Campaign: name, Class: spool.Bulk, Keep: true,
			ReversePath: mail.MustParsePath("news@example.com"), AcceptedAt: f.now(),
		}
	}
	envs := make([]*spool.Envelope, len(to))
	for i, addr := range to {
		p := mail.MustParsePath(addr)
		envs[i] = &spool.Envelope{
			ID: mail.EnvelopeID{Message: m.ID, N: hash(addr)}, To: p, NextAttempt: f.now(), Data: []byte("data of " + addr),
			Queue: spool.Queue{Account: m.Account, Stream: m.Stream, Domain: p.Domain}, Class: m.Class,
		}
	}
	require.NoError(f.tb, f.db.Update(context.Background(), func(tx kv.Tx) error { return f.PutTx(tx, m, nil, envs, nil) }))
	f.Added(envs, nil)
	return m, envs
}

func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// lease takes what is due everywhere.
func (f *fixture) lease(most int) *spool.Lease {
	f.tb.Helper()
	queues := f.Take(f.now(), 1000)
	l, err := f.Lease(context.Background(), queues, f.now(), most)
	require.NoError(f.tb, err)
	for _, q := range queues {
		f.Return(q, time.Time{})
	}
	return l
}

// settle gives all envelopes of a lease the same result.
func (f *fixture) settle(l *spool.Lease, r spool.Result) {
	f.tb.Helper()
	require.NoError(f.tb, f.Settle(context.Background(), l, all(l, r)))
}

func all(l *spool.Lease, r spool.Result) []spool.Result {
	results := make([]spool.Result, len(l.Envelopes))
	for i, e := range l.Envelopes {
		results[i] = r
		results[i].ID = e.ID
	}
	return results
}

func (f *fixture) body(id mail.QueueID) (string, error) {
	var b bytes.Buffer
	_, err := f.WriteBody(context.Background(), id, &b)
	return b.String(), err
}

func (f *fixture) stats() spool.Stats {
	f.tb.Helper()
	s, err := f.Stats(context.Background())
	require.NoError(f.tb, err)
	var sum int64
	for _, n := range s.Outcomes {
		sum += n
	}
	require.Equal(f.tb, s.Accepted, s.Queued+sum, "accepted = queued + outcomes")
	return s
}

// list returns what a selector selects, by one page after another.
func (f *fixture) list(selector string, limit int) []spool.Info {
	f.tb.Helper()
	sel, err := spool.ParseSelector(selector)
	require.NoError(f.tb, err)
	var infos []spool.Info
	for cursor := ""; ; {
		page, next, err := f.List(context.Background(), sel, cursor, limit)
		require.NoError(f.tb, err)
		require.LessOrEqual(f.tb, len(page), limit)
		infos = append(infos, page...)
		if cursor = next; cursor == "" {
			return infos
		}
	}
}

// events lists the types of all events of a message, in order.
func (f *fixture) events(id mail.QueueID) []string {
	f.tb.Helper()
	var types []string
	for cursor := ""; ; {
		page, next, err := f.log.List(context.Background(), event.Filter{}, cursor, 100)
		require.NoError(f.tb, err)
		for _, e := range page {
			if len(e.Envelope) >= 20 && e.Envelope[:20] == id.String() {
				types = append(types, e.Type)
			}
		}
		if cursor = next; cursor == "" || len(page) == 0 {
			return types
		}
	}
}

// records counts the keys of a table.
func (f *fixture) records(table kv.Table) int {
	f.tb.Helper()
	n := 0
	require.NoError(f.tb, f.db.View(context.Background(), func(tx kv.Tx) error {
		return tx.Scan(table, nil, nil, func(_, _ []byte) (bool, error) {
			n++
			return true, nil
		})
	}))
	return n
}
