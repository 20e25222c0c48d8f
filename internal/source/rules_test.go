package source

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

// The rules (a) to (i) are those of docs/sources.md.

func TestRuleA_EqualTimesAcrossAPageBorderAreNeitherLostNorRepeated(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		at := r.now().Add(-time.Hour)
		for i := range 10 {
			r.put(i, fmt.Sprintf("c%d@dest.example", i), "x", at)
		}
		in := ask()
		in.LookbackSeconds = new(int64(0)) // the watermark alone decides
		r.create(in)
		run := r.sync(false)
		require.EqualValues(t, 10, run.Read)
		require.EqualValues(t, 10, run.Created)
		require.EqualValues(t, 0, r.sync(false).Read, "nothing is read for ever")
		r.put(11, "c11@dest.example", "x", at)
		require.EqualValues(t, 1, r.sync(false).Created, "the same time behind the last key")
		require.Len(t, r.list(), 11)
	})
}

func TestRuleB_ATransactionThatCommitsAfterARunIsPickedUp(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		start := r.now()
		r.put(1, "early@dest.example", "x", start.Add(-time.Minute))
		late, err := r.db.BeginTx(t.Context(), &sql.TxOptions{})
		require.NoError(t, err)
		_, err = late.ExecContext(t.Context(), r.dialect("INSERT INTO customers (id, email, name, updated_at) VALUES (?, ?, ?, ?)"),
			2, "late@dest.example", "x", r.stamp(start))
		require.NoError(t, err)
		r.put(3, "other@dest.example", "x", r.now())
		r.create(ask())
		r.sync(false)
		require.NotContains(t, r.list(), "late@dest.example")
		require.Equal(t, "3", r.state().Mark.K, "the watermark is past the open transaction")
		require.NoError(t, late.Commit())
		run := r.sync(false)
		require.EqualValues(t, 1, run.Created)
		require.EqualValues(t, 2, run.Unchanged, "the overlap is read again and not written")
		require.Contains(t, r.list(), "late@dest.example")
	})
}

func TestRuleC_TheWatermarkIsTheTrueMaximum(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		at := r.now().Add(-time.Minute)
		for i := range 5 {
			r.put(i, fmt.Sprintf("c%d@dest.example", i), "x", at.Add(time.Duration(i)*time.Second))
		}
		r.create(ask())
		for range 3 {
			r.sync(false)
			st := r.state()
			require.Equal(t, "4", st.Mark.K)
			require.WithinDuration(t, at.Add(4*time.Second), st.Mark.U.time(nil), time.Microsecond)
		}
		r.exec("DELETE FROM customers WHERE id = 4")
		r.sync(false)
		require.Equal(t, "4", r.state().Mark.K, "it does not go back with what is read")
	})
}

func TestRuleD_WatermarkAndContactsCommitTogether(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		at := r.now().Add(-time.Hour)
		for i := range 9 {
			r.put(i, fmt.Sprintf("c%d@dest.example", i), "x", at.Add(time.Duration(i)*time.Second))
		}
		r.create(ask())
		real := r.s.deps.Contacts
		broken := &failing{Contacts: real, after: 2 * 2} // each page is written twice, once in vain
		r.s.deps.Contacts = broken
		run := r.try(false)
		require.Equal(t, "failed", run.State)
		require.Len(t, r.list(), 6, "two pages of three")
		require.Equal(t, "5", r.state().Mark.K, "and the watermark at the end of the second")
		require.EqualValues(t, 6, run.Read)
		r.s.deps.Contacts = real
		r.restart()
		r.sync(false)
		require.Len(t, r.list(), 9)
	})
}

