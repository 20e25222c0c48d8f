package delivery

import (
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/resolver"
	"relayd/internal/resolver/resolvertest"
	"relayd/spool"
)

func TestMovedQueuesTakeTheNamedRoute(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.Smarthosts = []Smarthost{{Name: "upstream", Address: "192.0.2.1:25"}}
	cfg.Route = "upstream"
	r := newRouter(cfg, Deps{Hostname: "relay.test", Resolver: &resolvertest.Fake{
		MX: map[string][]resolver.MX{"dest.example": {{Host: "mx.dest.example", Pref: 10}}},
	}})
	to, err := r.resolve(t.Context(), spool.Queue{Domain: "via:upstream"})
	require.NoError(t, err)
	require.Equal(t, "smarthost upstream", to.key)
	_, err = r.resolve(t.Context(), spool.Queue{Domain: "via:gone"})
	require.ErrorContains(t, err, "no such smarthost")
	to, err = r.resolve(t.Context(), spool.Queue{Domain: spool.QueueDomain("", RouteMX, "dest.example")})
	require.NoError(t, err)
	require.Equal(t, "mx.dest.example", to.key)
}
