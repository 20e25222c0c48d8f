package app

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// certificateWatch is how often the files are looked at.
const certificateWatch = 15 * time.Second

// certificate is the one of the SMTP listeners; it can be read again while they run.
type certificate struct {
	certFile, keyFile string
	current           atomic.Pointer[tls.Certificate]

	mu   sync.Mutex
	seen [2]fileMark // when it was last read, whether it was good or not
}

// fileMark tells one state of a file from another.
type fileMark struct {
	at   time.Time
	size int64
}

func markOf(file string) fileMark {
	info, err := os.Stat(file) // through links: programs that renew certificates swap them
	if err != nil {
		return fileMark{}
	}
	return fileMark{info.ModTime(), info.Size()}
}

func loadCertificate(certFile, keyFile string) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile}
	return c, c.reload()
}

// reload keeps the certificate in use when the files are not a good pair.
func (c *certificate) reload() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = [2]fileMark{markOf(c.certFile), markOf(c.keyFile)}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("load certificate %s: %w", c.certFile, err)
	}
	c.current.Store(&pair)
	return nil
}

func (c *certificate) get() *tls.Certificate { return c.current.Load() }

// changed tells whether the files are others than those that were read.
func (c *certificate) changed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen != [2]fileMark{markOf(c.certFile), markOf(c.keyFile)}
}

// watchCertificate reads the certificate again when its files have changed and have then rested for one look: both are
// seldom written at once.
func (a *App) watchCertificate(ctx context.Context) error {
	if a.certs == nil {
		return nil
	}
	tick := time.NewTicker(certificateWatch)
	defer tick.Stop()
	for resting := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		switch changed := a.certs.changed(); {
		case changed && resting:
			resting = false
			a.reloadCertificate()
		default:
			resting = changed
		}
	}
}
