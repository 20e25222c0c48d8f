package source

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/event"
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

func TestUnsubscribedStaysUnlessTheSourceChangesItsMind(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		at := r.now().Add(-time.Minute)
		r.put(1, "ann@dest.example", "Ann", at)
		r.create(ask())
		r.sync(false)
		leave := func() { r.unsubscribe("ann@dest.example") }
		leave()
		r.put(1, "ann@dest.example", "Anne", at.Add(time.Second))
		run := r.sync(false)
		require.EqualValues(t, 1, run.SkippedUnsubscribed)
		require.Equal(t, "Anne unsubscribed", r.list()["ann@dest.example"], "what else the row says is taken")

		yes := true
		_, err := r.s.Patch(t.Context(), "", r.src.ID, true, "", &api.PatchSource{AllowResubscribe: &yes})
		require.NoError(t, err)
		r.put(1, "ann@dest.example", "Ann", at.Add(2*time.Second))
		r.sync(true)
		require.Equal(t, "Ann unsubscribed", r.list()["ann@dest.example"], "the row says what it said before: no new wish")

		r.exec("UPDATE customers SET subscribed = 'false', updated_at = ? WHERE id = 1", r.stamp(at.Add(3*time.Second)))
		r.sync(false)
		r.exec("UPDATE customers SET subscribed = 'true', updated_at = ? WHERE id = 1", r.stamp(at.Add(4*time.Second)))
		r.sync(false)
		require.Equal(t, "Ann subscribed", r.list()["ann@dest.example"])
		r.exec("UPDATE customers SET subscribed = 'false', updated_at = ? WHERE id = 1", r.stamp(at.Add(5*time.Second)))
		require.EqualValues(t, 1, r.sync(false).Unsubscribed)
	})
}

func TestTheFirstReadingBringsNobodyBack(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		at := r.now().Add(-time.Hour)
		r.put(1, "ann@dest.example", "Ann", at)
		r.create(ask())
		r.sync(false)
		r.unsubscribe("ann@dest.example")
		require.NoError(t, r.s.Delete(t.Context(), "", r.src.ID, ""))
		in := ask()
		in.AllowResubscribe = true
		r.create(in)
		require.EqualValues(t, 1, r.sync(false).SkippedUnsubscribed)
		r.put(2, "ann@dest.example", "Ann again", at.Add(time.Second))
		r.sync(false)
		require.Equal(t, "Ann again subscribed", r.list()["ann@dest.example"], "she has signed up again")
	})
}

func TestAStopInTheMiddleGoesOnFromTheWatermark(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		at := r.now().Add(-time.Hour)
		for i := range 12 {
			r.put(i, fmt.Sprintf("c%d@dest.example", i), "x", at.Add(time.Duration(i)*time.Second))
		}
		in := ask()
		in.LookbackSeconds = new(int64(0))
		r.create(in)
		real := r.s.deps.Contacts
		ctx, cancel := context.WithCancel(t.Context())
		r.s.deps.Contacts = &stopping{Contacts: real, after: 2, stop: cancel}
		_, err := r.s.Sync(t.Context(), "", r.src.ID, false, nil)
		require.NoError(t, err)
		r.attempt(ctx)
		got, err := r.s.Get(t.Context(), "", r.src.ID)
		require.NoError(t, err)
		require.Equal(t, "queued", got.State, "asked for again")
		require.Contains(t, got.LastRun.Error, "relayd stopped")
		page, _, err := r.events.List(t.Context(), event.Filter{Type: "source.failed"}, "", 10)
		require.NoError(t, err)
		require.Empty(t, page, "a stop is no failure")
		done := len(r.list())
		require.Less(t, done, 12)
		require.Positive(t, done)
		r.restart()
		require.EqualValues(t, 12-done, r.sync(false).Created)
	})
}

func TestDeletedRowsAndTheirAddresses(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		at := r.now().Add(-time.Hour)
		tick := func() time.Time { at = at.Add(time.Second); return at }
		remove := func(id int) {
			now := tick()
			r.exec("UPDATE customers SET deleted_at = ?, updated_at = ? WHERE id = ?", r.stamp(now), r.stamp(now), id)
		}
		r.put(1, "ann@dest.example", "old", tick())
		r.put(2, "bob@dest.example", "bob", tick())
		r.create(ask())
		r.sync(false)

		remove(1)
		require.EqualValues(t, 1, r.sync(false).Deleted)
		require.NotContains(t, r.list(), "ann@dest.example")

		r.put(3, "ann@dest.example", "new", tick())
		r.put(1, "ann@dest.example", "old", tick())
		r.sync(false)
		require.Equal(t, "old subscribed", r.list()["ann@dest.example"], "the row changed last has the contact")
		remove(1)
		r.sync(false)
		require.Equal(t, "new subscribed", r.list()["ann@dest.example"], "the next one has it then")

		r.put(3, "ann.new@dest.example", "new", tick())
		r.sync(false)
		require.NotContains(t, r.list(), "ann@dest.example", "an address that nobody has any more")
		require.Equal(t, "new subscribed", r.list()["ann.new@dest.example"])

		r.put(4, "BOB@DEST.example", "four", tick())
		r.sync(false)
		require.Len(t, r.list(), 2, "one mailbox is one contact: %v", r.list())
		r.exec("UPDATE customers SET name = 'bobby', updated_at = ? WHERE id = 2", r.stamp(tick()))
		r.sync(false)
		require.Equal(t, "bobby subscribed", r.list()["bob@dest.example"])
		r.exec("DELETE FROM customers WHERE id = 4")
		remove(2)
		r.sync(false)
		require.NotContains(t, r.list(), "bob@dest.example", "the row that could have had it is gone as well")
	})
}

