package mailauth

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestExpandP(t *testing.T) {
	t.Parallel()
	for macro, want := range map[string]string{
		"%{p}": "a.b-c.example.com", "%{p2}": "example.com", "%{pr}": "com.example.b-c.a", "%{p1r}": "a", "%{p2-}": "a.b.c.example.com",
		"%{P}": "a.b-c.example.com", "%{p99}": "a.b-c.example.com",
	} {
		require.Equal(t, want, expandP(macro, "a.b-c.example.com"), macro)
	}
}

func TestBestName(t *testing.T) {
	t.Parallel()
	require.Equal(t, "unknown", bestName(nil, "example.com"))
	require.Equal(t, "x.example.net", bestName([]string{"x.example.net", "y.example.net"}, "example.com"))
	require.Equal(t, "a.example.com", bestName([]string{"x.example.net", "a.example.com"}, "example.com"))
	require.Equal(t, "Example.com", bestName([]string{"a.example.com", "Example.com"}, "example.com"))
}

func TestRewriteLeavesOtherRecordsAlone(t *testing.T) {
	t.Parallel()
	e := &evaluation{}
	for _, record := range []string{
		"v=spf1 -all", "v=spf1 a/24 mx/24//64 ip4:192.0.2.0/24 ip6:2001:db8::/32 -all", "v=spf1 a:example.com/24 mx:example.com//64 ?all",
		"v=spf1 exists:%{l1/}.example.com -all",
	} {
		require.Equal(t, record, e.rewrite(t.Context(), "example.com", record))
	}
	require.Equal(t, "v=spf1 a:foo"+slash+"bar.example.com/24//64 -all", e.rewrite(t.Context(), "example.com", "v=spf1 a:foo/bar.example.com/24//64 -all"))
}
