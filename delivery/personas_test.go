package delivery

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"relayd/internal/resolver"
	"relayd/internal/resolver/resolvertest"
)

// persona is a receiver as the world has them, with what it hides.
type persona struct {
	name    string
	domain  string
	host    string
	latency time.Duration // of each reply, or of the replies to one pipeline
	most    int           // messages over one connection, then it closes; 0: any number
	offered float64       // messages per second that we have for it
	// capacity is how many messages per second it takes at most, for what we offer and may do.
	capacity float64

	down    func(now time.Time) bool             // connections are refused
	connect func(p *persona, open int) string    // the greeting, "" for 220
	mail    func(p *persona, line string) string // the reply to MAIL, "" for 250
	rcpt    func(p *persona, addr string) string // and to RCPT
	arrived func(taken int)                      // told of each message, under the lock

	mu        sync.Mutex
	open      int
	mostOpen  int
	sessions  int
	refused   int // replies 4yz
	taken     int
	recent    []time.Time // when messages were taken, for limits by rate
	penalty   time.Time
	firstSeen map[string]time.Time
	hourly    []int
	began     time.Time
}

// within counts what was taken in the last d. The caller holds mu.
func (p *persona) within(d time.Duration) int {
	from := time.Now().Add(-d)
	i := 0
	for i < len(p.recent) && p.recent[i].Before(from) {
		i++
	}
	p.recent = p.recent[i:]
	return len(p.recent)
}

// took notes a message. The caller holds mu.
func (p *persona) took() {
	p.taken++
	now := time.Now()
	p.recent = append(p.recent, now)
	if len(p.recent) > 10_000 { // nobody asks for the old ones
		p.recent = p.recent[5_000:]
	}
	hour := int(now.Sub(p.began) / time.Hour)
	for len(p.hourly) <= hour {
		p.hourly = append(p.hourly, 0)
	}
	p.hourly[hour]++
	if p.arrived != nil {
		p.arrived(p.taken)
	}
}

// say asks a rule under the lock and counts refusals.
func (p *persona) say(usual string, rule func() string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	reply := ""
	if rule != nil {
		reply = rule()
	}
	if reply == "" {
		return usual
	}
	if reply[0] == '4' {
		p.refused++
	}
	return reply
}

// serve speaks SMTP on one connection.
func (p *persona) serve(c net.Conn) {
	p.mu.Lock()
	p.sessions++
	p.open++
	p.mostOpen = max(p.mostOpen, p.open)
	open := p.open
	p.mu.Unlock()
	defer func() {
		_ = c.Close()
		p.mu.Lock()
		p.open--
		p.mu.Unlock()
	}()
	r, w := bufio.NewReaderSize(c, 32<<10), bufio.NewWriter(c)
	greeting := p.say("220 "+p.host, func() string {
		if p.connect == nil {
			return ""
		}
		return p.connect(p, open)
	})
	if p.send(w, greeting) != nil || greeting[0] != '2' {
		return
	}
	messages := 0
	for {
		if r.Buffered() == 0 && w.Buffered() > 0 && p.send(w, "") != nil {
			return
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		reply := "250 ok"
		switch strings.ToUpper(verb) {
		case "EHLO":
			reply = "250-" + p.host + "\r\n250-PIPELINING\r\n250 8BITMIME"
		case "MAIL":
			reply = p.say(reply, func() string {
				if p.mail == nil {
					return ""
				}
				return p.mail(p, line)
			})
		case "RCPT":
			reply = p.say(reply, func() string {
				if p.rcpt == nil {
					return ""
				}
				return p.rcpt(p, line)
			})
			if reply[0] != '2' { // the DATA that is on its way finds no recipient
				_, _ = w.WriteString(reply + "\r\n")
				if _, err := r.ReadString('\n'); err != nil {
					return
				}
				reply = "503 5.5.1 no recipient"
			}
		case "DATA":
			_, _ = w.WriteString("354 go on\r\n")
			if p.send(w, "") != nil || !skipData(r) {
				return
			}
			p.mu.Lock()
			p.took()
			p.mu.Unlock()
			messages++
		case "QUIT":
			return
		}
		_, _ = w.WriteString(reply + "\r\n")
		if strings.HasPrefix(reply, "421") || p.most > 0 && messages >= p.most {
			_ = p.send(w, "")
			return
		}
	}
}

// send flushes after the persona's time.
func (p *persona) send(w *bufio.Writer, line string) error {
	if line != "" {
		_, _ = w.WriteString(line + "\r\n")
	}
	if p.latency > 0 {
		<-time.After(p.latency)
	}
	return w.Flush()
}

func skipData(r *bufio.Reader) bool {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return false
		}
		if string(line) == ".\r\n" {
			return true
		}
	}
}

// internet is a network in memory with personas at its addresses.
type internet struct {
	personas map[string]*persona // by address
	ctx      context.Context
	wg       sync.WaitGroup
}

