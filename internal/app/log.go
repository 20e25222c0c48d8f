package app

import (
	"bytes"
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
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

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

	wake chan struct{}
	done chan struct{}
}

// NewLogWriter writes to w until Close. cfg is that of the records.
func NewLogWriter(w io.Writer, cfg config.Log) *LogWriter {
	l := &LogWriter{to: w, log: NewLogger(w, cfg), wake: make(chan struct{}, 1), done: make(chan struct{})}
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

func (l *LogWriter) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run writes what waits, a little later, so that many records share a write.
func (l *LogWriter) run() {
	defer close(l.done)
	var batch bytes.Buffer
	for range l.wake {
		l.mu.Lock()
		closed := l.closed
		l.mu.Unlock()
		if !closed {
			time.Sleep(logDelay)
		}
		l.mu.Lock()
		batch, l.waiting = l.waiting, batch
		dropped := l.dropped
		l.dropped, closed = 0, l.closed
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
	select {
	case <-l.done:
	case <-time.After(time.Second):
	}
	return nil
}
