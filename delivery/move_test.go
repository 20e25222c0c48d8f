package delivery

import (
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/spool"
)

func TestMovedQueuesTakeTheNamedRoute(t *testing.T) {
	t.Parallel()
	r := &router{others: []Smarthost{{Name: "upstream", Address: "192.0.2.1:25"}}}
	to, err := r.resolve(t.Context(), "via:upstream")
	require.NoError(t, err)
	require.Equal(t, "smarthost upstream", to.key)
	_, err = r.resolve(t.Context(), "via:gone")
	require.ErrorContains(t, err, "no such smarthost")
	require.Empty(t, spool.Queue{Domain: "example.com"}.Via())
}
