package app

import (
	"context"
	"fmt"

	"relayd/internal/source"
)

// buildSources makes what keeps lists in step with databases.
func (a *App) buildSources(context.Context) (err error) {
	a.sources, err = source.New(a.cfg.Source, source.Deps{
		DB: a.db, Contacts: a.contacts, Events: a.events, Log: a.log, Metrics: a.metrics,
	})
	if err != nil {
		return fmt.Errorf("set up sources: %w", err)
	}
	return nil
}
