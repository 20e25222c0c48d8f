package demo

import (
	"context"
	"errors"
	"io"
)

// Limits of Options.
const (
	MaxRecipients = 100_000
	MaxSize       = 10 << 20
)

// ErrIncomplete tells that not every message arrived with both signatures verified; the summary was still printed.
var ErrIncomplete = errors.New("not everything was delivered and verified")

// Daemon is a running relayd as the demo sees it. internal/app satisfies it.
type Daemon interface {
	// SocketPath is the admin socket, with full rights.
	SocketPath() string
	// AdminURL is http://host:port of the HTTP API, without a final slash.
	AdminURL() string
	// Close stops the daemon gracefully and returns when it has stopped. It may be called twice.
	Close() error
}

// Start starts the daemon with a configuration in TOML and returns when its listeners are open. The daemon runs until
// Close; ctx bounds the start only.
type Start func(ctx context.Context, configTOML string) (Daemon, error)

// Options of a demo.
type Options struct {
	Recipients int   // subscribed customers, 1 to MaxRecipients; 0 means 200
	Size       int64 // octets of each message, at most MaxSize; 0 means 100,000
	Exit       bool  // end after the summary instead of staying up
	JSON       bool  // print one Summary object on Out and nothing else
	Out, Err   io.Writer
	Start      Start
}

// Run runs the demo. It returns ErrIncomplete when a message was not delivered or not verified, and other errors when
// the demo could not be set up. Without Options.Exit it stays up after the summary until ctx ends.
func Run(ctx context.Context, o Options) error {
	_ = ctx
	return errors.New("demo is not here yet")
}
