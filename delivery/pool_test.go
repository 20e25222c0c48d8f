package delivery

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
)

// pipeSession is an open session whose other end reads until it is closed.
func pipeSession(t *testing.T) (*Session, *bool) {
	t.Helper()
	a, b := net.Pipe()
	closed := false
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, b)
		closed = true
		close(done)
	}()
	t.Cleanup(func() {
		_ = a.Close()
		<-done
	})
	return newSession(context.Background(), a, "mx", netip.AddrPort{}, DefaultTimeouts()), &closed
}

func TestPoolClosesIdleSessions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		p := newPool(cfg, time.Now)
		s, closed := pipeSession(t)
		p.put(home{site: "site", messages: 100}, s)
		require.Equal(t, time.Now().Add(cfg.IdleTimeout), p.reap())
		require.Nil(t, p.take("other"))
		require.Same(t, s, p.take("site"))
		p.put(home{site: "site", messages: 100}, s)
		<-time.After(cfg.IdleTimeout)
		require.Zero(t, p.reap())
		synctest.Wait()
		require.True(t, *closed)
		require.Nil(t, p.take("site"))
	})
}

func TestPoolTakesNoWornSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPool(DefaultConfig(), time.Now)
		for _, wear := range []func(*Session){func(s *Session) { s.broken = true }, func(s *Session) { s.sent = 100 }} {
			s, closed := pipeSession(t)
			wear(s)
			p.put(home{site: "site", messages: 100}, s)
			synctest.Wait()
			require.True(t, *closed)
		}
		s, closed := pipeSession(t)
		p.close()
		p.put(home{site: "site", messages: 100}, s)
		synctest.Wait()
		require.True(t, *closed)
		n, _ := p.size("site")
		require.Zero(t, n)
	})
}

func TestPoolEvictsTheOldestOfAnotherSite(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPool(DefaultConfig(), time.Now)
		a, _ := pipeSession(t)
		b, _ := pipeSession(t)
		p.put(home{site: "a", messages: 100}, a)
		<-time.After(time.Second)
		p.put(home{site: "b", messages: 100}, b)
		require.Same(t, b, p.evict("a"))
		require.Nil(t, p.evict("a"))
		require.Same(t, a, p.evict("b"))
		all, _ := p.size("")
		require.Zero(t, all)
		a.Close()
		b.Close()
	})
}

// counted is a network that counts the connections that we hold open.
type counted struct {
	network
	mu         sync.Mutex
	open, most int
}

func (c *counted) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := c.network.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open++
	c.most = max(c.most, c.open)
	return &countedConn{Conn: conn, of: c}, nil
}

type countedConn struct {
	net.Conn
	of   *counted
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() {
		c.of.mu.Lock()
		defer c.of.mu.Unlock()
		c.of.open--
	})
	return c.Conn.Close()
}

// TestIdleConnectionsCountForTheirProvider: sites of a provider whose connections are idle do not keep them beside those that
// another site opens, not even when it opens several at once.
func TestIdleConnectionsCountForTheirProvider(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mx := &testutil.MX{}
		mx.Received = func(*testutil.Mail) { <-time.After(time.Second) }
		r := googleRig(t, mx)
		count := &counted{network: r.network}
		r.network = count
		r.cfg.Limits.Provider = map[string]Limit{"google": {Connections: 10}}
		r.start()
		r.send("a@two.example")
		for range 18 {
			r.send("a@one.example")
		}
		<-time.After(4 * time.Second)
		require.Len(t, mx.Mails(), 19)
		idle, _ := r.sched.pool.size("")
		require.GreaterOrEqual(t, idle, 8, "idle")
		for range 30 {
			r.send("b@two.example")
		}
		<-time.After(10 * time.Second)
		require.Len(t, mx.Mails(), 49)
		require.Equal(t, 10, count.most)
	})
}
