package source

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/kv/kvtest"
	"relayd/internal/mail"
	"relayd/internal/testutil"
)

// servers are the database servers of this package's tests, started by the first test that needs one.
type servers struct {
	mu  sync.Mutex
	up  []*testutil.Database
	get map[string]func() (*testutil.Database, error)
}

func newServers() *servers {
	s := &servers{get: map[string]func() (*testutil.Database, error){}}
	for driver, start := range map[string]func() (*testutil.Database, error){"mysql": testutil.StartMariaDB, "postgres": testutil.StartPostgres} {
		s.get[driver] = sync.OnceValues(func() (*testutil.Database, error) {
			d, err := start()
			if err == nil {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.up = append(s.up, d)
			}
			return d, err
		})
	}
	return s
}

var (
	databases    = newServers()
	nextDatabase atomic.Int32
)

func TestMain(m *testing.M) {
	code := m.Run()
	for _, d := range databases.up {
		d.Stop()
	}
	os.Exit(code)
}

// rig is a source on a real table.
type rig struct {
	t      testing.TB
	driver string
	server *testutil.Database
	name   string // of the database
	db     *sql.DB
	store  kv.DB
	book   *contact.Store
	events *event.Log
	s      *Service
	env    map[string]string
	clock  time.Time
	src    api.Source
}

// each runs a test on every database.
func each(t *testing.T, fn func(t *testing.T, r *rig)) {
	t.Helper()
	for _, driver := range []string{"mysql", "postgres"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			fn(t, newRig(t, driver))
		})
	}
}

func newRig(t testing.TB, driver string) *rig {
	t.Helper()
	server, err := databases.get[driver]()
	if errors.Is(err, testutil.ErrNoServer) && os.Getenv("RELAYD_E2E") != "full" {
		t.Skipf("%s: %v; RELAYD_E2E=full makes this a failure", driver, err)
	}
	require.NoError(t, err)
	r := &rig{t: t, driver: driver, server: server, name: fmt.Sprintf("test%d", nextDatabase.Add(1)), env: map[string]string{}, clock: time.Now()}
	r.db, err = server.Create(t.Context(), r.name)
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.db.Close() })
	r.env["CRM_DSN"] = server.DSN("root", r.name)
	bolt, err := kv.OpenBolt(filepath.Join(t.TempDir(), "db"), kv.BoltOptions{NoSync: true})
	require.NoError(t, err)
	r.store = kvtest.Twice(bolt)
	t.Cleanup(func() { _ = r.store.Close() })
	r.book, err = contact.New(t.Context(), contact.Deps{DB: r.store, TempDir: t.TempDir()})
	require.NoError(t, err)
	require.NoError(t, r.book.CreateList(t.Context(), &contact.List{Account: "shop", Name: "customers"}, nil))
	r.events, err = event.Open(r.store, nil)
	require.NoError(t, err)
	r.restart()
	return r
}

// restart makes a new service on the same store.
func (r *rig) restart() {
	var err error
	r.s, err = New(DefaultConfig(), Deps{
		DB: r.store, Contacts: r.book, Events: r.events,
		Env: func(name string) string { return r.env[name] }, Now: func() time.Time { return r.clock },
	})
	require.NoError(r.t, err)
}

// exec runs statements; @TIME stands for the type of times to the microsecond with a zone.
func (r *rig) exec(text string, args ...any) {
	r.t.Helper()
	for one := range strings.SplitSeq(text, ";\n") {
		one = r.dialect(one)
		if strings.TrimSpace(one) != "" {
			_, err := r.db.ExecContext(r.t.Context(), one, args...)
			require.NoError(r.t, err, one)
		}
	}
}

func (r *rig) dialect(text string) string {
	stamp, param := "timestamp(6)", "?"
	if r.driver == "postgres" {
		stamp, param = "timestamptz", "$%d"
	}
	text = strings.ReplaceAll(text, "@TIME", stamp)
	if param != "?" {
		for n := 1; strings.Contains(text, "?"); n++ {
			text = strings.Replace(text, "?", fmt.Sprintf(param, n), 1)
		}
	}
	return text
}

const customers = `CREATE TABLE customers (
	id bigint NOT NULL PRIMARY KEY, email varchar(200), name varchar(100), age int, vip boolean, subscribed varchar(10),
	created_at @TIME NULL, updated_at @TIME NOT NULL, deleted_at @TIME NULL);
CREATE INDEX by_change ON customers (updated_at, id)`

// ask is the source on that table.
func ask() *api.CreateSource {
	return &api.CreateSource{
		Name: "crm", DSNRef: "env:CRM_DSN", List: "customers",
		Query: api.SourceQuery{
			Table: "customers", Columns: map[string]string{"email": "email", "attributes.Name": "name", "attributes.Age": "age", "attributes.VIP": "vip", "status": "subscribed", "attributes.CreateTime": "created_at"},
			Cursor:  api.SourceCursor{UpdatedAt: "updated_at", Key: "id"},
			Deleted: &api.SourceDeleted{Column: "deleted_at"},
		},
		PageSize: new(3), SafetyLagSeconds: new(int64(0)), LookbackSeconds: new(int64(600)),
	}
}

func (r *rig) create(in *api.CreateSource) {
	r.t.Helper()
	in.Driver = r.driver
	var err error
	r.src, err = r.s.Create(r.t.Context(), "shop", true, in, nil)
	require.NoError(r.t, err)
}

