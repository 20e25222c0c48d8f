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
	if f.Account, err = r.filter(); err != nil {
		return none, err
	}
	if f.Since, err = queryTime(r, "since"); err != nil {
		return none, err
	}
	if f.Until, err = queryTime(r, "until"); err != nil {
		return none, err
	}
	return pageOf(s, r, f.Account, func(r *request, l list) ([]api.Event, string, error) {
		events, next, err := s.deps.Events.List(r.Context(), f, l.cursor, l.limit)
		return each(events, func(e event.Event) api.Event { return api.Event(e) }), next, err
	})
}
