package spool

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// The reasons for which nothing new is taken for a while. What is queued is delivered, and removed, all the same.
const (
	PressureDisk    = "disk"    // less free space than Config.MinFreeBytes
	PressureMemory  = "memory"  // less available memory than Config.MinMemoryBytes
	PressureLatency = "latency" // commits take longer than Config.MaxCommitLatency
)

// Pressures returns every reason.
func Pressures() []string { return []string{PressureDisk, PressureMemory, PressureLatency} }

// measurer is the ability of an engine to tell what room is left.
type measurer interface{ Space() (kv.Space, error) }

// How often disk and memory are measured, what commits are looked at, and how many of them must be slow.
const (
	pressureEvery = 500 * time.Millisecond
	latencyWindow = 10 // seconds
	minSlow       = 3
)

// pressure watches what the store needs to take more.
type pressure struct {
	cfg    Config
	disk   measurer // nil: unknown
	memory func() (available int64, known bool)

	mu       sync.Mutex
	measured time.Time
	free     int64
	total    int64
	avail    int64
	known    bool // avail
	seconds  [latencyWindow]struct {
		second  int64
		n, slow int
	}
	running  int       // commits
	progress time.Time // when the last commit ended, or the first of those that run began
	closed   string    // reason in force, "" for none
}

// begin notes that a commit begins.
func (p *pressure) begin(now time.Time) {
	p.mu.Lock()
	if p.running++; p.running == 1 {
		p.progress = now
	}
	p.mu.Unlock()
}

// end notes how long a commit took.
func (p *pressure) end(now time.Time, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	p.progress = now
	b := &p.seconds[now.Unix()%latencyWindow]
	if b.second != now.Unix() {
		b.second, b.n, b.slow = now.Unix(), 0, 0
	}
	b.n++
	if took > p.cfg.MaxCommitLatency {
		b.slow++
	}
}

// check returns the reason in force, and whether it has just changed.
func (p *pressure) check(now time.Time) (reason string, changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	every := pressureEvery
	if p.disk != nil && p.free < 4*p.floor() { // a few writes more, and it is too late
		every /= 20
	}
	if since := now.Sub(p.measured); since >= every || since < 0 {
		p.measured = now
		p.measure()
	}
	switch {
	case p.lacks(p.free, p.floor(), p.disk != nil, PressureDisk):
		reason = PressureDisk
	case p.lacks(p.avail, p.cfg.MinMemoryBytes, p.known, PressureMemory):
		reason = PressureMemory
	case p.slow(now):
		reason = PressureLatency
	}
	changed = reason != p.closed
	p.closed = reason
	return reason, changed
}

func (p *pressure) measure() {
	if p.disk != nil {
		if s, err := p.disk.Space(); err == nil { // what cannot be measured stays as it was
			p.free, p.total = s.Disk+s.Inside, s.Total
		}
	}
	p.avail, p.known = p.memory()
}

// exhausted notes that the engine found no space, before a measurement told.
func (p *pressure) exhausted(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.measured, p.free = now, 0
}

// floor is what must be free on disk: on a small file system a twentieth of it.
func (p *pressure) floor() int64 {
	if p.cfg.MinFreeBytes == 0 || p.total == 0 {
		return p.cfg.MinFreeBytes
	}
	return min(p.cfg.MinFreeBytes, p.total/20)
}

// lacks compares with a floor. What was below it must rise a little above, or the door would swing.
func (p *pressure) lacks(have, floor int64, known bool, reason string) bool {
	if p.closed == reason {
		floor += floor / 16
	}
	return known && floor > 0 && have < floor
}

// slow tells that more than one commit in a hundred takes too long, or that none ends.
func (p *pressure) slow(now time.Time) bool {
	if p.cfg.MaxCommitLatency <= 0 {
		return false
	}
	n, slow := 0, 0
	for i := range p.seconds {
		if b := &p.seconds[i]; now.Unix()-b.second < latencyWindow && now.Unix() >= b.second {
			n += b.n
			slow += b.slow
		}
	}
	return slow >= minSlow && slow*100 > n || p.running > 0 && now.Sub(p.progress) > p.cfg.MaxCommitLatency
}

// Pressure returns why nothing new should be taken now, "" when there is no reason.
func (s *Store) Pressure() string {
	reason, changed := s.pressure.check(s.now())
	switch {
	case !changed:
	case reason == "":
		s.log.Info("admission.opened")
	default:
		s.log.Warn("admission.closed", "reason", reason)
	}
	return reason
}

// Admit refuses a new message while there is too little of something. The error is a *mail.Error: 452 4.3.1 for the
// disk, 451 4.3.2 for the rest.
func (s *Store) Admit() error {
	reason := s.Pressure()
	if reason == "" {
		return nil
	}
	s.metrics.refused.WithLabelValues(reason).Inc()
	e := &mail.Error{Reply: mail.Reply{
		Code: 451, Status: mail.Status{Class: 4, Subject: 3, Detail: 2}, Text: "Too much load, try again later",
	}}
	if reason == PressureDisk {
		e.Reply = noStorage()
	}
	return e
}

// noStorage is RFC 3463 section 3.4: mail system full.
func noStorage() mail.Reply {
	return mail.Reply{Code: 452, Status: mail.Status{Class: 4, Subject: 3, Detail: 1}, Text: "Insufficient storage, try again later"}
}

// refusal gives the error of a full disk its reply, and closes the door at once.
func (s *Store) refusal(err error) error {
	if !errors.Is(err, kv.ErrNoSpace) {
		return err
	}
	s.pressure.exhausted(s.now())
	return &mail.Error{Reply: noStorage(), Err: err}
}

// room is for metrics.
func (p *pressure) room() (free, avail int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.free, p.avail
}

// availableMemory is what this process can still get before something is killed: of the machine, and of its control
// group (cgroup v2), the lesser. It is not known outside Linux.
func availableMemory() (int64, bool) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	available := int64(-1)
	if i := bytes.Index(text, []byte("MemAvailable:")); i >= 0 {
		fields := strings.Fields(string(text[i:min(len(text), i+64)]))
		if n, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
			available = n << 10
		}
	}
	if left, ok := groupMemory(); ok && (available < 0 || left < available) {
		available = left
	}
	return available, available >= 0
}

// groupMemory is what the control group still allows; file pages that nobody uses are free for the asking.
func groupMemory() (int64, bool) {
	const root = "/sys/fs/cgroup"
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0, false
	}
	_, path, ok := strings.Cut(string(text), "0::")
	if !ok {
		return 0, false
	}
	path, _, _ = strings.Cut(path, "\n")
	dir := filepath.Join(root, path)
	limit, ok1 := readNumber(filepath.Join(dir, "memory.max"))
	current, ok2 := readNumber(filepath.Join(dir, "memory.current"))
	if !ok1 || !ok2 {
		return 0, false
	}
	return limit - current + fileMemory(filepath.Join(dir, "memory.stat")), true
}

func readNumber(file string) (int64, bool) {
	b, err := os.ReadFile(file) //nolint:gosec // below /sys
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n, err == nil // "max": no limit
}

func fileMemory(file string) (sum int64) {
	f, err := os.Open(file) //nolint:gosec // below /sys
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if name == "inactive_file" || name == "active_file" {
			n, _ := strconv.ParseInt(value, 10, 64)
			sum += n
		}
	}
	return sum
}
