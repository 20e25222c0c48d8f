package source

import (
	"context"
	"fmt"
	"slices"

	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// maxRowErrors is how many row errors a run tells.
const maxRowErrors = 50

// batch is what becomes durable in one transaction: rows as contacts, what is remembered of them, the watermark and the
// counts of the run.
type batch struct {
	rows []row
	// force applies rows that are as they were, too.
	force bool
	// uncounted are rows that are read again because another row left their address.
	uncounted bool
	// gone are keys of rows that are no longer in the table.
	gone []string
	// unsubscribe keeps contacts of gone rows on the list.
	unsubscribe bool
	// done are keys that need not be read again any more.
	done []string
	// mark is the new watermark, nil to leave it.
	mark *mark
}

// change is what becomes of one mailbox.
type change struct {
	email string
	what  action
	row   *row
	was   entry
	known bool // the row was read before
	count bool // it stands for a row of the table
}

type action uint8

const (
	actApply action = iota
	actRemove
	actUnsubscribe
)

// pass is one batch in one transaction.
type pass struct {
	run     *run
	tx      kv.Tx
	batch   *batch
	report  api.SourceRun // counts of this batch alone
	changes []change
	byEmail map[string]int
}

// applyTx takes a batch over and returns its counts.
func (r *run) applyTx(tx kv.Tx, b *batch) (api.SourceRun, error) {
	p := &pass{run: r, tx: tx, batch: b, byEmail: map[string]int{}}
	keys := make([][]byte, 0, len(b.rows)+len(b.gone))
	for i := range b.rows {
		keys = append(keys, r.space.key(b.rows[i].key))
	}
	for _, k := range b.gone {
		keys = append(keys, r.space.key(k))
	}
	values, err := tx.GetMany(tableRow, keys)
	if err != nil {
		return p.report, fmt.Errorf("read entries of source: %w", err)
	}
	for i, v := range values {
		var old *entry
		if v != nil {
			e, err := decodeEntry(v)
			if err != nil {
				return p.report, err
			}
			old = &e
		}
		if i < len(b.rows) {
			err = p.take(&b.rows[i], old)
		} else if old != nil {
			err = p.leave(b.gone[i-len(b.rows)], old, b.unsubscribe)
		}
		if err != nil {
			return p.report, err
		}
	}
	for _, k := range b.done {
		if err := tx.Delete(tableTodo, r.space.key(k)); err != nil {
			return p.report, err
		}
	}
	return p.report, p.store()
}

// take decides what one row means.
func (p *pass) take(r *row, old *entry) error {
	counted := !p.batch.uncounted
	if counted {
		p.report.Read++
	}
	switch {
	case r.bad != nil:
		if counted {
			p.reject(r.bad)
		}
		return nil
	case r.deleted && old == nil:
		if counted {
			p.report.Unchanged++
		}
		return nil
	case r.deleted:
		return p.leave(r.key, old, p.run.rec.Config.Query.Deleted.Action == "unsubscribe")
	}
	email := r.contact.To.Key()
	stays := old != nil && old.email == email
	same := stays && old.print == r.print && old.at == r.at
	if same && !p.batch.force {
		p.report.Unchanged++
		return nil
	}
	if !same {
		if err := p.move(r, old, email); err != nil {
			return err
		}
	}
	owner, err := p.owner(email)
	if err != nil {
		return err
	}
	if owner != r.key { // another row of this address changed later
		if counted {
			p.report.Duplicates++
		}
		if stays {
			return p.readAgain(owner) // this one may have had the contact so far
		}
		return nil
	}
	c := change{email: email, what: actApply, row: r, count: counted}
	if old != nil {
		c.was, c.known = *old, true
	}
	p.plan(c)
	return nil
}

// move remembers a row that is new or has changed, under the address that it has now.
func (p *pass) move(r *row, old *entry, email string) error {
	s := p.run.space
	if old != nil {
		if err := p.tx.Delete(tableEmail, s.emailKey(old.email, old.at, r.key)); err != nil {
			return err
		}
		if old.email != email {
			if err := p.vacate(old.email, actRemove, false); err != nil {
				return err
			}
		}
	}
	e := entry{at: r.at, print: r.print, status: r.contact.Status, email: email}
	if err := p.tx.Put(tableRow, s.key(r.key), e.encode()); err != nil {
		return fmt.Errorf("write entry of source: %w", err)
	}
	return p.tx.Put(tableEmail, s.emailKey(email, r.at, r.key), []byte{recordVersion})
}

// leave forgets a row that is deleted. Its contact goes too, unless another row has the address.
func (p *pass) leave(key string, old *entry, unsubscribe bool) error {
	s := p.run.space
	if err := p.tx.Delete(tableRow, s.key(key)); err != nil {
		return err
	}
	if err := p.tx.Delete(tableEmail, s.emailKey(old.email, old.at, key)); err != nil {
		return err
	}
	what := actRemove
	if unsubscribe {
		what = actUnsubscribe
	}
	return p.vacate(old.email, what, !p.batch.uncounted)
}

// vacate is about an address that a row has left: the next row that has it is read again, else the contact goes.
func (p *pass) vacate(email string, what action, counted bool) error {
	next, err := p.owner(email)
	if err != nil {
		return err
	}
	if next == "" {
		p.plan(change{email: email, what: what, count: counted})
		return nil
	}
	if counted {
		p.report.Duplicates++
	}
	return p.readAgain(next)
}

func (p *pass) readAgain(key string) error {
	return p.tx.Put(tableTodo, p.run.space.key(key), []byte{recordVersion})
}

// owner is the row of an address that changed last, "" where there is none.
func (p *pass) owner(email string) (string, error) {
	prefix := append(p.run.space.key(email), 0)
	key := ""
	err := p.tx.Scan(tableEmail, prefix, kv.PrefixEnd(prefix), func(k, _ []byte) (bool, error) {
		if len(k) > len(prefix)+8 {
			key = string(k[len(prefix)+8:])
		}
		return false, nil
	})
	if err != nil {
		return "", fmt.Errorf("look up rows of an address: %w", err)
	}
	return key, nil
}

// plan keeps the last change of each mailbox.
func (p *pass) plan(c change) {
	i, known := p.byEmail[c.email]
	if !known {
		p.byEmail[c.email] = len(p.changes)
		p.changes = append(p.changes, c)
		return
	}
	old := &p.changes[i]
	if old.count {
		p.report.Duplicates++
	}
	if old.what == actApply && c.what == actApply && !c.known {
		c.was, c.known = old.was, old.known
	}
	*old = c
}

func (p *pass) reject(bad *api.SourceRowError) {
	p.report.Rejected++
	p.report.Errors = append(p.report.Errors, *bad)
}

// store hands the changes to the contacts.
func (p *pass) store() error {
	var plain, allowed []*change
	var leave, unsubscribe []mail.Path
	for i := range p.changes {
		c := &p.changes[i]
		if c.what == actApply {
			// Who left comes back only where the source itself has changed its mind: a row that says what it said before
			// is no wish of anybody, nor is what the table says when it is read for the first time.
			if p.run.rec.Config.AllowResubscribe && !p.run.first && c.row.contact.Status == contact.Subscribed && c.was.status != contact.Subscribed {
				allowed = append(allowed, c)
			} else {
				plain = append(plain, c)
			}
			continue
		}
		to, err := mail.ParsePath(c.email)
		if err != nil {
			return fmt.Errorf("%w: address of an entry: %w", errBadRecord, err)
		}
		if c.what == actRemove {
			leave = append(leave, to)
			p.add(&p.report.Deleted, c)
		} else {
			unsubscribe = append(unsubscribe, to)
			p.add(&p.report.Unsubscribed, c)
		}
	}
	book, source := p.run.s.deps.Contacts, "source:"+formatSource(p.run.rec.ID)
	if len(leave) > 0 {
		if _, err := book.RemoveTx(p.tx, p.run.list, leave); err != nil {
			return fmt.Errorf("take contacts off the list: %w", err)
		}
	}
	if len(unsubscribe) > 0 {
		if _, err := book.UnsubscribeTx(p.tx, p.run.list, "", unsubscribe, source); err != nil {
			return fmt.Errorf("unsubscribe contacts: %w", err)
		}
	}
	if err := p.apply(plain, contact.ApplyOptions{Source: source}); err != nil {
		return err
	}
	return p.apply(allowed, contact.ApplyOptions{Source: source, AllowResubscribe: true})
}

func (p *pass) add(n *int64, c *change) {
	if c.count {
		*n++
	}
}

func (p *pass) apply(changes []*change, o contact.ApplyOptions) error {
	if len(changes) == 0 {
		return nil
	}
	rows := make([]contact.Row, len(changes))
	for i, c := range changes {
		rows[i] = c.row.contact
	}
	done, err := p.run.s.deps.Contacts.ApplyTx(p.tx, p.run.list, rows, o)
	if err != nil {
		return fmt.Errorf("write contacts: %w", err)
	}
	for i, c := range changes {
		switch done.Verdicts[i] {
		case contact.Created:
			p.add(&p.report.Created, c)
		case contact.Updated:
			n := &p.report.Updated
			if c.row.contact.Status == contact.Unsubscribed && c.known && c.was.status != contact.Unsubscribed {
				n = &p.report.Unsubscribed
			}
			p.add(n, c)
		case contact.SkippedUnsubscribed:
			p.add(&p.report.SkippedUnsubscribed, c)
		case contact.SkippedErased:
			p.add(&p.report.SkippedErased, c)
		case contact.Rejected:
			if err := p.refused(c, done.Errors[i]); err != nil {
				return err
			}
		default:
			p.add(&p.report.Unchanged, c)
		}
	}
	return nil
}

// refused is about a row that the list does not take. Its entry says that it is to be tried again.
func (p *pass) refused(c *change, bad *contact.RowError) error {
	e := entry{at: c.row.at, status: c.row.contact.Status, email: c.email}
	if err := p.tx.Put(tableRow, p.run.space.key(c.row.key), e.encode()); err != nil {
		return err
	}
	if !c.count {
		return nil
	}
	out := api.SourceRowError{Key: mail.CleanText(c.row.key, maxErrorValue), Code: "rejected"}
	if bad != nil {
		out.Column, out.Value, out.Code, out.Detail = bad.Column, mail.CleanText(bad.Value, maxErrorValue), bad.Code, mail.CleanText(bad.Detail, 500)
	}
	p.reject(&out)
	return nil
}

// commit makes a batch durable, with the watermark and the counts of the run. It stops the run where somebody changed
// or removed the source meanwhile.
func (r *run) commit(ctx context.Context, b *batch) error {
	var sum api.SourceRun
	err := r.s.deps.DB.Update(ctx, func(tx kv.Tx) error {
		st, err := r.stateTx(tx)
		if err != nil {
			return err
		}
		part, err := r.applyTx(tx, b)
		if err != nil {
			return err
		}
		if b.mark != nil {
			st.Mark = b.mark
		}
		sum = r.report
		addCounts(&sum, &part)
		sum.To = st.Mark.api(r.zone)
		if err := putRun(tx, r.rec.ID, r.id, &sum); err != nil {
			return err
		}
		return st.put(tx, r.rec.ID)
	})
	if err != nil {
		return err
	}
	r.s.metrics.add(&r.report, &sum)
	r.report = sum
	if b.mark != nil {
		r.mark = b.mark
	}
	return nil
}

// stateTx reads the state of the source, if this run may still write.
func (r *run) stateTx(tx kv.Tx) (*state, error) {
	rec, err := getRecord(tx, r.rec.ID)
	if err != nil {
		return nil, err
	}
	st, err := getState(tx, r.rec.ID)
	if err != nil {
		return nil, err
	}
	if rec.Version != r.rec.Version || st.Running != r.id {
		return nil, errSuperseded
	}
	return st, nil
}

func addCounts(to, part *api.SourceRun) {
	for i, n := range tally(part) {
		*tally(to)[i] += *n
	}
	room := max(0, maxRowErrors-len(to.Errors))
	if len(part.Errors) > room {
		to.ErrorsTruncated = true
	}
	to.Errors = append(slices.Clip(to.Errors), part.Errors[:min(room, len(part.Errors))]...)
}

// results are the names under which tally's numbers are counted.
var results = [...]string{
	"created", "updated", "unchanged", "unsubscribed", "deleted", "duplicate", "skipped_unsubscribed", "skipped_erased", "rejected", "read",
}

func tally(r *api.SourceRun) [len(results)]*int64 {
	return [...]*int64{
		&r.Created, &r.Updated, &r.Unchanged, &r.Unsubscribed, &r.Deleted, &r.Duplicates, &r.SkippedUnsubscribed, &r.SkippedErased, &r.Rejected, &r.Read,
	}
}
