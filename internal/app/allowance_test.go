package app

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func sourceNumber(n int) netip.Prefix {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], uint32(n)) //nolint:gosec // small
	return netip.PrefixFrom(netip.AddrFrom4(a), 32)
}

// TestAllowanceBoundsOneSourceAndAll: a quarter for one, the whole for all, and it is earned again with time.
func TestAllowanceBoundsOneSourceAndAll(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	a := newAllowance(400)
	taken := func(source int) (n int) {
		for a.pass(sourceNumber(source), 1, now) {
			n++
		}
		return n
	}
	require.Equal(t, 100, taken(1))
	require.Equal(t, 100, taken(2))
	require.Equal(t, 100, taken(3))
	require.Equal(t, 100, taken(4))
	require.Zero(t, taken(5), "all is used up")
	require.Zero(t, taken(1))
	now = now.Add(6 * time.Minute)
	require.Equal(t, 10, taken(1), "a tenth of an hour, a tenth of its part")
	require.Equal(t, 30, taken(5), "what is left of a tenth of the whole")
	now = now.Add(24 * time.Hour)
	require.Equal(t, 100, taken(1), "no more is saved up")
	now = now.Add(-12 * time.Hour) // the clock is set back
	require.Zero(t, taken(1))
	now = now.Add(time.Hour)
	require.Equal(t, 100, taken(1))
	a = newAllowance(400)
	require.True(t, a.pass(sourceNumber(1), 1000, now), "larger than one's part, of an allowance that is whole")
	require.False(t, a.pass(sourceNumber(1), 1, now))
}

// TestAllowanceRemembersSourcesWithinBounds: those that have earned all again are forgotten.
func TestAllowanceRemembersSourcesWithinBounds(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	a := newAllowance(eventsPerHour)
	for i := range 200_000 {
		now = now.Add(allowanceWindow / eventsPerHour)
		require.True(t, a.pass(sourceNumber(i), 1, now))
		require.LessOrEqual(t, len(a.source), eventsPerHour)
	}
}
