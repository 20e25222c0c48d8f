package app

import (
	"context"
	"io"
	"net"
	"sync"

	"relayd/internal/config"
)

// Daemon is an App that runs in this process: for the demo, and for tests that want the whole.
type Daemon struct {
	app  *App
	stop context.CancelFunc
	done chan error
	once sync.Once
	err  error
}

// Start builds and runs an App from configuration text. ctx bounds the start only; the daemon runs until Close.
func Start(ctx context.Context, text string, options ...Option) (*Daemon, error) {
	cfg, err := config.Parse("configuration", []byte(text), nil)
	if err != nil {
		return nil, err
	}
	a, err := New(ctx, cfg, NewLogger(io.Discard, cfg.Log), options...)
	if err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	d := &Daemon{app: a, stop: stop, done: make(chan error, 1)}
	go func() { d.done <- a.Run(run) }()
	return d, nil
}

// SocketPath is the admin socket, with full rights.
func (d *Daemon) SocketPath() string { return d.app.SocketPath() }

// AdminURL is http://host:port of the HTTP API.
func (d *Daemon) AdminURL() string { return "http://" + d.app.admin.Addr().String() }

// SMTPAddr is the bound address of SMTP listener i.
func (d *Daemon) SMTPAddr(i int) net.Addr { return d.app.SMTPAddr(i) }

// Close stops the daemon gracefully and returns when it has stopped.
func (d *Daemon) Close() error {
	d.once.Do(func() {
		d.stop()
		d.err = <-d.done
		if err := d.app.Close(); d.err == nil {
			d.err = err
		}
	})
	return d.err
}
