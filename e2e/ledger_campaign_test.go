package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

// broadcasts are the campaigns that the API said it had created.
type broadcasts struct {
	mu  sync.Mutex
	ids []string
	to  map[string][]string // recipients of each
}

// campaigns posts one campaign after the other until ctx ends. A request that gets no answer is repeated with the same
// idempotency key until it has one.
func (b *ledger) campaigns(ctx context.Context, wg *sync.WaitGroup, r *relay) *broadcasts {
	bs := &broadcasts{to: map[string][]string{}}
	wg.Go(func() {
		c := r.client()
		defer c.Close()
		for n := 0; ctx.Err() == nil; n++ {
			var to []string
			for i := range 300 {
				to = append(to, fmt.Sprintf("c%d-%d@d%d.example", n, i, i%5))
			}
			text, err := json.Marshal(short(true, to...))
			var in api.CreateCampaign
			if err == nil {
				err = json.Unmarshal(text, &in)
			}
			if err != nil {
				panic(err)
			}
			for {
				if ctx.Err() == nil && b.backlog() > 3000 {
					pause()
					continue
				}
				out, err := c.CreateCampaign(context.WithoutCancel(ctx), in, fmt.Sprintf("campaign-%d-of-the-load", n))
				if err == nil {
					bs.mu.Lock()
					bs.ids = append(bs.ids, out.ID)
					bs.to[out.ID] = to
					bs.mu.Unlock()
					b.mu.Lock()
					b.expected += len(to)
					b.mu.Unlock()
					break
				}
				if ctx.Err() != nil {
					return // its fate stays unknown: it is not counted
				}
				pause()
			}
			for ctx.Err() == nil && b.backlog() > 1000 {
				pause()
			}
		}
	})
	return bs
}

// auditCampaigns requires that every recipient of every acknowledged campaign was reached and counted once, and returns
// how many there are and how many copies came twice.
func (b *ledger) auditCampaigns(r *relay, bs *broadcasts) (reached, twice int) {
	b.t.Helper()
	wait(b.t, "the campaigns to end", 120*time.Second, r.idle) // between two pages of one nothing is queued
	b.mu.Lock()
	defer b.mu.Unlock()
	require.NotEmpty(b.t, bs.ids)
	for _, id := range bs.ids {
		m, err := r.client().QueueMessage(b.t.Context(), id[len(id)-20:])
		require.NoError(b.t, err)
		doubts := map[string]int{}
		for _, e := range m.Envelopes {
			doubts[e.To] = e.InDoubt
		}
		for _, to := range bs.to[id] {
			a := b.arrived[to]
			require.NotNil(b.t, a, "%s of campaign %s is lost", to, id)
			reached++
			twice += a.n - 1
			require.LessOrEqual(b.t, a.n-1, doubts[to], "duplicates of %s beyond its doubts", to)
		}
		p := r.progress(id)
		require.Equal(b.t, "completed", p.State, id)
		require.Equal(b.t, len(bs.to[id]), p.Counts["delivered"], id)
	}
	return reached, twice
}
