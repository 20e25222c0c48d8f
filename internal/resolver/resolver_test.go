package resolver_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"relayd/internal/resolver"
	"relayd/internal/resolver/resolvertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is a time that the test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func serve(t *testing.T, zones map[string][]string) *resolvertest.Server {
	t.Helper()
	s, err := resolvertest.NewServer(zones)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func start(t *testing.T, zones map[string][]string) (*resolver.Resolver, *resolvertest.Server, *clock) {
	t.Helper()
	s := serve(t, zones)
	c := &clock{t: time.Unix(1_790_000_000, 0)}
	return ask(t, resolver.Config{Servers: []string{s.Addr}, Timeout: 5 * time.Second}, c), s, c
}

func ask(t *testing.T, cfg resolver.Config, c *clock) *resolver.Resolver {
	t.Helper()
	r, err := resolver.New(cfg, resolver.Deps{Now: c.now, Metrics: prometheus.NewRegistry()})
	require.NoError(t, err)
	return r
}

func TestLookupMX(t *testing.T) {
	t.Parallel()
	r, s, _ := start(t, map[string][]string{
		"a.example": {
			"@ MX 20 Late", "@ MX 10 one", "@ MX 5 first.b.example.", "null MX 0 .", "nulls MX 0 .", "nulls MX 10 .", "addr A 127.0.0.1", "addr6 AAAA ::1",
			"txt TXT x", "alias CNAME @", "far CNAME www.b.example.", "loop CNAME loop2", "loop2 CNAME loop", "gone CNAME none",
			"mixed MX 0 .", "mixed MX 10 one", "literal MX 0 192.0.2.1.", "twice MX 10 one", "twice MX 20 ONE",
			"fail A 127.0.0.1", "failA TXT x",
		},
		"b.example": {"www MX 1 mx"},
	})
	s.SetRcode("fail.a.example", dns.RcodeServerFailure)
	s.SetRcode("refused.a.example", dns.RcodeRefused)
	for name, c := range map[string]struct {
		domain string
		want   []resolver.MX
		err    error
	}{
		"by_preference":                        {"a.example", []resolver.MX{{Host: "first.b.example", Pref: 5}, {Host: "one.a.example", Pref: 10}, {Host: "late.a.example", Pref: 20}}, nil},
		"name_is_case_and_dot_blind":           {"A.Example.", []resolver.MX{{Host: "first.b.example", Pref: 5}, {Host: "one.a.example", Pref: 10}, {Host: "late.a.example", Pref: 20}}, nil},
		"null_mx_fails_permanently":            {"null.a.example", nil, resolver.ErrNullMX},
		"null_mx_twice_fails_permanently":      {"nulls.a.example", nil, resolver.ErrNullMX},
		"null_mx_among_others_is_passed_over":  {"mixed.a.example", []resolver.MX{{Host: "one.a.example", Pref: 10}}, nil},
		"implicit_mx_on_a":                     {"addr.a.example", []resolver.MX{{Host: "addr.a.example"}}, nil},
		"implicit_mx_on_aaaa":                  {"addr6.a.example", []resolver.MX{{Host: "addr6.a.example"}}, nil},
		"neither_mx_nor_address":               {"txt.a.example", nil, resolver.ErrNoMX},
		"nxdomain":                             {"none.a.example", nil, resolver.ErrNXDomain},
		"unknown_zone":                         {"real-world.com", nil, resolver.ErrNXDomain},
		"alias":                                {"alias.a.example", []resolver.MX{{Host: "first.b.example", Pref: 5}, {Host: "one.a.example", Pref: 10}, {Host: "late.a.example", Pref: 20}}, nil},
		"alias_into_another_zone":              {"far.a.example", []resolver.MX{{Host: "mx.b.example", Pref: 1}}, nil},
		"alias_loop_is_temporary":              {"loop.a.example", nil, resolver.ErrTemporary},
		"alias_to_nothing":                     {"gone.a.example", nil, resolver.ErrNXDomain},
		"servfail_never_leads_to_the_address":  {"fail.a.example", nil, resolver.ErrTemporary},
		"refused_is_temporary":                 {"refused.a.example", nil, resolver.ErrTemporary},
		"mx_that_is_an_address_is_no_host":     {"literal.a.example", nil, resolver.ErrNoMX},
		"same_host_twice_is_one":               {"twice.a.example", []resolver.MX{{Host: "one.a.example", Pref: 10}}, nil},
		"long_label":                           {strings.Repeat("a", 64) + ".example", nil, resolver.ErrNXDomain},
		"long_name":                            {strings.Repeat("a.", 130) + "example", nil, resolver.ErrNXDomain},
		"empty_name":                           {"", nil, resolver.ErrNXDomain},
		"blank_in_name":                        {"a b.example", nil, resolver.ErrNXDomain},
		"escape_in_name":                       {`a\046b.example`, nil, resolver.ErrNXDomain},
		"underscores_and_hyphens_may_be_asked": {"_x.-y.a.example", nil, resolver.ErrNXDomain},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mx, err := r.LookupMX(t.Context(), c.domain)
			require.ErrorIs(t, err, c.err)
			require.Equal(t, c.want, mx)
			var e *resolver.Error
			if err != nil {
				require.ErrorAs(t, err, &e)
				require.Equal(t, errors.Is(err, resolver.ErrTemporary), e.Temporary())
			}
		})
	}
}