func TestABadRowIsAnErrorOfThatRow(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		at := r.now().Add(-time.Hour)
		r.put(1, "good@dest.example", "x", at)
		r.put(2, "no address\r\nBcc: x", "x", at)
		r.put(3, "other@dest.example", "x", at)
		r.exec("UPDATE customers SET subscribed = 'maybe' WHERE id = 3")
		r.put(4, "last@dest.example", "x", at)
		r.put(5, "x@localhost", "x", at)
		r.create(ask())
		run := r.sync(false)
		require.EqualValues(t, 3, run.Rejected)
		require.EqualValues(t, 2, run.Created)
		require.Len(t, run.Errors, 3)
		require.Equal(t, api.SourceRowError{Key: "2", Column: "email", Value: "no address?Bcc: x", Code: "invalid_email", Detail: run.Errors[0].Detail}, run.Errors[0])
		require.Equal(t, "invalid_subscription_status", run.Errors[1].Code)
		require.Equal(t, "maybe", run.Errors[1].Value)
		require.Contains(t, run.Errors[2].Detail, "no dot")
	})
}

func TestABrokenSourceFailsItsRunAndTheWatermarkStays(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		r.exec("CREATE TABLE twice (id int, email varchar(100), updated_at @TIME NOT NULL)")
		r.put(1, "ann@dest.example", "Ann", r.now().Add(-time.Minute))
		r.create(ask())
		r.sync(false)
		mark := r.state().Mark
		good := r.env["CRM_DSN"]
		for _, tt := range []struct{ name, dsn, want string }{
			{"dsn_not_set", "", "CRM_DSN of relayd is not set"},
			{"dsn_not_understood", "s3cret-nonsense\x01", "empty, longer"},
			{"no_server", r.server.DSN("root", r.name) + "x\x00", "empty, longer"},
			{"no_database", r.server.DSN("root", "nowhere"), "nowhere"},
			{"no_such_user", r.server.DSN("stranger", r.name), "stranger"},
		} {
			r.env["CRM_DSN"] = tt.dsn
			run := r.try(false)
			require.Equal(t, "failed", run.State, tt.name)
			require.Contains(t, run.Error, tt.want, tt.name)
			require.NotContains(t, run.Error, "s3cret")
			require.Equal(t, mark, r.state().Mark, tt.name)
		}
		r.env["CRM_DSN"] = good
		for want, change := range map[string]func(q *api.SourceQuery){
			"table_missing":  func(q *api.SourceQuery) { q.Table = "nothing" },
			"column_missing": func(q *api.SourceQuery) { q.Columns["attributes.Name"] = "nam" },
			"cursor_type":    func(q *api.SourceQuery) { q.Cursor.UpdatedAt = "age" },
			"key_not_unique": func(q *api.SourceQuery) { q.Cursor.Key = "email" },
			"key_nullable": func(q *api.SourceQuery) {
				*q = api.SourceQuery{Table: "twice", Columns: map[string]string{"email": "email"}, Cursor: q.Cursor}
			},
		} {
			in := ask()
			in.Name = strings.ReplaceAll(want, "_", "-")
			change(&in.Query)
			r.create(in)
			run := r.try(false)
			require.Equal(t, "failed", run.State, want)
			require.Contains(t, run.Error, want)
			require.Nil(t, r.state().Mark)
			require.Len(t, r.list(), 1, "nothing is changed")
			test, err := r.s.Test(t.Context(), "", r.src.ID)
			require.NoError(t, err)
			require.False(t, test.OK)
			require.Condition(t, func() bool {
				for _, p := range test.Problems {
					if p.Code == want && p.Field != "" {
						return true
					}
				}
				return false
			}, "%s in %+v", want, test.Problems)
		}
		page, _, err := r.events.List(t.Context(), event.Filter{Type: "source.failed"}, "", 100)
		require.NoError(t, err)
		require.Len(t, page, 10)
		require.Equal(t, "shop", page[0].Account)
		require.NotEmpty(t, page[0].Data["source"])
	})
}

