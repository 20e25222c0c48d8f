package delivery

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
	"relayd/spool"
)

func TestOperatorsFailureTellsTheSender(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
		if s.Verb == "RCPT" && strings.HasPrefix(s.To, "busy") {
			return testutil.Act{Reply: "451 4.2.0 busy"}
		}
		return testutil.Act{}
	}}).Start(t)
	r := newRig(t, mx.PortNumber(), zone()).start()
	late := spool.RetryPolicy{Attempts: 5, First: time.Hour, Multiplier: 1, MaxAge: 24 * time.Hour}
	for _, s := range []submission{
		{to: []string{"busy1@dest.example", "busy2@dest.example"}},
		{to: []string{"busy3@dest.example"}, from: "<>"},
		{to: []string{"busy4@dest.example"}, notify: "NEVER"},
		{to: []string{"busy5@dest.example"}, header: "Auto-Submitted: auto-generated\r\n"},
		{to: []string{"busy6@dest.example"}, class: spool.Bulk},
	} {
		s.retry = late
		id := r.submit(s)
		for n := range s.to {
			r.deferred(id, uint64(n))
		}
	}
	notices := r.sched.Notices()
	got, err := r.store.Fail(t.Context(), spool.Selector{State: "deferred"}, notices, "alice", "", true)
	require.NoError(t, err)
	require.Equal(t, spool.ActResult{Matched: 6, Changed: 6, Notices: 1}, got)
	got, err = r.store.Fail(t.Context(), spool.Selector{State: "deferred"}, notices, "alice", "", false)
	require.NoError(t, err)
	require.Equal(t, spool.ActResult{Matched: 6, Changed: 6, Notices: 1}, got)

	dsn := mx.Wait(t, 1)[0]
	require.Empty(t, dsn.From)
	require.Equal(t, []string{"sender@sender.example"}, dsn.To)
	for _, want := range []string{
		"report-type=delivery-status", "Final-Recipient: rfc822; busy1@dest.example", "Final-Recipient: rfc822; busy2@dest.example",
		"Action: failed", "Given up by the operator",
	} {
		require.Contains(t, string(dsn.Data), want)
	}
	require.NotContains(t, string(dsn.Data), "busy4")
	require.InDelta(t, 1, r.metric("notices_total", "sent"), 0)
	require.InDelta(t, 1, r.metric("notices_total", "double_bounce"), 0)
}

func TestOperatorsFailureWithoutADoor(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, zone())
	r.deps.Door = nil
	s, err := New(r.cfg, r.deps)
	require.NoError(t, err)
	require.Zero(t, s.Notices().Count([]spool.Settled{{Message: &spool.Message{}, Envelope: &spool.Envelope{}}}))
	n, err := s.Notices().Prepare(t.Context(), nil)
	require.NoError(t, err)
	require.Zero(t, n.Count)
}
