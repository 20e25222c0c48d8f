package spool_test

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// modelEnvelope is what the plain model knows of a live envelope.
type modelEnvelope struct {
	id       mail.EnvelopeID
	queue    spool.Queue
	class    spool.Class
	to       mail.Path
	next     time.Time
	deferred bool
	held     bool
	lease    int // 0 for none
	attempts int
	inDoubt  int
	campaign string
	message  *spool.Message
	body     string
}

func (e *modelEnvelope) state() string {
	switch {
	case e.lease != 0:
		return "leased"
	case e.held:
		return "held"
	case e.deferred:
		return "deferred"
	}
	return "ready"
}

// model is the store as plain maps.
type model struct {
	t        *rapid.T
	f        *fixture
	live     map[mail.EnvelopeID]*modelEnvelope
	done     map[mail.EnvelopeID]spool.Outcome
	accepted int64
	leases   map[int]*spool.Lease
	lastID   int
	camps    map[string]*spool.Message
	paused   map[string]bool
}

var modelDomains = []string{"a.example", "b.example", "c.example"}

func (m *model) pickClass() spool.Class {
	return spool.Class(rapid.IntRange(0, 2).Draw(m.t, "class"))
}

func (m *model) pickDelay() time.Duration {
	return time.Duration(rapid.IntRange(0, 5).Draw(m.t, "delay")) * time.Second
}

func (m *model) address() string {
	return fmt.Sprintf("u%d@%s", rapid.IntRange(0, 9).Draw(m.t, "user"), rapid.SampledFrom(modelDomains).Draw(m.t, "domain"))
}

func (m *model) commit() {
	to := make([]string, rapid.IntRange(1, 4).Draw(m.t, "recipients"))
	for i := range to {
		to[i] = m.address()
	}
	msg, envs := m.f.message(to...)
	size := rapid.SampledFrom([]int{0, 1, 1000, 1000, 2000, 262143, 262144}).Draw(m.t, "size")
	body := string(bodyBytes[:size])
	w := m.f.NewBody(context.Background(), msg.ID)
	_, err := w.Write([]byte(body))
	require.NoError(m.t, err)
	require.Equal(m.t, int64(size), w.Size())
	if rapid.IntRange(0, 9).Draw(m.t, "abort") == 0 {
		w.Abort()
		return
	}
	var done []spool.Result
	for _, e := range envs {
		e.Class = m.pickClass()
		if e.NextAttempt = m.f.now().Add(m.pickDelay()); rapid.IntRange(0, 4).Draw(m.t, "done") == 0 {
			done = append(done, spool.Result{ID: e.ID, Outcome: spool.Suppressed})
		}
	}
	require.NoError(m.t, m.f.Commit(context.Background(), msg, w, envs, done))
	m.add(msg, envs, done, body)
}

func (m *model) add(msg *spool.Message, envs []*spool.Envelope, done []spool.Result, body string) {
	for _, e := range envs {
		if _, ok := m.done[e.ID]; ok || m.live[e.ID] != nil {
			require.True(m.t, e.Known())
			continue
		}
		require.False(m.t, e.Known())
		m.accepted++
		m.live[e.ID] = &modelEnvelope{
			id: e.ID, queue: e.Queue, class: e.Class, to: e.To, next: e.NextAttempt, deferred: e.NextAttempt.After(m.f.now()),
			campaign: msg.Campaign, message: msg, body: body,
		}
	}
	for _, r := range done {
		delete(m.live, r.ID)
		m.done[r.ID] = r.Outcome
	}
}

func (m *model) fanOut() {
	name := rapid.SampledFrom([]string{"cmp_1", "cmp_2"}).Draw(m.t, "campaign")
	to := make([]string, rapid.IntRange(1, 6).Draw(m.t, "page"))
	for i := range to {
		to[i] = m.address()
	}
	slices.Sort(to)
	to = slices.Compact(to)
	msg, envs := m.f.campaign(m.camps[name], name, to...)
	m.camps[name] = msg
	m.add(msg, envs, nil, "")
}

// queues are those with live envelopes, in a fixed order.
func (m *model) queues() []spool.Queue {
	seen := map[spool.Queue]bool{}
	var qs []spool.Queue
	for _, e := range m.live {
		if !seen[e.queue] {
			seen[e.queue] = true
			qs = append(qs, e.queue)
		}
	}
	slices.SortFunc(qs, func(a, b spool.Queue) int { return cmp.Compare(a.String(), b.String()) })
	return qs
}

