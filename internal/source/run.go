package source

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

const (
	pageBytes   = 16 << 20 // of one page; what is more waits for the next one
	todoSlice   = 500
	missSlice   = 500
	scanSlice   = 2000
	keptRuns    = 100
	maxWarnings = 10
	longestWait = time.Hour // between tries of a source that fails
)

// run is one run of one source.
type run struct {
	s       *Service
	rec     *record
	id      id
	list    contact.ListID
	space   space
	mark    *mark
	until   *moment // of the run before
	zone    *time.Location
	full    bool
	first   bool          // nothing was read to its end yet
	report  api.SourceRun // what is durable of it
	session *session
	plan    *plan
	bound   moment   // rows changed later wait for the next run
	seen    []uint64 // hashes of the keys of a full pass
}

// begin takes the source for a run.
func (s *Service) begin(ctx context.Context, source id) (*run, error) {
	r := &run{s: s}
	err := s.deps.DB.Update(ctx, func(tx kv.Tx) error {
		*r = run{s: s}
		var err error
		if r.rec, err = getRecord(tx, source); err != nil {
			return err
		}
		st, err := getState(tx, source)
		if err != nil {
			return err
		}
		now := s.now()
		if !st.due(now) {
			return errNotDue
		}
		full := r.rec.Config.FullResync
		r.id, r.report = st.Queued, api.SourceRun{Trigger: "schedule", QueuedAt: now}
		if r.id.IsZero() {
			r.id = mail.NewQueueID(now)
			r.report.Full = full != nil && full.EverySeconds > 0 && !st.FullAt.IsZero() &&
				!now.Before(st.FullAt.Add(seconds(full.EverySeconds)))
		} else if queued, err := getRun(tx, source, r.id); err == nil {
			r.report = *queued
		} else if !errors.Is(err, ErrNotFound) {
			return err
		}
		r.zone, _ = parseZone(r.rec.Config.SourceTimezone)
		r.full = r.report.Full
		r.report.ID, r.report.Source, r.report.State, r.report.StartedAt = formatRun(r.id), formatSource(source), "running", &now
		r.report.From = st.Mark.api(r.zone)
		r.report.To = r.report.From
		r.mark, r.until, r.space = st.Mark, st.Until, spaceOf(source, st.Epoch)
		r.first = st.FullAt.IsZero()
		st.Running, st.Queued = r.id, id{}
		if err := putRun(tx, source, r.id, &r.report); err != nil {
			return err
		}
		return st.put(tx, source)
	})
	if err != nil {
		return nil, fmt.Errorf("begin run of source: %w", err)
	}
	return r, nil
}

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }

// do reads the source. Whatever it returns, what was read before the error is durable with its watermark.
func (r *run) do(ctx context.Context) error {
	if err := r.findList(ctx); err != nil {
		return err
	}
	dsn, err := readRef(r.rec.Config.DSNRef, r.s.deps.Env)
	if err != nil {
		return err
	}
	if r.session, err = openSession(ctx, r.rec.Config.Driver, dsn); err != nil {
		return err
	}
	defer r.session.close()
	if r.plan, err = look(ctx, r.session, &r.rec.Config); err != nil {
		return err
	}
	clock := r.zone
	if r.plan.u.zoned {
		clock = nil
	}
	r.bound = momentOf(r.session.now.time(nil).Add(-seconds(r.rec.Config.SafetyLagSeconds)), clock)
	if r.mark != nil && r.mark.Zoned != r.plan.u.zoned { // the column became another one
		r.mark, r.until = nil, nil
	}
	if err := r.readAgain(ctx); err != nil {
		return err
	}
	if r.full {
		if err := r.readAll(ctx); err != nil {
			return err
		}
	}
	if err := r.readChanges(ctx); err != nil {
		return err
	}
	if err := r.countFuture(ctx); err != nil { // everything is read: what it would add is a number
		r.warn("rows of the future could not be counted: " + err.Error())
	}
	return nil
}

// findList resolves the list's name. Another list than last time is filled anew.
func (r *run) findList(ctx context.Context) error {
	return r.s.deps.DB.Update(ctx, func(tx kv.Tx) error {
		st, err := r.stateTx(tx)
		if err != nil {
			return err
		}
		l, err := r.s.deps.Contacts.ListTx(tx, r.rec.Account, r.rec.Config.List)
		if errors.Is(err, contact.ErrNotFound) {
			return fmt.Errorf("the list %q does not exist", r.rec.Config.List)
		}
		if err != nil {
			return fmt.Errorf("look up list: %w", err)
		}
		r.list = l.ID
		if st.List == id(l.ID) {
			return nil
		}
		if !st.List.IsZero() {
			if err := st.restart(tx, r.rec.ID); err != nil {
				return err
			}
			r.mark, r.until, r.space, r.first = nil, nil, spaceOf(r.rec.ID, st.Epoch), true
		}
		st.List = id(l.ID)
		return st.put(tx, r.rec.ID)
	})
}

