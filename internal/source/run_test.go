package source

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/event"
)

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
