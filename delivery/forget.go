package delivery

import (
	"cmp"
	"context"
	"slices"
	"time"

	"relayd/internal/kv"
)

// purgeEvery is how often what is of no use any more is forgotten on disk.
const purgeEvery = time.Hour

// purgePage bounds the records that one transaction removes.
const purgePage = 1000

// forgetOld has the memory purged when it is time. The caller holds mu.
func (s *Scheduler) forgetOld(now time.Time) {
	switch {
	case s.purged.IsZero(): // it was read just now
		s.purged = now
	case now.Sub(s.purged) >= purgeEvery && s.memory.db != nil:
		s.purged = now
		s.memory.wg.Go(func() { s.memory.purge(s.working, maxRemembered) })
	}
}

// purge removes the records of sites that have not changed for rememberFor, and of the others all but the newest: hosts that
// fail once and are never met again would fill the disk. Operators' suspensions stay.
func (m *memory) purge(ctx context.Context, most int) {
	type aged struct {
		key string
		at  time.Time
	}
	now := m.now()
	var old []string
	err := m.db.View(ctx, func(tx kv.Tx) error {
		old = nil
		var kept []aged
		err := tx.Scan(tableSite, []byte{'s'}, []byte{'s' + 1}, func(k, v []byte) (bool, error) {
			r, err := decodeSite(v)
			if err != nil {
				return false, err
			}
			if at := later(r.At, r.Resume); now.Sub(at) > rememberFor {
				old = append(old, string(k))
			} else {
				kept = append(kept, aged{string(k), at})
			}
			return true, nil
		})
		if len(kept) > most {
			slices.SortFunc(kept, func(a, b aged) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.key, b.key)) })
			for _, a := range kept[:len(kept)-most] {
				old = append(old, a.key)
			}
		}
		return err
	})
	for page := range slices.Chunk(old, purgePage) {
		if err != nil {
			break
		}
		err = m.db.Update(ctx, func(tx kv.Tx) error {
			for _, k := range page {
				if err := tx.Delete(tableSite, []byte(k)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		if ctx.Err() == nil {
			m.log.Error("site.unsaved", "count", len(old), "err", err)
		}
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range old {
		delete(m.states, k[1:])
	}
}
