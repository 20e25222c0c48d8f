package e2e

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

// forger stands before a DNS server. By UDP each true answer comes behind forged ones, all of which lead to a trap; names
// that end in ".huge.example" have answers that do not fit, and by TCP whatever hurts most.
type forger struct {
	server string // that knows the truth
	conn   *net.UDPConn
	others []*net.UDPConn // from which nothing was asked: another port, another address with the same port
	tcp    net.Listener
	wg     sync.WaitGroup

	mu    sync.Mutex
	ids   []int
	ports []int
	huge  int // answers by TCP
}

// newForger starts a forger. The end of the test stops it.
func newForger(t *testing.T, server string) *forger {
	t.Helper()
	f := &forger{server: server}
	listen := func(ip net.IP, port int) *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: ip, Port: port})
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	port := freePort(t)
	f.conn = listen(net.IPv4(127, 0, 0, 1), port)
	f.others = []*net.UDPConn{listen(net.IPv4(127, 0, 0, 1), 0), listen(net.IPv4(127, 0, 0, 9), port)}
	var err error
	f.tcp, err = net.Listen("tcp4", f.conn.LocalAddr().String())
	require.NoError(t, err)
	f.wg.Go(f.serveUDP)
	f.wg.Go(f.serveTCP)
	t.Cleanup(func() {
		_ = f.conn.Close()
		_ = f.tcp.Close()
		f.wg.Wait()
	})
	return f
}

func (f *forger) addr() string { return f.conn.LocalAddr().String() }

func (f *forger) serveUDP() {
	buf := make([]byte, 4096)
	for {
		n, from, err := f.conn.ReadFromUDP(buf)
		if err != nil {
			return
		}
		q := new(dns.Msg)
		if q.Unpack(buf[:n]) != nil {
			continue
		}
		f.mu.Lock()
		f.ids, f.ports = append(f.ids, int(q.Id)), append(f.ports, from.Port)
		f.mu.Unlock()
		f.wg.Go(func() { f.answer(q, from) })
	}
}

// answer sends the forgeries and then the truth, to which records of another name are added.
func (f *forger) answer(q *dns.Msg, to *net.UDPAddr) {
	if strings.HasSuffix(q.Question[0].Name, ".huge.example.") {
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable, m.Truncated = true, true
		f.send(f.conn, m, to)
		return
	}
	lie := func(change func(m *dns.Msg)) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		m.Answer = f.lies(q.Question[0].Name, q.Question[0].Qtype)
		change(m)
		return m
	}
	for _, change := range []func(m *dns.Msg){
		func(m *dns.Msg) { m.Id++ },
		func(m *dns.Msg) { m.Id = ^m.Id },
		func(m *dns.Msg) { m.Question[0].Name = "other.example." },
		func(m *dns.Msg) { m.Question[0].Qtype ^= 1 },
		func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		func(m *dns.Msg) { m.Question = nil },
		func(m *dns.Msg) { m.Response = false },
	} {
		f.send(f.conn, lie(change), to)
	}
	for _, other := range f.others {
		f.send(other, lie(func(*dns.Msg) {}), to)
	}
	truth, _, err := new(dns.Client).Exchange(q.Copy(), f.server)
	if err != nil {
		return
	}
	truth.Answer = append(truth.Answer, f.lies("victim.example.", q.Question[0].Qtype)...)
	truth.Extra = append(truth.Extra, f.lies("mx.victim.example.", dns.TypeA)...)
	f.send(f.conn, truth, to)
}

// lies are records that lead to the trap.
func (f *forger) lies(name string, typ uint16) []dns.RR {
	h := dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: 300}
	switch typ {
	case dns.TypeMX:
		return []dns.RR{&dns.MX{Hdr: h, Preference: 1, Mx: "trap."}}
	case dns.TypeA:
		return []dns.RR{&dns.A{Hdr: h, A: net.IPv4(127, 0, 0, 2)}}
	}
	return nil
}

func (f *forger) send(c *net.UDPConn, m *dns.Msg, to *net.UDPAddr) {
	m.Compress = true
	if b, err := m.Pack(); err == nil {
		_, _ = c.WriteToUDP(b, to)
	}
}

func (f *forger) serveTCP() {
	for {
		c, err := f.tcp.Accept()
		if err != nil {
			return
		}
		f.wg.Go(func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			var size [2]byte
			if _, err := io.ReadFull(c, size[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint16(size[:]))
			q := new(dns.Msg)
			if _, err := io.ReadFull(c, b); err != nil || q.Unpack(b) != nil {
				return
			}
			f.mu.Lock()
			f.huge++
			f.mu.Unlock()
			_, _ = c.Write(hugeAnswer(q))
			for filler := make([]byte, 64<<10); ; { // and more, as long as somebody reads it
				if _, err := c.Write(filler); err != nil {
					return
				}
			}
		})
	}
}

// hugeAnswer makes a framed answer of 64 KiB or, the largest that relayd takes, 16 KiB, of the kind that the name asks for.
func hugeAnswer(q *dns.Msg) []byte {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	head, err := m.Pack()
	if err != nil {
		panic(err)
	}
	var typ [2]byte
	binary.BigEndian.PutUint16(typ[:], q.Question[0].Qtype)
	record := func(data []byte, length uint16) []byte { // of the name that was asked for
		b := append([]byte{0xc0, 12}, typ[0], typ[1], 0, 1, 0, 0, 0, 60)
		return append(binary.BigEndian.AppendUint16(b, length), data...)
	}
	body, count := []byte(nil), 0
	room := 65535
	local := map[uint16][]byte{dns.TypeA: {127, 1, 1, 1}, dns.TypeAAAA: net.IPv6loopback}[q.Question[0].Qtype] // where nobody listens
	switch name := q.Question[0].Name; {
	case strings.Contains(name, "hosts-"), strings.Contains(name, "many-"): // as many records as fit
		if strings.Contains(name, "hosts-") { // into what is taken
			room = 16 << 10
		}
		for i := 0; ; i++ {
			data := []byte{0, byte(i >> 8), 3, 'a' + byte(i%26), 'a' + byte(i/26%26), 'a' + byte(i/676%26), 0xc0, 12}
			if local != nil {
				data = local
			}
			r := record(data, uint16(len(data)))
			if len(head)+len(body)+len(r) > room {
				break
			}
			body, count = append(body, r...), count+1
		}
	case strings.Contains(name, "record-"): // one that claims 64 KiB, which its message has no room for
		body, count = record(bytes.Repeat([]byte{'x'}, room-len(head)-12), 65535), 1
	case strings.Contains(name, "text-"): // one that is as large as can be, of another type
		typ = [2]byte{0, byte(dns.TypeNULL)}
		n := room - len(head) - 12
		body, count = record(bytes.Repeat([]byte{'x'}, n), uint16(n)), 1
	case local != nil:
		body, count = record(local, uint16(len(local))), 65535
	default: // the header promises more than there is
		body, count = record([]byte{0, 1, 0xc0, 12}, 4), 65535
	}
	binary.BigEndian.PutUint16(head[6:], uint16(count))
	b := append(head, body...)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}
