package source

import (
	"context"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/kv/kvtest"
)

// desk is a service whose sources have no database.
func desk(t *testing.T, cfg Config) (*Service, kv.DB) {
	t.Helper()
	bolt, err := kv.OpenBolt(filepath.Join(t.TempDir(), "db"), kv.BoltOptions{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { _ = bolt.Close() })
	db := kvtest.Twice(bolt)
	book, err := contact.New(t.Context(), contact.Deps{DB: db, TempDir: t.TempDir()})
	require.NoError(t, err)
	require.NoError(t, book.CreateList(t.Context(), &contact.List{Account: "shop", Name: "customers"}, nil))
	require.NoError(t, book.CreateList(t.Context(), &contact.List{Account: "shop", Name: "others"}, nil))
	events, err := event.Open(db, nil)
	require.NoError(t, err)
	s, err := New(cfg, Deps{DB: db, Contacts: book, Events: events, Metrics: prometheus.NewRegistry(), Env: func(string) string { return "" }})
	require.NoError(t, err)
	return s, db
}

func wanted(name string) *api.CreateSource {
	in := ask()
	in.Name, in.Driver = name, "postgres"
	return in
}

func TestDueSourcesRunByThemselvesAndBackOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := desk(t, DefaultConfig())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		in := wanted("crm")
		in.Schedule = &api.SourceSchedule{EverySeconds: 60}
		src, err := s.Create(t.Context(), "shop", true, in, nil)
		require.NoError(t, err)
		synctest.Wait()
		src, err = s.Get(t.Context(), "shop", src.ID)
		require.NoError(t, err)
		require.Equal(t, "failed", src.State)
		require.Contains(t, src.Error, "CRM_DSN")
		for _, pause := range []time.Duration{2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 16 * time.Minute, 32 * time.Minute, time.Hour, time.Hour} {
			require.WithinDuration(t, time.Now().Add(pause), *src.NextRunAt, time.Second)
			time.Sleep(time.Until(*src.NextRunAt) + 5*time.Millisecond)
			synctest.Wait()
			before := src.LastRun.ID
			src, err = s.Get(t.Context(), "shop", "name:crm")
			require.NoError(t, err)
			require.NotEqual(t, before, src.LastRun.ID)
		}
		page, next, err := s.Runs(t.Context(), "shop", src.ID, "", 5)
		require.NoError(t, err)
		require.Len(t, page, 5)
		rest, _, err := s.Runs(t.Context(), "shop", src.ID, next, 5)
		require.NoError(t, err)
		require.Len(t, rest, 3)
		require.Greater(t, page[4].ID, rest[0].ID, "newest first")
		cancel()
		require.NoError(t, <-ended)
	})
}

func TestOnlySoManyRunAtATimeAndEachOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.MaxRunning = 2
		s, _ := desk(t, cfg)
		entered, leave := make(chan struct{}, 100), make(chan struct{})
		s.deps.Env = func(string) string {
			entered <- struct{}{}
			<-leave
			return ""
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		var first api.Source
		for _, name := range []string{"a", "b", "c", "d"} {
			src, err := s.Create(t.Context(), "shop", true, wanted(name), nil)
			require.NoError(t, err)
			if name == "a" {
				first = src
			}
			_, err = s.Sync(t.Context(), "shop", src.ID, false, nil)
			require.NoError(t, err)
			synctest.Wait() // so that the first two run
		}
		synctest.Wait()
		require.Len(t, entered, 2)
		again, err := s.Sync(t.Context(), "shop", first.ID, false, nil)
		require.NoError(t, err)
		twice, err := s.Sync(t.Context(), "shop", first.ID, true, nil)
		require.NoError(t, err)
		require.Equal(t, again.ID, twice.ID, "one waits behind the one under way, and both callers get it")
		require.True(t, twice.Full)
		synctest.Wait()
		require.Len(t, entered, 2, "one run at a time per source")
		close(leave)
		synctest.Wait()
		require.Len(t, entered, 5)
		cancel()
		require.NoError(t, <-ended)
	})
}