func TestRuleE_AFutureTimeDoesNotPushTheWatermark(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		now := r.now()
		r.put(1, "now@dest.example", "x", now.Add(-2*time.Minute))
		r.put(2, "ahead@dest.example", "x", now.Add(24*time.Hour))
		r.put(3, "fresh@dest.example", "x", now.Add(-time.Second))
		in := ask()
		in.SafetyLagSeconds = new(int64(60))
		r.create(in)
		run := r.sync(false)
		require.Equal(t, "1", run.To.Key)
		require.EqualValues(t, 1, run.Future)
		require.Len(t, r.list(), 1, "what is younger than the lag waits")
		lag := int64(0)
		_, err := r.s.Patch(t.Context(), "", r.src.ID, true, "", &api.PatchSource{SafetyLagSeconds: &lag})
		require.NoError(t, err)
		require.Equal(t, "3", r.sync(false).To.Key)
		require.Len(t, r.list(), 2)
		r.sync(true)
		require.Len(t, r.list(), 3, "a full run takes it")
		require.Equal(t, "3", r.state().Mark.K)
	})
}

func TestRuleE_AClockThatWentBackLosesNothing(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		now := r.now()
		r.put(1, "one@dest.example", "x", now.Add(-time.Minute))
		in := ask()
		in.LookbackSeconds = new(int64(60))
		r.create(in)
		r.sync(false)
		st := r.state() // as if the clock of the database had been ahead by hours
		st.Mark.U = st.Mark.U.add(5 * time.Hour)
		until := st.Mark.U
		st.Until = &until
		r.setState(st)
		r.put(2, "two@dest.example", "x", now)
		r.sync(false)
		require.Contains(t, r.list(), "two@dest.example")
		require.Equal(t, st.Mark, r.state().Mark)
	})
}

func TestRuleF_TheZoneIsExplicit(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		naive := "datetime(6)"
		if r.driver == "postgres" {
			naive = "timestamp"
		}
		r.exec("CREATE TABLE customers (id int NOT NULL PRIMARY KEY, email varchar(200), created_at " + naive + ", updated_at " + naive + " NOT NULL)")
		seoul, err := time.LoadLocation("Asia/Seoul")
		require.NoError(t, err)
		now := r.now()
		wall := func(at time.Time) string { return at.In(seoul).Format("2006-01-02 15:04:05.000000") }
		r.exec("INSERT INTO customers VALUES (1, 'a@dest.example', ?, ?)", wall(now.Add(-time.Hour)), wall(now.Add(-time.Minute)))
		r.exec("INSERT INTO customers VALUES (2, 'b@dest.example', ?, ?)", wall(now), wall(now.Add(time.Hour)))
		in := ask()
		in.Query.Columns = map[string]string{"email": "email", "attributes.CreateTime": "created_at"}
		in.Query.Deleted = nil
		r.create(in)
		run := r.try(false)
		require.Equal(t, "failed", run.State)
		require.Contains(t, run.Error, "timezone_missing")
		zone := "+09:00"
		_, err = r.s.Patch(t.Context(), "", r.src.ID, true, "", &api.PatchSource{SourceTimezone: &zone})
		require.NoError(t, err)
		run = r.sync(false)
		require.EqualValues(t, 1, run.Created, "nine hours ahead is not the future, one hour ahead is")
		require.WithinDuration(t, now.Add(-time.Minute), run.To.UpdatedAt, time.Millisecond)
		c := r.contact("a@dest.example")
		got, err := time.Parse(time.RFC3339, attribute(c, "CreateTime"))
		require.NoError(t, err)
		require.WithinDuration(t, now.Add(-time.Hour), got, time.Millisecond)
		require.True(t, strings.HasSuffix(attribute(c, "CreateTime"), "Z"), "in UTC")
	})
}

