package campaign

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/suppression"
)

// A campaign stops at the last recipient that its account's quota has, says so beforehand, and goes on when there are more.
func TestQuotaOfADay(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.PageSize = 7 })
	ctx := t.Context()
	r.perDay = 25
	r.reopen()
	_, err := r.list.Add(ctx, suppression.Entry{Account: "default", Address: "user1@d1.example", Reason: suppression.HardBounce})
	require.NoError(t, err)
	c := r.draftOf(41)
	v, err := r.Validate(ctx, "default", c.ID)
	require.NoError(t, err)
	require.False(t, v.OK)
	requireCheck(t, v, "quota_24h", false, "40 recipients become due within 24 hours, and the account's quota has 25 left")
	slow := r.draftOf(41, func(req *api.CreateCampaign) { req.Send.SpreadSeconds = 4 * 24 * 3600; req.Send.TTLSeconds = 86400 })
	v, err = r.Validate(ctx, "default", slow.ID)
	require.NoError(t, err)
	requireCheck(t, v, "quota_24h", true, "")

	_, err = r.Start(ctx, "default", c.ID)
	require.NoError(t, err)
	p := r.waitFor(c.ID, Paused)
	require.Equal(t, "quota", p.Reason)
	require.NotEmpty(t, p.Detail)
	_, err = r.Resume(ctx, "default", c.ID)
	require.NoError(t, err)
	require.Equal(t, "quota", r.waitFor(c.ID, Paused).Reason, "nothing is free yet")
	left, limited := r.quota.Left("default")
	require.True(t, limited)
	require.Zero(t, left, "every one of them was used")
	r.reopen()
	left, _ = r.quota.Left("default")
	require.Zero(t, left, "and is counted after a restart")

	r.pass(25 * time.Hour)
	_, err = r.Resume(ctx, "default", c.ID)
	require.NoError(t, err)
	r.fan()
	require.Equal(t, Running, r.progress(c.ID).State)
	left, _ = r.quota.Left("default")
	require.Equal(t, int64(10), left, "15 of 40: who is suppressed counts for nothing")
	n := 0
	for k := 1; k > 0; n += k {
		k = r.deliver(100, delivered)
	}
	require.Equal(t, 40, n)
	require.Equal(t, api.Counts{Delivered: 40, Suppressed: 1}, r.progress(c.ID).Counts)
}
