package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

// Progress names what holds a campaign back, as delivery knows it: the campaign's own figure, the host that refuses us, the
// operator who suspended it.
func TestProgressNamesTheLimit(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	gate := make(chan struct{})
	s.onData = func(string, []string, []byte) error {
		<-gate
		return nil
	}
	r := newRelay(t, options{mxPort: s.port, level: "info"})
	r.mx("dest.example")
	r.domain("shop.example")
	to := make([]string, 40)
	for i := range to {
		to[i] = fmt.Sprintf("user%d@dest.example", i)
	}
	body := short(true, to...)
	body["send"] = map[string]any{"max_concurrency": 2}
	id := r.campaign(body)
	c := r.client()
	defer c.Close()
	until := func(what string, ok func(p *api.Progress) bool) api.Progress {
		t.Helper()
		var p api.Progress
		wait(t, what, 60*time.Second, func() bool {
			var err error
			p, err = c.CampaignProgress(t.Context(), id)
			require.NoError(t, err)
			return ok(&p)
		})
		return p
	}
	p := until("two transactions to run", func(p *api.Progress) bool { return p.LimitedBy == "campaign.max_concurrency" })
	require.Contains(t, p.LimitedDetail, "(2)")

	r.json(nil, "site", "suspend", "mx.dest.example", "--reason", "blocked us")
	close(gate)
	p = until("the operator's suspension", func(p *api.Progress) bool { return p.LimitedBy == "site:mx.dest.example" })
	require.Contains(t, p.LimitedDetail, "blocked us")
	require.Len(t, p.Providers, 1)
	require.Equal(t, "suspended", p.Providers[0].State)
	require.Contains(t, p.Providers[0].Reason, "blocked us")
	out, _, _ := r.ctl("campaign", "show", id)
	require.Contains(t, out, "site:mx.dest.example")

	require.NoError(t, s.server.Close()) // now nobody answers
	r.json(nil, "site", "resume", "mx.dest.example")
	p = until("the back-off", func(p *api.Progress) bool { return len(p.Providers) == 1 && p.Providers[0].State == "backoff" })
	require.Equal(t, "site:mx.dest.example", p.LimitedBy)
	require.NotNil(t, p.LimitedUntil)
	require.NotNil(t, p.Providers[0].Until)
}
