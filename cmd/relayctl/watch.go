package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"relayd/internal/api"
)

const (
	watchEvery   = 500 * time.Millisecond
	watchSeconds = 20 // that one poll waits for a change
	barWidth     = 30
)

// watch draws a campaign's progress until it ends: one line over itself on a terminal, else a line per change.
func (a *app) watch(ctx context.Context, c *api.Client, p api.Progress) (api.Progress, error) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	shown, tag := "", ""
	for {
		if line := progressLine(p); line != shown {
			shown = line
			if a.terminal {
				fmt.Fprint(a.err, "\r\x1b[K"+line)
			} else {
				fmt.Fprintln(a.err, line)
			}
		}
		if ended(p.State) {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if a.terminal {
				fmt.Fprintln(a.err)
			}
			return p, errWatchEnded
		}
		next, newTag, changed, err := c.AwaitProgress(ctx, p.ID, tag, watchSeconds)
		if ctx.Err() != nil {
			if a.terminal {
				fmt.Fprintln(a.err)
			}
			return p, errWatchEnded
		}
		if err != nil {
			return p, err
		}
		if tag = newTag; changed {
			p = next
		}
	}
	if a.terminal {
		fmt.Fprintln(a.err)
	}
	return p, nil
}

// ended tells the states that a campaign does not leave by itself.
func ended(state string) bool {
	switch state {
	case "draft", "paused", "cancelled", "completed", "completed_with_failures", "failed":
		return true
	}
	return false
}

// progressLine is "running [#####-----]  512/1000  51%  498.2/s  3 bounced, 1 deferred".
func progressLine(p api.Progress) string {
	done, total := p.Counts.Finished(), max(p.Total, 1)
	filled := int(min(done, total) * barWidth / total)
	var b strings.Builder
	fmt.Fprintf(&b, "%s [%s%s] %d/%d %3d%%  %.1f/s", p.State, strings.Repeat("#", filled), strings.Repeat("-", barWidth-filled),
		done, p.Total, min(done, total)*100/total, p.Rate.Last10s)
	if p.ETA != nil && !ended(p.State) {
		fmt.Fprintf(&b, "  done %s", p.ETA.Local().Format("15:04:05"))
	}
	switch p.LimitedBy {
	case "", "delivery", "fanout", "paused":
	default:
		b.WriteString("  limited by " + p.LimitedBy)
	}
	for _, n := range []struct {
		name string
		n    int64
	}{{"deferred", p.Counts.Deferred}, {"bounced", p.Counts.Bounced}, {"failed", p.Counts.Failed + p.Counts.RenderFailed}} {
		if n.n > 0 {
			fmt.Fprintf(&b, "  %d %s", n.n, n.name)
		}
	}
	return b.String()
}

var errWatchEnded = errors.New("stopped watching: the campaign goes on")
