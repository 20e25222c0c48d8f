package campaign

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Patch changes a campaign whose ETag is etag, "" for any. While it runs, is paused or scheduled, only how it is sent and
// its guards change; its content is that of a draft alone: clone it to send something else. ErrChanged when it is
// another revision.
func (s *Service) Patch(ctx context.Context, account, id, etag string, in *api.PatchCampaign) (api.Campaign, error) {
	r, err := s.read(ctx, account, id)
	if err != nil {
		return api.Campaign{}, err
	}
	if err := unchanged(etag, r.etag()); err != nil {
		return api.Campaign{}, err
	}
	content := in.Name != nil || in.From != nil || in.ReplyTo != nil || in.Template != nil || in.Data != nil || in.OnMissing != nil || in.Audience != nil || in.Tags != nil
	switch {
	case r.State == Draft:
		return s.redraft(ctx, r, in)
	case r.State != Paused && r.State != Scheduled && r.State != Running:
		return api.Campaign{}, &StateError{"change", r.State}
	case content:
		return api.Campaign{}, &StateError{"change of the content (clone it instead)", r.State}
	}
	bad := &Invalid{}
	send, guards := r.Send, r.Guards
	if in.Send != nil {
		send = s.sendOf(*in.Send, nil, 0, bad)
	}
	if in.Guards != nil {
		guards = guardsOf(*in.Guards, bad)
	}
	if !r.Started.IsZero() && send.SpreadSeconds != r.Send.SpreadSeconds {
		bad.add("/send/spread_seconds", api.CodeInvalidParameter, "cannot change once the campaign has started: its recipients have their times")
	}
	if err := bad.orNil(); err != nil {
		return api.Campaign{}, err
	}
	revision := r.Revision
	r, err = s.edit(ctx, account, id, "change", func(_ kv.Tx, r *record) error {
		if r.Revision != revision {
			return ErrChanged
		}
		r.Send, r.Guards = send, guards
		return nil
	})
	return s.answer(ctx, r, err)
}

// redraft replaces parts of a draft. All of it is checked anew.
func (s *Service) redraft(ctx context.Context, r *record, in *api.PatchCampaign) (api.Campaign, error) {
	req, err := s.request(ctx, r)
	if err != nil {
		return api.Campaign{}, err
	}
	if in.Name != nil {
		req.Name = *in.Name
	}
	if in.From != nil {
		req.From = *in.From
	}
	if in.ReplyTo != nil {
		req.ReplyTo = *in.ReplyTo
	}
	if in.Template != nil {
		req.Template = *in.Template
	}
	if in.Data != nil {
		req.Data = in.Data
	}
	if in.OnMissing != nil {
		req.OnMissing = *in.OnMissing
	}
	if in.Audience != nil {
		req.Audience = in.Audience
	}
	if in.Tags != nil {
		req.Tags = in.Tags
	}
	if in.Send != nil {
		req.Send = *in.Send
	}
	if in.Guards != nil {
		req.Guards = *in.Guards
	}
	d, err := s.plan(ctx, r.ID, r.Account, req)
	if err != nil {
		return api.Campaign{}, err
	}
	content, err := encodeContent(d.request)
	if err != nil {
		return api.Campaign{}, err
	}
	revision := r.Revision
	out, err := s.edit(ctx, r.Account, formatID(r.ID), "change", func(tx kv.Tx, r *record) error {
		switch {
		case r.State != Draft:
			return &StateError{"change", r.State}
		case r.Revision != revision:
			return ErrChanged
		}
		for n := range r.Chunks {
			if err := tx.Delete(tableContent, contentKey(r.ID, n)); err != nil {
				return fmt.Errorf("remove campaign content: %w", err)
			}
		}
		now := *d.record
		now.Created, now.Revision = r.Created, r.Revision
		var err error
		if now.Chunks, err = putContent(tx, r.ID, content); err != nil {
			return err
		}
		*r = now
		return nil
	})
	return s.answer(ctx, out, err)
}

// request is the request that a campaign was made by, without recipients.
func (s *Service) request(ctx context.Context, r *record) (req *api.CreateCampaign, err error) {
	err = s.db.View(ctx, func(tx kv.Tx) (err error) {
		req, err = getContent(tx, r)
		return err
	})
	if err == nil {
		req.Audience, req.Send, req.Guards = r.Audience, r.Send, r.Guards
		if t := &req.Template; t.Name != "" { // it is named, and its content is that of the name
			*t = api.CampaignTemplate{Name: t.Name, Version: t.Version}
		}
	}
	return req, err
}

// Clone makes a draft with the content, the settings and the audience of a campaign. Recipients that were uploaded are not
// kept with a campaign that was sent: they are uploaded again.
func (s *Service) Clone(ctx context.Context, account, id string, also ...Also) (api.Campaign, error) {
	r, err := s.read(ctx, account, id)
	if err != nil {
		return api.Campaign{}, err
	}
	req, err := s.request(ctx, r)
	if err != nil {
		return api.Campaign{}, err
	}
	req.Name = copyName(req.Name)
	return s.create(ctx, mail.NewQueueID(s.now()), r.Account, req, nil, also)
}

func copyName(name string) string {
	const suffix = " (copy)"
	name = strings.TrimSuffix(name, suffix)
	return mail.CleanText(name, maxNameLength-len(suffix)) + suffix
}

// isRefusal tells errors that are the caller's to mend.
func isRefusal(err error) bool {
	_, state := errors.AsType[*StateError](err)
	_, invalid := errors.AsType[*Invalid](err)
	return state || invalid || errors.Is(err, ErrNotFound) || errors.Is(err, ErrChanged)
}
