package app

import (
	"context"
	"fmt"
	"runtime"

	"relayd/admin"
	"relayd/internal/api"
	"relayd/spool"
)

// buildFace opens the HTTP side, last: what it shows is there.
func (a *App) buildFace(context.Context) (err error) {
	a.admin, err = admin.New(a.cfg.Admin, admin.Deps{
		DB: a.db, Accounts: a.accounts, Events: a.events, Queue: a.spool, Waits: a.delivery, Sites: a.delivery, Notices: a.delivery.Notices(), Backup: a.backup, Keys: a.keys, Suppression: a.list, Contacts: a.contacts,
		Intake: a.intake, Campaigns: a.campaigns, Sources: a.sources, Templates: a.campaigns, Assets: a.campaigns, Unsubscribe: a.campaigns, Resolver: a.resolver,
		Checks:   a.readiness(),
		Hostname: a.cfg.Hostname, Version: api.Version{Version: Version, GoVersion: runtime.Version(), Hostname: a.cfg.Hostname},
		Log: a.log, Metrics: a.metrics, Gatherer: a.metrics,
	})
	if err != nil {
		return fmt.Errorf("open admin API: %w", err)
	}
	a.cleanup.push("admin", a.admin.Close)
	return nil
}

// readiness is what must hold for mail to be accepted, by the name that /readyz shows.
func (a *App) readiness() map[string]func(context.Context) error {
	checks := map[string]func(context.Context) error{"storage": func(context.Context) error { return a.db.Err() }}
	for _, reason := range spool.Pressures() {
		checks[reason] = func(context.Context) error {
			if a.spool.Pressure() == reason {
				return fmt.Errorf("too little %s", reason)
			}
			return nil
		}
	}
	return checks
}