// restart forgets all that was read.
func (st *state) restart(tx kv.Tx, source id) error {
	if err := tx.Put(tablePurge, spaceOf(source, st.Epoch), []byte{recordVersion}); err != nil {
		return err
	}
	st.Epoch++
	st.Mark, st.Until, st.FullAt, st.List = nil, nil, time.Time{}, id{}
	return nil
}

// lower is where the run begins: the watermark, less the overlap. A clock that went back takes the place back with it.
func (r *run) lower() (from string, at *mark) {
	if r.mark == nil {
		return r.plan.d.earliest(), nil
	}
	low := min(r.mark.U, r.bound)
	if r.until != nil {
		low = min(low, *r.until)
	}
	if r.plan.lookback == 0 && low == r.mark.U {
		return "", r.mark
	}
	return low.add(-r.plan.lookback).sql(), nil
}

// readChanges reads what changed, in pages by (updated_at, key), up to the bound.
func (r *run) readChanges(ctx context.Context) error {
	from, at := r.lower()
	for {
		text, args, width := r.plan.changes(from, at, r.bound)
		rows, more, err := r.fetch(ctx, text, args, width)
		if err != nil {
			return fmt.Errorf("read changes: %w", err)
		}
		if len(rows) == 0 {
			break
		}
		last := &rows[len(rows)-1]
		if !last.hasAt || last.at > r.bound || at != nil && at.U == last.at && at.K == last.key {
			return fmt.Errorf("the order of (updated_at, key) does not advance behind the key %q", mail.CleanText(last.key, 100))
		}
		at = &mark{U: last.at, K: last.key, Zoned: r.plan.u.zoned}
		b := &batch{rows: rows}
		if r.mark == nil || r.mark.U <= at.U {
			b.mark = at
		}
		if err := r.commit(ctx, b); err != nil {
			return err
		}
		if err := r.readAgain(ctx); err != nil {
			return err
		}
		if !more {
			break
		}
	}
	return nil
}

// fetch reads one page; more tells that there may be another.
func (r *run) fetch(ctx context.Context, text string, args []any, width int) (rows []row, more bool, err error) {
	size := 0
	err = r.session.query(ctx, text, args, width, func(cells []sql.NullString) (bool, error) {
		for _, c := range cells {
			size += len(c.String)
		}
		rows = append(rows, r.plan.row(cells))
		more = size >= pageBytes
		return !more, nil
	})
	return rows, more || len(rows) >= r.rec.Config.PageSize, err
}

// readAgain reads the rows that got an address back: by their keys, in the snapshot of the run.
func (r *run) readAgain(ctx context.Context) error {
	for {
		var keys []string
		err := r.s.deps.DB.View(ctx, func(tx kv.Tx) error {
			keys = nil
			return tx.Scan(tableTodo, r.space, kv.PrefixEnd(r.space), func(k, _ []byte) (bool, error) {
				keys = append(keys, string(k[len(r.space):]))
				return len(keys) < todoSlice, nil
			})
		})
		if err != nil {
			return fmt.Errorf("look for rows to read again: %w", err)
		}
		if len(keys) == 0 {
			return nil
		}
		text, args, width := r.plan.some(keys)
		b := &batch{force: true, uncounted: true, done: keys}
		err = r.session.query(ctx, text, args, width, func(cells []sql.NullString) (bool, error) {
			b.rows = append(b.rows, r.plan.row(cells))
			return true, nil
		})
		if err != nil {
			return fmt.Errorf("read rows by their keys: %w", err)
		}
		for _, k := range keys {
			if !slices.ContainsFunc(b.rows, func(x row) bool { return x.key == k }) {
				b.gone = append(b.gone, k)
			}
		}
		if err := r.commit(ctx, b); err != nil {
			return err
		}
	}
}

// countFuture counts rows that say that they change later than now: they wait until then, or for a full run.
func (r *run) countFuture(ctx context.Context) error {
	clock := r.zone
	if r.plan.u.zoned {
		clock = nil
	}
	now := momentOf(r.session.now.time(nil), clock)
	return r.session.query(ctx, r.plan.count("> "+r.plan.d.param(1, r.plan.u)), []any{now.sql()}, 1, func(cells []sql.NullString) (bool, error) {
		var n int64
		if _, err := fmt.Sscan(cells[0].String, &n); err != nil {
			return false, err
		}
		r.report.Future = n
		return false, nil
	})
}

