package resolver

import (
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

func TestCacheEvictsTheLeastRecentlyUsed(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	q := func(name string) question { return question{name, dns.TypeA} }
	c := newCache(3 * 310)
	for _, name := range []string{"a.", "b.", "c."} {
		c.put(q(name), &answer{expires: now.Add(time.Minute)})
	}
	require.NotNil(t, c.get(q("a."), now))
	c.put(q("d."), &answer{expires: now.Add(time.Minute)})
	require.Nil(t, c.get(q("b."), now))
	for _, name := range []string{"a.", "c.", "d."} {
		require.NotNil(t, c.get(q(name), now), name)
	}
	c.put(q("d."), &answer{expires: now.Add(time.Minute)})
	require.Len(t, c.entries, 3, "the same question takes no more room")
	require.Nil(t, c.get(q("a."), now.Add(time.Minute)))
	require.Len(t, c.entries, 2)
	require.Equal(t, 2*302, c.bytes)
	require.Equal(t, 2, c.recent.Len())
}

func TestUnescape(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"": "", "a": "a", `\"`: `"`, `\\`: `\`, `\065b`: "Ab", `\999`: "999", `a\`: `a\`, `\06`: "06"} {
		require.Equal(t, want, unescape(in), in)
	}
}

func FuzzAnswer(f *testing.F) {
	m := new(dns.Msg)
	m.SetQuestion("a.example.", dns.TypeMX)
	for _, line := range []string{"a.example. CNAME b.example.", "b.example. MX 1 c.example.", "a.example. TXT \"x\" \"y\"", "a.example. AAAA ::1"} {
		rr, err := dns.NewRR(line)
		require.NoError(f, err)
		m.Answer = append(m.Answer, rr)
		b, err := m.Pack()
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil {
			return
		}
		for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeMX, dns.TypeTXT, dns.TypePTR} {
			got := find(m, "a.example.", typ)
			if len(got.records) > maxRecords || got.ttl > maxTTL || !got.looped && !validName(got.name) {
				t.Fatalf("%+v", got)
			}
		}
	})
}
