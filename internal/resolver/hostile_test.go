package resolver_test

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"relayd/internal/resolver"
)

// liar answers each datagram with those that its function makes of it, and records identifiers and ports.
type liar struct {
	addr  string
	mu    sync.Mutex
	ids   map[uint16]int
	ports map[int]int
}

func lie(t *testing.T, fn func(q *dns.Msg) [][]byte) *liar {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	l := &liar{addr: conn.LocalAddr().String(), ids: map[uint16]int{}, ports: map[int]int{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			q := new(dns.Msg)
			if q.Unpack(buf[:n]) != nil {
				continue
			}
			l.mu.Lock()
			l.ids[q.Id]++
			l.ports[from.(*net.UDPAddr).Port]++
			l.mu.Unlock()
			for _, b := range fn(q) {
				_, _ = conn.WriteTo(b, from)
			}
		}
	})
	t.Cleanup(func() { conn.Close(); wg.Wait() })
	return l
}

func pack(m *dns.Msg) []byte {
	m.Compress = true
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func answerMX(q *dns.Msg, host string) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	m.Answer = []dns.RR{&dns.MX{
		Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeMX, Class: dns.ClassINET, Ttl: 60}, Preference: 1, Mx: host,
	}}
	return m
}

func changed(m *dns.Msg, fn func(m *dns.Msg)) []byte {
	c := m.Copy()
	fn(c)
	return pack(c)
}

func TestAnswersToOtherQuestionsAreIgnored(t *testing.T) {
	t.Parallel()
	l := lie(t, func(q *dns.Msg) [][]byte {
		evil := answerMX(q, "evil.example.")
		return [][]byte{
			changed(evil, func(m *dns.Msg) { m.Id++ }),
			changed(evil, func(m *dns.Msg) { m.Question[0].Name = "other.example." }),
			changed(evil, func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeA }),
			changed(evil, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }),
			changed(evil, func(m *dns.Msg) { m.Question = nil }),
			changed(evil, func(m *dns.Msg) { m.Response = false }),
			changed(evil, func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }),
			{},
			[]byte("garbage"),
			pack(answerMX(q, "good.example.")),
		}
	})
	r := ask(t, resolver.Config{Servers: []string{l.addr}, Timeout: 5 * time.Second}, &clock{})
	mx, err := r.LookupMX(t.Context(), "a.example")
	require.NoError(t, err)
	require.Equal(t, []resolver.MX{{Host: "good.example", Pref: 1}}, mx)
}

func TestRecordsOfOtherNamesAreIgnored(t *testing.T) {
	t.Parallel()
	l := lie(t, func(q *dns.Msg) [][]byte {
		m := answerMX(q, "good.example.")
		evil := answerMX(q, "evil.example.").Answer[0]
		evil.Header().Name = "victim.example."
		chaos := answerMX(q, "chaos.example.").Answer[0]
		chaos.Header().Class = dns.ClassCHAOS
		m.Answer = append([]dns.RR{evil, chaos}, m.Answer...)
		return [][]byte{pack(m)}
	})
	r := ask(t, resolver.Config{Servers: []string{l.addr}}, &clock{})
	mx, err := r.LookupMX(t.Context(), "a.example")
	require.NoError(t, err)
	require.Equal(t, []resolver.MX{{Host: "good.example", Pref: 1}}, mx)
}

func TestFloodOfFalseAnswersEnds(t *testing.T) {
	t.Parallel()
	l := lie(t, func(q *dns.Msg) [][]byte {
		evil := answerMX(q, "evil.example.")
		evil.Id++
		out := make([][]byte, 200)
		for i := range out {
			out[i] = pack(evil)
		}
		return out
	})
	r := ask(t, resolver.Config{Servers: []string{l.addr}, Timeout: 10 * time.Second}, &clock{})
	_, err := r.LookupMX(t.Context(), "a.example")
	require.ErrorIs(t, err, resolver.ErrTemporary)
	require.ErrorContains(t, err, "other questions")
}

