package spool_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// producers hand in messages at the same time in the benchmarks, as SMTP sessions do.
const producers = 64

// spread runs fn b.N times on many goroutines and returns operations per second.
func spread(b *testing.B, n int, fn func(worker, i int) error) float64 {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for w := range producers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := fn(w, i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return float64(n) / time.Since(start).Seconds()
}

// barePuts is the yardstick: the same bytes under keys of the same kind, group-committed by the engine, nothing else.
func barePuts(b *testing.B, size, n int) float64 {
	b.Helper()
	db, err := kv.OpenBolt(filepath.Join(b.TempDir(), "bare.db"), kv.BoltOptions{})
	require.NoError(b, err)
	defer db.Close()
	value := bytes.Repeat([]byte("x"), size)
	return spread(b, n, func(_, i int) error {
		key := binary.BigEndian.AppendUint64(nil, uint64(i))
		return db.Update(context.Background(), func(tx kv.Tx) error { return tx.Put("bare", key, value) })
	})
}

// submit hands in one message to one recipient, half a kilobyte of header and the rest body.
func submit(s *spool.Store, i, size int) (mail.QueueID, error) {
	now := time.Now()
	id := mail.NewQueueID(now)
	m := &spool.Message{
		ID: id, Account: "default", Stream: "transactional", Class: spool.Transactional,
		ReversePath: mail.Path{Local: "sender", Domain: "example.com"}, Header: bytes.Repeat([]byte("h"), 512),
		Size: int64(size), MessageID: "<" + id.String() + "@mail.example.com>", Subject: "Your receipt",
		AcceptedAt: now, ExpiresAt: now.Add(120 * time.Hour), Credential: "app", ClientIP: "192.0.2.7",
	}
	body := s.NewBody(context.Background(), id)
	if _, err := body.Write(bodyBytes[:size-512]); err != nil {
		return id, err
	}
	domain := "d" + strconv.Itoa(i%50) + ".example.net"
	e := &spool.Envelope{
		ID: mail.EnvelopeID{Message: id}, Queue: spool.Queue{Account: "default", Stream: "transactional", Domain: domain},
		Class: spool.Transactional, To: mail.Path{Local: "user" + strconv.Itoa(i), Domain: domain}, NextAttempt: now,
	}
	return id, s.Commit(context.Background(), m, body, []*spool.Envelope{e}, nil)
}

var bodyBytes = bytes.Repeat([]byte("All work and no play makes a dull line of body text, sixty.\r\n"), 20_000)

// BenchmarkCommit reports durable commits per second and their ratio to bare puts of the same bytes (target: 0.5).
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{4 << 10, 10 << 10, 100 << 10} {
		b.Run(fmt.Sprintf("%dKB", size>>10), func(b *testing.B) {
			n := max(b.N, 2*producers)
			before := barePuts(b, size, n)
			s := openBench(b)
			b.ResetTimer()
			rate := spread(b, n, func(_, i int) error { _, err := submit(s, i, size); return err })
			b.StopTimer()
			bare := (before + barePuts(b, size, n)) / 2 // other work on the machine comes and goes
			b.ReportMetric(rate, "commits/s")
			b.ReportMetric(bare, "bare/s")
			b.ReportMetric(rate/bare, "ratio")
		})
	}
}

// BenchmarkLife reports whole lives per second, from commit through lease to settled, and their ratio to bare puts of
// the same bytes (target: 0.3). Leasing and settling run beside the commits, as in the daemon.
func BenchmarkLife(b *testing.B) {
	for _, size := range []int{4 << 10, 100 << 10} {
		b.Run(fmt.Sprintf("%dKB", size>>10), func(b *testing.B) {
			n := max(b.N, 2*producers)
			before := barePuts(b, size, n)
			s := openBench(b)
			b.ResetTimer()
			start := time.Now()
			var settled atomic.Int64
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for settled.Load() < int64(n) {
						done, err := settleSome(s, 64)
						if err != nil {
							b.Error(err)
							return
						}
						if settled.Add(int64(done)); done == 0 {
							select {
							case <-s.Changed():
							case <-time.After(10 * time.Millisecond):
							}
						}
					}
				})
			}
			spread(b, n, func(_, i int) error { _, err := submit(s, i, size); return err })
			wg.Wait()
			rate := float64(n) / time.Since(start).Seconds()
			b.StopTimer()
			bare := (before + barePuts(b, size, n)) / 2
			b.ReportMetric(rate, "lives/s")
			b.ReportMetric(bare, "bare/s")
			b.ReportMetric(rate/bare, "ratio")
		})
	}
}

