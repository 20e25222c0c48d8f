package delivery

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/resolver"
	"relayd/internal/resolver/resolvertest"
	"relayd/spool"
)

func TestSiteIsTheSetOfHosts(t *testing.T) {
	t.Parallel()
	r := newRouteTable(DefaultConfig())
	key := func(mxs ...resolver.MX) string { return r.direct(mxs, "relay.test").key }
	one := key(resolver.MX{Host: "a.x", Pref: 10}, resolver.MX{Host: "b.x", Pref: 10}, resolver.MX{Host: "c.x", Pref: 20})
	require.Equal(t, "a.x,b.x;c.x", one)
	require.Equal(t, one, key(resolver.MX{Host: "B.X.", Pref: 1}, resolver.MX{Host: "A.x", Pref: 1}, resolver.MX{Host: "c.x", Pref: 2}))
	require.NotEqual(t, one, key(resolver.MX{Host: "a.x", Pref: 10}, resolver.MX{Host: "b.x", Pref: 20}, resolver.MX{Host: "c.x", Pref: 20}))
	require.NotEqual(t, one, key(resolver.MX{Host: "a.x", Pref: 10}))
}

func TestHostsAreBounded(t *testing.T) {
	t.Parallel()
	var mxs []resolver.MX
	for i := range 10_000 {
		mxs = append(mxs, resolver.MX{Host: fmt.Sprintf("h%d.x", i), Pref: uint16(i)})
	}
	require.Len(t, (&routeTable{}).direct(mxs, "relay.test").hosts, maxHosts)
	for i := range mxs {
		mxs[i].Pref = 10
	}
	one := (&routeTable{}).direct(mxs, "relay.test")
	slices.Reverse(mxs)
	require.Equal(t, one, (&routeTable{}).direct(mxs, "relay.test"), "equals come in any order, and the site is one")
}

func TestRoutesOfASmarthost(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.Route = "up"
	cfg.Smarthosts = []Smarthost{{Name: "up", Address: "localhost:2525", TLS: TLSNone}}
	r := newRouter(cfg, Deps{Hostname: "relay.test"})
	a, err := r.resolve(t.Context(), spool.Queue{Domain: "one.example"})
	require.NoError(t, err)
	b, err := r.resolve(t.Context(), spool.Queue{Domain: "two.example"})
	require.NoError(t, err)
	require.Equal(t, a.key, b.key)
	require.EqualValues(t, 2525, a.port)
	require.True(t, a.hosts[0].addr.IsLoopback())
}

func TestPrivateAddresses(t *testing.T) {
	t.Parallel()
	for _, a := range []string{
		"127.0.0.1", "127.8.8.8", "10.1.2.3", "192.168.1.1", "172.16.0.1", "169.254.1.1", "0.0.0.0", "0.1.2.3", "100.64.0.1", "224.0.0.1",
		"255.255.255.255", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
		"64:ff9b::127.0.0.1", "64:ff9b:1::8.8.8.8", "2002:7f00:1::", "::127.0.0.1", "::8.8.8.8", "fec0::1", "feff::1",
	} {
		require.True(t, isPrivate(netip.MustParseAddr(a)), a)
	}
	for _, a := range []string{"192.0.2.1", "8.8.8.8", "100.128.0.1", "2001:db8::1", "2a00::1", "64:ff9b::8.8.8.8"} {
		require.False(t, isPrivate(netip.MustParseAddr(a)), a)
	}
}

func TestOrderOfAddresses(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr
	now := time.Unix(1e9, 0)
	book := &addressBook{
		resolver: &resolvertest.Fake{IP: map[string][]netip.Addr{
			"a.x": {addr("192.0.2.1"), addr("192.0.2.2"), addr("2001:db8::1")}, "b.x": {addr("192.0.2.3")}, "c.x": {addr("192.0.2.4")},
		}},
		dead: newHostSet(), now: func() time.Time { return now },
	}
	r := (&routeTable{}).direct([]resolver.MX{{Host: "a.x", Pref: 1}, {Host: "b.x", Pref: 2}, {Host: "c.x", Pref: 2}, {Host: "gone.x", Pref: 0}}, "relay.test")
	list := func(seed uint64, turn int) (list []string) {
		targets, refused, err := book.targets(context.Background(), r, order{seed, turn})
		require.NoError(t, err)
		require.Nil(t, refused)
		for _, x := range targets {
			list = append(list, x.addr.Addr().String())
		}
		return list
	}
	seen := map[string]bool{}
	for seed := range uint64(100) {
		o := list(seed, 0)
		require.Equal(t, "2001:db8::1", o[0]) // by preference, families mixed
		require.ElementsMatch(t, []string{"192.0.2.1", "192.0.2.2"}, o[1:3])
		require.ElementsMatch(t, []string{"192.0.2.3", "192.0.2.4"}, o[3:])
		seen[o[1]+o[3]] = true
		require.Equal(t, o, list(seed, 2), "the second try of a family begins where the first did")
		odd := list(seed, 1)
		require.Equal(t, []string{o[1], o[0], o[2]}, odd[:3], "the families alternate between attempts")
		require.Equal(t, odd, list(seed, 3))
	}
	require.Len(t, seen, 4) // equals in an order that differs between messages
	book.dead.add("2001:db8::1", now.Add(deadFor))
	require.Equal(t, "2001:db8::1", list(1, 0)[4]) // dead ones last, not never
	now = now.Add(deadFor)
	require.Equal(t, "2001:db8::1", list(1, 0)[0])
}

func TestHostSetIsBounded(t *testing.T) {
	t.Parallel()
	h := newHostSet()
	for i := range 3 * maxHostSet {
		h.add(fmt.Sprint(i), time.Unix(2e9, 0))
	}
	require.LessOrEqual(t, len(h.until), maxHostSet)
}
