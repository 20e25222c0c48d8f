package source

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Create stores a source of the account. trusted callers may name any dsn_ref, others those that the configuration
// lists. also runs in the same transaction with the answer. *Invalid, ErrExists, ErrTooMany or ErrForbidden when it
// cannot be.
func (s *Service) Create(ctx context.Context, account string, trusted bool, in *api.CreateSource, also func(kv.Tx, api.Source) error) (api.Source, error) {
	c := configOf(in)
	if err := check(&c); err != nil {
		return api.Source{}, err
	}
	if !trusted && !s.cfg.allows(account, c.DSNRef) {
		return api.Source{}, ErrForbidden
	}
	now := s.now()
	rec := &record{ID: mail.NewQueueID(now), Account: account, Config: c, Created: now, Updated: now, Version: 1}
	st := &state{Epoch: 1}
	st.NextAt = st.next(&c, now, now, true)
	var out api.Source
	err := s.deps.DB.Update(ctx, func(tx kv.Tx) error {
		if err := s.checkList(tx, account, c.List); err != nil {
			return err
		}
		n := 0
		if err := tx.Scan(tableName, nameKey(account, ""), kv.PrefixEnd(nameKey(account, "")), func(_, _ []byte) (bool, error) {
			n++
			return true, nil
		}); err != nil {
			return err
		}
		if n >= maxSourcesAccount {
			return ErrTooMany
		}
		if err := takeName(tx, account, c.Name, rec.ID); err != nil {
			return err
		}
		if err := rec.put(tx); err != nil {
			return err
		}
		if err := st.put(tx, rec.ID); err != nil {
			return err
		}
		out = show(rec, st, nil)
		if also != nil {
			return also(tx, out)
		}
		return nil
	})
	if err != nil {
		return api.Source{}, fmt.Errorf("create source: %w", err)
	}
	s.nudge()
	return out, nil
}

func (s *Service) checkList(tx kv.Tx, account, name string) error {
	if _, err := s.deps.Contacts.ListTx(tx, account, name); err != nil {
		bad := &Invalid{}
		bad.add("/list", fmt.Sprintf("There is no list %q.", name))
		return bad
	}
	return nil
}

func takeName(tx kv.Tx, account, name string, source id) error {
	v, err := tx.Get(tableName, nameKey(account, name))
	if err != nil {
		return err
	}
	if v != nil && !bytes.Equal(v, source[:]) {
		return ErrExists
	}
	return tx.Put(tableName, nameKey(account, name), append([]byte(nil), source[:]...))
}

// find resolves src_… or name:NAME. account "" means any; names need one.
func find(tx kv.Tx, account, ref string) (*record, error) {
	if name, ok := cutName(ref); ok && account != "" {
		v, err := tx.Get(tableName, nameKey(account, name))
		if err != nil {
			return nil, err
		}
		if len(v) != len(id{}) {
			return nil, ErrNotFound
		}
		return getRecord(tx, id(v))
	}
	source, err := parseID(ref, sourcePrefix)
	if err != nil {
		return nil, err
	}
	r, err := getRecord(tx, source)
	if err != nil {
		return nil, err
	}
	if account != "" && r.Account != account {
		return nil, ErrNotFound
	}
	return r, nil
}

func cutName(ref string) (string, bool) {
	const prefix = "name:"
	if len(ref) <= len(prefix) || ref[:len(prefix)] != prefix {
		return "", false
	}
	return ref[len(prefix):], true
}

// Get returns one source. ErrNotFound when the account ("" for any) has none of that ID or name:NAME.
func (s *Service) Get(ctx context.Context, account, ref string) (out api.Source, err error) {
	err = s.deps.DB.View(ctx, func(tx kv.Tx) error {
		rec, err := find(tx, account, ref)
		if err != nil {
			return err
		}
		out, err = showTx(tx, rec)
		return err
	})
	if err != nil {
		return out, fmt.Errorf("show source: %w", err)
	}
	return out, nil
}

func showTx(tx kv.Tx, rec *record) (api.Source, error) {
	st, err := getState(tx, rec.ID)
	if err != nil {
		return api.Source{}, err
	}
	var last *api.SourceRun
	for _, run := range []id{st.Running, st.Last} {
		if last == nil && !run.IsZero() {
			if last, err = getRun(tx, rec.ID, run); err != nil && !errors.Is(err, ErrNotFound) {
				return api.Source{}, err
			}
		}
	}
	return show(rec, st, last), nil
}

