package contact

import (
	"context"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Row is what an import, a sync or a call says of one contact.
type Row struct {
	To         mail.Path
	Attributes []Attribute // sorted by name; one of kind Missing is removed
	Status     Status      // Absent: what it is already, else ApplyOptions.Default
	Topics     []TopicStatus
	Locale     *string // nil: as it is
	Timezone   *string
	Consent    Consent // zero: as it is
}

// TopicStatus is what a row says of one topic.
type TopicStatus struct {
	Name   string
	Status Status
}

// ApplyOptions steer ApplyTx. The zero value is an upsert that lays attributes over those that stand there.
type ApplyOptions struct {
	Source            string // "api", "import:imp_…", "source:src_…": kept with what changes
	Default           Status // of new contacts without a status: Absent for Subscribed; Invalid makes such a row an error
	AllowResubscribe  bool   // unsubscribed may become subscribed, but for complaints and hard bounces
	ReplaceAttributes bool   // attributes that a row does not name go
	SkipExisting      bool   // contacts that are on the list stay as they are
}

// Stats counts rows: Created + Updated + Unchanged + SkippedUnsubscribed + SkippedErased + SkippedExisting + Rejected is
// their number. Duplicates are among them.
type Stats struct {
	Created             int64 `json:"created"`
	Updated             int64 `json:"updated"`
	Unchanged           int64 `json:"unchanged"`
	SkippedUnsubscribed int64 `json:"skipped_unsubscribed"` // said subscribed and are not; what else they say is taken
	SkippedErased       int64 `json:"skipped_erased"`
	SkippedExisting     int64 `json:"skipped_existing"`
	Rejected            int64 `json:"rejected"`
	Duplicates          int64 `json:"duplicates"` // of a mailbox that the same source had written before; the last row wins
}

// Add sums two.
func (s *Stats) Add(o Stats) {
	s.Created += o.Created
	s.Updated += o.Updated
	s.Unchanged += o.Unchanged
	s.SkippedUnsubscribed += o.SkippedUnsubscribed
	s.SkippedErased += o.SkippedErased
	s.SkippedExisting += o.SkippedExisting
	s.Rejected += o.Rejected
	s.Duplicates += o.Duplicates
}

// Verdict is what became of one row.
type Verdict uint8

// The verdicts, under the names of Stats.
const (
	Created Verdict = iota + 1
	Updated
	Unchanged
	SkippedUnsubscribed
	SkippedErased
	SkippedExisting
	Rejected
)

// String is the verdict's name in the API.
func (v Verdict) String() string {
	return [...]string{"", "created", "updated", "unchanged", "skipped_unsubscribed", "skipped_erased", "skipped_existing", "rejected"}[v]
}

func (s *Stats) count(v Verdict) {
	*[]*int64{
		new(int64), &s.Created, &s.Updated, &s.Unchanged, &s.SkippedUnsubscribed, &s.SkippedErased, &s.SkippedExisting, &s.Rejected,
	}[v]++
}

// Applied is what ApplyTx did: one verdict for each row, and what was wrong with those that it rejected.
type Applied struct {
	Stats
	Verdicts []Verdict
	Errors   map[int]*RowError // by index of the row
}

// Apply is ApplyTx in a transaction of its own.
func (s *Store) Apply(ctx context.Context, list ListID, rows []Row, o ApplyOptions) (done Applied, err error) {
	err = s.DB.Update(ctx, func(tx kv.Tx) error {
		done, err = s.ApplyTx(tx, list, rows, o)
		return err
	})
	return done, err
}

// ApplyTx writes rows to a list: new mailboxes become contacts, others are changed where the row differs, and rows that
// say nothing new write nothing, so that it may be repeated. Rows of one mailbox count in their order. A row that breaks
// the list's schema or a limit is rejected, and the others are written. ErrNotFound when the list is gone.
//
// Some thousand rows at a time are right: a batch reads four times, whatever its size.
func (s *Store) ApplyTx(tx kv.Tx, list ListID, rows []Row, o ApplyOptions) (Applied, error) {
	keys := make([]string, len(rows))
	for i := range rows {
		keys[i] = rows[i].To.Key()
	}
	return s.applyTx(tx, list, rows, keys, o)
}

// applyTx is ApplyTx with the mailbox of each row.
func (s *Store) applyTx(tx kv.Tx, list ListID, rows []Row, keys []string, o ApplyOptions) (Applied, error) {
	l, err := getList(tx, list)
	if err != nil {
		return Applied{}, err
	}
	b := newBatch(s, tx, l, o, len(rows))
	b.group(rows, keys)
	if err := b.load(); err != nil {
		return Applied{}, err
	}
	for i := range b.entries {
		e := &b.entries[i]
		for n, i := range e.rows {
			if n > 0 || e.touched {
				b.Duplicates++
			}
			v, bad := b.apply(e, &rows[i])
			if bad != nil {
				b.Errors[int(i)] = bad
			}
			b.Verdicts[i] = v
			b.count(v)
		}
	}
	return b.Applied, b.store()
}
