package spool

import (
	"cmp"
	"container/heap"
	"slices"
)

// StreamTop returns the largest queues of a stream or campaign, at most so many, the largest first, and the sum of the
// others. Sizes are those of what waits. It touches no disk and takes memory for what it returns only.
func (s *Store) StreamTop(stream string, most int) (top []QueueStat, rest QueueStat) {
	t := s.queues
	t.mu.Lock()
	h, paused := statHeap{}, !t.paused[stream].IsZero()
	add := func(sum, q *QueueStat) {
		sum.Ready += q.Ready
		sum.Deferred += q.Deferred
		sum.Held += q.Held
		sum.Leased += q.Leased
	}
	for q := range t.streams[stream] {
		one := QueueStat{
			Queue: q.name, Ready: max(0, q.count[inReady]), Deferred: max(0, q.count[inLater]), Held: max(0, q.count[inHeld]),
			Leased: max(0, q.count[inFlight]), Paused: paused,
		}
		switch {
		case len(h) < most:
			heap.Push(&h, one)
		case most > 0 && compareSize(&one, &h[0]) > 0:
			add(&rest, &h[0])
			h[0] = one
			heap.Fix(&h, 0)
		default:
			add(&rest, &one)
		}
	}
	t.mu.Unlock()
	slices.SortFunc(h, func(a, b QueueStat) int { return compareSize(&b, &a) })
	return h, rest
}

// compareSize orders queues by what waits in them, and those of one size by name, so that the same ones are always the
// largest.
func compareSize(a, b *QueueStat) int {
	return cmp.Or(cmp.Compare(a.Ready+a.Deferred+a.Held, b.Ready+b.Deferred+b.Held), cmp.Compare(b.Queue.Domain, a.Queue.Domain))
}

// statHeap has the smallest queue in front.
type statHeap []QueueStat

func (h statHeap) Len() int           { return len(h) }
func (h statHeap) Less(i, j int) bool { return compareSize(&h[i], &h[j]) < 0 }
func (h statHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push is for container/heap.
func (h *statHeap) Push(x any) { *h = append(*h, x.(QueueStat)) } //nolint:forcetypeassert // nothing else is pushed

// Pop is for container/heap.
func (h *statHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
