package delivery

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
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
