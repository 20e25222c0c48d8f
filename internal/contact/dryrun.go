package contact

import (
	"hash/fnv"
	"io"

	"relayd/internal/kv"
)

// dryRun lets ApplyTx say what it would do. It remembers the mailboxes that it would have made, with a hash of what their
// last row said, so that later rows are judged as if it had.
type dryRun struct {
	seen   map[uint64]uint64
	staged map[uint64]uint64
}

// mostDry bounds the memory of a dry run. Of mailboxes beyond it duplicates are told as created.
const mostDry = 2_000_000

func newDryRun() *dryRun { return &dryRun{seen: map[uint64]uint64{}} }

// dryTx drops the writes to the tables of contacts.
type dryTx struct{ kv.Tx }

func (d dryTx) Put(kv.Table, []byte, []byte) error { return nil }
func (d dryTx) Delete(kv.Table, []byte) error      { return nil }

func (d *dryRun) over(tx kv.Tx) kv.Tx { return dryTx{tx} }

func (d *dryRun) under(tx kv.Tx) kv.Tx { return tx.(dryTx).Tx } //nolint:forcetypeassert // of over

// again mends the verdicts on mailboxes that an earlier batch would have made.
func (d *dryRun) again(done *Applied, rows []Row) {
	d.staged = map[uint64]uint64{}
	for i, v := range done.Verdicts {
		if v != Created {
			continue
		}
		h := fnv.New64a()
		_, _ = io.WriteString(h, rows[i].To.Key())
		key := h.Sum64()
		_, _ = h.Write(AppendAttributes([]byte{byte(rows[i].Status)}, rows[i].Attributes))
		_, _ = io.WriteString(h, rows[i].To.String())
		what := h.Sum64()
		was, known := d.seen[key]
		d.staged[key] = what
		if !known {
			continue
		}
		done.Created--
		done.Duplicates++
		if done.Verdicts[i] = Updated; was == what {
			done.Verdicts[i] = Unchanged
		}
		done.count(done.Verdicts[i])
	}
}

func (d *dryRun) commit() {
	for k, v := range d.staged {
		if len(d.seen) < mostDry {
			d.seen[k] = v
		}
	}
}