// settleSome leases up to most envelopes of the queues that are due and settles them as delivered.
func settleSome(s *spool.Store, most int) (int, error) {
	now := time.Now()
	queues := s.Take(now, 8)
	if len(queues) == 0 {
		return 0, nil
	}
	defer func() {
		for _, q := range queues {
			s.Return(q, time.Time{})
		}
	}()
	l, err := s.Lease(context.Background(), queues, now, most)
	if err != nil || len(l.Envelopes) == 0 {
		return 0, err
	}
	results := make([]spool.Result, len(l.Envelopes))
	for i, e := range l.Envelopes {
		results[i] = spool.Result{
			ID: e.ID, Outcome: spool.Delivered, Presented: true, At: now, Host: "mx.example.net[192.0.2.1]", TLS: "TLS1.3",
			Reply: mail.Reply{Code: 250, Status: mail.Status{Class: 2}, Text: "OK queued as 12345"},
		}
	}
	return len(results), s.Settle(context.Background(), l, results)
}

// BenchmarkDepth reports the time to lease and settle one envelope with many others queued (target: 1,000,000 costs at
// most 1.5 times what 10,000 do). A million is queued only with RELAYD_BENCH_DEEP set.
func BenchmarkDepth(b *testing.B) {
	for _, depth := range []int{10_000, 100_000, 1_000_000} {
		b.Run(strconv.Itoa(depth), func(b *testing.B) {
			if depth > 100_000 && os.Getenv("RELAYD_BENCH_DEEP") == "" {
				b.Skip("RELAYD_BENCH_DEEP is not set")
			}
			path := filepath.Join(b.TempDir(), "spool.db")
			s, db := openStore(b, path, true)
			filling := time.Now()
			fill(b, s, db, depth)
			figures := map[string]float64{"queued/s": float64(depth) / time.Since(filling).Seconds()}
			info, err := os.Stat(path)
			require.NoError(b, err)
			figures["filebytes/envelope"] = float64(info.Size()) / float64(depth)
			require.NoError(b, db.Close())
			opening := time.Now()
			s, _ = openStore(b, path, true)
			figures["open-ms"] = milliseconds(opening)
			stats := time.Now()
			require.Len(b, s.QueueStats(), 200)
			figures["stats-ms"] = milliseconds(stats)
			list := time.Now()
			_, _, err = s.List(context.Background(), spool.Selector{Reply: "no such text"}, "", 100)
			require.NoError(b, err)
			figures["list-ms"] = milliseconds(list)
			b.ResetTimer()
			for done := 0; done < b.N; {
				n, err := settleSome(s, 100)
				require.NoError(b, err)
				require.Positive(b, n, "the queue ran dry: use a smaller -benchtime")
				done += n
			}
			for name, v := range figures {
				b.ReportMetric(v, name)
			}
		})
	}
}

func milliseconds(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1000 }

// fill queues campaign envelopes, page by page, as fan-out does.
func fill(b *testing.B, s *spool.Store, db kv.DB, n int) {
	b.Helper()
	now := time.Now()
	m := &spool.Message{
		ID: mail.NewQueueID(now), Account: "default", Stream: "cmp_bench", Campaign: "cmp_bench", Class: spool.Bulk,
		AcceptedAt: now, Keep: true, ReversePath: mail.Path{Local: "news", Domain: "example.com"},
	}
	data := bytes.Repeat([]byte("d"), 120)
	for at := 0; at < n; at += 1000 {
		envs := make([]*spool.Envelope, 0, 1000)
		for i := at; i < min(at+1000, n); i++ {
			domain := "d" + strconv.Itoa(i%200) + ".example.net"
			envs = append(envs, &spool.Envelope{
				ID:    mail.EnvelopeID{Message: m.ID, N: uint64(i) * 0x9E3779B97F4A7C15},
				Queue: spool.Queue{Account: "default", Stream: m.Stream, Domain: domain}, Class: spool.Bulk,
				To: mail.Path{Local: "recipient" + strconv.Itoa(i), Domain: domain}, NextAttempt: now, Data: data,
			})
		}
		err := db.Update(context.Background(), func(tx kv.Tx) error { return s.PutTx(tx, m, nil, envs, nil) })
		require.NoError(b, err)
		s.Added(envs, nil)
	}
}

func openBench(b *testing.B) *spool.Store {
	b.Helper()
	s, _ := openStore(b, filepath.Join(b.TempDir(), "spool.db"), false)
	return s
}

// BenchmarkHistory reports the time to find the outcomes of one recipient among 200,000, settled a hundred at a time.
func BenchmarkHistory(b *testing.B) {
	const n = 200_000
	path := filepath.Join(b.TempDir(), "spool.db")
	s, db := openStore(b, path, true)
	fill(b, s, db, n)
	for done := 0; done < n; {
		k, err := settleSome(s, 100)
		require.NoError(b, err)
		done += k
	}
	to := "recipient777@d" + strconv.Itoa(777%200) + ".example.net"
	for b.Loop() {
		found, _, err := s.History(context.Background(), spool.HistoryQuery{Recipient: to}, "", 100)
		require.NoError(b, err)
		require.Len(b, found, 1)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/1000/float64(b.N), "ms/look-up")
}
