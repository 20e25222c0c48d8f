package admin

import (
	"relayd/internal/api"
	"relayd/spool"
)

// contactActivity lists what was sent to a contact and what became of it, from the history of outcomes, which is kept for
// spool.retention. What still waits is in the queue.
func (s *Server) contactActivity(r *request, l list) ([]api.QueueItem, string, error) {
	f, err := s.deps.Contacts.Get(r.Context(), l.account, r.PathValue("id"))
	if err != nil {
		return nil, "", err
	}
	q := spool.HistoryQuery{Recipient: f.To.String(), Account: l.account}
	outcomes, next, err := s.deps.Queue.History(r.Context(), q, l.cursor, l.limit)
	return each(outcomes, outcomeItem), next, err
}

// outcomeItem is a final outcome as the API shows it.
func outcomeItem(o spool.OutcomeRecord) api.QueueItem {
	item := itemOf(&spool.Info{Outcome: &o, From: o.From, Subject: o.Subject, AcceptedAt: o.AcceptedAt})
	item.Class, item.MessageID = "", o.MessageID
	return item
}
