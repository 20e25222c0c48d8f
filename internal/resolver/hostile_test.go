package resolver_test

import (
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
