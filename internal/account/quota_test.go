package account

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
	"relayd/internal/kv/kvtest"
	"relayd/internal/mail"
)

type quotaRig struct {
	*Quota
	t     *testing.T
	store kv.DB
	clock time.Time
}

func newQuotaRig(t *testing.T, cfg QuotaConfig) *quotaRig {
	t.Helper()
	db, err := kv.OpenBolt(filepath.Join(t.TempDir(), "db"), kv.BoltOptions{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	r := &quotaRig{t: t, store: kvtest.Twice(db), clock: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)}
	r.restart(cfg)
	return r
}

func (r *quotaRig) restart(cfg QuotaConfig) {
	r.t.Helper()
	var err error
	r.Quota, err = OpenQuota(r.t.Context(), r.store, cfg, func() time.Time { return r.clock })
	require.NoError(r.t, err)
}

// take is one message that is stored.
func (r *quotaRig) take(account, credential string, n int) error {
	r.t.Helper()
	res, err := r.Reserve(account, credential, n)
	if err != nil {
		return err
	}
	require.NoError(r.t, r.store.Update(r.t.Context(), res.PutTx))
	return nil
}

func TestQuotaRollsOverADay(t *testing.T) {
	t.Parallel()
	cfg := QuotaConfig{AccountPerDay: 100}
	r := newQuotaRig(t, cfg)
	require.NoError(t, r.take("default", "a", 60))
	r.clock = r.clock.Add(12 * time.Hour)
	require.NoError(t, r.take("default", "b", 40))
	require.ErrorIs(t, r.take("default", "c", 1), ErrQuota)
	require.NoError(t, r.take("other", "c", 100), "accounts do not share")
	r.restart(cfg)
	require.EqualValues(t, 100, r.Usage("default"))
	r.clock = r.clock.Add(11 * time.Hour)
	require.ErrorIs(t, r.take("default", "c", 1), ErrQuota, "23 hours after the first")
	r.clock = r.clock.Add(time.Hour + 30*time.Minute)
	require.NoError(t, r.take("default", "c", 60), "the first 60 are a day old")
	require.ErrorIs(t, r.take("default", "c", 1), ErrQuota)
	n, err := r.Purge(t.Context(), 100)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	r.restart(cfg)
	require.EqualValues(t, 100, r.Usage("default"))
}

// TestG10_RateAfterARestartWithAnotherClock: whoever was within its rate is not refused because the clock was wrong, and the
// rate holds on from there.
func TestG10_RateAfterARestartWithAnotherClock(t *testing.T) {
	t.Parallel()
	for _, jump := range []time.Duration{-time.Hour, -240 * time.Hour, 240 * time.Hour} {
		cfg := QuotaConfig{AccountPerSecond: 10, AccountPerDay: 1000}
		r := newQuotaRig(t, cfg)
		require.NoError(t, r.take("default", "a", 10))
		r.clock = r.clock.Add(jump)
		r.restart(cfg)
		require.NoError(t, r.take("default", "a", 20), jump)
		require.ErrorIs(t, r.take("default", "a", 1), ErrRate, jump)
		r.clock = r.clock.Add(time.Minute)
		require.ErrorIs(t, r.take("default", "a", 1000-19), ErrQuota, jump)
	}
}

func TestQuotaGivesBackWhatWasNotStored(t *testing.T) {
	t.Parallel()
	r := newQuotaRig(t, QuotaConfig{AccountPerDay: 10, CredentialPerDay: 10})
	for range 5 {
		res, err := r.Reserve("default", "a", 10)
		require.NoError(t, err)
		require.ErrorIs(t, r.Check("default", "b"), ErrQuota, "taken while it is under way")
		r.clock = r.clock.Add(20 * time.Minute)
		res.Release()
		require.NoError(t, r.Check("default", "a"))
	}
	require.Zero(t, r.Usage("default"))
}

func TestQuotaRate(t *testing.T) {
	t.Parallel()
	cfg := QuotaConfig{CredentialPerSecond: 10}
	r := newQuotaRig(t, cfg)
	require.NoError(t, r.take("default", "a", 100), "one message may overdraw")
	err := r.take("default", "a", 1)
	require.ErrorIs(t, err, ErrRate)
	require.Equal(t, 451, mail.ReplyOf(err).Code)
	require.Equal(t, "4.7.0", mail.ReplyOf(err).Status.String())
	require.Contains(t, mail.ReplyOf(err).Text, "try again in 11 seconds")
	require.NoError(t, r.take("default", "b", 1), "credentials do not share")
	r.restart(cfg)
	require.ErrorIs(t, r.take("default", "a", 1), ErrRate, "a restart does not make it up")
	r.clock = r.clock.Add(9 * time.Second)
	require.NoError(t, r.take("default", "a", 10))
	r.clock = r.clock.Add(-20 * time.Minute)
	require.ErrorIs(t, r.take("default", "a", 1), ErrRate)
	r.clock = r.clock.Add(-72 * time.Hour)
	require.NoError(t, r.take("default", "a", 1), "a clock that is set back locks nobody out for ever")
	for range 100 {
		require.NoError(t, r.take("default", "", 1000), "no credential, no account limit: no quota")
	}
}

func TestQuotaConfig(t *testing.T) {
	t.Parallel()
	require.NoError(t, QuotaConfig{}.Validate())
	require.ErrorContains(t, QuotaConfig{AccountPerDay: -1}.Validate(), "quota.account_recipients_per_day")
	require.ErrorContains(t, QuotaConfig{CredentialPerSecond: 1e12}.Validate(), "quota.credential_recipients_per_second")
}
