package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// screen shows how the demo goes on: a bar that is drawn over itself on a terminal, else lines now and then.
type screen struct {
	out      io.Writer // io.Discard with Options.JSON
	terminal bool
	drawn    bool // the bar stands on the current line
	last     time.Time
}

func newScreen(o Options) *screen {
	if o.JSON {
		return &screen{out: io.Discard}
	}
	s := &screen{out: o.Out}
	if f, ok := o.Out.(*os.File); ok {
		info, err := f.Stat()
		s.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return s
}

func (s *screen) line(format string, args ...any) {
	s.end()
	fmt.Fprintf(s.out, format+"\n", args...)
}

// end leaves the bar standing and goes to the next line.
func (s *screen) end() {
	if s.drawn {
		fmt.Fprintln(s.out)
		s.drawn = false
	}
}

const barWidth = 32

// bar draws the progress: at most ten times a second on a terminal, once a second elsewhere.
func (s *screen) bar(now time.Time, c Counts, recipients int, elapsed time.Duration, final bool) {
	every := time.Second
	if s.terminal {
		every = 100 * time.Millisecond
	}
	if !final && now.Sub(s.last) < every {
		return
	}
	s.last = now
	filled := min(c.Verified, recipients) * barWidth / max(recipients, 1)
	rate := float64(c.Verified) / max(elapsed.Seconds(), 0.001)
	text := fmt.Sprintf("  [%s%s] %d/%d delivered, %d verified  %.0f/s", strings.Repeat("#", filled),
		strings.Repeat("-", barWidth-filled), c.Recipients, recipients, c.Verified, rate)
	if !s.terminal {
		fmt.Fprintln(s.out, text)
		return
	}
	fmt.Fprint(s.out, "\r\x1b[K"+text)
	s.drawn = true
}