func show(rec *record, st *state, last *api.SourceRun) api.Source {
	out := api.Source{
		ID: formatSource(rec.ID), Account: rec.Account, SourceConfig: rec.Config, State: "idle", Error: st.Error, LastRun: last,
		CreatedAt: rec.Created, UpdatedAt: rec.Updated, ETag: rec.etag(),
	}
	zone, _ := parseZone(rec.Config.SourceTimezone)
	out.Watermark = st.Mark.api(zone)
	switch {
	case !st.Running.IsZero():
		out.State = "running"
	case !st.Queued.IsZero():
		out.State = "queued"
	case st.Error != "":
		out.State = "failed"
	}
	if !st.NextAt.IsZero() {
		out.NextRunAt = &st.NextAt
	}
	return out
}

// List returns sources by their IDs, of one account or ("") of all, and the cursor of the next page.
func (s *Service) List(ctx context.Context, account, cursor string, limit int) (page []api.Source, next string, err error) {
	from, err := afterCursor(cursor)
	if err != nil {
		return nil, "", err
	}
	err = s.deps.DB.View(ctx, func(tx kv.Tx) error {
		page, next = nil, ""
		var records []*record
		if err := tx.Scan(tableSource, from, nil, func(k, v []byte) (bool, error) {
			rec := &record{ID: id(k)}
			if err := decodeInto(v, rec); err != nil {
				return false, err
			}
			if account == "" || rec.Account == account {
				records = append(records, rec)
			}
			return len(records) <= limit, nil
		}); err != nil {
			return err
		}
		if len(records) > limit {
			records = records[:limit]
			next = base64.RawURLEncoding.EncodeToString(records[limit-1].ID[:])
		}
		for _, rec := range records {
			out, err := showTx(tx, rec)
			if err != nil {
				return err
			}
			page = append(page, out)
		}
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("list sources: %w", err)
	}
	return page, next, nil
}

// afterCursor is the first key behind the one that a cursor names.
func afterCursor(cursor string) ([]byte, error) {
	if cursor == "" {
		return nil, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil || len(b) != len(id{}) {
		return nil, ErrBadCursor
	}
	return append(b, 0), nil
}

// Patch changes a source. A run under way ends, and the next one goes on with the new configuration. ErrETag when etag
// is not "" and the source has another.
func (s *Service) Patch(ctx context.Context, account, ref string, trusted bool, etag string, in *api.PatchSource) (out api.Source, err error) {
	err = s.deps.DB.Update(ctx, func(tx kv.Tx) error {
		rec, err := find(tx, account, ref)
		if err != nil {
			return err
		}
		if etag != "" && etag != rec.etag() {
			return ErrETag
		}
		c := patched(rec.Config, in)
		if err := check(&c); err != nil {
			return err
		}
		if !trusted && c.DSNRef != rec.Config.DSNRef && !s.cfg.allows(rec.Account, c.DSNRef) {
			return ErrForbidden
		}
		st, err := getState(tx, rec.ID)
		if err != nil {
			return err
		}
		if c.Name != rec.Config.Name {
			if err := takeName(tx, rec.Account, c.Name, rec.ID); err != nil {
				return err
			}
			if err := tx.Delete(tableName, nameKey(rec.Account, rec.Config.Name)); err != nil {
				return err
			}
		}
		if c.List != rec.Config.List {
			if err := s.checkList(tx, rec.Account, c.List); err != nil {
				return err
			}
		}
		switch {
		case anew(&rec.Config, &c):
			if err := st.restart(tx, rec.ID); err != nil {
				return err
			}
		case again(&rec.Config, &c):
			st.Mark, st.Until = nil, nil
		}
		now := s.now()
		rec.Config, rec.Updated, rec.Version = c, now, rec.Version+1
		st.Failures, st.NextAt = 0, st.next(&c, now, now, true)
		if err := rec.put(tx); err != nil {
			return err
		}
		if err := st.put(tx, rec.ID); err != nil {
			return err
		}
		out, err = showTx(tx, rec)
		return err
	})
	if err != nil {
		return out, fmt.Errorf("change source: %w", err)
	}
	s.nudge()
	return out, nil
}

// Delete removes a source with its history; a run under way is stopped first. The contacts stay. ErrETag as for Patch.
func (s *Service) Delete(ctx context.Context, account, ref, etag string) error {
	var rec *record
	err := s.deps.DB.View(ctx, func(tx kv.Tx) (err error) {
		rec, err = find(tx, account, ref)
		return err
	})
	if err == nil && etag != "" && etag != rec.etag() {
		err = ErrETag
	}
	if err != nil {
		return fmt.Errorf("remove source: %w", err)
	}
	s.mu.Lock()
	t := s.active[rec.ID]
	s.mu.Unlock()
	if t != nil {
		t.cancel()
		select {
		case <-t.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err = s.deps.DB.Update(ctx, func(tx kv.Tx) error {
		rec, err := find(tx, account, formatSource(rec.ID))
		if err != nil {
			return err
		}
		st, err := getState(tx, rec.ID)
		if err != nil {
			return err
		}
		if err := st.restart(tx, rec.ID); err != nil {
			return err
		}
		for n := purgeSlice; n == purgeSlice; {
			if n, err = deleteSlice(tx, tableRun, rec.ID[:]); err != nil {
				return err
			}
		}
		if err := tx.Delete(tableName, nameKey(rec.Account, rec.Config.Name)); err != nil {
			return err
		}
		if err := tx.Delete(tableState, rec.ID[:]); err != nil {
			return err
		}
		return tx.Delete(tableSource, rec.ID[:])
	})
	if err != nil {
		return fmt.Errorf("remove source: %w", err)
	}
	s.setFailing(rec.ID, false)
	s.nudge()
	return nil
}

// Sync asks for a run now. One that is queued already is the answer; one that is under way is followed by another, for
// its snapshot may be older than what the caller has changed. also runs in the same transaction.
func (s *Service) Sync(ctx context.Context, account, ref string, full bool, also func(kv.Tx, api.SourceRun) error) (out api.SourceRun, err error) {
	err = s.deps.DB.Update(ctx, func(tx kv.Tx) error {
		rec, err := find(tx, account, ref)
		if err != nil {
			return err
		}
		st, err := getState(tx, rec.ID)
		if err != nil {
			return err
		}
		now := s.now()
		queued := &api.SourceRun{Source: formatSource(rec.ID), State: "queued", Trigger: "api", QueuedAt: now}
		if !st.Queued.IsZero() {
			if queued, err = getRun(tx, rec.ID, st.Queued); err != nil {
				return err
			}
		} else {
			st.Queued = mail.NewQueueID(now)
			queued.ID = formatRun(st.Queued)
		}
		queued.Full = queued.Full || full
		if err := putRun(tx, rec.ID, st.Queued, queued); err != nil {
			return err
		}
		if err := st.put(tx, rec.ID); err != nil {
			return err
		}
		out = *queued
		if also != nil {
			return also(tx, out)
		}
		return nil
	})
	if err != nil {
		return out, fmt.Errorf("ask for a run: %w", err)
	}
	s.nudge()
	return out, nil
}

// Runs lists the runs of a source, newest first, and the cursor of the next page.
func (s *Service) Runs(ctx context.Context, account, ref, cursor string, limit int) (page []api.SourceRun, next string, err error) {
	if _, err = afterCursor(cursor); err != nil {
		return nil, "", err
	}
	end, _ := base64.RawURLEncoding.DecodeString(cursor)
	err = s.deps.DB.View(ctx, func(tx kv.Tx) error {
		page, next = nil, ""
		rec, err := find(tx, account, ref)
		if err != nil {
			return err
		}
		to := kv.PrefixEnd(rec.ID[:])
		if len(end) > 0 {
			to = runKey(rec.ID, id(end))
		}
		var keys []id // at most keptRuns and what is queued
		if err := tx.Scan(tableRun, rec.ID[:], to, func(k, _ []byte) (bool, error) {
			keys = append(keys, id(k[len(id{}):]))
			return true, nil
		}); err != nil {
			return err
		}
		slices.Reverse(keys)
		if len(keys) > limit {
			keys = keys[:limit]
			next = base64.RawURLEncoding.EncodeToString(keys[limit-1][:])
		}
		for _, k := range keys {
			r, err := getRun(tx, rec.ID, k)
			if err != nil {
				return err
			}
			page = append(page, *r)
		}
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("list runs of source: %w", err)
	}
	return page, next, nil
}

// OneRun returns one run.
func (s *Service) OneRun(ctx context.Context, account, ref, run string) (out api.SourceRun, err error) {
	err = s.deps.DB.View(ctx, func(tx kv.Tx) error {
		rec, err := find(tx, account, ref)
		if err != nil {
			return err
		}
		one, err := parseID(run, runPrefix)
		if err != nil {
			return err
		}
		r, err := getRun(tx, rec.ID, one)
		if err == nil {
			out = *r
		}
		return err
	})
	if err != nil {
		return out, fmt.Errorf("show run of source: %w", err)
	}
	return out, nil
}