func TestTestTellsIndexPrecisionAndRows(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		r.exec(customers)
		r.put(1, "ann@dest.example", "Ann", r.now().Add(-time.Minute))
		r.put(2, "nonsense", "Bob", r.now().Add(time.Hour))
		r.create(ask())
		test, err := r.s.Test(t.Context(), "", r.src.ID)
		require.NoError(t, err)
		require.True(t, test.OK, "%+v", test.Problems)
		require.Equal(t, "by_change", test.IndexUsed)
		require.Equal(t, "microsecond", test.Precision)
		require.Len(t, test.Sample, 2)
		require.Equal(t, "ann@dest.example", test.Sample[1].Email)
		require.Equal(t, "subscribed", test.Sample[1].Status)
		require.Contains(t, test.Sample[0].Error, "invalid_email")
		codes := map[string]bool{}
		for _, w := range test.Warnings {
			codes[w.Code] = true
		}
		require.True(t, codes["writable"], "root may write")
		require.True(t, codes["updated_at_future"])
		require.False(t, codes["index_missing"])
		require.Nil(t, r.state().Mark, "a test changes nothing")

		r.exec("DROP INDEX by_change" + map[string]string{"mysql": " ON customers", "postgres": ""}[r.driver])
		test, err = r.s.Test(t.Context(), "", r.src.ID)
		require.NoError(t, err)
		require.Empty(t, test.IndexUsed)
		require.True(t, test.OK, "slow is not wrong")
	})
}

func TestNamesCannotInject(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		for _, name := range []string{`customers; DROP TABLE x`, "a`b", `a"b`, "a'b", "a\x00b", "a\\b", "a/*b*/", "", strings.Repeat("x", 64), "a.b.c"} {
			in := ask()
			in.Driver = r.driver
			in.Query.Table = name
			_, err := r.s.Create(t.Context(), "shop", true, in, nil)
			require.Error(t, err, "%q", name)
			in = ask()
			in.Driver = r.driver
			in.Query.Columns["attributes.X"] = name
			if name != "a.b.c" {
				_, err = r.s.Create(t.Context(), "shop", true, in, nil)
				require.Error(t, err, "%q", name)
			}
		}
		require.Equal(t, map[string]string{"mysql": "`a``b`", "postgres": "\"a`b\""}[r.driver], dialectOf(r.driver).quote("a`b"))
		// Odd names that pass work, quoted.
		r.exec(r.quoted("CREATE TABLE @Kunden-liste@ (@Der Schlüssel@ int NOT NULL PRIMARY KEY, @select@ varchar(100), @from@ @TIME NOT NULL)"))
		r.exec(r.quoted("INSERT INTO @Kunden-liste@ VALUES (1, 'ann@dest.example', ?)"), r.stamp(r.now().Add(-time.Minute)))
		in := ask()
		in.Query = api.SourceQuery{
			Table: "Kunden-liste", Columns: map[string]string{"email": "select", "attributes.Name": "Der Schlüssel"},
			Cursor: api.SourceCursor{UpdatedAt: "from", Key: "Der Schlüssel"},
		}
		r.create(in)
		r.sync(false)
		require.Equal(t, "1 subscribed", r.list()["ann@dest.example"])
	})
}

func TestKeysOfEveryType(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, r *rig) {
		types := map[string][]string{
			"varchar(40)": {"'a'", "'B'", "'c''d'", "'한국'"},
			"bigint":      {"-9223372036854775808", "9007199254740992", "9007199254740993", "9223372036854775807"},
		}
		if r.driver == "mysql" {
			types["bigint unsigned"] = []string{"0", "9223372036854775808", "18446744073709551614", "18446744073709551615"}
			types["binary(16)"] = []string{"x'00'", "x'0011'", "x'ff00ff'", "x'ffff'"}
		} else {
			types["uuid"] = []string{"'00000000-0000-0000-0000-000000000001'", "'7fffffff-0000-0000-0000-000000000001'", "'ffffffff-0000-0000-0000-000000000001'", "'ffffffff-ffff-0000-0000-000000000001'"}
		}
		n := 0
		for typ, keys := range types {
			n++
			table := fmt.Sprintf("t%d", n)
			r.exec("CREATE TABLE " + table + " (id " + typ + " NOT NULL PRIMARY KEY, email varchar(100), updated_at @TIME NOT NULL)")
			at := r.now().Add(-time.Minute)
			for i, k := range keys {
				r.exec(fmt.Sprintf("INSERT INTO %s VALUES (%s, 'k%d-%d@dest.example', ?)", table, k, n, i), r.stamp(at))
			}
			in := ask()
			in.Name, in.PageSize = table, new(1)
			in.Query = api.SourceQuery{Table: table, Columns: map[string]string{"email": "email"}, Cursor: in.Query.Cursor}
			r.create(in)
			require.EqualValues(t, 4, r.sync(false).Created, typ)
			require.EqualValues(t, 0, r.sync(true).Missing, typ)
		}
		require.Len(t, r.list(), 4*n)
	})
}

func (r *rig) quoted(text string) string {
	text = strings.ReplaceAll(text, "@TIME", "\x01")
	text = strings.ReplaceAll(text, "ann@dest", "ann\x02dest")
	text = strings.ReplaceAll(text, "@", map[string]string{"mysql": "`", "postgres": `"`}[r.driver])
	return strings.NewReplacer("\x01", "@TIME", "\x02", "@").Replace(text)
}
