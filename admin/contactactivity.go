package admin

import (
	"relayd/internal/api"
	"relayd/spool"
)

// contactActivity lists what was sent to a contact and what became of it, from the history of outcomes, which is kept for
// spool.retention. What still waits is in the queue.
func (s *Server) contactActivity(r *request) (api.Page[api.QueueItem], error) {
	var none api.Page[api.QueueItem]
	account, err := ownAccount(r)
	if err != nil {
		return none, err
	}
	l, err := s.list(r)
	if err != nil {
		return none, err
	}
	f, err := s.deps.Contacts.Get(r.Context(), account, r.PathValue("id"))
	if err != nil {
		return none, err
	}
	outcomes, next, err := s.deps.Queue.History(r.Context(), spool.HistoryQuery{Recipient: f.To.String(), Account: account}, l.cursor, l.limit)
	if err != nil {
		return none, err
	}
	items := make([]api.QueueItem, 0, len(outcomes))
	for i := range outcomes {
		items = append(items, outcomeItem(&outcomes[i]))
	}
	return pageOf(s, l, items, next), nil
}

// outcomeItem is a final outcome as the API shows it.
func outcomeItem(o *spool.OutcomeRecord) api.QueueItem {
	item := itemOf(&spool.Info{Outcome: o, From: o.From, Subject: o.Subject, AcceptedAt: o.AcceptedAt})
	item.Class, item.MessageID = "", o.MessageID
	return item
}
