package spool_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStreamTopIsTheLargestQueues(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var to []string
	for domain, n := range map[string]int{"a": 1, "b": 5, "c": 3, "d": 3, "e": 2} {
		for i := range n {
			to = append(to, fmt.Sprintf("u%d@%s.example", i, domain))
		}
	}
	f.campaign(nil, "cmp_1", to...)
	f.commit("b", "x@other.example") // of another stream
	for most, want := range map[int][]string{0: nil, 1: {"b"}, 3: {"b", "c", "d"}, 10: {"b", "c", "d", "e", "a"}} {
		top, rest := f.StreamTop("cmp_1", most)
		sum := rest.Ready
		var names []string
		for _, q := range top {
			names = append(names, q.Queue.Domain[:1])
			sum += q.Ready
		}
		require.Equal(t, want, names)
		require.Equal(t, len(to), sum, "the rest is counted")
	}
	top, rest := f.StreamTop("cmp_2", 3)
	require.Empty(t, top)
	require.Zero(t, rest)
}
