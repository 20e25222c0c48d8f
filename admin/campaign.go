package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"

	"relayd/internal/api"
)

// Campaigns does the work of the campaign calls: campaign.Service. "" as the account means any.
type Campaigns interface {
	Create(ctx context.Context, account string, req *api.CreateCampaign) (api.Campaign, error)
	AddRecipients(ctx context.Context, account, id, contentType string, r io.Reader, opts api.ImportOptions) (api.ImportReport, error)
	Start(ctx context.Context, account, id string) (api.Campaign, error)
	Pause(ctx context.Context, account, id string) (api.Campaign, error)
	Resume(ctx context.Context, account, id string) (api.Campaign, error)
	Cancel(ctx context.Context, account, id string) (api.Campaign, error)
	Get(ctx context.Context, account, id string) (api.Campaign, error)
	Progress(ctx context.Context, account, id string) (api.Progress, error)
	List(ctx context.Context, account, cursor string, limit int) (api.CampaignList, error)
	Recipients(ctx context.Context, account, id, state, cursor string, limit int) (api.RecipientList, error)
}

func (s *Server) createCampaign(r *request, in *api.CreateCampaign) (any, error) {
	if err := s.deps.Queue.Admit(); err != nil {
		return nil, err
	}
	if in.Start {
		if err := r.caller.authorize("campaigns:send"); err != nil {
			return nil, err
		}
	}
	account, err := r.caller.account("")
	if err != nil {
		return nil, err
	}
	return idempotent(s, r, campaignKeyLife, func(o *once) (api.Campaign, error) {
		if err := o.reserve(r.Context()); err != nil {
			return api.Campaign{}, err
		}
		c, err := s.deps.Campaigns.Create(r.Context(), account, in)
		if err == nil {
			r.w.Header().Set("Location", "/v1/campaigns/"+c.ID)
		}
		return c, err
	})
}

func (s *Server) listCampaigns(r *request) (api.CampaignList, error) {
	account, err := r.caller.filter(r.URL.Query().Get("account"))
	if err != nil {
		return api.CampaignList{}, err
	}
	l, err := s.list(r)
	if err != nil {
		return api.CampaignList{}, err
	}
	page, err := s.deps.Campaigns.List(r.Context(), account, l.cursor, l.limit)
	page.NextCursor = s.cursors.seal(l.bound, page.NextCursor)
	if page.Data == nil {
		page.Data = []api.Campaign{}
	}
	return page, err
}

func (s *Server) showCampaign(r *request) (api.Campaign, error) {
	return s.deps.Campaigns.Get(r.Context(), r.caller.own(), r.PathValue("id"))
}

func (s *Server) progress(r *request) (api.Progress, error) {
	return s.deps.Campaigns.Progress(r.Context(), r.caller.own(), r.PathValue("id"))
}

func (s *Server) startCampaign(r *request) (api.Campaign, error) {
	return s.deps.Campaigns.Start(r.Context(), r.caller.own(), r.PathValue("id"))
}

func (s *Server) pauseCampaign(r *request) (api.Campaign, error) {
	return s.deps.Campaigns.Pause(r.Context(), r.caller.own(), r.PathValue("id"))
}

func (s *Server) resumeCampaign(r *request) (api.Campaign, error) {
	return s.deps.Campaigns.Resume(r.Context(), r.caller.own(), r.PathValue("id"))
}

func (s *Server) cancelCampaign(r *request) (api.Campaign, error) {
	return s.deps.Campaigns.Cancel(r.Context(), r.caller.own(), r.PathValue("id"))
}

// uploadRecipients streams the body into the campaign; its options come as JSON in a header, because the body is taken.
func (s *Server) uploadRecipients(r *request) (api.ImportReport, error) {
	if err := s.deps.Queue.Admit(); err != nil {
		return api.ImportReport{}, err
	}
	var options api.ImportOptions
	if text := r.Header.Get(api.ImportOptionsHeader); text != "" {
		if err := checkJSON([]byte(text)); err != nil {
			return api.ImportReport{}, err
		}
		d := json.NewDecoder(bytes.NewReader([]byte(text)))
		d.DisallowUnknownFields()
		if err := d.Decode(&options); err != nil {
			return api.ImportReport{}, badParameter(api.ImportOptionsHeader, sentence(err.Error()))
		}
	}
	if err := plainBody(r); err != nil {
		return api.ImportReport{}, err
	}
	return s.deps.Campaigns.AddRecipients(r.Context(), r.caller.own(), r.PathValue("id"), r.Header.Get("Content-Type"),
		s.upload(r), options)
}

// plainBody refuses compressed uploads.
func plainBody(r *request) error {
	if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return &api.Problem{
			Status: http.StatusUnsupportedMediaType, Code: api.CodeUnsupportedMediaType, Detail: "The body must not be compressed.",
		}
	}
	return nil
}

func (s *Server) listRecipients(r *request) (api.RecipientList, error) {
	l, err := s.list(r)
	if err != nil {
		return api.RecipientList{}, err
	}
	page, err := s.deps.Campaigns.Recipients(r.Context(), r.caller.own(), r.PathValue("id"), r.URL.Query().Get("state"),
		l.cursor, l.limit)
	page.NextCursor = s.cursors.seal(l.bound, page.NextCursor)
	if page.Data == nil {
		page.Data = []api.RecipientResult{}
	}
	return page, err
}