// put writes one row; email "" is a bad row.
func (r *rig) put(key int, email, name string, at time.Time) {
	r.t.Helper()
	r.exec("DELETE FROM customers WHERE id = ?", key)
	r.exec("INSERT INTO customers (id, email, name, subscribed, updated_at) VALUES (?, ?, ?, 'true', ?)", key, email, name, r.stamp(at))
}

// stamp is how a time is handed to the driver.
func (r *rig) stamp(at time.Time) any {
	return at.UTC().Format("2006-01-02 15:04:05.000000") + r.zone()
}

func (r *rig) zone() string {
	if r.driver == "postgres" {
		return "+00"
	}
	return ""
}

// now is the time of the database.
func (r *rig) now() time.Time {
	r.t.Helper()
	query := "SELECT CAST(UTC_TIMESTAMP(6) AS CHAR)"
	if r.driver == "postgres" {
		query = "SELECT (clock_timestamp() AT TIME ZONE 'UTC')::text"
	}
	var text string
	require.NoError(r.t, r.db.QueryRowContext(r.t.Context(), query).Scan(&text))
	m, ok := parseMoment(text)
	require.True(r.t, ok, text)
	return m.time(nil)
}

// try runs the source once and returns the run as it is stored.
func (r *rig) try(full bool) api.SourceRun {
	r.t.Helper()
	asked, err := r.s.Sync(r.t.Context(), "", r.src.ID, full, nil)
	require.NoError(r.t, err)
	r.attempt(r.t.Context())
	out, err := r.s.OneRun(r.t.Context(), "", r.src.ID, asked.ID)
	require.NoError(r.t, err)
	require.NotNil(r.t, out.FinishedAt)
	return out
}

func (r *rig) attempt(ctx context.Context) {
	r.t.Helper()
	source, err := parseID(r.src.ID, sourcePrefix)
	require.NoError(r.t, err)
	one, err := r.s.begin(ctx, source)
	require.NoError(r.t, err)
	one.end(ctx, r.s.attempt(ctx, one))
}

// sync is try for a run that must succeed.
func (r *rig) sync(full bool) api.SourceRun {
	r.t.Helper()
	out := r.try(full)
	require.Equal(r.t, "completed", out.State, out.Error)
	sum := out.Created + out.Updated + out.Unchanged + out.Unsubscribed + out.Deleted + out.Duplicates + out.SkippedUnsubscribed + out.SkippedErased + out.Rejected
	if out.Missing == 0 {
		require.Equal(r.t, out.Read, sum, "every row is counted once: %+v", out)
	}
	return out
}

// list is who is on the list: mailbox → name and status.
func (r *rig) list() map[string]string {
	r.t.Helper()
	out := map[string]string{}
	require.NoError(r.t, r.store.View(r.t.Context(), func(tx kv.Tx) error {
		l, err := r.book.ListTx(tx, "shop", "customers")
		require.NoError(r.t, err)
		return tx.Scan("contact_email", nil, nil, func(k, _ []byte) (bool, error) {
			email := string(k[len("shop")+1:])
			f, err := r.book.GetTx(tx, "shop", "email:"+email)
			if err != nil {
				return false, err
			}
			for _, m := range f.Memberships {
				if m.List == l.ID {
					out[email] = attribute(f, "Name") + " " + m.Status.String()
				}
			}
			return true, nil
		})
	}))
	return out
}

func attribute(f *contact.Found, name string) string {
	for _, a := range f.Attributes {
		if a.Name == name {
			return a.Text
		}
	}
	return ""
}

func (r *rig) contact(email string) *contact.Found {
	r.t.Helper()
	f, err := r.book.Get(r.t.Context(), "shop", "email:"+email)
	require.NoError(r.t, err)
	return f
}

func (r *rig) state() *state {
	r.t.Helper()
	source, err := parseID(r.src.ID, sourcePrefix)
	require.NoError(r.t, err)
	var st *state
	require.NoError(r.t, r.store.View(r.t.Context(), func(tx kv.Tx) (err error) {
		st, err = getState(tx, source)
		return err
	}))
	return st
}

func (r *rig) setState(st *state) {
	r.t.Helper()
	source, err := parseID(r.src.ID, sourcePrefix)
	require.NoError(r.t, err)
	require.NoError(r.t, r.store.Update(r.t.Context(), func(tx kv.Tx) error { return st.put(tx, source) }))
}

func (r *rig) unsubscribe(email string) {
	r.t.Helper()
	require.NoError(r.t, r.store.Update(r.t.Context(), func(tx kv.Tx) error {
		l, err := r.book.ListTx(tx, "shop", "customers")
		if err != nil {
			return err
		}
		_, err = r.book.UnsubscribeTx(tx, l.ID, "", []mail.Path{mail.MustParsePath(email)}, "link")
		return err
	}))
}

// failing is a contact store that breaks after some pages.
type failing struct {
	Contacts
	after int
}

func (f *failing) ApplyTx(tx kv.Tx, list contact.ListID, rows []contact.Row, o contact.ApplyOptions) (contact.Applied, error) {
	if f.after--; f.after < 0 {
		return contact.Applied{}, errors.New("disk on fire")
	}
	return f.Contacts.ApplyTx(tx, list, rows, o)
}

// stopping ends a context before the page that comes after some others.
type stopping struct {
	Contacts
	after int
	stop  context.CancelFunc
}

func (f *stopping) ApplyTx(tx kv.Tx, list contact.ListID, rows []contact.Row, o contact.ApplyOptions) (contact.Applied, error) {
	if f.after--; f.after == 0 {
		f.stop()
	}
	return f.Contacts.ApplyTx(tx, list, rows, o)
}
