package delivery

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/resolver/resolvertest"
	"relayd/internal/testutil"
)

func TestSitesOfQueueDomains(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{}).Start(t)
	r := newRig(t, mx.PortNumber(), zone())
	r.cfg.Smarthosts = []Smarthost{{Name: "upstream", Address: "192.0.2.1:25", TLS: "starttls"}}
	r.start()
	require.Empty(t, r.sched.SiteOf("dest.example"), "nothing was looked up")
	require.Equal(t, "upstream", r.sched.SiteOf("via:upstream"))
	require.True(t, r.sched.HasSite("Upstream"))
	require.False(t, r.sched.HasSite("mx.dest.example"))

	id := r.send("a@dest.example")
	r.outcome(id, 0)
	require.Equal(t, "mx.dest.example", r.sched.SiteOf("dest.example"), "as delivery found it")
	require.True(t, r.sched.HasSite("mx.dest.example"))
	require.Equal(t, map[string]string{"dest.example": "mx.dest.example", "other.example": "mx.dest.example", "via:upstream": "upstream"},
		r.sched.Sites(t.Context(), []string{"dest.example", "other.example", "via:upstream", "nowhere.example"}), "others are looked up")
	require.Equal(t, "mx.dest.example", r.sched.SiteOf("other.example"))
}

func TestSitesAreBounded(t *testing.T) {
	t.Parallel()
	s, err := New(DefaultConfig(), newRigOn(t, &resolvertest.Fake{}).deps)
	require.NoError(t, err)
	s.mu.Lock()
	for i := range maxKnownSites + 10 {
		s.remember(fmt.Sprintf("%d.example", i), "mx.example", "mx.example")
	}
	require.Len(t, s.known, maxKnownSites)
	s.mu.Unlock()
	domains := make([]string, maxSiteLookups+5)
	for i := range domains {
		domains[i] = fmt.Sprintf("gone%d.example", i)
	}
	require.Empty(t, s.Sites(t.Context(), domains))
}