func TestEqualsComeInRandomOrderAlsoFromTheCache(t *testing.T) {
	t.Parallel()
	r, s, _ := start(t, map[string][]string{"a.example": {"@ MX 10 a", "@ MX 10 b", "@ MX 10 c", "@ MX 5 z"}})
	first := map[string]int{}
	for range 200 {
		mx, err := r.LookupMX(t.Context(), "a.example")
		require.NoError(t, err)
		require.Len(t, mx, 4)
		require.Equal(t, "z.a.example", mx[0].Host)
		first[mx[1].Host]++
	}
	require.Len(t, first, 3, "%v", first)
	require.Equal(t, 1, s.Queries("a.example", "MX"))
}

func TestLookupIP(t *testing.T) {
	t.Parallel()
	r, s, _ := start(t, map[string][]string{"a.example": {
		"both A 192.0.2.1", "both A 192.0.2.2", "both AAAA 2001:db8::1", "four A 192.0.2.1", "txt TXT x", "half A 192.0.2.9", "www CNAME both",
	}})
	addr := netip.MustParseAddr
	ips, err := r.LookupIP(t.Context(), "both.a.example")
	require.NoError(t, err)
	require.ElementsMatch(t, []netip.Addr{addr("192.0.2.1"), addr("192.0.2.2")}, ips[:2])
	require.Equal(t, []netip.Addr{addr("2001:db8::1")}, ips[2:])
	ips, err = r.LookupIP(t.Context(), "www.a.example")
	require.NoError(t, err)
	require.Len(t, ips, 3)
	ips, err = r.LookupIP(t.Context(), "four.a.example")
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{addr("192.0.2.1")}, ips)
	_, err = r.LookupIP(t.Context(), "txt.a.example")
	require.ErrorIs(t, err, resolver.ErrNoData)
	_, err = r.LookupIP(t.Context(), "none.a.example")
	require.ErrorIs(t, err, resolver.ErrNXDomain)
	s.SetRcode("bad.a.example", dns.RcodeServerFailure)
	_, err = r.LookupIP(t.Context(), "bad.a.example")
	require.ErrorIs(t, err, resolver.ErrTemporary)
}

func TestLookupTXTAndPTR(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 255)
	r, _, _ := start(t, map[string][]string{
		"a.example":            {`@ TXT "` + long + `" "tail"`, `@ TXT "two"`, `odd TXT "q\"b\\s\;\200\010"`, "@ MX 10 mx"},
		"2.0.192.in-addr.arpa": {"7 PTR Mail.A.Example.", "7 PTR other.example."},
		"8.b.d.0.1.0.0.2.ip6.arpa": {
			"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0 PTR six.a.example.",
		},
	})
	txt, err := r.LookupTXT(t.Context(), "a.example")
	require.NoError(t, err)
	require.ElementsMatch(t, []string{long + "tail", "two"}, txt)
	txt, err = r.LookupTXT(t.Context(), "odd.a.example")
	require.NoError(t, err)
	require.Equal(t, []string{"q\"b\\s;\xc8\n"}, txt, "bytes, not their presentation")
	names, err := r.LookupPTR(t.Context(), netip.MustParseAddr("::ffff:192.0.2.7"))
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"mail.a.example", "other.example"}, names)
	names, err = r.LookupPTR(t.Context(), netip.MustParseAddr("2001:db8::1"))
	require.NoError(t, err)
	require.Equal(t, []string{"six.a.example"}, names)
	_, err = r.LookupPTR(t.Context(), netip.MustParseAddr("192.0.2.8"))
	require.ErrorIs(t, err, resolver.ErrNXDomain)
	_, err = r.LookupPTR(t.Context(), netip.Addr{})
	require.ErrorIs(t, err, resolver.ErrNXDomain)
}

