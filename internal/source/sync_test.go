package source

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestFirstLoadInSmallPages(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		at := r.now().Add(-time.Hour)
		want := map[string]string{}
		for i := range 25 {
			email := fmt.Sprintf("c%d@dest.example", i)
			r.put(i, email, fmt.Sprintf("N%d", i), at.Add(time.Duration(i)*time.Second))
			want[email] = fmt.Sprintf("N%d subscribed", i)
		}
		in := ask()
		in.PageSize = new(10)
		r.create(in)
		run := r.sync(false)
		require.EqualValues(t, 25, run.Created)
		require.Equal(t, want, r.list())
		require.Equal(t, "24", run.To.Key)
		require.WithinDuration(t, at.Add(24*time.Second), run.To.UpdatedAt, time.Microsecond)
		again := r.sync(false)
		require.Zero(t, again.Created+again.Updated)
		require.Equal(t, run.To, again.To)
	})
}
