package app

import (
	"context"
	"time"

	"relayd/internal/bounce"
)

// purgeSlice bounds what one transaction of the purge removes.
const purgeSlice = 2000

// keepRetention removes what is older than the retention, in slices, once an hour.
func (a *App) keepRetention(ctx context.Context) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		for _, purge := range []func(context.Context, time.Time, int) (int, error){
			a.spool.Purge, a.events.Purge, a.campaigns.Purge,
			func(ctx context.Context, _ time.Time, most int) (int, error) { return a.intake.PurgeKeys(ctx, most) },
			func(ctx context.Context, _ time.Time, most int) (int, error) { return a.quota.Purge(ctx, most) },
			func(ctx context.Context, before time.Time, most int) (int, error) {
				return bounce.Purge(ctx, a.db, before, most)
			},
			func(ctx context.Context, _ time.Time, _ int) (int, error) { return 0, a.contacts.Purge(ctx) },
		} {
			for {
				n, err := purge(ctx, time.Now().Add(-a.cfg.Spool.Retention), purgeSlice)
				if err != nil && ctx.Err() == nil {
					a.log.Warn("retention.failed", "err", err)
				}
				if err != nil || n < purgeSlice {
					break
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
