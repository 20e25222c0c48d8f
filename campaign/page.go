package campaign

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// pacer lets recipients become due at a rate. It is full at the start of a process: what a crash forgets is a fraction of a
// second's worth.
type pacer struct {
	rate   float64
	tokens float64
	at     time.Time
}

// burstTime is how much may become due at once after a rest.
const burstTime = 200 * time.Millisecond

// room tells how many may become due now, most at a time. A change of the rate takes effect at once.
func (p *pacer) room(now time.Time, rate float64, most int) int {
	if rate <= 0 {
		p.rate = 0
		return most
	}
	burst := max(1, rate*burstTime.Seconds())
	switch {
	case p.rate != rate:
		p.rate, p.tokens = rate, 1
	default:
		p.tokens = min(burst, p.tokens+rate*now.Sub(p.at).Seconds())
	}
	p.at = now
	return min(most, int(p.tokens))
}

// wait is the time until there is room for one, or better for a few hundredths of a second's worth.
func (p *pacer) wait() time.Duration {
	if p.rate == 0 || p.tokens >= 1 {
		return 0
	}
	need := max(1-p.tokens, 0) / p.rate
	return max(time.Duration(need*float64(time.Second)), minPace)
}

// minPace bounds how often a paced campaign commits a page.
const minPace = 20 * time.Millisecond

// paging is one page of the fan-out.
type paging struct {
	s     *Service
	r     *record
	plan  plan
	now   time.Time
	room  int    // envelopes that may be made
	after uint64 // rows below have been placed

	page *intake.Page
	took intake.Reservation // of the account's quota, nil for none
	next time.Time          // when the first of those that wait for their time is due; zero: none waits
	full bool               // there is more to do at once
}

// page moves one page of recipients into the spool. Reading the page, its envelopes, their early suppression, the
// deletion of the rows and the counters are one transaction: whatever happens, each recipient is in exactly one place.
func (s *Service) page(ctx context.Context, id mail.QueueID) (time.Duration, error) {
	s.mu.Lock()
	j := s.jobs[id]
	if j == nil {
		s.mu.Unlock()
		return idleWait, nil
	}
	now := s.now()
	room := j.pace.room(now, j.rate, s.cfg.PageSize)
	after, wait := j.after, j.pace.wait()
	s.mu.Unlock()
	if room == 0 {
		return wait, nil
	}
	p, err := s.turn(ctx, id, now, room, after)
	for over, is := errors.AsType[*overQuota](err); is; over, is = errors.AsType[*overQuota](err) { // the page is larger than what is left of the account's day
		if over.left == 0 {
			return 0, s.pauseOver(ctx, id)
		}
		p, err = s.turn(ctx, id, now, int(over.left), after)
	}
	if err != nil {
		return failedWait, fmt.Errorf("fan out: %w", err)
	}
	if p.page == nil || p.r.State != Running || p.r.Queued {
		defer s.follow(p.r)
	}
	if p.page == nil {
		return 0, nil
	}
	n := len(p.page.Recipients)
	if n > 0 {
		s.intake.PageAdded(p.page)
	}
	s.metrics.queued.Add(float64(n))
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[id]; j != nil {
		j.after, j.next = p.after, p.next
		j.pace.tokens -= float64(n)
		wait = j.pace.wait()
	}
	if p.r.Queued {
		s.log.Info("campaign.queued", "campaign", formatID(id), "account", p.r.Account)
	}
	switch {
	case p.full || p.r.Queued:
		return wait, nil
	case !p.next.IsZero():
		return max(min(p.next.Sub(now), idleWait), wait, 0), nil
	}
	return wait, nil
}

// turn is the transaction of one page.
func (s *Service) turn(ctx context.Context, id mail.QueueID, now time.Time, room int, after uint64) (*paging, error) {
	var p *paging
	err := s.db.Update(ctx, func(tx kv.Tx) error {
		if p != nil {
			p.release24() // it runs again
		}
		r, err := getRecord(tx, id)
		p = &paging{s: s, r: r, now: now, room: room, after: after}
		if err != nil || r.State != Running || r.Queued {
			return err
		}
		return p.run(tx)
	})
	if err != nil {
		p.release24()
	}
	return p, err
}

// run places rows: those whose time has come, then those that were not looked at yet.
func (p *paging) run(tx kv.Tx) error {
	s, r := p.s, p.r
	p.plan = r.layout()
	p.page = s.newPage(r)
	if !p.plan.trivial() {
		if err := p.release(tx); err != nil {
			return err
		}
	}
	placed := r.Placed
	if !r.Placed {
		var err error
		if placed, err = p.place(tx); err != nil {
			return err
		}
	}
	if err := s.change(tx, r.ID, func(t *tally) { t.queued += int64(len(p.page.Recipients)) }); err != nil {
		return err
	}
	if len(p.page.Recipients) > 0 {
		if err := s.intake.PageTx(tx, p.page); err != nil {
			return fmt.Errorf("queue page: %w", err)
		}
		if err := p.reserve(tx); err != nil {
			return err
		}
	}
	if placed && !p.plan.trivial() {
		if err := p.look(tx); err != nil {
			return err
		}
	}
	if placed == r.Placed && (!placed || p.full || !p.next.IsZero()) {
		return nil
	}
	r, err := getRecord(tx, r.ID) // outcomes of the page may have changed it
	if err != nil {
		return err
	}
	r.Placed, r.Queued = placed, placed && !p.full && p.next.IsZero()
	p.r = r
	if err := r.put(tx); err != nil || !r.Queued {
		return err
	}
	if err := s.complete(tx, r.ID); err != nil {
		return err
	}
	p.r, err = getRecord(tx, r.ID)
	return err
}

