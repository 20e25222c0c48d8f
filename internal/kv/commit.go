package kv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// call is one Update that waits for its commit.
type call struct {
	fn    func(Tx) error
	state atomic.Int32
	done  chan error // capacity 1
}

// maxGather bounds how often gather yields.
const maxGather = 8

// The states of a call. The committer claims it, or its context gives it up, never both.
const (
	callWaiting = iota
	callClaimed
	callGivenUp
)

// Update runs fn in the next batch; see DB.
func (b *Bolt) Update(ctx context.Context, fn func(Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &call{fn: fn, done: make(chan error, 1)}
	b.mu.Lock()
	if err := b.refusal(); err != nil {
		b.mu.Unlock()
		return err
	}
	b.waiting = append(b.waiting, c)
	first := len(b.waiting) == 1
	b.mu.Unlock()
	if first {
		b.signal()
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		if c.state.CompareAndSwap(callWaiting, callGivenUp) {
			return ctx.Err()
		}
		return <-c.done // it is being committed: the answer is what counts
	}
}

// refusal tells why no Update can be taken. The caller holds mu.
func (b *Bolt) refusal() error {
	if b.closed {
		return ErrClosed
	}
	return b.failed
}

func (b *Bolt) signal() {
	select {
	case b.wake <- struct{}{}:
	default: // it is awake already
	}
}

// run is the committer. It ends after Close.
func (b *Bolt) run() {
	defer close(b.done)
	debug.SetPanicOnFault(true) // a damaged page is an error of the transaction that met it
	for {
		b.gather()
		full := b.keepUp()
		batch, refused := b.take()
		switch {
		case len(batch) == 0 && errors.Is(refused, ErrClosed):
			return
		case len(batch) == 0:
			select {
			case <-b.wake:
			case s := <-b.stills:
				b.stand(s)
			}
			continue
		case refused != nil:
			answer(batch, refused)
		case full != nil:
			answer(batch, full)
		default:
			b.putBack(b.commit(batch))
		}
		select {
		case s := <-b.stills:
			b.stand(s)
		default:
		}
	}
}

// gather lets goroutines that can run do so, as long as that brings more calls: what is about to ask for a commit shares
// this one. On an idle machine it costs nothing, on a busy one it makes fewer and larger commits of the same work.
func (b *Bolt) gather() {
	for seen, tries := 0, 0; tries < maxGather; tries++ {
		b.mu.Lock()
		n := len(b.waiting)
		b.mu.Unlock()
		if n == seen || n >= maxBatchCalls {
			return
		}
		seen = n
		runtime.Gosched()
	}
}

// take claims what waits, up to a batch, and tells why it must be refused instead, if it must.
func (b *Bolt) take() ([]*call, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(len(b.waiting), maxBatchCalls)
	batch := make([]*call, 0, n)
	for _, c := range b.waiting[:n] {
		if c.state.CompareAndSwap(callWaiting, callClaimed) {
			batch = append(batch, c)
		}
	}
	rest := copy(b.waiting, b.waiting[n:])
	clear(b.waiting[rest:])
	b.waiting = b.waiting[:rest]
	if len(batch) == 0 && rest > 0 { // all of them were given up
		b.signal()
	}
	return batch, b.refusal()
}

// putBack returns calls that found no room in the batch to the head of the line.
func (b *Bolt) putBack(calls []*call) {
	if len(calls) == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range calls {
		c.state.Store(callWaiting)
	}
	b.waiting = append(calls, b.waiting...)
}

// commit runs the functions in one transaction and answers them. It returns those that found no room. A function that
// fails after it has written makes the others start again without it.
func (b *Bolt) commit(batch []*call) (rest []*call) {
	start := time.Now()
	for turned := false; ; {
		t := b.beginUpdate()
		ran, rest, again := runBatch(t, batch)
		t.end()
		if again {
			batch = ran
			continue
		}
		if t.writes == 0 {
			answer(ran, nil)
			return rest
		}
		err := b.makeDurable(t)
		switch {
		case err == nil:
			b.publish(t.active)
		case errors.Is(err, ErrNoSpace) && !turned && b.empty(true) == nil: // there is room at the start of the other file
			turned = true
			batch = append(ran, rest...)
			continue
		case errors.Is(err, ErrNoSpace) && len(ran) > 1: // half of it needs less
			half := len(ran) / 2
			return append(append(b.commit(ran[:half]), b.commit(ran[half:])...), rest...)
		}
		b.metrics.observe(len(ran), t.bytes, time.Since(start), err)
		answer(ran, err)
		return rest
	}
}

// beginUpdate begins the transaction of a batch, on a copy of the active layer.
func (b *Bolt) beginUpdate() *tx {
	l := b.layers.Load()
	if cap(b.record.ops) > keepRecord {
		b.record = record{}
	}
	b.record.reset()
	return &tx{active: l.active.copy(), frozen: l.frozen, db: b.db, record: &b.record}
}

// keepRecord is the largest record whose memory is used again, in bytes.
const keepRecord = 1 << 20

// makeDurable writes the record of a transaction to the journal.
func (b *Bolt) makeDurable(t *tx) error {
	if err := b.journal.append(t.record); err != nil {
		return b.failure(err)
	}
	return nil
}

// publish lets everyone see what has become durable.
func (b *Bolt) publish(active *layer) {
	b.mu.Lock()
	now := *b.layers.Load()
	now.active = active
	b.layers.Store(&now)
	b.mu.Unlock()
	if b.journal.next == 1 {
		b.age(now.epoch)
	}
}

// runBatch runs calls until the transaction is full; rest are those it did not come to. A call that fails is answered
// and left out of ran. When it had written before it failed, the transaction is spoilt: again is true, and ran holds
// every other call, to be run anew.
func runBatch(t *tx, batch []*call) (ran, rest []*call, again bool) {
	ran = make([]*call, 0, len(batch))
	for i, c := range batch {
		before := t.writes
		err := protect(func() error { return c.fn(t) })
		if err != nil {
			c.done <- err
			if t.writes != before {
				return append(ran, batch[i+1:]...), nil, true
			}
			continue
		}
		ran = append(ran, c)
		if t.bytes >= maxBatchBytes {
			return ran, batch[i+1:], false
		}
	}
	return ran, nil, false
}

// failure decides what a failed commit means. A full disk met while pages were written harms this batch only: nothing
// refers to them. Everything else, above all a failed fdatasync, after which the kernel may have dropped the pages and
// will not tell again, ends writing for good.
func (b *Bolt) failure(err error) error {
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) && isNoSpace(pathErr.Err) ||
		strings.HasPrefix(err.Error(), "file resize error") {
		return fmt.Errorf("commit: %w: %w", ErrNoSpace, err)
	}
	b.mu.Lock()
	first := b.failed == nil
	if first {
		b.failed = fmt.Errorf("%w: %w", ErrStorageFailed, err)
	}
	err = b.failed
	b.mu.Unlock()
	if first && b.onFail != nil {
		b.onFail(err)
	}
	return err
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

func answer(calls []*call, err error) {
	for _, c := range calls {
		c.done <- err
	}
}
