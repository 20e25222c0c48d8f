package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
	"relayd/internal/resolver"
	"relayd/internal/resolver/resolvertest"
	"relayd/spool"
)

// This file measures delivery at scale: many destinations of which some are bad, far hosts, an urgent message beside a
// campaign. RELAYD_BENCH_MESSAGES raises the number of messages.

// amount is how many messages a benchmark of scale sends: RELAYD_BENCH_MESSAGES, or usual.
func amount(usual int) int {
	if n, err := strconv.Atoi(os.Getenv("RELAYD_BENCH_MESSAGES")); err == nil && n > 0 {
		return n
	}
	return usual
}

// listen serves a persona on a port of all loopback addresses.
func (p *persona) listen(b *testing.B) int {
	b.Helper()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	require.NoError(b, err)
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	p.began, p.firstSeen = time.Now(), map[string]time.Time{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				end := context.AfterFunc(ctx, func() { _ = c.Close() })
				defer end()
				p.serve(c)
			})
		}
	})
	b.Cleanup(func() {
		stop()
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// reaches returns a channel that is closed when the persona has taken so many messages. Call it before the persona serves.
func (p *persona) reaches(n int) <-chan struct{} {
	done := make(chan struct{})
	p.arrived = func(taken int) {
		if taken == n {
			close(done)
		}
	}
	return done
}

// scaleRig has a campaign's composer, a spool that syncs, and the defaults of the configuration.
func scaleRig(b *testing.B, res Resolver, n network) *rig {
	b.Helper()
	r := newRigOn(b, res)
	r.cfg.AllowPrivateMX = true
	r.cfg.Grace = time.Second
	r.deps.Log = slog.New(slog.DiscardHandler)
	text := strings.Repeat("Hello and good day to you\r\n", 20)
	r.deps.Composer = composeFunc(func(e *spool.Envelope) ([]byte, error) {
		return []byte("Subject: for " + e.To.Local + "\r\n\r\n" + text), nil
	})
	r.network = n
	return r
}

// fill queues n messages of a campaign, round the domains.
func (r *rig) fill(n int, class spool.Class, domains []string) {
	r.t.Helper()
	now := r.deps.Now()
	for at := 0; at < n; at += 1000 {
		id := mail.NewQueueID(now)
		m := &spool.Message{
			ID: id, Account: "default", Stream: "news", Campaign: "cmp_1", Class: class, AcceptedAt: now, ExpiresAt: now.Add(24 * time.Hour),
			ReversePath: mail.MustParsePath("news@sender.example"), MessageID: "<x@test.example>",
		}
		envs := make([]*spool.Envelope, min(1000, n-at))
		for i := range envs {
			d := domains[(at+i)%len(domains)]
			envs[i] = &spool.Envelope{
				ID: mail.EnvelopeID{Message: id, N: uint64(i)}, Queue: spool.Queue{Account: "default", Stream: "news", Domain: d},
				Class: class, To: mail.MustParsePath(fmt.Sprintf("u%d@%s", at+i, d)), NextAttempt: now,
			}
		}
		require.NoError(r.t, r.store.Commit(context.Background(), m, nil, envs, nil))
	}
}

// redirect leads each address to a port of the loopback network, or to nothing.
type redirect struct {
	ports map[string]int
}

// Ports of hosts that are dead.
const (
	refuses = 0
	silent  = -1
)

func (n redirect) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	switch port := n.ports[address]; port {
	case refuses:
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	case silent:
		ctx, cancel := context.WithTimeout(ctx, DefaultConfig().ConnectTimeout)
		defer cancel()
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
	default:
		host, _, _ := net.SplitHostPort(address)
		return (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	}
}

// mixture makes n destinations, of which a tenth is dead, half of it refusing and half silent, and a tenth throttles, half of
// it at once and half at each message. Without bad these are left out. It tells how many are healthy.
func mixture(n int, bad bool, good, busy, limited int) (fake *resolvertest.Fake, dial redirect, domains []string, healthy int) {
	fake = &resolvertest.Fake{MX: map[string][]resolver.MX{}, IP: map[string][]netip.Addr{}}
	dial = redirect{ports: map[string]int{}}
	for i := range n {
		port := good
		switch i % 20 {
		case 3:
			port = refuses
		case 9:
			port = silent
		case 11:
			port = busy
		case 17:
			port = limited
		default:
			healthy++
		}
		if port != good && !bad {
			continue
		}
		domain, host := fmt.Sprintf("d%d.example", i), fmt.Sprintf("mx.d%d.example", i)
		addr := netip.AddrFrom4([4]byte{127, byte(1 + i>>16), byte(i >> 8), byte(i)})
		fake.MX[domain], fake.IP[host] = []resolver.MX{{Host: host, Pref: 10}}, []netip.Addr{addr}
		dial.ports[netip.AddrPortFrom(addr, 25).String()] = port
		domains = append(domains, domain)
	}
	return fake, dial, domains, healthy
}

// BenchmarkManyDestinations sends ten messages to each of many destinations, of which a tenth is dead and a tenth throttles,
// and compares with the same work without those.
func BenchmarkManyDestinations(b *testing.B) {
	messages := amount(20_000)
	var rates [2]float64
	for i, name := range []string{"healthy", "and_dead_and_throttling"} {
		b.Run(name, func(b *testing.B) {
			rates[i] = benchDestinations(b, messages/10, i == 1)
			if i == 1 && rates[0] > 0 { // what the parent logs is not shown
				b.ReportMetric(rates[1]/rates[0], "of-healthy")
				b.Logf("%d messages to %d destinations: healthy ones at %.2f of the rate without the bad ones", messages, messages/10, rates[1]/rates[0])
			}
		})
	}
}

func benchDestinations(b *testing.B, n int, bad bool) float64 {
	good, busy, limited := &persona{host: "mx.good.example"}, &persona{host: "mx.busy.example"}, &persona{host: "mx.limited.example"}
	busy.connect = func(*persona, int) string { return "421 4.7.0 Too busy, come back later" }
	limited.mail = func(*persona, string) string { return "450 4.7.1 Too many messages, slow down" }
	fake, dial, domains, healthy := mixture(n, bad, good.listen(b), busy.listen(b), limited.listen(b))
	done := good.reaches(10 * healthy)
	r := scaleRig(b, fake, dial)
	r.fill(10*len(domains), spool.Bulk, domains)
	began := time.Now()
	r.start()
	<-done
	rate := float64(10*healthy) / time.Since(began).Seconds()
	b.ReportMetric(rate, "healthy/s")
	b.ReportMetric(0, "ns/op")
	return rate
}

// oneHost leads dest.example to a port.
func oneHost(port int) (*resolvertest.Fake, redirect) {
	return &resolvertest.Fake{
		MX: map[string][]resolver.MX{"dest.example": {{Host: "mx.dest.example", Pref: 10}}},
		IP: map[string][]netip.Addr{"mx.dest.example": {netip.MustParseAddr("127.0.0.1")}},
	}, redirect{ports: map[string]int{"127.0.0.1:25": port}}
}

// BenchmarkLatency measures how far many connections hide the latency of a host.
func BenchmarkLatency(b *testing.B) {
	const latency, connections, trips = 50 * time.Millisecond, 100, 2 // one pipeline up to DATA, and the final dot
	messages := amount(10_000)
	p := &persona{host: "mx.dest.example", latency: latency}
	done := p.reaches(messages)
	r := scaleRig(b, nil, nil)
	r.deps.Resolver, r.network = oneHost(p.listen(b))
	r.cfg.MaxConnectionsPerSite = connections
	r.fill(messages, spool.Transactional, []string{"dest.example"})
	began := time.Now()
	r.start()
	<-done
	rate := float64(messages) / time.Since(began).Seconds()
	limit := connections / (trips * latency.Seconds())
	b.ReportMetric(rate, "messages/s")
	b.ReportMetric(0, "ns/op")
	b.Logf("%.0f of %.0f messages/s that %d connections and %d round trips of %s allow: %.2f", rate, limit, connections, trips, latency, rate/limit)
}

// BenchmarkUrgent measures the time from the acceptance of an urgent message to its MAIL command at the host, while a
// campaign to the same site runs.
func BenchmarkUrgent(b *testing.B) {
	const codes, allowed = 300, 100 * time.Millisecond
	recipients := amount(100_000)
	arrived := make(chan time.Time, codes)
	p := &persona{host: "mx.dest.example", latency: 5 * time.Millisecond}
	p.mail = func(_ *persona, line string) string {
		if strings.Contains(line, "<code@") {
			arrived <- time.Now()
		}
		return ""
	}
	r := scaleRig(b, nil, nil)
	r.deps.Resolver, r.network = oneHost(p.listen(b))
	r.fill(recipients, spool.Bulk, []string{"dest.example"})
	running := p.reaches(500)
	r.start()
	<-running
	waits := make([]time.Duration, 0, codes)
	for range codes {
		r.submit(submission{from: "code@sender.example", to: []string{"code@dest.example"}, class: spool.Urgent, stream: "codes", size: 2000})
		accepted := time.Now()
		waits = append(waits, max(0, (<-arrived).Sub(accepted)))
	}
	left, err := r.store.Stats(context.Background())
	require.NoError(b, err)
	require.Positive(b, left.Queued, "the campaign must run all the time: raise RELAYD_BENCH_MESSAGES")
	r.shutdown()
	slices.Sort(waits)
	p99 := waits[len(waits)*99/100]
	b.ReportMetric(float64(p99.Microseconds())/1000, "p99-ms")
	b.ReportMetric(0, "ns/op")
	b.Logf("during a campaign of %d, %d left: MAIL after acceptance, median %s, p99 %s, of %s allowed: %.2f", recipients, left.Queued,
		waits[len(waits)/2], p99, allowed, p99.Seconds()/allowed.Seconds())
}
