package admin

import (
	"relayd/internal/api"
	"relayd/internal/event"
)

func (s *Server) listEvents(r *request) (api.Page[api.Event], error) {
	var none api.Page[api.Event]
	q := r.URL.Query()
	f := event.Filter{Type: q.Get("type"), Envelope: q.Get("envelope"), Campaign: q.Get("campaign")}
	var err error
	if f.Account, err = r.caller.filter(q.Get("account")); err != nil {
		return none, err
	}
	if f.Since, err = queryTime(r, "since"); err != nil {
		return none, err
	}
	if f.Until, err = queryTime(r, "until"); err != nil {
		return none, err
	}
	l, err := s.list(r)
	if err != nil {
		return none, err
	}
	events, next, err := s.deps.Events.List(r.Context(), f, l.cursor, l.limit)
	if err != nil {
		return none, err
	}
	data := make([]api.Event, 0, len(events))
	for _, e := range events {
		data = append(data, api.Event(e))
	}
	return pageOf(s, l, data, next), nil
}