func TestARunCutOffByACrashIsToldAndRepeated(t *testing.T) {
	t.Parallel()
	s, _ := desk(t, DefaultConfig())
	in := wanted("crm")
	in.Schedule = &api.SourceSchedule{EverySeconds: 3600}
	src, err := s.Create(t.Context(), "shop", true, in, nil)
	require.NoError(t, err)
	source, err := parseID(src.ID, sourcePrefix)
	require.NoError(t, err)
	r, err := s.begin(t.Context(), source)
	require.NoError(t, err)
	src, err = s.Get(t.Context(), "shop", src.ID)
	require.NoError(t, err)
	require.Equal(t, "running", src.State)
	require.NoError(t, s.recover(t.Context())) // the process died, and another one starts
	run, err := s.OneRun(t.Context(), "shop", src.ID, formatRun(r.id))
	require.NoError(t, err)
	require.Equal(t, "failed", run.State)
	require.Contains(t, run.Error, "relayd stopped")
	src, err = s.Get(t.Context(), "shop", src.ID)
	require.NoError(t, err)
	require.Equal(t, "idle", src.State)
	require.False(t, src.NextRunAt.After(time.Now()), "due at once")
	require.ErrorIs(t, r.commit(t.Context(), &batch{}), errSuperseded, "what was cut off cannot write any more")

	src, err = s.Create(t.Context(), "shop", true, wanted("by-hand"), nil)
	require.NoError(t, err)
	source, err = parseID(src.ID, sourcePrefix)
	require.NoError(t, err)
	_, err = s.Sync(t.Context(), "shop", src.ID, true, nil)
	require.NoError(t, err)
	_, err = s.begin(t.Context(), source)
	require.NoError(t, err)
	require.NoError(t, s.recover(t.Context()))
	runs, _, err := s.Runs(t.Context(), "shop", src.ID, "", 10)
	require.NoError(t, err)
	require.Len(t, runs, 2)
	require.Equal(t, "queued", runs[0].State, "no schedule would bring it: it is asked for again")
	require.True(t, runs[0].Full)
}

func TestAChangedSourceStopsItsRun(t *testing.T) {
	t.Parallel()
	s, _ := desk(t, DefaultConfig())
	src, err := s.Create(t.Context(), "shop", true, wanted("crm"), nil)
	require.NoError(t, err)
	source, err := parseID(src.ID, sourcePrefix)
	require.NoError(t, err)
	_, err = s.Sync(t.Context(), "shop", src.ID, false, nil)
	require.NoError(t, err)
	r, err := s.begin(t.Context(), source)
	require.NoError(t, err)
	require.NoError(t, r.findList(t.Context()))
	size := 5
	changed, err := s.Patch(t.Context(), "shop", src.ID, true, src.ETag, &api.PatchSource{PageSize: &size})
	require.NoError(t, err)
	require.NotEqual(t, src.ETag, changed.ETag)
	require.ErrorIs(t, r.commit(t.Context(), &batch{mark: &mark{U: 1}}), errSuperseded)
	r.end(t.Context(), errSuperseded)
	got, err := s.Get(t.Context(), "shop", src.ID)
	require.NoError(t, err)
	require.Nil(t, got.Watermark)
	_, err = s.Patch(t.Context(), "shop", src.ID, true, src.ETag, &api.PatchSource{PageSize: &size})
	require.ErrorIs(t, err, ErrETag)
}

func TestPatchStartsAnewOnlyForOtherRows(t *testing.T) {
	t.Parallel()
	s, db := desk(t, DefaultConfig())
	src, err := s.Create(t.Context(), "shop", true, wanted("crm"), nil)
	require.NoError(t, err)
	source, err := parseID(src.ID, sourcePrefix)
	require.NoError(t, err)
	state := func() (st *state) {
		require.NoError(t, db.View(t.Context(), func(tx kv.Tx) (err error) { st, err = getState(tx, source); return err }))
		return st
	}
	mark := func() {
		st := state()
		st.Mark = &mark{U: 7, K: "k"}
		require.NoError(t, db.Update(t.Context(), func(tx kv.Tx) error { return st.put(tx, source) }))
	}
	patch := func(in api.PatchSource) {
		_, err := s.Patch(t.Context(), "shop", src.ID, true, "", &in)
		require.NoError(t, err)
	}
	mark()
	size, name := 9, "crm2"
	patch(api.PatchSource{PageSize: &size, Name: &name})
	require.NotNil(t, state().Mark)
	require.EqualValues(t, 1, state().Epoch)
	_, err = s.Get(t.Context(), "shop", "name:crm")
	require.ErrorIs(t, err, ErrNotFound)
	q := wanted("x").Query
	q.Columns = map[string]string{"email": "mail"}
	patch(api.PatchSource{Query: &q})
	require.Nil(t, state().Mark, "other columns: every row is read again")
	require.EqualValues(t, 1, state().Epoch)
	mark()
	other := "others"
	patch(api.PatchSource{List: &other})
	require.Nil(t, state().Mark)
	require.EqualValues(t, 2, state().Epoch, "another list: what was read means nothing")
}

