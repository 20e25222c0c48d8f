package smtpd

import (
	"bufio"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
// idle machine. How long the disk alone takes for a durable write is measured beside it: on a busy one that is the limit.
func BenchmarkAcceptLatency(b *testing.B) {
	line := strings.Repeat("x", 76) + "\r\n"
	for _, size := range []struct {
		name  string
		bytes int
	}{{"4KB", 4_000}, {"100KB", 100_000}} {
		b.Run(size.name, func(b *testing.B) {
			f, _ := openDoor(b, kv.BoltOptions{}, account.SignRequired)
			body := "From: a@example.com\r\nSubject: x\r\n\r\n" + strings.Repeat(line, size.bytes/len(line)) + ".\r\n"
			const conns = 20
			clients := make([]*client, conns)
			for i := range clients {
				conn, err := net.Dial("tcp", f.Addr(plain).String())
				require.NoError(b, err)
				defer conn.Close()
				c := &client{b, conn, bufio.NewReader(conn)}
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
			began = time.Now()
			eachOf(clients, n, func(c *client, i int) {
				due := began.Add(time.Duration(i) * every)
				<-time.After(time.Until(due))
				accept[i] = c.accepted(b, body)
				whole[i] = time.Since(due).Seconds()
			})
			disk := fdatasyncs(b, 200)
			slices.Sort(accept)
			slices.Sort(whole)
			b.ReportMetric(most, "most/s")
			b.ReportMetric(float64(n)/time.Since(began).Seconds(), "load/s")
			b.ReportMetric(1000*accept[n/2], "p50-ms")
			b.ReportMetric(1000*accept[n*99/100], "p99-ms")
			b.ReportMetric(1000*whole[n*99/100], "p99-from-due-ms")
			b.ReportMetric(1000*disk[len(disk)*99/100], "disk-p99-ms")
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

// fdatasyncs measures n durable writes of 8 KB, in seconds, sorted.
func fdatasyncs(b *testing.B, n int) []float64 {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "disk"))
	require.NoError(b, err)
	defer f.Close()
	took := make([]float64, n)
	for i := range took {
		began := time.Now()
		_, err := f.Write(make([]byte, 8192))
		require.NoError(b, err)
		require.NoError(b, f.Sync())
		took[i] = time.Since(began).Seconds()
	}
	slices.Sort(took)
	return took
}