func TestAnswersAreKeptForTheirTTL(t *testing.T) {
	t.Parallel()
	r, s, c := start(t, map[string][]string{"a.example": {
		"@ 30 IN SOA ns h 1 2 3 4 20", "short 10 MX 1 mx", "never 0 MX 1 mx", "ever 1000000 MX 1 mx", "chain 5 CNAME ever", "txt TXT x",
	}})
	s.SetRcode("fail.a.example", dns.RcodeServerFailure)
	for name, c2 := range map[string]struct {
		domain       string
		kept, asks   time.Duration
		queriesFirst int
	}{
		"ttl":                     {"short.a.example", 9 * time.Second, time.Second, 1},
		"ttl_0_is_1s":             {"never.a.example", 999 * time.Millisecond, time.Millisecond, 1},
		"long_ttl_is_1h":          {"ever.a.example", time.Hour - 1, 1, 1},
		"least_of_the_chain":      {"chain.a.example", 5*time.Second - 1, 1, 1},
		"nodata_as_soa_says":      {"txt.a.example", 20*time.Second - 1, 1, 1},
		"nxdomain_as_soa_says":    {"none.a.example", 20*time.Second - 1, 1, 1},
		"servfail_for_moments":    {"fail.a.example", 2*time.Second - 1, 1, 2},
		"nxdomain_of_other_zones": {"other.example", time.Minute - 1, 1, 1},
	} {
		look := func() int {
			_, _ = r.LookupMX(t.Context(), c2.domain)
			return s.Queries(c2.domain, "MX")
		}
		require.Equal(t, c2.queriesFirst, look(), name)
		c.add(c2.kept)
		require.Equal(t, c2.queriesFirst, look(), name)
		c.add(c2.asks)
		require.Equal(t, 2*c2.queriesFirst, look(), name)
	}
}

func TestLargeAnswerComesByTCPAndIsBounded(t *testing.T) {
	t.Parallel()
	var zone []string
	for i := range 300 {
		zone = append(zone, fmt.Sprintf("@ MX %d m%d", i, i), fmt.Sprintf("@ A 10.0.%d.%d", i/250, i%250))
	}
	huge := slices.Clone(zone)
	for i := range 700 {
		huge = append(huge, fmt.Sprintf("@ MX %d h%d", i, i))
	}
	r, s, _ := start(t, map[string][]string{"a.example": zone, "huge.example": huge})
	mx, err := r.LookupMX(t.Context(), "a.example")
	require.NoError(t, err)
	require.Len(t, mx, 100)
	require.Equal(t, 2, s.Queries("a.example", "MX"), "by UDP, then by TCP")
	require.Equal(t, "m99.a.example", mx[99].Host, "the preferred ones, whatever their order")
	ips, err := r.LookupIP(t.Context(), "a.example")
	require.NoError(t, err)
	require.Len(t, ips, 100)
	_, err = r.LookupMX(t.Context(), "huge.example")
	require.ErrorIs(t, err, resolver.ErrTemporary)
	require.ErrorContains(t, err, "too large")
}

func TestOneQueryServesAllWhoAskAtTheSameTime(t *testing.T) {
	t.Parallel()
	r, s, _ := start(t, map[string][]string{"a.example": {"@ MX 10 mx"}})
	s.SetDelay("a.example", 200*time.Millisecond)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			mx, err := r.LookupMX(t.Context(), "a.example")
			if err != nil || len(mx) != 1 {
				t.Errorf("%v %v", mx, err)
			}
		})
	}
	wg.Wait()
	require.Equal(t, 1, s.Queries("a.example", "MX"))
}

func TestOneWhoGivesUpDoesNotFailTheOthers(t *testing.T) {
	t.Parallel()
	r, s, _ := start(t, map[string][]string{"a.example": {"@ MX 10 mx"}})
	s.SetDelay("a.example", -1)
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() {
		_, err := r.LookupMX(ctx, "a.example")
		gaveUp <- err
	}()
	require.Eventually(t, func() bool { return s.Queries("a.example", "MX") == 1 }, time.Minute, time.Millisecond)
	other := make(chan error)
	go func() {
		_, err := r.LookupMX(t.Context(), "a.example")
		other <- err
	}()
	s.SetDelay("a.example", 0)
	cancel()
	err := <-gaveUp
	require.ErrorIs(t, err, resolver.ErrTemporary)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, <-other)
}