func TestIdentifiersAndPortsAreRandom(t *testing.T) {
	t.Parallel()
	l := lie(t, func(q *dns.Msg) [][]byte {
		m := new(dns.Msg).SetRcode(q, dns.RcodeNameError)
		return [][]byte{pack(m)}
	})
	r := ask(t, resolver.Config{Servers: []string{l.addr}}, &clock{})
	for i := range 100 {
		_, err := r.LookupPTR(t.Context(), netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
		require.ErrorIs(t, err, resolver.ErrNXDomain)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	require.Greater(t, len(l.ids), 95)
	require.Greater(t, len(l.ports), 80)
}

func TestServerWithoutEDNSAndReferrals(t *testing.T) {
	t.Parallel()
	old := lie(t, func(q *dns.Msg) [][]byte {
		if q.IsEdns0() != nil {
			m := new(dns.Msg).SetRcode(q, dns.RcodeFormatError)
			return [][]byte{pack(m)}
		}
		return [][]byte{pack(answerMX(q, "good.example."))}
	})
	r := ask(t, resolver.Config{Servers: []string{old.addr}}, &clock{})
	_, err := r.LookupMX(t.Context(), "a.example")
	require.NoError(t, err)

	refers := lie(t, func(q *dns.Msg) [][]byte {
		m := new(dns.Msg).SetReply(q)
		m.Ns = []dns.RR{&dns.NS{Hdr: dns.RR_Header{Name: "example.", Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 60}, Ns: "ns.example."}}
		return [][]byte{pack(m)}
	})
	r = ask(t, resolver.Config{Servers: []string{refers.addr}}, &clock{})
	_, err = r.LookupMX(t.Context(), "a.example")
	require.ErrorIs(t, err, resolver.ErrTemporary, "a referral is not the news that there is no MX")
}

func TestTruncatedAnswerWithoutTCPIsTemporary(t *testing.T) {
	t.Parallel()
	l := lie(t, func(q *dns.Msg) [][]byte {
		m := answerMX(q, "part.example.")
		m.Truncated = true
		whole := pack(m)
		return [][]byte{whole[:len(whole)-3]} // cut within the record, as some servers do
	})
	r := ask(t, resolver.Config{Servers: []string{l.addr}}, &clock{})
	_, err := r.LookupMX(t.Context(), "a.example")
	require.ErrorIs(t, err, resolver.ErrTemporary)
}

// TestMemoryStaysBounded fills the cache with as much as a hostile zone can give by UDP.
func TestMemoryStaysBounded(t *testing.T) {
	l := lie(t, func(q *dns.Msg) [][]byte {
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		for range 4 {
			m.Answer = append(m.Answer, &dns.TXT{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 3600},
				Txt: []string{string(make([]byte, 250))},
			})
		}
		return [][]byte{pack(m)}
	})
	r := ask(t, resolver.Config{Servers: []string{l.addr}}, &clock{})
	label := []byte("aaaa")
	look := func(n int) uint64 {
		for range n {
			for i := range label {
				if label[i]++; label[i] <= 'z' {
					break
				}
				label[i] = 'a'
			}
			_, err := r.LookupTXT(t.Context(), string(label)+".example")
			require.NoError(t, err)
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	look(12000) // full: each entry counts about 1.4 KB
	full := look(1000)
	more := look(6000)
	require.Less(t, int64(more)-int64(full), int64(4<<20))
	require.Less(t, more, uint64(48<<20))
}

// TestABadNameDoesNotPutItsServerLast: a name server says SERVFAIL of one name, and is silent about another: it is still the
// one that is asked first, not the one that never answers.
func TestABadNameDoesNotPutItsServerLast(t *testing.T) {
	t.Parallel()
	silent := lie(t, func(*dns.Msg) [][]byte { return nil })
	slow := make(chan struct{}, 100)
	good := lie(t, func(q *dns.Msg) [][]byte {
		m := answerMX(q, "mx.example.")
		switch q.Question[0].Name {
		case "bad.example.":
			m.Answer, m.Rcode = nil, dns.RcodeServerFailure
		case "slow.example.":
			slow <- struct{}{}
			return nil
		}
		return [][]byte{pack(m)}
	})
	now := &clock{t: time.Unix(1e9, 0)}
	r := ask(t, resolver.Config{Servers: []string{silent.addr, good.addr}, Timeout: 200 * time.Millisecond}, now)
	asked := func() int {
		silent.mu.Lock()
		defer silent.mu.Unlock()
		return len(silent.ids)
	}
	look := func(name string) error {
		_, err := r.LookupMX(t.Context(), name)
		return err
	}
	require.NoError(t, look("first.example"))
	require.Equal(t, 1, asked())
	require.ErrorIs(t, look("bad.example"), resolver.ErrTemporary)
	n := asked()
	require.NoError(t, look("second.example"))
	require.Equal(t, n, asked(), "the one that answers is asked first")

	now.add(time.Second)
	ended := make(chan error)
	go func() { ended <- look("slow.example") }()
	<-slow
	require.NoError(t, look("third.example"), "it answers meanwhile")
	require.ErrorIs(t, <-ended, resolver.ErrTemporary)
	n = asked()
	require.NoError(t, look("fourth.example"))
	require.Equal(t, n, asked())
}

// TestAnAnswerLargerThanOurBufferIsAskedAgain by TCP: some servers send more by UDP than was asked for.
func TestAnAnswerLargerThanOurBufferIsAskedAgain(t *testing.T) {
	t.Parallel()
	many := func(q *dns.Msg) *dns.Msg {
		m := answerMX(q, "mx.example.")
		for i := range 200 {
			m.Answer = append(m.Answer, answerMX(q, fmt.Sprintf("mx%d.example.", i)).Answer[0])
		}
		return m
	}
	l := lie(t, func(q *dns.Msg) [][]byte { return [][]byte{pack(many(q))} })
	tcp, err := net.Listen("tcp4", l.addr)
	require.NoError(t, err)
	server := &dns.Server{Listener: tcp, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := many(q)
		m.Compress = true
		_ = w.WriteMsg(m)
	})}
	served := make(chan error)
	go func() { served <- server.ActivateAndServe() }()
	t.Cleanup(func() {
		_ = server.Shutdown()
		<-served
	})
	r := ask(t, resolver.Config{Servers: []string{l.addr}, Timeout: time.Second}, &clock{})
	mx, err := r.LookupMX(t.Context(), "a.example")
	require.NoError(t, err)
	require.Len(t, mx, 100)
}