func TestRuleG_WholeSecondsForceAnOverlap(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		stamp := "timestamp(0)"
		if r.driver == "postgres" {
			stamp = "timestamptz(0)"
		}
		r.exec("CREATE TABLE customers (id int NOT NULL PRIMARY KEY, email varchar(200), updated_at " + stamp + " NOT NULL)")
		at := r.now().Add(-time.Minute).Truncate(time.Second)
		put := func(id int, email string) {
			r.exec("DELETE FROM customers WHERE id = ?", id)
			r.exec("INSERT INTO customers VALUES (?, ?, ?)", id, email, r.stamp(at))
		}
		put(5, "five@dest.example")
		in := ask()
		in.LookbackSeconds = new(int64(0))
		in.Query.Columns, in.Query.Deleted = map[string]string{"email": "email"}, nil
		r.create(in)
		r.sync(false)
		put(2, "two@dest.example") // the same second, a smaller key
		put(5, "moved@dest.example")
		r.sync(false)
		require.Len(t, r.list(), 2)
		require.Contains(t, r.list(), "moved@dest.example")
		require.Contains(t, r.list(), "two@dest.example")
	})
}

func TestRuleH_ReadOnlyAndBounded(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		s, err := openSession(t.Context(), r.driver, r.env["CRM_DSN"])
		require.NoError(t, err)
		defer s.close()
		_, err = s.tx.ExecContext(t.Context(), "INSERT INTO customers (id, email, updated_at) VALUES (1, 'x', CURRENT_TIMESTAMP)")
		require.Error(t, err, "the transaction may only read")
		if r.driver == "postgres" {
			return // the transaction is over with the error
		}
		var limit float64
		require.NoError(t, s.tx.QueryRowContext(t.Context(), "SELECT @@max_statement_time").Scan(&limit))
		require.InDelta(t, statementTimeout.Seconds(), limit, 0.1)
	})
}

func TestRuleH_PostgresStatementTimeout(t *testing.T) {
	t.Parallel()
	r := newRig(t, "postgres")
	s, err := openSession(t.Context(), r.driver, r.env["CRM_DSN"])
	require.NoError(t, err)
	defer s.close()
	var limit, zone string
	require.NoError(t, s.tx.QueryRowContext(t.Context(), "SELECT current_setting('statement_timeout'), current_setting('TimeZone')").Scan(&limit, &zone))
	require.Equal(t, "1min", limit)
	require.Equal(t, "UTC", zone)
}

func TestRuleI_MissingRowsAreSeenByFullRunsAndReported(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		at := r.now().Add(-time.Hour)
		for i := range 20 {
			r.put(i, fmt.Sprintf("c%d@dest.example", i), "x", at)
		}
		r.create(ask())
		r.sync(false)
		r.exec("DELETE FROM customers WHERE id = 7")
		require.Zero(t, r.sync(false).Missing)
		run := r.sync(true)
		require.EqualValues(t, 1, run.Missing)
		require.Equal(t, "row_missing", run.Errors[0].Code)
		require.Equal(t, "7", run.Errors[0].Key)
		require.Len(t, r.list(), 20, "reported, nothing else")

		rule := &api.SourceFullResync{MissingRows: "delete"}
		_, err := r.s.Patch(t.Context(), "", r.src.ID, true, "", &api.PatchSource{FullResync: rule})
		require.NoError(t, err)
		run = r.sync(true)
		require.EqualValues(t, 1, run.Deleted, "one of twenty is five percent")
		require.NotContains(t, r.list(), "c7@dest.example")

		r.exec("DELETE FROM customers WHERE id IN (1, 2)")
		run = r.sync(true)
		require.EqualValues(t, 2, run.Missing)
		require.Zero(t, run.Deleted)
		require.Len(t, r.list(), 19, "more than five percent: nobody is removed")
		require.Contains(t, run.Warnings[0], "max_delete_percent")

		all := 100.0
		rule = &api.SourceFullResync{MissingRows: "unsubscribe", MaxDeletePercent: &all}
		_, err = r.s.Patch(t.Context(), "", r.src.ID, true, "", &api.PatchSource{FullResync: rule})
		require.NoError(t, err)
		require.EqualValues(t, 2, r.sync(true).Unsubscribed)
		require.Equal(t, "x unsubscribed", r.list()["c1@dest.example"])
	})
}