func TestSourcesOfAnotherAccountDoNotExist(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.DSNRefs = []string{"shop env:CRM_DSN"}
	require.NoError(t, cfg.Validate())
	s, db := desk(t, cfg)
	src, err := s.Create(t.Context(), "shop", false, wanted("crm"), nil)
	require.NoError(t, err, "listed for the account")
	in := wanted("other")
	in.DSNRef = "env:OTHER_DSN"
	_, err = s.Create(t.Context(), "shop", false, in, nil)
	require.ErrorIs(t, err, ErrForbidden)
	ref := "file:/etc/relayd/secret"
	_, err = s.Patch(t.Context(), "shop", src.ID, false, "", &api.PatchSource{DSNRef: &ref})
	require.ErrorIs(t, err, ErrForbidden)
	_, err = s.Create(t.Context(), "shop", true, wanted("crm"), nil)
	require.ErrorIs(t, err, ErrExists)
	for _, err := range []error{
		second(s.Get(t.Context(), "rival", src.ID)),
		second(s.Sync(t.Context(), "rival", src.ID, false, nil)),
		second(s.Test(t.Context(), "rival", src.ID)),
		second(s.Patch(t.Context(), "rival", src.ID, true, "", &api.PatchSource{})),
		s.Delete(t.Context(), "rival", src.ID, ""),
	} {
		require.ErrorIs(t, err, ErrNotFound)
	}
	require.NoError(t, s.Delete(t.Context(), "shop", src.ID, src.ETag))
	require.ErrorIs(t, second(s.Get(t.Context(), "shop", src.ID)), ErrNotFound)
	for range 4 {
		require.NoError(t, s.purge(t.Context()))
	}
	for _, table := range []kv.Table{tableSource, tableState, tableName, tableRun, tableRow, tableEmail, tableTodo, tablePurge} {
		require.NoError(t, db.View(t.Context(), func(tx kv.Tx) error {
			return tx.Scan(table, nil, nil, func(k, _ []byte) (bool, error) {
				t.Errorf("%s still holds %x", table, k)
				return true, nil
			})
		}))
	}
}

func second[T any](_ T, err error) error { return err }

func TestRefusalsTellTheFieldAndNeverTheDSN(t *testing.T) {
	t.Parallel()
	s, _ := desk(t, DefaultConfig())
	for pointer, change := range map[string]func(*api.CreateSource){
		"/name":                           func(in *api.CreateSource) { in.Name = "Über" },
		"/driver":                         func(in *api.CreateSource) { in.Driver = "oracle" },
		"/dsn_ref":                        func(in *api.CreateSource) { in.DSNRef = "postgres://u:s3cret@h/db" },
		"/list":                           func(in *api.CreateSource) { in.List = "nobody" },
		"/query/table":                    func(in *api.CreateSource) { in.Query.Table = "a;b" },
		"/query/columns/email":            func(in *api.CreateSource) { delete(in.Query.Columns, "email") },
		"/query/columns/emial":            func(in *api.CreateSource) { in.Query.Columns["emial"] = "x" },
		"/query/columns/attributes.":      func(in *api.CreateSource) { in.Query.Columns["attributes."] = "x" },
		"/query/cursor/key":               func(in *api.CreateSource) { in.Query.Cursor.Key = "" },
		"/query/cursor/updated_at":        func(in *api.CreateSource) { in.Query.Cursor.UpdatedAt = "now()" },
		"/query/deleted/when":             func(in *api.CreateSource) { in.Query.Deleted.When = "never" },
		"/query/deleted/action":           func(in *api.CreateSource) { in.Query.Deleted.Action = "kill" },
		"/query/deleted/value":            func(in *api.CreateSource) { in.Query.Deleted.Value = "x" },
		"/page_size":                      func(in *api.CreateSource) { in.PageSize = new(0) },
		"/safety_lag_seconds":             func(in *api.CreateSource) { in.SafetyLagSeconds = new(int64(-1)) },
		"/lookback_seconds":               func(in *api.CreateSource) { in.LookbackSeconds = new(int64(1 << 40)) },
		"/schedule/every_seconds":         func(in *api.CreateSource) { in.Schedule = &api.SourceSchedule{EverySeconds: 1} },
		"/source_timezone":                func(in *api.CreateSource) { in.SourceTimezone = "Mars/Base" },
		"/full_resync/missing_rows":       func(in *api.CreateSource) { in.FullResync = &api.SourceFullResync{MissingRows: "shred"} },
		"/full_resync/every_seconds":      func(in *api.CreateSource) { in.FullResync = &api.SourceFullResync{EverySeconds: 1} },
		"/full_resync/max_delete_percent": func(in *api.CreateSource) { in.FullResync = &api.SourceFullResync{MaxDeletePercent: new(101.0)} },
	} {
		in := wanted("crm")
		change(in)
		_, err := s.Create(t.Context(), "shop", true, in, nil)
		var bad *Invalid
		require.ErrorAs(t, err, &bad, pointer)
		require.Equal(t, pointer, bad.Errors[0].Pointer)
		require.NotEmpty(t, bad.Errors[0].Detail)
		require.NotContains(t, bad.Errors[0].Detail, "s3cret")
	}
	page, _, err := s.List(t.Context(), "", "", 10)
	require.NoError(t, err)
	require.Empty(t, page)
}