func (r *run) warn(text string) {
	if len(r.report.Warnings) < maxWarnings {
		r.report.Warnings = append(r.report.Warnings, text)
	}
}

// end writes how the run ended and when the next one is due.
func (r *run) end(ctx context.Context, failure error) {
	s := r.s
	now := s.now()
	r.report.State, r.report.FinishedAt = "completed", &now
	r.report.Seconds = math.Round(now.Sub(*r.report.StartedAt).Seconds()*1000) / 1000
	stopped := failure != nil && ctx.Err() != nil
	if failure != nil {
		if stopped {
			failure = errInterrupted
		}
		r.report.State, r.report.Error = "failed", mail.CleanText(strings.Join(strings.Fields(failure.Error()), " "), 1000)
	}
	changed := errors.Is(failure, errSuperseded) || errors.Is(failure, ErrNotFound)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dialTimeout)
	defer cancel()
	err := s.deps.DB.Update(ctx, func(tx kv.Tx) error {
		st, err := getState(tx, r.rec.ID)
		if errors.Is(err, ErrNotFound) || err == nil && st.Running != r.id {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		rec, err := getRecord(tx, r.rec.ID)
		if err != nil {
			return err
		}
		st.Running, st.Last, st.Error = id{}, r.id, r.report.Error
		switch {
		case failure == nil:
			st.Failures, st.Until = 0, &r.bound
			if r.full || st.FullAt.IsZero() {
				st.FullAt = *r.report.StartedAt
			}
		case !stopped && !changed:
			st.Failures++
		}
		st.NextAt = st.next(&rec.Config, *r.report.StartedAt, now, stopped || changed)
		if stopped || changed {
			if err := st.askAgain(tx, r.rec.ID, &r.report, now); err != nil {
				return err
			}
		}
		if err := putRun(tx, r.rec.ID, r.id, &r.report); err != nil {
			return err
		}
		if err := forgetRuns(tx, r.rec.ID); err != nil {
			return err
		}
		if failure != nil && !stopped && !changed {
			if err := s.deps.Events.Append(tx, event.Event{
				Type: "source.failed", At: now, Account: r.rec.Account, Reason: r.report.Error,
				Data: map[string]any{"source": formatSource(r.rec.ID), "name": rec.Config.Name, "run": r.report.ID},
			}); err != nil {
				return err
			}
		}
		return st.put(tx, r.rec.ID)
	})
	if err != nil {
		s.log.Error("source.stalled", "source", formatSource(r.rec.ID), "err", err)
	}
	s.finished(r, failure, stopped || changed)
}

// next is when a source is due again.
func (st *state) next(c *api.SourceConfig, started, now time.Time, again bool) time.Time {
	every := seconds(c.Schedule.EverySeconds)
	full := time.Duration(0)
	if c.FullResync != nil {
		full = seconds(c.FullResync.EverySeconds)
	}
	if every == 0 && full == 0 {
		return time.Time{}
	}
	if again {
		return now
	}
	if st.Failures > 0 {
		wait := every
		if wait == 0 {
			wait = time.Minute
		}
		return now.Add(max(wait, min(wait<<min(st.Failures, 6), longestWait)))
	}
	at := time.Time{}
	if every > 0 {
		at = started.Add(every)
	}
	if full > 0 && !st.FullAt.IsZero() {
		if due := st.FullAt.Add(full); at.IsZero() || due.Before(at) {
			at = due
		}
	}
	if at.Before(now) {
		at = now
	}
	return at
}

// askAgain queues a run in place of one that was cut off, where no schedule brings it.
func (st *state) askAgain(tx kv.Tx, source id, cut *api.SourceRun, now time.Time) error {
	if !st.NextAt.IsZero() || !st.Queued.IsZero() {
		return nil
	}
	at := now
	if earliest := cut.QueuedAt.Add(time.Millisecond); at.Before(earliest) { // IDs of one millisecond have no order
		at = earliest
	}
	st.Queued = mail.NewQueueID(at)
	return putRun(tx, source, st.Queued, &api.SourceRun{
		ID: formatRun(st.Queued), Source: cut.Source, State: "queued", Trigger: cut.Trigger, Full: cut.Full, QueuedAt: now,
	})
}

// forgetRuns keeps the newest runs.
func forgetRuns(tx kv.Tx, source id) error {
	var keys [][]byte
	err := tx.Scan(tableRun, source[:], kv.PrefixEnd(source[:]), func(k, _ []byte) (bool, error) {
		keys = append(keys, bytes.Clone(k))
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("read runs of source: %w", err)
	}
	for len(keys) > keptRuns {
		if err := tx.Delete(tableRun, keys[0]); err != nil {
			return err
		}
		keys = keys[1:]
	}
	return nil
}
