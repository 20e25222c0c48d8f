package source

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/mail"
)

// writer is one of many that change the table at the same time.
type writer struct {
	r    *rig
	rnd  *rand.Rand
	hard bool // deletes rows for good, too
}

// clock is an expression for updated_at: the statement's time, the transaction's, or either without its fraction, so
// that many rows have the same one.
func (w *writer) clock() string {
	if w.r.driver == "postgres" {
		return []string{"clock_timestamp()", "now()", "date_trunc('second', now())"}[w.rnd.IntN(3)]
	}
	return []string{"SYSDATE(6)", "NOW(6)", "CAST(DATE_FORMAT(NOW(6), '%Y-%m-%d %H:%i:%s') AS DATETIME)"}[w.rnd.IntN(3)]
}

// one is one random change.
func (w *writer) one(ctx context.Context, tx *sql.Tx) error {
	id, email, name := w.rnd.IntN(60), fmt.Sprintf("M%d@Dest.example", w.rnd.IntN(40)), fmt.Sprintf("n%d", w.rnd.IntN(1000))
	if w.rnd.IntN(2) == 0 {
		email = strings.ToLower(email)
	}
	exec := func(text string, args ...any) error {
		_, err := tx.ExecContext(ctx, w.r.dialect(strings.ReplaceAll(text, "@NOW", w.clock())), args...)
		return err
	}
	switch n := w.rnd.IntN(10); {
	case n < 4 && w.r.driver == "postgres":
		return exec("INSERT INTO customers (id, email, name, updated_at) VALUES (?, ?, ?, @NOW) ON CONFLICT (id) DO UPDATE SET email = excluded.email, name = excluded.name, updated_at = excluded.updated_at, deleted_at = NULL", id, email, name)
	case n < 4:
		return exec("INSERT INTO customers (id, email, name, updated_at) VALUES (?, ?, ?, @NOW) ON DUPLICATE KEY UPDATE email = VALUES(email), name = VALUES(name), updated_at = VALUES(updated_at), deleted_at = NULL", id, email, name)
	case n < 6:
		return exec("UPDATE customers SET name = ?, updated_at = @NOW WHERE id = ?", name, id)
	case n < 7:
		return exec("UPDATE customers SET email = ?, updated_at = @NOW WHERE id = ?", email, id)
	case n < 8:
		return exec("UPDATE customers SET deleted_at = CURRENT_TIMESTAMP, updated_at = @NOW WHERE id = ?", id)
	case n < 9:
		return exec("UPDATE customers SET updated_at = @NOW WHERE id = ?", id)
	case w.hard:
		return exec("DELETE FROM customers WHERE id = ?", id)
	}
	return exec("UPDATE customers SET deleted_at = NULL, updated_at = @NOW WHERE id = ?", id)
}

// work commits random transactions, some of them late: a reader may pass in between.
func (w *writer) work(ctx context.Context, transactions int, reader *sync.Cond, runs *int) {
	for range transactions {
		tx, err := w.r.db.BeginTx(ctx, nil)
		if err != nil {
			return
		}
		for range 1 + w.rnd.IntN(3) {
			if err = w.one(ctx, tx); err != nil { // a deadlock
				break
			}
		}
		if err == nil && w.rnd.IntN(8) == 0 { // not before another run has ended
			reader.L.Lock()
			for seen := *runs; *runs == seen && ctx.Err() == nil; {
				reader.Wait()
			}
			reader.L.Unlock()
		}
		if err != nil || w.rnd.IntN(10) == 0 {
			_ = tx.Rollback()
			continue
		}
		_ = tx.Commit()
	}
}

// want is what the table says, by the rules of docs/sources.md.
func (r *rig) want() map[string]string {
	r.t.Helper()
	text := "SELECT id, email, name, updated_at::text, deleted_at IS NOT NULL FROM customers"
	if r.driver == "mysql" {
		text = "SELECT id, email, name, CAST(updated_at AS CHAR), deleted_at IS NOT NULL FROM customers"
	}
	rows, err := r.db.QueryContext(r.t.Context(), text)
	require.NoError(r.t, err)
	defer func() { _ = rows.Close() }()
	type owner struct{ at, key string }
	owners, out := map[string]owner{}, map[string]string{}
	for rows.Next() {
		var key, email, name, at string
		var deleted bool
		require.NoError(r.t, rows.Scan(&key, &email, &name, &at, &deleted))
		if deleted {
			continue
		}
		m, ok := parseMoment(at)
		require.True(r.t, ok)
		at = m.sql()
		mailbox := mail.MustParsePath(email).Key()
		if o, taken := owners[mailbox]; taken && (o.at > at || o.at == at && o.key < key) {
			continue
		}
		owners[mailbox], out[mailbox] = owner{at, key}, name+" subscribed"
	}
	require.NoError(r.t, rows.Err())
	return out
}

func TestConcurrentWritersEndEqualToTheSource(t *testing.T) {
	t.Parallel()
	for _, hard := range []bool{false, true} {
		name := "changes_alone"
		if hard {
			name = "rows_that_go"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, r *rig) { concurrentWriters(t, r, hard) })
		})
	}
}

func concurrentWriters(t *testing.T, r *rig, hard bool) {
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any number
	t.Logf("seed %d", seed)
	r.exec(customers)
	if r.driver == "postgres" {
		r.exec("ALTER DATABASE " + r.name + " SET TimeZone = 'UTC'")
	}
	in := ask()
	in.PageSize = new(7)
	all := 100.0
	in.FullResync = &api.SourceFullResync{MissingRows: "delete", MaxDeletePercent: &all}
	in.Query.Columns = map[string]string{"email": "email", "attributes.Name": "name"}
	r.create(in)
	var mu sync.Mutex
	reader, runs := sync.NewCond(&mu), 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for n := range uint64(4) {
		w := &writer{r, rand.New(rand.NewPCG(seed, n)), hard} //nolint:gosec // a test wants to be repeated
		wg.Go(func() { w.work(ctx, 40, reader, &runs) })
	}
	idle := make(chan struct{})
	go func() { wg.Wait(); close(idle) }()
	for busy := true; busy; {
		select {
		case <-idle:
			busy = false
		default:
			r.sync(false)
			mu.Lock()
			runs++
			mu.Unlock()
			reader.Broadcast()
		}
	}
	run := r.sync(hard)
	require.Equal(t, r.want(), r.list(), "after %d runs, seed %d", runs, seed)
	require.Zero(t, run.Rejected)
	if !hard {
		again := r.sync(false)
		require.Zero(t, again.Created+again.Updated+again.Deleted)
	}
}
