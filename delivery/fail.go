package delivery

import (
	"context"

	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// Notices writes to the senders of mail that an operator fails, under the rules of any other failure.
func (s *Scheduler) Notices() spool.Notices { return operatorNotices{s.settler.notifier} }

// operatorNotices is spool.Notices.
type operatorNotices struct{ notifier *notifier }

// Count tells how many messages have a sender who wants to know.
func (o operatorNotices) Count(failed []spool.Settled) int {
	if o.notifier.door == nil {
		return 0
	}
	told := map[mail.QueueID]bool{}
	for i := range failed {
		d := settlement{message: failed[i].Message, envelope: failed[i].Envelope, result: failed[i].Result}
		if _, v := o.notifier.judge(&d); v == noticeSend {
			told[d.message.ID] = true
		}
	}
	return len(told)
}

// Prepare writes one notice per message; when one cannot be written it writes none.
func (o operatorNotices) Prepare(ctx context.Context, failed []spool.Settled) (spool.Notice, error) {
	done := make([]settlement, len(failed))
	for i := range failed {
		done[i] = settlement{message: failed[i].Message, envelope: failed[i].Envelope, result: failed[i].Result}
	}
	out := o.notifier.prepare(ctx, done)
	drop := func() {
		for _, p := range out.prepared {
			p.Drop()
		}
	}
	if out.err != nil {
		drop()
		return spool.Notice{}, out.err
	}
	put := func(tx kv.Tx) error {
		for _, p := range out.prepared {
			if err := p.PutTx(tx); err != nil {
				return err
			}
		}
		return nil
	}
	return spool.Notice{Count: len(out.prepared), Put: put, Added: out.added, Drop: drop}, nil
}