func (n *internet) DialContext(_ context.Context, _, address string) (net.Conn, error) {
	p := n.personas[address]
	if p == nil || p.down != nil && p.down(time.Now()) {
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	a, b := net.Pipe()
	n.wg.Go(func() {
		stop := context.AfterFunc(n.ctx, func() { _ = b.Close() })
		defer stop()
		p.serve(b)
	})
	return a, nil
}

// connectTo makes a resolver and a network of personas.
func connectTo(ctx context.Context, personas []*persona) (*resolvertest.Fake, *internet) {
	fake := &resolvertest.Fake{MX: map[string][]resolver.MX{}, IP: map[string][]netip.Addr{}}
	n := &internet{personas: map[string]*persona{}, ctx: ctx}
	for i, p := range personas {
		addr := netip.AddrFrom4([4]byte{192, 0, byte(3 + i/250), byte(1 + i%250)})
		fake.MX[p.domain] = []resolver.MX{{Host: p.host, Pref: 10}}
		fake.IP[p.host] = []netip.Addr{addr}
		n.personas[netip.AddrPortFrom(addr, 25).String()] = p
		p.began, p.firstSeen = time.Now(), map[string]time.Time{}
	}
	return fake, n
}

// world is who we send to in the simulation. Figures are per second; ours are the defaults of the configuration.
func world(began time.Time) []*persona {
	return []*persona{
		{
			name: "gmail", domain: "gmail.example", host: "gmail-smtp-in.l.google.com", latency: 100 * time.Millisecond, offered: 0.65, capacity: 0.5,
			mail: func(p *persona, _ string) string { // more than its rate in ten minutes
				if float64(p.within(10*time.Minute)) >= 0.5*600 {
					return "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail originating from your IP address"
				}
				return ""
			},
		},
		{
			name: "yahoo", domain: "yahoo.example", host: "mta5.am0.yahoodns.net", latency: 100 * time.Millisecond, offered: 0.5, capacity: 0.4, most: 20,
			connect: func(p *persona, _ int) string { return p.tss04(0.4) },
			mail:    func(p *persona, _ string) string { return p.tss04(0.4) },
		},
		{
			name: "greylist", domain: "grey.example", host: "mx.grey.example", latency: 100 * time.Millisecond, offered: 0.2, capacity: 0.2,
			rcpt: func(p *persona, addr string) string {
				first, ok := p.firstSeen[addr]
				if !ok {
					p.firstSeen[addr] = time.Now()
				}
				if !ok || time.Since(first) < 5*time.Minute {
					return "451 4.7.1 Greylisted, please come back later"
				}
				delete(p.firstSeen, addr)
				return ""
			},
		},
		{
			// 20 connections, two waits of 30 s for each message
			name: "tarpit", domain: "tarpit.example", host: "mx.tarpit.example", latency: 30 * time.Second, offered: 0.4, capacity: 20.0 / 60,
		},
		{
			name: "outage", domain: "outage.example", host: "mx.outage.example", latency: 100 * time.Millisecond, offered: 0.2, capacity: 0.2,
			down: func(now time.Time) bool {
				since := now.Sub(began)
				return since > 6*time.Hour && since < 10*time.Hour
			},
		},
		{
			// 8 connections, two waits of 10 s for each message
			name: "cap", domain: "cap.example", host: "mx.cap.example", latency: 10 * time.Second, offered: 0.5, capacity: 8.0 / 20,
			connect: func(_ *persona, open int) string {
				if open > 8 {
					return "421 4.7.0 Too many concurrent connections from your address"
				}
				return ""
			},
		},
	}
}

// tss04 refuses for five minutes after more than a rate in one minute. The caller holds mu.
func (p *persona) tss04(rate float64) string {
	if float64(p.within(time.Minute)) >= rate*60 {
		p.penalty = time.Now().Add(5 * time.Minute)
	}
	if time.Now().Before(p.penalty) {
		return "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints"
	}
	return ""
}

// printWorld prints what became of the personas.
func printWorld(w io.Writer, personas []*persona, states map[string]SiteState, hours, tail int) {
	fmt.Fprintf(w, "%-9s %9s %9s %9s %8s %9s %6s %9s %9s %9s %7s\n", "persona", "capacity", "offered", "delivered", "refused", "sessions",
		"most", "rate/s", "last/s", "of true", "window")
	for _, p := range personas {
		p.mu.Lock()
		fmt.Fprintf(w, "%-9s %9.3f %9.0f %9d %8d %9d %6d %9.3f %9.3f %8.0f%% %7d\n", p.name, p.capacity, p.offered*float64(hours)*3600, p.taken,
			p.refused, p.sessions, p.mostOpen, float64(p.taken)/float64(hours)/3600, p.late(hours, tail), 100*p.late(hours, tail)/p.capacity, states[p.host].Window)
		p.mu.Unlock()
	}
}

// late is the rate of the last tail of so many hours. The caller holds mu.
func (p *persona) late(hours, tail int) float64 {
	n := 0
	for h := hours - tail; h < hours && h < len(p.hourly); h++ {
		n += p.hourly[h]
	}
	return float64(n) / float64(tail) / 3600
}
