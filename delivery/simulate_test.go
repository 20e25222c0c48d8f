package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// TestSimulation sends for hours of virtual time, over the real scheduler, spool and sessions, to personas of providers:
// RELAYD_SIMULATE hours, 24 in make simulate, a short slice otherwise. Each persona must be used to within a fifth of what it
// really takes, and no message may lose an attempt to a limit.
func TestSimulation(t *testing.T) {
	hours, err := strconv.Atoi(os.Getenv("RELAYD_SIMULATE"))
	if err != nil {
		hours = 2
	}
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { simulate(t, hours) })
}

func simulate(t *testing.T, hours int) {
	ctx, stop := context.WithCancel(t.Context())
	began := time.Now()
	personas := world(began)
	fake, network := connectTo(ctx, personas)
	r := newRigOn(t, fake)
	attempts := 0
	r.store.OnSettle(func(_ kv.Tx, settled []spool.Settled) error {
		for _, s := range settled {
			attempts = max(attempts, s.Envelope.Attempts)
			delete(r.final, s.Envelope.ID) // too many to keep
		}
		return nil
	})
	r.deps.Log = slog.New(slog.DiscardHandler)
	r.deps.Composer = composeFunc(func(e *spool.Envelope) ([]byte, error) {
		return []byte("Subject: for " + e.To.Local + "\r\n\r\nHello\r\n"), nil
	})
	r.network = network
	r.start()
	var feeders []*feeder
	for _, p := range personas {
		feeders = append(feeders, &feeder{r: r, p: p})
	}
	const step = 5 * time.Minute
	tail := min(6, max(1, hours/2))
	var capped []int // connections that are allowed where the receiver caps them, in the last hours
	for time.Since(began) < time.Duration(hours)*time.Hour {
		for _, f := range feeders {
			f.feed(step)
		}
		<-time.After(step)
		if time.Since(began) > time.Duration(hours-tail)*time.Hour {
			for _, s := range r.sched.SiteStates() {
				if s.Name == "mx.cap.example" {
					capped = append(capped, s.Connections)
				}
			}
		}
	}
	states := map[string]SiteState{}
	for _, s := range r.sched.SiteStates() {
		states[s.Name] = s
		if s.Pace > 0 {
			t.Logf("%s learned a pace of %.3f messages/s", s.Name, s.Pace)
		}
	}
	r.shutdown()
	stop()
	network.wg.Wait()

	var b strings.Builder
	printWorld(&b, personas, states, hours, tail)
	t.Logf("%d hours, deferred %.0f times, the last %d hours count:\n%s", hours, r.metric("results_total", "deferred"), tail, b.String())
	least := 0.8
	if hours < 12 { // the first pauses still weigh
		least = 0.6
	}
	for _, p := range personas {
		p.mu.Lock()
		got := p.late(hours, tail) / p.capacity
		p.mu.Unlock()
		require.GreaterOrEqual(t, got, least, "%s is used too little", p.name)
		require.LessOrEqual(t, got, 1.2, "%s is used too much", p.name)
	}
	sum := 0
	for _, n := range capped {
		sum += n
	}
	t.Logf("connections that the receiver caps at 8, every five minutes: %v", capped)
	require.InDelta(t, 8, float64(sum)/float64(len(capped)), 1.6, "they swing about what it takes")
	require.LessOrEqual(t, attempts, 3, "only greylisting costs attempts")
}

// feeder hands in pages of a campaign as time goes by.
type feeder struct {
	r       *rig
	p       *persona
	n       int
	carried float64
}

func (f *feeder) feed(step time.Duration) {
	f.carried += f.p.offered * step.Seconds()
	n := int(f.carried)
	f.carried -= float64(n)
	if n == 0 {
		return
	}
	now := f.r.deps.Now()
	id := mail.NewQueueID(now)
	m := &spool.Message{
		ID: id, Account: "default", Stream: "news", Campaign: "cmp_" + f.p.name, Class: spool.Bulk, AcceptedAt: now, ExpiresAt: now.Add(72 * time.Hour),
		ReversePath: mail.MustParsePath("news@sender.example"), MessageID: "<x@test.example>",
	}
	envs := make([]*spool.Envelope, n)
	for i := range envs {
		f.n++
		to := mail.MustParsePath(fmt.Sprintf("u%d@%s", f.n, f.p.domain))
		envs[i] = &spool.Envelope{
			ID: mail.EnvelopeID{Message: id, N: uint64(i)}, Queue: spool.Queue{Account: "default", Stream: "news", Domain: f.p.domain},
			Class: spool.Bulk, To: to, NextAttempt: now,
		}
	}
	require.NoError(f.r.t, f.r.store.Commit(f.r.t.Context(), m, nil, envs, nil))
}