func (m *model) sorted(keep func(*modelEnvelope) bool) []*modelEnvelope {
	var es []*modelEnvelope
	for _, e := range m.live {
		if keep(e) {
			es = append(es, e)
		}
	}
	slices.SortFunc(es, func(a, b *modelEnvelope) int {
		return cmp.Compare(string(a.id.AppendKey(nil)), string(b.id.AppendKey(nil)))
	})
	return es
}

func (m *model) lease() {
	qs := m.queues()
	if len(qs) == 0 {
		return
	}
	qs = rapid.SliceOfNDistinct(rapid.SampledFrom(qs), 1, len(qs), spool.Queue.String).Draw(m.t, "queues")
	most := rapid.IntRange(1, 8).Draw(m.t, "most")
	now := m.f.now()
	l, err := m.f.Lease(context.Background(), qs, now, most)
	require.NoError(m.t, err)
	var want []*modelEnvelope
	for class := range spool.Bulk + 1 {
		for i, q := range qs {
			left := most - len(want)
			due := m.sorted(func(e *modelEnvelope) bool {
				return e.queue == q && e.class == class && e.lease == 0 && !e.held && !e.next.After(now)
			})
			slices.SortStableFunc(due, func(a, b *modelEnvelope) int { return a.next.Compare(b.next) })
			share := (left + len(qs) - i - 1) / (len(qs) - i)
			want = append(want, due[:min(share, len(due))]...)
		}
	}
	require.Len(m.t, l.Envelopes, len(want))
	if len(want) == 0 {
		return
	}
	m.lastID++
	m.leases[m.lastID] = l
	for i, e := range l.Envelopes {
		w := want[i]
		require.Equal(m.t, w.id, e.ID)
		require.Equal(m.t, w.to, e.To)
		require.Equal(m.t, w.attempts, e.Attempts)
		require.Equal(m.t, w.inDoubt, e.InDoubt)
		require.Equal(m.t, w.message.Header, l.Messages[e.ID.Message].Header)
		w.lease = m.lastID
	}
}

