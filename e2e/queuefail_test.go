package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

func TestQueueFailTellsTheSender(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port, retry: "attempts = 5\nfirst_delay = \"1h\"\nmultiplier = 1.0\nmax_age = \"24h\""})
	s.onRcpt = func(_, to string) error {
		if strings.HasSuffix(to, "@dest.example") {
			return reply(451, 4, 2, 0, "Busy")
		}
		return nil
	}
	r.mx("dest.example", "shop.example")
	l := r.domain("shop.example")
	for _, to := range []string{"a@dest.example", "b@dest.example"} {
		require.NoError(t, r.trySubmit(l, to))
	}
	wait(t, "two deferrals", 20*time.Second, func() bool { return r.stats().Deferred == 2 })

	var got api.QueueActionResult
	r.json(&got, "queue", "fail", "to=a@dest.example", "--reason", "ticket 12")
	require.Equal(t, api.QueueActionResult{Action: "fail", Matched: 1, Changed: 1}, got, "nobody is told unless asked")
	r.json(&got, "queue", "fail", "domain=dest.example", "--notify", "--dry-run")
	require.Equal(t, 1, got.Notices)
	require.Equal(t, 1, r.stats().Deferred)
	out, stderr, code := r.ctl("queue", "fail", "domain=dest.example", "--notify")
	require.Zero(t, code, stderr)
	require.Contains(t, out, "1 notice to senders")

	wait(t, "the notice", 20*time.Second, func() bool { return s.count() == 1 })
	d := s.all()[0]
	require.Empty(t, d.From)
	require.Contains(t, string(d.Data), "Final-Recipient: rfc822; b@dest.example")
	require.NotContains(t, string(d.Data), "a@dest.example")
	wait(t, "an empty queue", 20*time.Second, func() bool { return r.stats().Queued == 0 })
	require.Equal(t, 2, r.stats().Outcomes["failed"])
	_, _, code = r.ctl("queue", "hold", "domain=dest.example", "--notify")
	require.Equal(t, 2, code, "only fail notifies")
}
