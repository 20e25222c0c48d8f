package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

func TestQueueBySite(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port, retry: "attempts = 5\nfirst_delay = \"1h\"\nmultiplier = 1.0\nmax_age = \"24h\""})
	s.onRcpt = func(string, string) error { return reply(451, 4, 2, 0, "Busy") }
	r.mx("dest.example", "other.example")
	require.NoError(t, r.dns.Add("hosted.example. 60 IN MX 10 mx.dest.example."))
	l := r.domain("shop.example")
	for _, to := range []string{"a@dest.example", "b@hosted.example", "c@other.example"} {
		require.NoError(t, r.trySubmit(l, to))
	}
	wait(t, "three deferrals", 20*time.Second, func() bool { return r.stats().Deferred == 3 })

	var list api.Page[api.QueueItem]
	r.json(&list, "queue", "list", "site=mx.dest.example")
	require.Len(t, list.Data, 2)
	require.Equal(t, "mx.dest.example", list.Data[0].Site)

	r.stop()
	r.start() // what relayd knew of sites is gone, and nothing is due
	r.json(&list, "queue", "list", "site=mx.dest.example", "state=deferred")
	require.Len(t, list.Data, 2)
	var st api.QueueStats
	r.json(&st, "queue", "stats", "--sites", "5")
	require.Equal(t, []api.SiteCount{
		{Site: "mx.dest.example", Domains: 2, Deferred: 2}, {Site: "mx.other.example", Domains: 1, Deferred: 1},
	}, st.Sites)
	out, _, code := r.ctl("queue", "stats", "--sites", "5")
	require.Zero(t, code)
	require.Contains(t, out, "mx.other.example")

	r.json(nil, "queue", "hold", "site=mx.dest.example", "--reason", "test")
	require.Equal(t, 2, r.stats().Held)
	_, stderr, code := r.ctl("queue", "fail", "site=mx.nowhere.example")
	require.NotZero(t, code)
	require.Contains(t, stderr, "relayctl queue stats --sites")
	require.Equal(t, 2, r.stats().Held)
}
