package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"relayd/campaign"
	"relayd/internal/api"
	"relayd/internal/kv"
)

// Campaigns does the work of the campaign calls: campaign.Service. "" as the account means any.
type Campaigns interface {
	Create(ctx context.Context, account string, req *api.CreateCampaign, also ...campaign.Also) (api.Campaign, error)
	Clone(ctx context.Context, account, id string, also ...campaign.Also) (api.Campaign, error)
	Patch(ctx context.Context, account, id, etag string, in *api.PatchCampaign) (api.Campaign, error)
	Delete(ctx context.Context, account, id string) error
	Validate(ctx context.Context, account, id string) (api.CampaignCheck, error)
	Preview(ctx context.Context, account, id string, in *api.PreviewCampaign) (api.CampaignPreview, error)
	Test(ctx context.Context, account, id string, in *api.TestCampaign) (api.TestSent, error)
	Schedule(ctx context.Context, account, id string, in *api.CampaignSchedule) (api.Campaign, error)
	Unschedule(ctx context.Context, account, id string) (api.Campaign, error)
	RetryFailed(ctx context.Context, account, id string) (api.Campaign, error)
	Report(ctx context.Context, account, id string) (api.CampaignReport, error)
	EachRecipient(ctx context.Context, account, id string, fn func(*api.RecipientResult) error) error
	Complained(ctx context.Context, account, source string) error
	Compliance(ctx context.Context, account string) (api.Compliance, error)
	SetCompliance(ctx context.Context, account string, in *api.Compliance) (api.Compliance, error)
	AddRecipients(ctx context.Context, account, id, contentType string, r io.Reader, opts api.ImportOptions) (api.ImportReport, error)
	Start(ctx context.Context, account, id string) (api.Campaign, error)
	StartCheck(ctx context.Context, account, id string) (api.CampaignCheck, error)
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
		c, err := s.deps.Campaigns.Create(r.Context(), account, in, o.with)
		return s.created(r, o, c, err)
	})
}

// with makes the key durable with the campaign that it is the key of: a crash leaves both or none.
func (o *once) with(tx kv.Tx, c api.Campaign) error {
	if o == nil {
		return nil
	}
	return o.recordTx(tx, o.status, c)
}

// created ends a request that made a campaign.
func (s *Server) created(r *request, o *once, c api.Campaign, err error) (api.Campaign, error) {
	if err != nil {
		return c, err
	}
	if o != nil {
		o.recorded = true
	}
	r.w.Header().Set("Location", "/v1/campaigns/"+c.ID)
	r.w.Header().Set("ETag", c.ETag)
	return c, nil
}

func (s *Server) cloneCampaign(r *request) (any, error) {
	if err := s.deps.Queue.Admit(); err != nil {
		return nil, err
	}
	return idempotent(s, r, campaignKeyLife, func(o *once) (api.Campaign, error) {
		c, err := s.deps.Campaigns.Clone(r.Context(), r.caller.own(), r.PathValue("id"), o.with)
		return s.created(r, o, c, err)
	})
}

// patchCampaign wants If-Match (RFC 9110 section 13.1.1): two people who edit one campaign must not undo each other's
// work.
func (s *Server) patchCampaign(r *request, in *api.PatchCampaign) (api.Campaign, error) {
	etag := strings.TrimSpace(r.Header.Get("If-Match"))
	switch etag {
	case "":
		return api.Campaign{}, &api.Problem{
			Status: http.StatusPreconditionRequired, Code: "etag_required",
			Detail: "Send If-Match with the campaign's etag, or If-Match: * for whatever it is now.",
		}
	case "*":
		etag = ""
	}
	return s.tagged(r)(s.deps.Campaigns.Patch(r.Context(), r.caller.own(), r.PathValue("id"), etag, in))
}

// tagged sets the ETag of an answer.
func (s *Server) tagged(r *request) func(api.Campaign, error) (api.Campaign, error) {
	return func(c api.Campaign, err error) (api.Campaign, error) {
		if err == nil {
			r.w.Header().Set("ETag", c.ETag)
		}
		return c, err
	}
}

func (s *Server) deleteCampaign(r *request) error {
	return s.deps.Campaigns.Delete(r.Context(), r.caller.own(), r.PathValue("id"))
}

func (s *Server) validateCampaign(r *request) (api.CampaignCheck, error) {
	return s.deps.Campaigns.Validate(r.Context(), r.caller.own(), r.PathValue("id"))
}

func (s *Server) previewCampaign(r *request, in *api.PreviewCampaign) (api.CampaignPreview, error) {
	return s.deps.Campaigns.Preview(r.Context(), r.caller.own(), r.PathValue("id"), in)
}

