package e2e

import (
	"context"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// TestPowerLoss takes the power away at random moments: the disk of a relay under load is copied in one instant, the
// copy mounted (which replays its journal), checked, and served by another relayd. Everything that was acknowledged
// before that instant must have been delivered by the first one or be delivered by the second.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	d := newDisk(t, 192<<20)
	losses := repeats(t, "RELAYD_E2E_POWERLOSSES", 4)
	b := newLedger(t)
	s := b.sink()
	conf := options{domains: ledgerDomains, mxPort: s.port, data: filepath.Join(d.mnt, "data"), level: "info", extra: "[campaign]\npage_size = 50\n", deliv: "connect_tries = 1"}
	r := newRelay(t, conf)
	t.Cleanup(func() { _ = r.cmd.Process.Signal(syscall.SIGCONT) })
	l := r.domain("shop.example")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var load sync.WaitGroup
	b.submitters(ctx, &load, r, l, 3, math.MaxInt)
	b.posters(ctx, &load, r, 1)
	camps := b.campaigns(ctx, &load, r)

	checked, again, doubted := 0, 0, 0
	wait(t, "something to lose", 60*time.Second, func() bool { return len(b.promised(camps)) > 0 })
	for range losses {
		<-time.After(time.Duration(50+rand.IntN(400)) * time.Millisecond) //nolint:gosec // a test
		promised := b.promised(camps)
		early, _ := b.snapshot()
		mnt, drop := d.powerLoss()
		require.NoError(t, r.cmd.Process.Signal(syscall.SIGSTOP)) // the check is not to compete with the load
		before, notices := b.snapshot()
		store := filepath.Join(mnt, "data", "relayd.db")
		checkPages(t, store)
		conf2, b2 := conf, newLedger(t)
		conf2.mxPort, conf2.data = b2.sink().port, filepath.Join(mnt, "data")
		r2 := newRelay(t, conf2)
		doubted += r2.doubted()
		wait(t, "the campaigns of the copy to be queued", 60*time.Second, func() bool { return r2.settled(60*time.Second).Queued == 0 && r2.idle() })
		r2.stop()
		checkPages(t, store)
		drop()
		after, notices2 := b2.snapshot()
		require.Empty(t, b2.wrong)
		for _, to := range promised {
			one, two := before[to], after[to]
			if strings.HasPrefix(to, "gone-") {
				require.True(t, notices[to] > 0 || notices2[to] > 0, "%s bounced without a notice", to)
			} else {
				require.Positive(t, one.n+two.n, "%s was acknowledged before the power failed, and is lost", to)
			}
			if one.n > 0 && two.n > 0 {
				require.Equal(t, one.messageID, two.messageID, "a copy to %s is another message", to)
			}
			if early[to].n > 0 && two.n > 0 {
				again++
			}
			checked++
		}
		require.NoError(t, r.cmd.Process.Signal(syscall.SIGCONT))
	}
	cancel()
	load.Wait()
	r.settled(120 * time.Second)
	c := b.audit(r)
	reached, twice := b.auditCampaigns(r, camps)
	t.Logf("%d power losses: %d acknowledged recipients checked, none lost, %d delivered before and again after, %d in doubt; the first relay: %s; campaigns %d reached, %d duplicates",
		losses, checked, again, doubted, c, reached, twice)
	require.Positive(t, checked)
	require.LessOrEqual(t, again, doubted, "delivered again: only what was in doubt")
}

// promised are the recipients of all that has been acknowledged.
func (b *ledger) promised(bs *broadcasts) (to []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, le := range b.letters {
		if le.fate == accepted {
			to = append(to, le.to...)
		}
	}
	bs.mu.Lock()
	defer bs.mu.Unlock()
	for _, id := range bs.ids {
		to = append(to, bs.to[id]...)
	}
	return to
}

// snapshot is what has arrived so far.
func (b *ledger) snapshot() (map[string]arrival, map[string]int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	got := make(map[string]arrival, len(b.arrived))
	for to, a := range b.arrived {
		got[to] = *a
	}
	return got, maps.Clone(b.notices)
}

// idle tells whether every campaign has come to its end.
func (r *relay) idle() bool {
	r.t.Helper()
	var list struct{ Data []struct{ State string } }
	r.json(&list, "campaign", "list")
	for _, c := range list.Data {
		if c.State != "completed" {
			return false
		}
	}
	return true
}

// checkPages is the engine's own check of every page and reference.
func checkPages(t *testing.T, file string) {
	t.Helper()
	db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	require.NoError(t, err)
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			require.NoError(t, err)
		}
		return nil
	}))
	syscall.ForkLock.RLock() // bbolt leaves the lock to the last descriptor, of which a child may have a copy between fork and exec
	defer syscall.ForkLock.RUnlock()
	require.NoError(t, db.Close())
}
