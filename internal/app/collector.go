package app

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
)

// heapFloor is how large the heap may grow, in bytes, before the collector has to run. A relay that has little to
// remember makes a lot of short-lived garbage: at Go's default it would collect every few megabytes, hundreds of times
// a second, and give pages back that it needs again at once.
const heapFloor = 64 << 20

// collector keeps the garbage collector from running before the heap has reached heapFloor. Above it Go's default
// holds: the heap may double.
type collector struct {
	percent atomic.Int64 // last set
	stopped atomic.Bool
}

// TuneCollector sets the pace of the garbage collector for a daemon, after each collection anew, until stop is called.
// An operator's GOGC wins.
func TuneCollector() (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	c := &collector{}
	c.percent.Store(100)
	c.set()
	c.watch()
	return func() {
		c.stopped.Store(true)
		debug.SetGCPercent(100)
	}
}

// watch comes back after the next collection.
func (c *collector) watch() {
	mark := &struct{ _ [16]byte }{}
	runtime.AddCleanup(mark, func(c *collector) {
		if c.stopped.Load() {
			return
		}
		c.set()
		c.watch()
	}, c)
}

// set brings the percentage in line with what the last collection found.
func (c *collector) set() {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	metrics.Read(sample)
	want := pace(sample[0].Value.Uint64(), sample[1].Value.Uint64()+sample[2].Value.Uint64())
	if old := c.percent.Load(); want > old+old/10 || want < old-old/10 { // setting it stops the world for a moment
		c.percent.Store(want)
		debug.SetGCPercent(int(want))
	}
}

// goMinimum is the heap in bytes below which Go does not collect at 100 percent; it grows with the percentage.
const goMinimum = 4 << 20

// pace is the percentage at which a heap of live bytes may grow to heapFloor, or by 100 where that is more. The
// percentage is of live and of what else the collector scans.
func pace(live, scanned uint64) int64 {
	if live >= heapFloor/2 {
		return 100
	}
	percent := (heapFloor - live) * 100 / max(live+scanned, 1)
	return int64(min(max(100, percent), heapFloor/goMinimum*100)) //nolint:gosec // small
}