func (s *Server) testCampaign(r *request, in *api.TestCampaign) (any, error) {
	if err := s.deps.Queue.Admit(); err != nil {
		return nil, err
	}
	return idempotent(s, r, messageKeyLife, func(o *once) (api.TestSent, error) {
		if err := o.reserve(r.Context()); err != nil {
			return api.TestSent{}, err
		}
		return s.deps.Campaigns.Test(r.Context(), r.caller.own(), r.PathValue("id"), in)
	})
}

func (s *Server) scheduleCampaign(r *request, in *api.CampaignSchedule) (api.Campaign, error) {
	return s.tagged(r)(s.deps.Campaigns.Schedule(r.Context(), r.caller.own(), r.PathValue("id"), in))
}

func (s *Server) unscheduleCampaign(r *request) (api.Campaign, error) {
	return s.tagged(r)(s.deps.Campaigns.Unschedule(r.Context(), r.caller.own(), r.PathValue("id")))
}

func (s *Server) retryFailed(r *request) (api.Campaign, error) {
	if err := s.deps.Queue.Admit(); err != nil {
		return api.Campaign{}, err
	}
	return s.tagged(r)(s.deps.Campaigns.RetryFailed(r.Context(), r.caller.own(), r.PathValue("id")))
}

func (s *Server) showCompliance(r *request) (api.Compliance, error) {
	account, err := r.account()
	if err != nil {
		return api.Compliance{}, err
	}
	return s.deps.Campaigns.Compliance(r.Context(), account)
}

func (s *Server) setCompliance(r *request, in *api.Compliance) (api.Compliance, error) {
	account, err := r.account()
	if err != nil {
		return api.Compliance{}, err
	}
	return s.deps.Campaigns.SetCompliance(r.Context(), account, in)
}

func (s *Server) listCampaigns(r *request, l list) ([]api.Campaign, string, error) {
	c, err := s.deps.Campaigns.List(r.Context(), l.account, l.cursor, l.limit)
	return c.Data, c.NextCursor, err
}

func (s *Server) showCampaign(r *request) (api.Campaign, error) {
	return s.tagged(r)(s.deps.Campaigns.Get(r.Context(), r.caller.own(), r.PathValue("id")))
}

// startCampaign starts one, or with dry_run tells what would become of it, as validate does.
func (s *Server) startCampaign(r *request) (any, error) {
	dry, err := dryRun(r)
	if err != nil {
		return nil, err
	}
	if dry {
		r.status = http.StatusOK
		return s.deps.Campaigns.StartCheck(r.Context(), r.caller.own(), r.PathValue("id"))
	}
	return s.tagged(r)(s.deps.Campaigns.Start(r.Context(), r.caller.own(), r.PathValue("id")))
}

func (s *Server) pauseCampaign(r *request) (api.Campaign, error) {
	return s.tagged(r)(s.deps.Campaigns.Pause(r.Context(), r.caller.own(), r.PathValue("id")))
}

func (s *Server) resumeCampaign(r *request) (api.Campaign, error) {
	return s.tagged(r)(s.deps.Campaigns.Resume(r.Context(), r.caller.own(), r.PathValue("id")))
}

func (s *Server) cancelCampaign(r *request) (api.Campaign, error) {
	return s.tagged(r)(s.deps.Campaigns.Cancel(r.Context(), r.caller.own(), r.PathValue("id")))
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
	if err := packedBody(r); err != nil {
		return api.ImportReport{}, err
	}
	return s.deps.Campaigns.AddRecipients(r.Context(), r.caller.own(), r.PathValue("id"), r.Header.Get("Content-Type"),
		s.upload(r), options)
}

// packedBody refuses uploads that are neither plain nor packed by gzip or zstd. What reads rows unpacks them, whatever the
// header says, within bounds.
func packedBody(r *request) error {
	switch strings.ToLower(r.Header.Get("Content-Encoding")) {
	case "", "identity", "gzip", "zstd":
		return nil
	}
	return &api.Problem{Status: http.StatusUnsupportedMediaType, Code: api.CodeUnsupportedMediaType, Detail: "The body may be plain, gzip or zstd."}
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

func (s *Server) listRecipients(r *request, l list) ([]api.RecipientResult, string, error) {
	c, err := s.deps.Campaigns.Recipients(r.Context(), l.account, r.PathValue("id"), r.URL.Query().Get("state"), l.cursor, l.limit)
	return c.Data, c.NextCursor, err
}
