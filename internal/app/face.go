package app

import (
	"context"
	"fmt"
	"runtime"

	"relayd/admin"
	"relayd/internal/api"
)

// buildFace opens the HTTP side, last: what it shows is there.
func (a *App) buildFace(context.Context) (err error) {
	a.admin, err = admin.New(a.cfg.Admin, admin.Deps{
		DB: a.db, Accounts: a.accounts, Events: a.events, Queue: a.spool, Waits: a.delivery, Backup: a.backup, Keys: a.keys, Suppression: a.list,
		Intake: a.intake, Campaigns: a.campaigns, Unsubscribe: a.campaigns, Resolver: a.resolver,
		Checks:   map[string]func(context.Context) error{"storage": func(context.Context) error { return a.db.Err() }},
		Hostname: a.cfg.Hostname, Version: api.Version{Version: Version, GoVersion: runtime.Version(), Hostname: a.cfg.Hostname},
		Log: a.log, Metrics: a.metrics, Gatherer: a.metrics,
	})
	if err != nil {
		return fmt.Errorf("open admin API: %w", err)
	}
	a.cleanup.push("admin", a.admin.Close)
	return nil
}