func (m *model) pickLease() (int, *spool.Lease) {
	if len(m.leases) == 0 {
		return 0, nil
	}
	ids := make([]int, 0, len(m.leases))
	for id := range m.leases {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	id := rapid.SampledFrom(ids).Draw(m.t, "lease")
	return id, m.leases[id]
}

func (m *model) settle() {
	id, l := m.pickLease()
	if l == nil {
		return
	}
	var results []spool.Result
	lost := false
	for _, e := range l.Envelopes {
		if rapid.IntRange(0, 2).Draw(m.t, "skip") == 0 {
			continue
		}
		live := m.live[e.ID]
		if live == nil || live.lease != id {
			if rapid.IntRange(0, 5).Draw(m.t, "again") > 0 {
				continue
			}
			lost = true
		}
		results = append(results, spool.Result{
			ID: e.ID, Outcome: spool.Outcome(rapid.IntRange(0, 6).Draw(m.t, "outcome")), At: m.f.now(),
			Presented: rapid.Bool().Draw(m.t, "presented"), NextAttempt: m.f.now().Add(m.pickDelay()),
		})
	}
	err := m.f.Settle(context.Background(), l, results)
	if lost {
		require.ErrorIs(m.t, err, spool.ErrLeaseLost)
		return
	}
	require.NoError(m.t, err)
	for _, r := range results {
		e := m.live[r.ID]
		if r.Outcome != spool.Deferred {
			m.done[r.ID] = r.Outcome
			delete(m.live, r.ID)
			continue
		}
		if r.Presented {
			e.attempts++
		}
		e.lease, e.next, e.deferred = 0, r.NextAttempt, r.NextAttempt.After(m.f.now())
	}
}

func (m *model) release() {
	id, l := m.pickLease()
	if l == nil {
		return
	}
	next := m.f.now().Add(m.pickDelay())
	require.NoError(m.t, m.f.Release(context.Background(), l, next))
	for _, e := range m.live {
		if e.lease == id {
			e.lease, e.next, e.deferred = 0, next, next.After(m.f.now())
		}
	}
	delete(m.leases, id)
}

func (m *model) selector() (string, func(*modelEnvelope) bool) {
	switch rapid.IntRange(0, 5).Draw(m.t, "selector") {
	case 0:
		d := rapid.SampledFrom(modelDomains).Draw(m.t, "domain")
		return "domain=" + d, func(e *modelEnvelope) bool { return e.to.Domain == d }
	case 1:
		s := rapid.SampledFrom([]string{"ready", "deferred", "held", "leased"}).Draw(m.t, "state")
		return "state=" + s, func(e *modelEnvelope) bool { return e.state() == s }
	case 2:
		return "campaign=cmp_1", func(e *modelEnvelope) bool { return e.campaign == "cmp_1" }
	case 3:
		a := m.address()
		return "class=bulk to=" + a, func(e *modelEnvelope) bool { return e.class == spool.Bulk && e.to.String() == a }
	case 4:
		now := m.f.now()
		return "age>3s", func(e *modelEnvelope) bool { return now.Sub(e.message.AcceptedAt) > 3*time.Second }
	}
	return "", func(*modelEnvelope) bool { return true }
}

func (m *model) act() {
	text, match := m.selector()
	sel, err := spool.ParseSelector(text)
	require.NoError(m.t, err)
	action := rapid.SampledFrom([]spool.Action{
		spool.ActionHold, spool.ActionRelease, spool.ActionRetry, spool.ActionFail,
	}).Draw(m.t, "action")
	forecast, err := m.f.Act(context.Background(), action, sel, "op", "test", true)
	require.NoError(m.t, err)
	got, err := m.f.Act(context.Background(), action, sel, "op", "test", false)
	require.NoError(m.t, err)
	var want spool.ActResult
	for _, e := range m.sorted(match) {
		want.Matched++
		switch {
		case action == spool.ActionHold && !e.held:
			if e.held = true; e.lease != 0 {
				want.InFlight++
			} else {
				want.Changed++
			}
		case action == spool.ActionRelease && e.held:
			want.Changed++
			if e.held = false; e.lease == 0 {
				e.deferred = e.next.After(m.f.now())
			}
		case action == spool.ActionRetry && e.lease == 0 && !e.held && e.next.After(m.f.now()):
			want.Changed++
			e.next, e.deferred = m.f.now(), false
		case action == spool.ActionRetry && e.lease != 0, action == spool.ActionFail && e.lease != 0:
			want.InFlight++
		case action == spool.ActionFail:
			want.Changed++
			m.done[e.id] = spool.Failed
			delete(m.live, e.id)
		default:
			want.Unchanged++
		}
	}
	require.Equal(m.t, want, got, "%s %q", action, text)
	require.Equal(m.t, want, forecast, "dry run of %s %q", action, text)
}

func (m *model) cancel() {
	n, err := m.f.CancelCampaign(context.Background(), "cmp_2")
	require.NoError(m.t, err)
	want := m.sorted(func(e *modelEnvelope) bool { return e.campaign == "cmp_2" && e.lease == 0 })
	require.Equal(m.t, len(want), n)
	for _, e := range want {
		m.done[e.id] = spool.Cancelled
		delete(m.live, e.id)
	}
}

func (m *model) pause() {
	name := rapid.SampledFrom([]string{"cmp_1", "transactional"}).Draw(m.t, "stream")
	m.paused[name] = !m.paused[name]
	m.f.PauseStream(name, m.paused[name])
}

func (m *model) reopen() {
	m.f.reopen()
	in := 0
	for _, e := range m.live {
		if e.lease != 0 {
			in++
			e.lease, e.next, e.deferred = 0, m.f.now(), false
			e.inDoubt++
		}
	}
	require.Equal(m.t, in, m.f.InDoubt())
	clear(m.leases)
	clear(m.paused)
}

// check compares everything that can be asked.
func (m *model) check(*rapid.T) {
	m.checkCounts()
	m.checkListing()
	m.checkWakeUp()
	bodies, messages := 0, map[mail.QueueID]bool{}
	for _, e := range m.live {
		if messages[e.id.Message] || e.campaign != "" {
			continue
		}
		messages[e.id.Message] = true
		body, err := m.f.body(e.id.Message)
		require.NoError(m.t, err)
		require.Equal(m.t, e.body, body)
		bodies += max(1, (len(e.body)+32766)/32767)
	}
	require.Equal(m.t, bodies, m.f.records("body"), "bodies go with their last envelope")
	require.Equal(m.t, len(messages)+len(m.camps), m.f.records("message"))
	require.Zero(m.t, m.f.records("draft"))
	require.Equal(m.t, len(m.done), m.f.records("hooked"), "the hook runs in the settling transaction")
	require.Equal(m.t, len(m.done), m.f.records("outcome"))
}

func (m *model) checkCounts() {
	states := map[string]int64{}
	byQueue := map[spool.Queue]*spool.QueueStat{}
	for _, e := range m.live {
		states[e.state()]++
		q := byQueue[e.queue]
		if q == nil {
			q = &spool.QueueStat{Queue: e.queue, Oldest: e.message.AcceptedAt.Truncate(time.Minute), Paused: m.paused[e.queue.Stream]}
			byQueue[e.queue] = q
		}
		if at := e.message.AcceptedAt.Truncate(time.Minute); at.Before(q.Oldest) {
			q.Oldest = at
		}
		*map[string]*int{"ready": &q.Ready, "deferred": &q.Deferred, "held": &q.Held, "leased": &q.Leased}[e.state()]++
	}
	outcomes := map[string]int64{}
	for o := spool.Delivered; o <= spool.Cancelled; o++ {
		outcomes[o.String()] = 0
	}
	for _, o := range m.done {
		outcomes[o.String()]++
	}
	require.Equal(m.t, spool.Stats{
		Queued: int64(len(m.live)), Ready: states["ready"], Deferred: states["deferred"], Held: states["held"],
		Leased: states["leased"], Accepted: m.accepted, Outcomes: outcomes,
	}, m.f.stats())
	stats := m.f.QueueStats()
	require.Len(m.t, stats, len(byQueue))
	for _, s := range stats {
		s.NextDue = time.Time{}
		require.Equal(m.t, *byQueue[s.Queue], s)
	}
}

func (m *model) checkListing() {
	text, match := m.selector()
	want := m.sorted(match)
	got := m.f.list(text, rapid.IntRange(1, 7).Draw(m.t, "limit"))
	require.Len(m.t, got, len(want), text)
	for i, e := range want {
		require.Equal(m.t, e.id, got[i].Envelope.ID)
		require.Equal(m.t, e.state(), got[i].State.String())
		require.Equal(m.t, e.attempts, got[i].Envelope.Attempts)
		if e.lease == 0 {
			require.Equal(m.t, e.next, got[i].Envelope.NextAttempt)
		}
	}
}

// checkWakeUp requires that Take offers every queue with due work, and NextDue does not sleep past any.
func (m *model) checkWakeUp() {
	now := m.f.now()
	next := m.f.NextDue()
	taken := map[spool.Queue]bool{}
	queues := m.f.Take(now, 1000)
	for _, q := range queues {
		require.False(m.t, taken[q], "taken twice")
		require.False(m.t, m.paused[q.Stream], "paused")
		taken[q] = true
	}
	require.Empty(m.t, m.f.Take(now, 1000), "what is taken is not offered")
	for _, q := range queues {
		m.f.Return(q, time.Time{})
	}
	for _, e := range m.live {
		if e.lease != 0 || e.held || m.paused[e.queue.Stream] {
			continue
		}
		require.False(m.t, next.IsZero() || next.After(e.next), "next due %s, envelope due %s", next, e.next)
		require.True(m.t, e.next.After(now) || taken[e.queue], "due queue %s is not offered", e.queue)
	}
}

func TestStoreAgreesWithModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		f := &fixture{tb: t, path: filepath.Join(t.TempDir(), fmt.Sprintf("%d.db", time.Now().UnixNano()))}
		f.clock.Store(epoch.UnixNano())
		f.hook = func(tx kv.Tx, settled []spool.Settled) error {
			for _, s := range settled {
				if err := tx.Put("hooked", s.Envelope.ID.AppendKey(nil), []byte(s.Result.Outcome.String())); err != nil {
					return err
				}
			}
			return nil
		}
		f.open()
		defer func() { require.NoError(rt, f.db.Close()) }()
		m := &model{
			t: rt, f: f, live: map[mail.EnvelopeID]*modelEnvelope{}, done: map[mail.EnvelopeID]spool.Outcome{},
			leases: map[int]*spool.Lease{}, camps: map[string]*spool.Message{}, paused: map[string]bool{},
		}
		step := func(fn func()) func(*rapid.T) {
			return func(t *rapid.T) {
				m.t = t
				fn()
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"commit":  step(m.commit),
			"fan_out": step(m.fanOut),
			"lease":   step(m.lease),
			"settle":  step(m.settle),
			"release": step(m.release),
			"act":     step(m.act),
			"cancel":  step(m.cancel),
			"pause":   step(m.pause),
			"reopen":  step(m.reopen),
			"advance": step(func() { m.f.advance(m.pickDelay()) }),
			"":        func(t *rapid.T) { m.t = t; m.check(t) },
		})
	})
}
