package smtpd

import (
	"bufio"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/account"
	"relayd/internal/kv"
)

// BenchmarkAcceptLatency tells how long a client waits for its 250 while relayd does half of what it can: durable, signed
// with both keys, after AUTH, on 20 connections. The same clients first find out how much that is, each sending as soon as
// it can; then messages are due at half of that rate, and what is measured is from the end of the data to the reply, and
// from when the message was due to the reply, so that no wait is left out. Limit: the first has a p99 under 20 ms on an
// idle machine. A busy one has another limit, its disk: what a group commit with nothing but the one write and fdatasync that
// a transaction of the store takes would make the same messages wait is measured beside it, in turns.
func BenchmarkAcceptLatency(b *testing.B) {
	line := strings.Repeat("x", 76) + "\r\n"
	for _, size := range []struct {
		name  string
		bytes int
	}{{"4KB", 4_000}, {"100KB", 100_000}} {
		b.Run(size.name, func(b *testing.B) {
			f, _ := openDoor(b, kv.BoltOptions{}, account.SignRequired)
			defer debug.SetGCPercent(debug.SetGCPercent(800)) // about as internal/app lets the heap of a small relay grow
			body := "From: a@example.com\r\nSubject: x\r\n\r\n" + strings.Repeat(line, size.bytes/len(line)) + ".\r\n"
			const conns = 20
			clients := make([]*client, conns)
			for i := range clients {
				conn, err := net.Dial("tcp", f.Addr(plain).String())
				require.NoError(b, err)
				defer conn.Close()
				c := &client{t: b, Conn: conn, r: bufio.NewReader(conn)}
				c.expect("220")
				c.cmd("EHLO x", "250")
				c.cmd("AUTH PLAIN "+plainIR("app", "secret"), "235")
				clients[i] = c
			}
			n := max(b.N, 2000)
			b.ResetTimer()
			began := time.Now()
			eachOf(clients, n, func(c *client, _ int) { c.accepted(b, body) })
			most := float64(n) / time.Since(began).Seconds()

			every := time.Duration(2 / most * float64(time.Second))
			accept, whole := make([]float64, n), make([]float64, n)
			bare := newBareCommit(b, size.bytes)
			alone := make([]float64, n)
			const rounds = 20
			var loaded time.Duration
			for round := range rounds {
				from, to := n*round/rounds, n*(round+1)/rounds
				loaded += onTime(clients, from, to, every, func(c *client, i int, due time.Time) {
					accept[i] = c.accepted(b, body)
					whole[i] = time.Since(due).Seconds()
				})
				onTime(clients, from, to, every, func(_ *client, i int, _ time.Time) { alone[i] = bare.wait() })
			}
			slices.Sort(accept)
			slices.Sort(whole)
			slices.Sort(alone)
			b.ReportMetric(most, "most/s")
			b.ReportMetric(float64(n)/loaded.Seconds(), "load/s")
			b.ReportMetric(1000*accept[n/2], "p50-ms")
			b.ReportMetric(1000*accept[n*99/100], "p99-ms")
			b.ReportMetric(1000*whole[n*99/100], "p99-from-due-ms")
			b.ReportMetric(1000*alone[n*99/100], "disk-p99-ms")
			b.ReportMetric(accept[n*99/100]/alone[n*99/100], "ratio")
			b.ReportMetric(20, "limit-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// eachOf hands the numbers below n to whichever client is free.
func eachOf(clients []*client, n int, fn func(c *client, i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				fn(c, i)
			}
		})
	}
	wg.Wait()
}

// accepted sends one message and returns the seconds from its end to the 250.
func (c *client) accepted(b *testing.B, body string) float64 {
	if _, err := c.Write(append(slices.Clip(transactionBytes), "DATA\r\n"...)); err != nil {
		b.Error(err)
		return 0
	}
	c.codes(b, "223")
	if _, err := c.Write([]byte(body)); err != nil {
		b.Error(err)
		return 0
	}
	sent := time.Now()
	c.codes(b, "2")
	return time.Since(sent).Seconds()
}

func (c *client) codes(b *testing.B, want string) {
	for _, code := range []byte(want) {
		if line, err := c.r.ReadSlice('\n'); err != nil || line[0] != code {
			b.Errorf("%q %v", line, err)
		}
	}
}

// bareCommit is what no store with group commit can be faster than: one write and one fdatasync, in a file that is large
// enough already; whoever waits when a commit begins shares it.
type bareCommit struct{ waiting chan chan struct{} }

func newBareCommit(b *testing.B, size int) *bareCommit {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "disk"))
	require.NoError(b, err)
	const room = 64 << 20
	_, err = f.Write(make([]byte, room))
	require.NoError(b, err)
	require.NoError(b, f.Sync())
	c := &bareCommit{make(chan chan struct{}, 1024)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer f.Close()
		at := int64(0)
		for first := range c.waiting {
			all := []chan struct{}{first}
			for n := len(c.waiting); n > 0; n-- {
				all = append(all, <-c.waiting)
			}
			octets := (size*len(all) + 4095) / 4096 * 4096
			if _, err := f.WriteAt(make([]byte, octets), at); err != nil {
				b.Error(err)
			}
			if err := syscall.Fdatasync(int(f.Fd())); err != nil {
				b.Error(err)
			}
			at = (at + int64(octets)) % (room / 2)
			for _, one := range all {
				close(one)
			}
		}
	}()
	b.Cleanup(func() {
		close(c.waiting)
		<-done
	})
	return c
}

// wait returns the seconds of one commit.
func (c *bareCommit) wait() float64 {
	began := time.Now()
	done := make(chan struct{})
	c.waiting <- done
	<-done
	return time.Since(began).Seconds()
}

// onTime runs fn for the numbers from one up to another, each when it is due, and returns how long that took.
func onTime(clients []*client, from, to int, every time.Duration, fn func(c *client, i int, due time.Time)) time.Duration {
	began := time.Now()
	eachOf(clients, to-from, func(c *client, i int) {
		due := began.Add(time.Duration(i) * every)
		<-time.After(time.Until(due))
		fn(c, from+i, due)
	})
	return time.Since(began)
}
