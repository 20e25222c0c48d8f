package campaign

import (
	"context"
	"fmt"

	"relayd/internal/api"
	"relayd/internal/kv"
)

// withTemplate returns the request with the content of the stored template that it names, or as it is where it names
// none. A version that it does not name is that of now; freeze asks again at the start.
func (s *Service) withTemplate(ctx context.Context, account string, req *api.CreateCampaign) (*api.CreateCampaign, error) {
	t := &req.Template
	if t.Name == "" {
		if t.Version != 0 {
			return nil, &Invalid{Code: api.CodeInvalidParameter, Errors: []api.FieldError{{Pointer: "/template/version", Code: api.CodeInvalidParameter, Detail: "a version without the name of a template"}}}
		}
		return s.withOwn(ctx, account, req)
	}
	if t.Subject != "" || t.HTML != "" || t.Text != "" || t.Preheader != "" || len(t.Images)+len(t.Variables)+len(t.Partials) > 0 || t.Options != (api.TemplateOptions{}) {
		return nil, &Invalid{Code: api.CodeInvalidParameter, Errors: []api.FieldError{{
			Pointer: "/template", Code: api.CodeInvalidParameter, Detail: "give either the name of a stored template or the fields of one",
		}}}
	}
	stored, key, err := s.resolve(ctx, account, api.TemplateRef{Name: t.Name, Version: t.Version}, kindBroadcast, "/template/name")
	if err != nil {
		return nil, err
	}
	filled := *req
	filled.Template = *stored
	filled.Template.Name, filled.Template.Version = t.Name, t.Version
	if req.Start {
		filled.Template.Version = key.version
	}
	return &filled, nil
}

// withOwn gives a campaign's own template the partials and assets of the account that it names.
func (s *Service) withOwn(ctx context.Context, account string, req *api.CreateCampaign) (*api.CreateCampaign, error) {
	t := &req.Template
	c := &editionContent{Source: api.TemplateSource{
		Subject: t.Subject, Preheader: t.Preheader, HTML: t.HTML, Text: t.Text, Variables: t.Variables, Partials: t.Partials,
		Images: t.Images, Options: t.Options,
	}}
	if err := s.takeIn(ctx, account, c); err != nil {
		return nil, err
	}
	if len(c.Partials)+len(c.Images) == 0 {
		return req, nil
	}
	filled := *req
	filled.Template = *c.template()
	return &filled, nil
}

// freeze fixes the version of a campaign that names a stored template without one: that which is published when the
// campaign starts. Afterwards the campaign's content does not change any more.
func (s *Service) freeze(ctx context.Context, r *record) error {
	var req *api.CreateCampaign
	err := s.db.View(ctx, func(tx kv.Tx) (err error) {
		req, err = getContent(tx, r)
		return err
	})
	if err != nil || req.Template.Name == "" || req.Template.Version != 0 {
		return err
	}
	stored, key, err := s.resolve(ctx, r.Account, api.TemplateRef{Name: req.Template.Name}, kindBroadcast, "/template/name")
	if err != nil {
		return err
	}
	name := req.Template.Name
	req.Template = *stored
	req.Template.Name, req.Template.Version = name, key.version
	content, err := encodeContent(req)
	if err != nil {
		return err
	}
	err = s.db.Update(ctx, func(tx kv.Tx) error {
		now, err := getRecord(tx, r.ID)
		if err != nil || now.State != Preparing {
			return err
		}
		was := now.Chunks
		if now.Chunks, err = putContent(tx, r.ID, content); err != nil {
			return err
		}
		for n := now.Chunks; n < was; n++ {
			if err := tx.Delete(tableContent, contentKey(r.ID, n)); err != nil {
				return err
			}
		}
		r.Chunks = now.Chunks
		return now.put(tx)
	})
	if err != nil {
		return fmt.Errorf("freeze template: %w", err)
	}
	return nil
}
