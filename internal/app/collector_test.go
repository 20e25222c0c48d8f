package app

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPace(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		live, scanned uint64
		want          int64
	}{
		"an_empty_heap_may_grow_to_the_floor": {0, 0, 1600},
		"a_small_heap_may_grow_to_the_floor":  {16 << 20, 0, 300},
		"stacks_and_globals_count":            {8 << 20, 8 << 20, 350},
		"half_the_floor_may_double":           {32 << 20, 0, 100},
		"a_large_heap_has_the_default_of_go":  {1 << 30, 0, 100},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, pace(c.live, c.scanned))
		})
	}
}
