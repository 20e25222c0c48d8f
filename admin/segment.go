package admin

import (
	"net/http"

	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/kv"
)

func segmentOf(g *contact.Segment) api.Segment {
	out := api.Segment{ID: g.String(), Account: g.Account, CreateSegment: g.Request, CreatedAt: g.Created, UpdatedAt: g.Updated}
	out.CreateSegment.Account = ""
	out.ETag = etag(out)
	return out
}

func (s *Server) createSegment(r *request, in *api.CreateSegment) (any, error) {
	account, err := accountOf(r, in.Account)
	if err != nil {
		return nil, err
	}
	return idempotent(s, r, messageKeyLife, func(o *once) (api.Segment, error) {
		g, err := s.deps.Contacts.CreateSegment(r.Context(), account, in, func(tx kv.Tx, g *contact.Segment) error {
			return o.recordTx(tx, http.StatusCreated, segmentOf(g))
		})
		if err != nil {
			return api.Segment{}, err
		}
		o.done()
		r.w.Header().Set("Location", "/v1/segments/"+g.String())
		return segmentOf(g), nil
	})
}

func (s *Server) listSegments(r *request, l list) ([]api.Segment, string, error) {
	found, next, err := s.deps.Contacts.Segments(r.Context(), l.account, l.cursor, l.limit)
	return each(found, segmentOf), next, err
}

func (s *Server) showSegment(r *request) (api.Segment, error) {
	account, err := r.account()
	if err != nil {
		return api.Segment{}, err
	}
	g, err := s.deps.Contacts.Segment(r.Context(), account, r.PathValue("id"))
	if err != nil {
		return api.Segment{}, err
	}
	out := segmentOf(g)
	r.w.Header().Set("ETag", out.ETag)
	return out, nil
}

func (s *Server) patchSegment(r *request, in *api.PatchSegment) (api.Segment, error) {
	account, err := r.account()
	if err != nil {
		return api.Segment{}, err
	}
	g, err := s.deps.Contacts.PatchSegment(r.Context(), account, r.PathValue("id"), func(g *contact.Segment) error {
		if err := matches(r, segmentOf(g).ETag); err != nil {
			return err
		}
		req := &g.Request
		set(&req.Name, in.Name)
		set(&req.List, in.List)
		set(&req.Topic, in.Topic)
		set(&req.Where, in.Where)
		set(&req.IncludeLists, in.IncludeLists)
		set(&req.ExcludeLists, in.ExcludeLists)
		return nil
	})
	if err != nil {
		return api.Segment{}, err
	}
	out := segmentOf(g)
	r.w.Header().Set("ETag", out.ETag)
	return out, nil
}

func set[T any](field, to *T) {
	if to != nil {
		*field = *to
	}
}

func (s *Server) deleteSegment(r *request) error {
	account, err := r.account()
	if err != nil {
		return err
	}
	return s.deps.Contacts.DeleteSegment(r.Context(), account, r.PathValue("id"), func(g *contact.Segment) error {
		return matches(r, segmentOf(g).ETag)
	})
}

func (s *Server) countSegment(r *request) (api.SegmentCount, error) {
	account, err := r.account()
	if err != nil {
		return api.SegmentCount{}, err
	}
	g, err := s.deps.Contacts.Segment(r.Context(), account, r.PathValue("id"))
	if err != nil {
		return api.SegmentCount{}, err
	}
	n, err := s.deps.Contacts.CountSegment(r.Context(), account, &g.Request)
	return api.SegmentCount{Count: n}, err
}
