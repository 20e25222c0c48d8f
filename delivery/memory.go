package delivery

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"strings"
	"sync"
	"time"

	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// tableSite keeps what must outlive the process: "h" and a site's or provider's name: an operator's suspension; "s" and a
// site's key: its pause and what was learned of it. A record is written when a state changes, never for a message.
const tableSite = kv.Table("site")

// memory is the durable part of what is known of sites. Safe for concurrent use.
type memory struct {
	db     kv.DB      // nil: nothing is kept
	events *event.Log // nil: nobody is told
	log    *slog.Logger
	now    func() time.Time

	mu     sync.Mutex
	holds  map[string]*Hold
	states map[string]*siteRecord // as read at the start, until the site is met
	dirty  map[string]*siteRecord // to be written
	busy   bool
	wg     sync.WaitGroup
}

// siteRecord is a governor at rest.
type siteRecord struct {
	At        time.Time
	Failures  int
	Paused    time.Time
	Resume    time.Time
	Cause     string
	Reply     mail.Reply
	Host      string
	Window    int
	Threshold int
	Pace      float64
	Complaint float64
}

// Bounds of what is kept.
const (
	maxRemembered = 50_000
	rememberFor   = 7 * 24 * time.Hour // since the last change
	maxSiteKey    = 1000               // bytes: a longer one is not kept
)

