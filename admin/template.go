package admin

import (
	"context"
	"net/http"
	"strconv"

	"relayd/internal/api"
	"relayd/internal/mail"
)

// Templates keeps stored templates and makes messages of them: campaign.Service.
type Templates interface {
	CreateTemplate(ctx context.Context, account string, in *api.CreateTemplate) (api.Template, error)
	PatchTemplate(ctx context.Context, account, name, match string, in *api.PatchTemplate) (api.Template, error)
	Template(ctx context.Context, account, name string, version int) (api.Template, error)
	Templates(ctx context.Context, account, cursor string, limit int) ([]api.Template, string, error)
	TemplateVersions(ctx context.Context, account, name string, before, limit int) ([]api.Template, int, error)
	DeleteTemplate(ctx context.Context, account, name, match string) error
	PublishTemplate(ctx context.Context, account, name string, version int) (api.Template, error)
	RenderTemplate(ctx context.Context, account, name string, in *api.RenderTemplate) (api.RenderedTemplate, error)
	ValidateTemplate(ctx context.Context, account, name string, in *api.RenderTemplate) (api.TemplateValidation, error)
	SingleMessage(ctx context.Context, account string, ref api.TemplateRef, data map[string]any, head []byte, from, to mail.Path) ([]byte, error)
}

// templateRoutes are the calls of templates.
func (s *Server) templateRoutes() []route {
	const read, write = "templates:read", "templates:write"
	call := func(method, path, scope, summary string, status int, limit int64, e endpoint, query ...string) route {
		return route{method, path, scope, summary, append(query, "account"), status, limit, false, e}
	}
	return []route{
		call(http.MethodPost, "/v1/templates", write, "Store the first version of a template", http.StatusCreated, campaignBody, takes(s.createTemplate)),
		call(http.MethodGet, "/v1/templates", read, "List templates by name", http.StatusOK, 0, lists(s, (*request).account, s.listTemplates), "limit", "cursor"),
		call(http.MethodGet, "/v1/templates/{name}", read, "Show a version with its source", http.StatusOK, 0, gives(s.showTemplate), "version"),
		call(http.MethodPatch, "/v1/templates/{name}", write, "Change the draft, or make the next version", http.StatusOK, campaignBody, takes(s.patchTemplate)),
		call(http.MethodDelete, "/v1/templates/{name}", write, "Remove a template with all its versions", http.StatusNoContent, 0, streams(s.deleteTemplate)),
		call(http.MethodGet, "/v1/templates/{name}/versions", read, "List versions, the latest first", http.StatusOK, 0, lists(s, (*request).account, s.listVersions), "limit", "cursor"),
		call(http.MethodPost, "/v1/templates/{name}/publish", write, "Freeze a version and make it the one that is sent", http.StatusOK, smallBody, takes(s.publishTemplate)),
		call(http.MethodPost, "/v1/templates/{name}/render", read, "Show the message that a version makes of data", http.StatusOK, campaignBody, takes(s.renderTemplate)),
		call(http.MethodPost, "/v1/templates/{name}/validate", read, "Check a version, or a source, as mailbox providers do", http.StatusOK, campaignBody, takes(s.validateTemplate)),
	}
}

// tagged sets the ETag of a template.
func tagged(r *request, t api.Template, err error) (api.Template, error) {
	if err == nil {
		r.w.Header().Set("ETag", t.ETag)
	}
	return t, err
}

// match is the ETag of If-Match, "" for any.
func (r *request) match() string {
	if m := r.Header.Get("If-Match"); m != "*" {
		return m
	}
	return ""
}

func (s *Server) createTemplate(r *request, in *api.CreateTemplate) (api.Template, error) {
	account, err := r.account()
	if err != nil {
		return api.Template{}, err
	}
	if err := s.deps.Queue.Admit(); err != nil {
		return api.Template{}, err
	}
	t, err := s.deps.Templates.CreateTemplate(r.Context(), account, in)
	if err == nil {
		r.w.Header().Set("Location", "/v1/templates/"+t.Name)
	}
	return tagged(r, t, err)
}

func (s *Server) listTemplates(r *request, l list) ([]api.Template, string, error) {
	return s.deps.Templates.Templates(r.Context(), l.account, l.cursor, l.limit)
}

func (s *Server) showTemplate(r *request) (api.Template, error) {
	account, err := r.account()
	if err != nil {
		return api.Template{}, err
	}
	version := 0
	if text := r.URL.Query().Get("version"); text != "" {
		if version, err = strconv.Atoi(text); err != nil || version < 1 {
			return api.Template{}, badParameter("version", "A version is a number from 1.")
		}
	}
	t, err := s.deps.Templates.Template(r.Context(), account, r.PathValue("name"), version)
	return tagged(r, t, err)
}

func (s *Server) patchTemplate(r *request, in *api.PatchTemplate) (api.Template, error) {
	account, err := r.account()
	if err != nil {
		return api.Template{}, err
	}
	if err := s.deps.Queue.Admit(); err != nil {
		return api.Template{}, err
	}
	t, err := s.deps.Templates.PatchTemplate(r.Context(), account, r.PathValue("name"), r.match(), in)
	return tagged(r, t, err)
}

func (s *Server) deleteTemplate(r *request) error {
	account, err := r.account()
	if err != nil {
		return err
	}
	return s.deps.Templates.DeleteTemplate(r.Context(), account, r.PathValue("name"), r.match())
}

func (s *Server) listVersions(r *request, l list) ([]api.Template, string, error) {
	before, _ := strconv.Atoi(l.cursor) // sealed: nobody but us has written it
	data, last, err := s.deps.Templates.TemplateVersions(r.Context(), l.account, r.PathValue("name"), before, l.limit)
	next := ""
	if last > 0 {
		next = strconv.Itoa(last)
	}
	return data, next, err
}

func (s *Server) publishTemplate(r *request, in *api.PublishTemplate) (api.Template, error) {
	account, err := r.account()
	if err != nil {
		return api.Template{}, err
	}
	t, err := s.deps.Templates.PublishTemplate(r.Context(), account, r.PathValue("name"), in.Version)
	return tagged(r, t, err)
}

func (s *Server) renderTemplate(r *request, in *api.RenderTemplate) (api.RenderedTemplate, error) {
	account, err := r.account()
	if err != nil {
		return api.RenderedTemplate{}, err
	}
	if in.Source != nil {
		return api.RenderedTemplate{}, invalid("/source", api.CodeInvalidParameter, "Only validate takes a source.")
	}
	if in.Contact != "" {
		if err := r.caller.authorize("contacts:read"); err != nil {
			return api.RenderedTemplate{}, err
		}
	}
	return s.deps.Templates.RenderTemplate(r.Context(), account, r.PathValue("name"), in)
}

func (s *Server) validateTemplate(r *request, in *api.RenderTemplate) (api.TemplateValidation, error) {
	account, err := r.account()
	if err != nil {
		return api.TemplateValidation{}, err
	}
	if in.Contact != "" {
		return api.TemplateValidation{}, invalid("/contact", api.CodeInvalidParameter, "Only render takes a contact.")
	}
	return s.deps.Templates.ValidateTemplate(r.Context(), account, r.PathValue("name"), in)
}
