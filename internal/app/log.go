package app

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"relayd/internal/config"
)

// NewLogger returns the operator log. cfg is checked already; an unknown level is info.
func NewLogger(w io.Writer, cfg config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		level = slog.LevelInfo
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(w, opts)
	if cfg.Format == "json" {
		h = slog.NewJSONHandler(w, opts)
	}
	if behind, ok := w.(*LogWriter); ok {
		h = prompt{h, behind}
	}
	return slog.New(h)
}

// prompt lets warnings and errors not wait for others.
type prompt struct {
	slog.Handler
	out *LogWriter
}

// Handle writes the record.
func (p prompt) Handle(ctx context.Context, r slog.Record) error {
	err := p.Handler.Handle(ctx, r)
	if r.Level >= slog.LevelWarn {
		p.out.hasten()
	}
	return err
}

// WithAttrs is that of slog.Handler.
func (p prompt) WithAttrs(attrs []slog.Attr) slog.Handler {
	return prompt{p.Handler.WithAttrs(attrs), p.out}
}

// WithGroup is that of slog.Handler.
func (p prompt) WithGroup(name string) slog.Handler { return prompt{p.Handler.WithGroup(name), p.out} }

// Bounds of what waits to be written to the log.
const (
	logDelay = 20 * time.Millisecond // records of that time share a write
	logMost  = 4 << 20               // bytes
)

// LogWriter writes records behind those who log: a reader that is slow or stuck takes no time from mail. What finds no
// room is dropped and counted, and the log says so. For concurrent use.
type LogWriter struct {
	to  io.Writer
	log *slog.Logger // straight to it

	mu      sync.Mutex
	waiting bytes.Buffer
	dropped int
	closed  bool

	wake  chan struct{}
	hurry chan struct{} // received: what waits is written at once
	done  chan struct{}
}

// NewLogWriter writes to w until Close. cfg is that of the records.
func NewLogWriter(w io.Writer, cfg config.Log) *LogWriter {
	l := &LogWriter{to: w, log: NewLogger(w, cfg), wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), done: make(chan struct{})}
	go l.run()
	return l
}

// Write takes one record. It never waits and never fails.
func (l *LogWriter) Write(record []byte) (int, error) {
	l.mu.Lock()
	switch {
	case l.closed:
		l.mu.Unlock()
		return l.to.Write(record)
	case l.waiting.Len()+len(record) > logMost:
		l.dropped++
	default:
		l.waiting.Write(record)
	}
	l.mu.Unlock()
	l.signal()
	return len(record), nil
}

func (l *LogWriter) signal() { notify(l.wake) }

// hasten ends the wait for more records.
func (l *LogWriter) hasten() { notify(l.hurry) }

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run writes what waits, a little later, so that many records share a write.
func (l *LogWriter) run() {
	defer close(l.done)
	var batch bytes.Buffer
	for range l.wake {
		select {
		case <-l.hurry:
		case <-time.After(logDelay):
		}
		l.mu.Lock()
		batch, l.waiting = l.waiting, batch
		dropped := l.dropped
		l.dropped = 0
		closed := l.closed
		l.mu.Unlock()
		_, _ = l.to.Write(batch.Bytes()) // who cannot be told of a log that fails?
		if dropped > 0 {
			l.log.Warn("log.dropped", "count", dropped)
		}
		batch.Reset()
		if closed {
			return
		}
	}
}

// Close writes what waits, for as long as the reader takes it, at most a second, and ends. Records that come later are
// written at once.
func (l *LogWriter) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.signal()
	l.hasten()
	select {
	case <-l.done:
	case <-time.After(time.Second):
	}
	return nil
}