// newMemory reads what is kept. What is too old is removed; what cannot be read is an error.
func newMemory(db kv.DB, events *event.Log, log *slog.Logger, now func() time.Time) (*memory, error) {
	m := &memory{db: db, events: events, log: log, now: now, holds: map[string]*Hold{}, states: map[string]*siteRecord{}, dirty: map[string]*siteRecord{}}
	if db == nil {
		return m, nil
	}
	var old [][]byte
	err := db.View(context.Background(), func(tx kv.Tx) error {
		old = nil
		return tx.Scan(tableSite, nil, nil, func(k, v []byte) (bool, error) {
			gone, err := m.read(k, v)
			if gone {
				old = append(old, append([]byte(nil), k...))
			}
			return true, err
		})
	})
	if err == nil && len(old) > 0 {
		err = db.Update(context.Background(), func(tx kv.Tx) error {
			for _, k := range old {
				if err := tx.Delete(tableSite, k); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read sites: %w", err)
	}
	return m, nil
}

// read takes one record in and tells whether it is of no use any more.
func (m *memory) read(k, v []byte) (gone bool, err error) {
	if len(k) < 2 {
		return false, fmt.Errorf("key of %d bytes: %w", len(k), errRecord)
	}
	name := string(k[1:])
	switch k[0] {
	case 'h':
		h, err := decodeHold(v)
		if err != nil {
			return false, fmt.Errorf("suspension of %s: %w", name, err)
		}
		if !h.holds(m.now()) {
			return true, nil
		}
		m.holds[name] = h
	case 's':
		r, err := decodeSite(v)
		if err != nil {
			return false, fmt.Errorf("site %s: %w", name, err)
		}
		if ahead := r.At.Sub(m.now()); ahead > 0 { // the clock was set back: a pause is as long as it was
			for _, t := range []*time.Time{&r.At, &r.Paused, &r.Resume} {
				if !t.IsZero() {
					*t = t.Add(-ahead)
				}
			}
		}
		if m.now().Sub(later(r.At, r.Resume)) > rememberFor || len(m.states) >= maxRemembered {
			return true, nil
		}
		m.states[name] = r
	default:
		return false, fmt.Errorf("key %q: %w", k[:1], errRecord)
	}
	return false, nil
}

// held returns the operator's suspensions by name.
func (m *memory) held() map[string]*Hold {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.holds)
}

// setHold makes a suspension durable.
func (m *memory) setHold(ctx context.Context, name string, h *Hold) error {
	m.mu.Lock()
	full := len(m.holds) >= maxRemembered
	m.mu.Unlock()
	if full {
		return errors.New("too many sites are suspended")
	}
	if m.db != nil {
		err := m.db.Update(ctx, func(tx kv.Tx) error {
			if err := tx.Put(tableSite, append([]byte{'h'}, name...), encodeHold(h)); err != nil {
				return err
			}
			return m.tell(tx, "site.suspended", name, h)
		})
		if err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holds[name] = h
	return nil
}

// tell writes what an operator did to the event log.
func (m *memory) tell(tx kv.Tx, what, name string, h *Hold) error {
	if m.events == nil {
		return nil
	}
	data := map[string]any{"site": name, "who": h.Who}
	if !h.Until.IsZero() {
		data["until"] = h.Until.UTC().Format(time.RFC3339)
	}
	return m.events.Append(tx, event.Event{Type: what, At: m.now(), Reason: h.Reason, Data: data})
}

// dropHold ends a suspension for who, and tells whether there was one.
func (m *memory) dropHold(ctx context.Context, name string, by Hold) (bool, error) {
	m.mu.Lock()
	h := m.holds[name]
	m.mu.Unlock()
	if m.db != nil {
		err := m.db.Update(ctx, func(tx kv.Tx) error {
			if err := tx.Delete(tableSite, append([]byte{'h'}, name...)); err != nil {
				return err
			}
			return m.tell(tx, "site.resumed", name, &by)
		})
		if err != nil {
			return false, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.holds, name)
	return h.holds(m.now()), nil
}

// recall gives a new limiter of a site or provider what is known under key. The caller holds the scheduler's lock.
func (s *Scheduler) recall(l *limiter, key string) {
	l.key = key
	m := s.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	l.hold = m.holds[l.label()]
	r := m.dirty[key]
	if r == nil {
		r = m.states[key]
		delete(m.states, key)
	}
	if r == nil {
		return
	}
	g := l.gov
	g.failures, g.paused, g.resume, g.resumed, g.cause, g.reply, g.host = r.Failures, r.Paused, r.Resume, r.Resume, r.Cause, r.Reply, r.Host
	g.window, g.threshold = min(max(1, r.Window), g.ceiling), min(max(1, r.Threshold), g.ceiling)
	g.pace, g.complaint, g.grown = r.Pace, r.Complaint, s.now()
	if g.pace > 0 {
		g.hold()
	}
	if g.failures > 0 {
		s.suspended++
		s.metrics.suspended.Set(float64(s.suspended))
	}
}

// paused are the records of pauses that are not over, by key.
func (m *memory) paused(now time.Time) map[string]*siteRecord {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]*siteRecord{}
	for _, records := range []map[string]*siteRecord{m.states, m.dirty} { // the later one counts
		for key, r := range records {
			if delete(out, key); now.Before(r.Resume) {
				out[key] = r
			}
		}
	}
	return out
}

// nameOfKey is the name of a site of which only its key is known.
func nameOfKey(key string) string {
	name, _, _ := strings.Cut(siteName(strings.TrimPrefix(key, "smarthost ")), " ")
	return name
}

// record is what is kept of a governor.
func (g *governor) record(now time.Time) *siteRecord {
	return &siteRecord{
		At: now, Failures: g.failures, Paused: g.paused, Resume: g.resume, Cause: g.cause, Reply: g.reply, Host: g.host,
		Window: g.window, Threshold: g.threshold, Pace: g.pace, Complaint: g.complaint,
	}
}

// keep writes the state of a site or provider soon. The caller holds mu.
func (s *Scheduler) keep(l *limiter) {
	if s.memory.db != nil && len(l.key) <= maxSiteKey {
		s.memory.note(l.key, l.gov.record(s.now()))
	}
}

// keepAll writes what has changed without a change of state: paces that have grown, windows. It waits until all is written.
func (s *Scheduler) keepAll() {
	s.mu.Lock()
	for _, l := range s.providers {
		if l.gov.pace > 0 || l.gov.failures > 0 {
			s.keep(l)
		}
	}
	for _, st := range s.sites {
		if g := st.own.gov; g.pace > 0 || g.failures > 0 {
			s.keep(st.own)
		}
	}
	s.mu.Unlock()
	s.memory.wg.Wait()
}

// note queues a record for writing: the last one of a site counts.
func (m *memory) note(key string, r *siteRecord) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dirty[key] = r
	if !m.busy {
		m.busy = true
		m.wg.Go(m.write)
	}
}

// write makes durable what is queued, all at once, until nothing is. A failure loses what would be learned again.
func (m *memory) write() {
	for {
		m.mu.Lock()
		batch := maps.Clone(m.dirty)
		if len(batch) == 0 {
			m.busy = false
			m.mu.Unlock()
			return
		}
		m.mu.Unlock()
		err := m.db.Update(context.Background(), func(tx kv.Tx) error {
			for key, r := range batch {
				if err := tx.Put(tableSite, append([]byte{'s'}, key...), encodeSite(r)); err != nil {
					return err
				}
			}
			return nil
		})
		m.mu.Lock()
		for key, r := range batch {
			if m.dirty[key] == r {
				delete(m.dirty, key)
				if err == nil && len(m.states) < maxRemembered {
					m.states[key] = r // for a site that is forgotten and met again
				}
			}
		}
		m.mu.Unlock()
		if err != nil {
			m.log.Error("site.unsaved", "count", len(batch), "err", err)
		}
	}
}

// siteVersion is the first byte of both records.
const siteVersion = 1

var errRecord = errors.New("damaged record")

func encodeHold(h *Hold) []byte {
	b := []byte{siteVersion}
	b = appendMoment(appendMoment(b, h.Since), h.Until)
	return appendText(appendText(b, h.Who), h.Reason)
}

func decodeHold(v []byte) (*Hold, error) {
	d := newRecordReader(v)
	h := &Hold{Since: d.moment(), Until: d.moment(), Who: d.text(), Reason: d.text()}
	return h, d.end()
}

func encodeSite(r *siteRecord) []byte {
	b := []byte{siteVersion}
	b = appendMoment(b, r.At)
	b = binary.AppendVarint(b, int64(r.Failures))
	b = appendMoment(appendMoment(b, r.Paused), r.Resume)
	b = appendText(b, r.Cause)
	for _, n := range []int{r.Reply.Code, r.Reply.Status.Class, r.Reply.Status.Subject, r.Reply.Status.Detail} {
		b = binary.AppendVarint(b, int64(n))
	}
	b = appendText(appendText(b, r.Reply.Text), r.Host)
	b = binary.AppendVarint(binary.AppendVarint(b, int64(r.Window)), int64(r.Threshold))
	b = binary.BigEndian.AppendUint64(b, math.Float64bits(r.Pace))
	return binary.BigEndian.AppendUint64(b, math.Float64bits(r.Complaint))
}

func decodeSite(v []byte) (*siteRecord, error) {
	d := newRecordReader(v)
	r := &siteRecord{At: d.moment(), Failures: d.number(), Paused: d.moment(), Resume: d.moment(), Cause: d.text()}
	r.Reply = mail.Reply{Code: d.number(), Status: mail.Status{Class: d.number(), Subject: d.number(), Detail: d.number()}, Text: d.text()}
	r.Host, r.Window, r.Threshold = d.text(), d.number(), d.number()
	r.Pace, r.Complaint = d.float(), d.float()
	return r, d.end()
}

func appendMoment(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return binary.AppendVarint(b, 0)
	}
	return binary.AppendVarint(b, t.UnixNano())
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// recordReader reads fields until the first error, which it keeps.
type recordReader struct {
	b   []byte
	err error
}

func newRecordReader(v []byte) *recordReader {
	switch {
	case len(v) == 0:
		return &recordReader{err: errRecord}
	case v[0] != siteVersion:
		return &recordReader{err: fmt.Errorf("unknown version %d", v[0])}
	}
	return &recordReader{b: v[1:]}
}

func (d *recordReader) fail() {
	d.b = nil
	if d.err == nil {
		d.err = errRecord
	}
}

func (d *recordReader) varint() int64 {
	n, size := binary.Varint(d.b)
	if size <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[size:]
	return n
}

func (d *recordReader) number() int {
	n := d.varint()
	if n < 0 || n > math.MaxInt32 {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *recordReader) moment() time.Time {
	n := d.varint()
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

func (d *recordReader) text() string {
	n, size := binary.Uvarint(d.b)
	if size <= 0 || n > uint64(len(d.b)-size) {
		d.fail()
		return ""
	}
	s := string(d.b[size : size+int(n)]) //nolint:gosec // within the record
	d.b = d.b[size+int(n):]              //nolint:gosec // within the record
	return s
}

func (d *recordReader) float() float64 {
	if len(d.b) < 8 {
		d.fail()
		return 0
	}
	f := math.Float64frombits(binary.BigEndian.Uint64(d.b))
	d.b = d.b[8:]
	if math.IsNaN(f) || f < 0 || f > 1e9 {
		d.fail()
		return 0
	}
	return f
}

func (d *recordReader) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.err = errRecord
	}
	return d.err
}