func TestNextServerIsAskedWhenOneIsSilentOrFails(t *testing.T) {
	t.Parallel()
	good := serve(t, map[string][]string{"a.example": {"@ MX 10 mx", "@ A 127.0.0.1"}})
	silent, failing := serve(t, nil), serve(t, nil)
	silent.SetDelay("a.example", -1)
	failing.SetRcode("a.example", dns.RcodeServerFailure)
	c := &clock{t: time.Unix(1_790_000_000, 0)}
	r := ask(t, resolver.Config{Servers: []string{silent.Addr, failing.Addr, good.Addr}, Timeout: 2 * time.Second}, c)
	_, err := r.LookupMX(t.Context(), "a.example")
	require.NoError(t, err)
	require.Equal(t, []int{1, 1, 1}, []int{silent.Queries("", ""), failing.Queries("", ""), good.Queries("", "")})
	_, err = r.LookupIP(t.Context(), "a.example")
	require.NoError(t, err)
	require.Equal(t, []int{1, 1, 3}, []int{silent.Queries("", ""), failing.Queries("", ""), good.Queries("", "")}, "bad ones wait at the end")
	c.add(2 * time.Hour)
	_, err = r.LookupMX(t.Context(), "a.example")
	require.NoError(t, err)
	require.Equal(t, 2, silent.Queries("", ""), "and get another chance")
}

func TestSilenceIsTemporaryAndBounded(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	s.SetDelay("a.example", -1)
	r := ask(t, resolver.Config{Servers: []string{s.Addr}, Timeout: 30 * time.Millisecond}, &clock{})
	_, err := r.LookupMX(t.Context(), "a.example")
	require.ErrorIs(t, err, resolver.ErrTemporary)
	require.ErrorContains(t, err, "no answer in time")
	require.Eventually(t, func() bool { return s.Queries("", "") >= 2 }, time.Minute, time.Millisecond) // it may be late to count
	require.Equal(t, 2, s.Queries("", ""))
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for _, ok := range []string{"127.0.0.1", "127.0.0.1:5353", "::1", "[::1]:53", "[::1]"} {
		require.NoError(t, resolver.Config{Servers: []string{ok}}.Validate(), ok)
	}
	require.NoError(t, resolver.DefaultConfig().Validate())
	err := resolver.Config{Servers: []string{"dns.example", "1.2.3.4:x", "127.0.0.1"}, Timeout: time.Hour}.Validate()
	require.ErrorContains(t, err, `"dns.example"`)
	require.ErrorContains(t, err, `"1.2.3.4:x"`)
	require.ErrorContains(t, err, "dns.timeout")
	require.ErrorContains(t, resolver.Config{Servers: slices.Repeat([]string{"::1"}, 9)}.Validate(), "9 servers")
	_, err = resolver.New(resolver.Config{Servers: []string{"x"}}, resolver.Deps{})
	require.Error(t, err)
	_, err = resolver.New(resolver.Config{}, resolver.Deps{})
	require.NoError(t, err)
}

func TestFake(t *testing.T) {
	t.Parallel()
	f := &resolvertest.Fake{
		IP:  map[string][]netip.Addr{"a.example": {netip.MustParseAddr("127.0.0.1")}},
		TXT: map[string][]string{"a.example": {"x"}},
		PTR: map[string][]string{"127.0.0.1": {"a.example"}},
		MX:  map[string][]resolver.MX{"b.example": {{Host: "a.example", Pref: 1}}},
		Err: map[string]error{"c.example": resolver.ErrTemporary},
	}
	mx, err := f.LookupMX(t.Context(), "A.example.")
	require.NoError(t, err)
	require.Equal(t, []resolver.MX{{Host: "a.example"}}, mx)
	mx, err = f.LookupMX(t.Context(), "b.example")
	require.NoError(t, err)
	require.Equal(t, uint16(1), mx[0].Pref)
	_, err = f.LookupTXT(t.Context(), "c.example")
	require.ErrorIs(t, err, resolver.ErrTemporary)
	_, err = f.LookupTXT(t.Context(), "d.example")
	require.ErrorIs(t, err, resolver.ErrNXDomain)
	names, err := f.LookupPTR(t.Context(), netip.MustParseAddr("127.0.0.1"))
	require.NoError(t, err)
	require.Equal(t, []string{"a.example"}, names)
}
