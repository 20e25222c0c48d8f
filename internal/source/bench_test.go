package source

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const benchRows = 50_000

// BenchmarkFirstLoad measures the load of a table against the bare reading of its pages, the limit, in the same run.
func BenchmarkFirstLoad(b *testing.B) {
	for _, driver := range []string{"mysql", "postgres"} {
		b.Run(driver, func(b *testing.B) {
			for range b.N {
				r := newRig(b, driver)
				r.exec(customers)
				numbers := "SELECT seq FROM seq_1_to_50000"
				if driver == "postgres" {
					numbers = "SELECT seq FROM generate_series(1, 50000) AS s(seq)"
				}
				r.exec("INSERT INTO customers (id, email, name, age, subscribed, updated_at) SELECT seq, concat('c', seq, '@dest.example'), concat('Customer ', seq), 42, 'true', CURRENT_TIMESTAMP FROM (" + numbers + ") n")
				in := ask()
				in.PageSize = nil
				r.create(in)
				bare := r.readBare(b)
				start := time.Now()
				run := r.sync(false)
				load := time.Since(start)
				require.EqualValues(b, benchRows, run.Created)
				start = time.Now()
				run = r.sync(false)
				overlap := time.Since(start)
				require.EqualValues(b, benchRows, run.Unchanged)
				b.ReportMetric(benchRows/load.Seconds(), "rows/s")
				b.ReportMetric(benchRows/overlap.Seconds(), "unchanged/s")
				b.ReportMetric(bare.Seconds()/load.Seconds(), "of-limit")
			}
		})
	}
}

// readBare reads the pages of a first load and drops them.
func (r *rig) readBare(b *testing.B) time.Duration {
	b.Helper()
	source, err := parseID(r.src.ID, sourcePrefix)
	require.NoError(b, err)
	_, err = r.s.Sync(b.Context(), "", r.src.ID, false, nil)
	require.NoError(b, err)
	one, err := r.s.begin(b.Context(), source)
	require.NoError(b, err)
	one.session, err = openSession(b.Context(), r.driver, r.env["CRM_DSN"])
	require.NoError(b, err)
	defer one.session.close()
	one.plan, err = look(b.Context(), one.session, &one.rec.Config)
	require.NoError(b, err)
	one.bound = one.session.now
	start := time.Now()
	from, at := one.lower()
	n := 0
	for more := true; more; {
		text, args, width := one.plan.changes(from, at, one.bound)
		rows, again, err := one.fetch(b.Context(), text, args, width)
		require.NoError(b, err)
		n += len(rows)
		if more = again && len(rows) > 0; more {
			last := rows[len(rows)-1]
			at = &mark{U: last.at, K: last.key, Zoned: true}
		}
	}
	spent := time.Since(start)
	require.Equal(b, benchRows, n)
	one.end(b.Context(), errSuperseded)
	return spent
}