// add makes an envelope of a row to be.
func (p *paging) add(tx kv.Tx, row *row) error {
	p.page.Recipients = append(p.page.Recipients, intake.PageRecipient{To: row.to, N: row.n, Data: snapshot(p.now, row.data)})
	if err := tx.Delete(tableRecipient, recipientKey(p.r.ID, row.n)); err != nil {
		return fmt.Errorf("remove queued recipient: %w", err)
	}
	return nil
}

// release takes the rows whose time has come.
func (p *paging) release(tx kv.Tx) error {
	id := p.r.ID
	var keys, at [][]byte
	most := p.room
	err := tx.Scan(tableLater, id[:], laterKey(id, p.now.Unix(), math.MaxUint64), func(k, _ []byte) (bool, error) {
		if len(keys) == most {
			p.full = true
			return false, nil
		}
		keys = append(keys, append([]byte(nil), k...))
		at = append(at, recipientKey(id, binary.BigEndian.Uint64(k[20:])))
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("read scheduled recipients: %w", err)
	}
	values, err := tx.GetMany(tableRecipient, at)
	if err != nil {
		return fmt.Errorf("read scheduled recipients: %w", err)
	}
	for i, v := range values {
		if err := tx.Delete(tableLater, keys[i]); err != nil {
			return fmt.Errorf("remove scheduled recipient: %w", err)
		}
		if v == nil {
			continue
		}
		rec, data, err := decodeRecipient(string(v))
		if err != nil {
			return err
		}
		if err := p.add(tx, &row{rec, binary.BigEndian.Uint64(at[i][12:]), data}); err != nil {
			return err
		}
	}
	p.room -= len(keys)
	return nil
}

// minLook is how many rows are looked at at least where many may get a time of their own.
const minLook = 500

// place looks at rows for the first time: each becomes an envelope, or gets its time.
func (p *paging) place(tx kv.Tx) (done bool, err error) {
	most := min(p.s.cfg.PageSize, max(p.room, 1))
	if !p.plan.trivial() {
		most = min(p.s.cfg.PageSize, max(p.room, minLook))
	}
	rows, err := scanRecipients(tx, p.r.ID, p.after, most)
	if err != nil {
		return false, err
	}
	for i := range rows {
		row := &rows[i]
		if row.unsubscribed {
			if err := tx.Delete(tableRecipient, recipientKey(p.r.ID, row.n)); err != nil {
				return false, fmt.Errorf("remove unsubscribed recipient: %w", err)
			}
			p.after = row.n + 1
			continue
		}
		due, err := p.due(row)
		if err != nil {
			return false, err
		}
		if due.After(p.now) {
			if err := tx.Put(tableLater, laterKey(p.r.ID, ceilSecond(due), row.n), []byte{recordVersion}); err != nil {
				return false, fmt.Errorf("schedule recipient: %w", err)
			}
			p.after = row.n + 1
			continue
		}
		if p.room == 0 {
			p.full = true
			return false, nil
		}
		p.room--
		if err := p.add(tx, row); err != nil {
			return false, err
		}
		p.after = row.n + 1
	}
	if len(rows) == most {
		p.full = true
		return false, nil
	}
	return true, nil
}

// due is when a row is to be sent to.
func (p *paging) due(row *row) (time.Time, error) {
	if p.plan.trivial() || p.r.Retries > 0 && p.plan.quiet == nil {
		return p.now, nil
	}
	var loc *time.Location
	if !p.plan.local.IsZero() || p.plan.quiet != nil {
		attributes, err := readAttributes(make([]attribute, 0, 8), row.data)
		if err != nil {
			return time.Time{}, err
		}
		loc = p.s.zones.zoneOf(attributes)
	}
	if p.r.Retries > 0 { // its place in the plan is long over
		return p.plan.quiet.after(p.now, loc), nil
	}
	at := p.plan.due(row.n, loc)
	if p.plan.quiet != nil && !at.After(p.now) {
		at = p.plan.quiet.after(p.now, loc)
	}
	return at, nil
}

// look finds the first of those that wait for their time.
func (p *paging) look(tx kv.Tx) error {
	id := p.r.ID
	p.next = time.Time{}
	err := tx.Scan(tableLater, id[:], kv.PrefixEnd(id[:]), func(k, _ []byte) (bool, error) {
		p.next = time.Unix(int64(binary.BigEndian.Uint64(k[12:])), 0) //nolint:gosec // written from a time
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("read scheduled recipients: %w", err)
	}
	return nil
}

func laterKey(id mail.QueueID, at int64, n uint64) []byte {
	b := binary.BigEndian.AppendUint64(append(make([]byte, 0, 28), id[:]...), uint64(max(at, 0))) //nolint:gosec // not negative
	return binary.BigEndian.AppendUint64(b, n)
}

func ceilSecond(t time.Time) int64 { return t.Add(time.Second - 1).Unix() }

// newPage makes the page that intake takes, without recipients.
func (s *Service) newPage(r *record) *intake.Page {
	m := &spool.Message{
		ID: r.ID, Account: r.Account, Stream: formatID(r.ID), Campaign: formatID(r.ID), Class: spool.Bulk,
		ReversePath: r.Reverse, Subject: r.Subject, AcceptedAt: r.Started, ExpiresAt: r.expires(), Keep: true,
	}
	if p := r.Send.Retry; p != nil {
		m.Retry = spool.RetryPolicy{
			Attempts: p.MaxAttempts, First: time.Duration(p.IntervalSeconds) * time.Second, Multiplier: p.BackoffRate,
			MaxAge: time.Duration(r.Send.TTLSeconds) * time.Second,
		}
	}
	return &intake.Page{Message: m}
}
