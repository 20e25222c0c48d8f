package spool

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// room is an engine with as much space as a test wants.
type room struct{ has kv.Space }

func (r *room) Space() (kv.Space, error) { return r.has, nil }

func newPressure(r *room, available *int64) *pressure {
	return &pressure{
		cfg:    Config{MinFreeBytes: 1000, MinMemoryBytes: 100, MaxCommitLatency: time.Second},
		disk:   r,
		memory: func() (int64, bool) { return *available, true },
	}
}

func TestFloorsCloseTheDoorAndOpenItAgain(t *testing.T) {
	t.Parallel()
	r := &room{kv.Space{Disk: 5000, Total: 100_000}}
	available := int64(500)
	p := newPressure(r, &available)
	now := time.Unix(1_000_000, 0)
	expect := func(reason string, changed bool) {
		t.Helper()
		now = now.Add(pressureEvery)
		got, turned := p.check(now)
		require.Equal(t, reason, got)
		require.Equal(t, changed, turned)
	}
	expect("", false)
	r.has.Disk = 900
	expect(PressureDisk, true)
	expect(PressureDisk, false)
	r.has.Inside = 110
	expect(PressureDisk, false) // a little above the floor is not enough
	r.has.Inside = 200          // deliveries have freed pages
	expect("", true)
	r.has.Disk = 0
	r.has.Total = 1000 // a small disk: a twentieth
	expect("", false)
	available = 99
	expect(PressureMemory, true)
	available = 99_999
	expect("", true)
	now = now.Add(-time.Hour) // a clock that is set back does not stop the watch
	r.has.Inside = 0
	expect(PressureDisk, true)
}

func TestFullDiskClosesTheDoorBeforeItIsMeasured(t *testing.T) {
	t.Parallel()
	available := int64(500)
	r := &room{kv.Space{Disk: 50_000, Total: 100_000}}
	now := time.Unix(1_000_000, 0)
	s := &Store{now: func() time.Time { return now }, log: slog.New(slog.DiscardHandler), queues: newQueueTable()}
	s.pressure = newPressure(r, &available)
	s.metrics = newMetrics(nil, s)
	require.NoError(t, s.Admit())
	other := errors.New("other")
	require.Equal(t, other, s.refusal(other))
	require.NoError(t, s.Admit())
	err := s.refusal(fmt.Errorf("commit: %w", kv.ErrNoSpace))
	require.ErrorIs(t, err, kv.ErrNoSpace)
	require.Equal(t, 452, mail.ReplyOf(err).Code)
	require.Equal(t, 452, mail.ReplyOf(s.Admit()).Code)
	now = now.Add(pressureEvery)
	require.NoError(t, s.Admit(), "there was room for something smaller")
	r.has.Disk = 2000 // near the floor: it is looked at often
	now = now.Add(pressureEvery)
	require.NoError(t, s.Admit())
	r.has.Disk = 10
	now = now.Add(pressureEvery / 20)
	require.Equal(t, 452, mail.ReplyOf(s.Admit()).Code)
}

func TestSlowCommitsCloseTheDoorForAWhile(t *testing.T) {
	t.Parallel()
	available := int64(500)
	p := newPressure(&room{kv.Space{Disk: 5000, Total: 100_000}}, &available)
	now := time.Unix(1_000_000, 0)
	commit := func(took time.Duration) {
		p.begin(now)
		p.end(now, took)
	}
	reason := func() string { got, _ := p.check(now); return got }
	for range 1000 {
		commit(time.Millisecond)
	}
	for range 10 {
		commit(2 * time.Second)
	}
	require.Empty(t, reason(), "1 in 101")
	commit(2 * time.Second)
	require.Equal(t, PressureLatency, reason())
	now = now.Add(latencyWindow * time.Second)
	require.Empty(t, reason())
	p.begin(now)
	require.Empty(t, reason())
	now = now.Add(2 * time.Second)
	require.Equal(t, PressureLatency, reason(), "none ends")
	p.end(now, 2*time.Second)
	require.Empty(t, reason(), "one slow commit is none")
}

func TestAdmitAnswersAsSMTPDoes(t *testing.T) {
	t.Parallel()
	r := &room{kv.Space{Disk: 1, Total: 100_000}}
	available := int64(500)
	p := newPressure(r, &available)
	s := &Store{now: time.Now, log: slog.New(slog.DiscardHandler), queues: newQueueTable()}
	s.pressure = p
	s.metrics = newMetrics(nil, s)
	var e *mail.Error
	require.ErrorAs(t, s.Admit(), &e)
	require.Equal(t, 452, e.Reply.Code)
	require.Equal(t, mail.Status{Class: 4, Subject: 3, Detail: 1}, e.Reply.Status)
	p.measured = time.Time{}
	r.has.Disk, available = 9000, 1
	require.ErrorAs(t, s.Admit(), &e)
	require.Equal(t, 451, e.Reply.Code)
	require.Equal(t, mail.Status{Class: 4, Subject: 3, Detail: 2}, e.Reply.Status)
	if n, ok := availableMemory(); ok {
		require.Positive(t, n)
	}
}
