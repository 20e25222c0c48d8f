package admin

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"strconv"
	"time"

	"relayd/internal/api"
)

// Waiting for progress: how often it is looked at, how long a poll may wait, how often a silent stream says that it lives.
const (
	progressEvery = 250 * time.Millisecond
	maxWait       = 50 * time.Second
	streamEvery   = time.Second
	heartbeat     = 15 * time.Second
)

// waitSeconds reads how long a caller wants to wait at most; 0 without the parameter.
func waitSeconds(r *request, most time.Duration) (time.Duration, error) {
	text := r.URL.Query().Get("wait_seconds")
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || time.Duration(n)*time.Second > most {
		return 0, badParameter("wait_seconds", fmt.Sprintf("This is not a whole number from 0 to %d.", int(most/time.Second)))
	}
	return time.Duration(n) * time.Second, nil
}

// awaitEnd looks at once, and then again and again until what it looks at has ended, the wait is over or we stop.
func awaitEnd[T any](s *Server, r *request, wait time.Duration, look func(context.Context) (out T, ended bool, err error)) (T, error) {
	end := time.NewTimer(wait)
	defer end.Stop()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for over := wait == 0; ; {
		out, ended, err := look(r.Context())
		if err != nil || ended || over {
			return out, err
		}
		select {
		case <-tick.C:
			over = s.stopping.Load()
		case <-end.C:
			over = true
		case <-r.Context().Done():
			return out, r.Context().Err()
		}
	}
}

// progress answers at once, or with wait_seconds when it has changed: since the ETag in If-None-Match, or since the
// request. What did not change until then is a 304 to who sent an ETag.
func (s *Server) progress(r *request) (any, error) {
	wait, err := waitSeconds(r, maxWait)
	if err != nil {
		return nil, err
	}
	known := r.Header.Get("If-None-Match")
	p, tag, err := s.progressNow(r.Context(), r)
	if err != nil {
		return nil, err
	}
	if known == "" {
		known = tag
	}
	if wait > 0 && tag == known && !settledState(p.State) {
		if p, tag, err = s.awaitChange(r, known, wait); err != nil {
			return nil, err
		}
	}
	r.w.Header().Set("ETag", tag)
	if tag == r.Header.Get("If-None-Match") {
		r.w.WriteHeader(http.StatusNotModified)
		return nil, nil
	}
	return p, nil
}

// awaitChange looks again and again until progress differs from what is known.
func (s *Server) awaitChange(r *request, known string, wait time.Duration) (p api.Progress, tag string, err error) {
	end := time.NewTimer(wait)
	defer end.Stop()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		over := false
		select {
		case <-r.Context().Done():
			return p, "", r.Context().Err()
		case <-end.C:
			over = true
		case <-tick.C:
			over = s.stopping.Load()
		}
		if p, tag, err = s.progressNow(r.Context(), r); err != nil || tag != known || over {
			return p, tag, err
		}
	}
}

func (s *Server) progressNow(ctx context.Context, r *request) (api.Progress, string, error) {
	p, err := s.deps.Campaigns.Progress(ctx, r.caller.own(), r.PathValue("id"))
	return p, progressTag(&p), err
}

// progressTag changes with the state and the counts; not with the rate, which always does.
func progressTag(p *api.Progress) string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %s %s %d %+v", p.ID, p.State, p.Reason, p.Total, p.Counts)
	return fmt.Sprintf("\"%x\"", h.Sum64())
}

// settledState tells states that do not change by themselves.
func settledState(state string) bool {
	switch state {
	case "draft", "cancelled", "completed", "completed_with_failures", "failed":
		return true
	}
	return false
}

// streamProgress sends progress as server-sent events: one at once, then one a second while it changes, until the
// campaign has ended or the client has gone.
func (s *Server) streamProgress(r *request) error {
	p, tag, err := s.progressNow(r.Context(), r)
	if err != nil {
		return err
	}
	h := r.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // a proxy that gathers would make it late
	out := download(r)
	tick := time.NewTicker(streamEvery)
	defer tick.Stop()
	sent, spoke := "", time.Now()
	for id := 1; ; {
		switch {
		case tag != sent:
			sent, spoke = tag, time.Now()
			if err := writeEvent(out, id, "progress", p); err != nil {
				return nil //nolint:nilerr // the client has gone
			}
			id++
		case time.Since(spoke) >= heartbeat:
			spoke = time.Now()
			if _, err := io.WriteString(out, ": still here\n\n"); err != nil {
				return nil //nolint:nilerr // the client has gone
			}
		}
		if settledState(p.State) {
			_ = writeEvent(out, id, "end", map[string]string{"state": p.State})
			return nil
		}
		if err := out.control.Flush(); err != nil {
			return nil //nolint:nilerr // the client has gone
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-tick.C:
		}
		if s.stopping.Load() {
			return nil
		}
		if p, tag, err = s.progressNow(r.Context(), r); err != nil {
			return nil //nolint:nilerr // the client asks again and is told
		}
	}
}

func writeEvent(w io.Writer, id int, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	var buf bytes.Buffer
	fmt.Fprintf(&buf, "id: %d\nevent: %s\ndata: %s\n\n", id, name, b)
	_, err = w.Write(buf.Bytes())
	return err
}

// campaignReport gives the report as JSON, or every recipient's row as CSV.
func (s *Server) campaignReport(r *request) (any, error) {
	switch format := r.URL.Query().Get("format"); format {
	case "", "json":
		return s.deps.Campaigns.Report(r.Context(), r.caller.own(), r.PathValue("id"))
	case "csv":
		return nil, s.reportCSV(r)
	default:
		return nil, badParameter("format", "This is not json or csv.")
	}
}

// reportCSV streams one row for each recipient. An error behind the first row breaks the connection off, so that nobody
// takes the part for the whole.
func (s *Server) reportCSV(r *request) error {
	id := r.PathValue("id")
	if _, err := s.deps.Campaigns.Get(r.Context(), r.caller.own(), id); err != nil {
		return err
	}
	h := r.w.Header()
	h.Set("Content-Type", "text/csv; charset=utf-8")
	h.Set("Content-Disposition", `attachment; filename="`+id+`.csv"`)
	w := csv.NewWriter(download(r))
	_ = w.Write([]string{"address", "state", "reason", "attempts", "smtp_code", "enhanced", "text", "host", "tls", "at", "message"})
	err := s.deps.Campaigns.EachRecipient(r.Context(), r.caller.own(), id, func(one *api.RecipientResult) error {
		row := []string{inert(one.Address), one.State, one.Reason, strconv.Itoa(one.Attempts), "", "", "", "", "", "", one.Message}
		if m := one.SMTP; m != nil {
			row[4], row[5], row[6], row[7], row[8] = strconv.Itoa(m.Code), m.Enhanced, inert(m.Text), inert(m.Host), m.TLS
		}
		if one.At != nil {
			row[9] = one.At.UTC().Format(time.RFC3339)
		}
		return w.Write(row)
	})
	w.Flush()
	if err = errors.Join(err, w.Error()); err != nil {
		return aborted(err)
	}
	return nil
}
