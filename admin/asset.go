package admin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strconv"

	"relayd/campaign"
	"relayd/internal/api"
)

// Assets keeps pictures: campaign.Service.
type Assets interface {
	AddAsset(ctx context.Context, account, name, contentType string, content []byte) (api.Asset, error)
	Asset(ctx context.Context, account, id string) (api.Asset, error)
	Assets(ctx context.Context, account, cursor string, limit int) ([]api.Asset, string, error)
	DeleteAsset(ctx context.Context, account, id string, force bool) error
	PublicAsset(ctx context.Context, token, name string) (api.Asset, []byte, error)
}

// maxAssetBody bounds an upload with the multipart around it; the store has its own limit.
const maxAssetBody = 6 << 20

// assetRoutes are the calls of assets.
func (s *Server) assetRoutes() []route {
	const read, write = "templates:read", "templates:write"
	return []route{
		{http.MethodPost, "/v1/assets", write, "Upload a picture: multipart/form-data with a file, or image/* with a name", []string{"account", "name"}, http.StatusCreated, maxAssetBody, true, gives(s.uploadAsset)},
		{http.MethodGet, "/v1/assets", read, "List pictures", []string{"account", "limit", "cursor"}, http.StatusOK, 0, false, lists(s, (*request).account, s.listAssets)},
		{http.MethodGet, "/v1/assets/{id}", read, "Show a picture's URL, type and size", []string{"account"}, http.StatusOK, 0, false, gives(s.showAsset)},
		{http.MethodDelete, "/v1/assets/{id}", write, "Remove a picture; force also where templates link to it", []string{"account", "force"}, http.StatusNoContent, 0, false, streams(s.deleteAsset)},
	}
}

func (s *Server) uploadAsset(r *request) (api.Asset, error) {
	account, err := r.account()
	if err != nil {
		return api.Asset{}, err
	}
	if err := s.deps.Queue.Admit(); err != nil {
		return api.Asset{}, err
	}
	if err := plainBody(r); err != nil {
		return api.Asset{}, err
	}
	done, err := s.reserveBody(r)
	if err != nil {
		return api.Asset{}, err
	}
	defer done()
	name, content, err := assetBody(r)
	if err != nil {
		return api.Asset{}, err
	}
	a, err := s.deps.Assets.AddAsset(r.Context(), account, name, "", content)
	if err == nil {
		r.w.Header().Set("Location", "/v1/assets/"+a.ID)
	}
	return a, err
}

// assetBody reads a form with one file, or the picture itself.
func assetBody(r *request) (name string, content []byte, err error) {
	body := newUploadReader(r, maxAssetBody)
	name = r.URL.Query().Get("name")
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		kind = ""
	}
	switch {
	case kind == "multipart/form-data":
	case len(kind) > 6 && kind[:6] == "image/" || kind == "application/octet-stream":
		content, err = io.ReadAll(body)
		return name, content, err
	default:
		return "", nil, &api.Problem{
			Status: http.StatusUnsupportedMediaType, Code: api.CodeUnsupportedMediaType,
			Detail: "The body must be multipart/form-data with a file, or an image.",
		}
	}
	form := multipart.NewReader(body, params["boundary"])
	for {
		part, err := form.NextPart()
		if err != nil {
			return "", nil, formError(err)
		}
		if part.FormName() != "file" {
			continue
		}
		if name == "" {
			name = part.FileName()
		}
		content, err = io.ReadAll(part)
		if err != nil {
			return "", nil, formError(err)
		}
		return name, content, nil
	}
}

// formError tells a form that is broken from a connection that is.
func formError(err error) error {
	if _, tooLong := errors.AsType[*http.MaxBytesError](err); tooLong {
		return err
	}
	if errors.Is(err, io.EOF) {
		return invalid("/file", "required", "The form has no field named file.")
	}
	return &api.Problem{Status: http.StatusBadRequest, Code: api.CodeInvalidParameter, Detail: "The form cannot be read."}
}

func (s *Server) listAssets(r *request, l list) ([]api.Asset, string, error) {
	return s.deps.Assets.Assets(r.Context(), l.account, l.cursor, l.limit)
}

func (s *Server) showAsset(r *request) (api.Asset, error) {
	account, err := r.account()
	if err != nil {
		return api.Asset{}, err
	}
	return s.deps.Assets.Asset(r.Context(), account, r.PathValue("id"))
}

func (s *Server) deleteAsset(r *request) error {
	account, err := r.account()
	if err != nil {
		return err
	}
	force := false
	if text := r.URL.Query().Get("force"); text != "" {
		if force, err = strconv.ParseBool(text); err != nil {
			return badParameter("force", "force is true or false.")
		}
	}
	return s.deps.Assets.DeleteAsset(r.Context(), account, r.PathValue("id"), force)
}

// serveAsset answers the URL of a picture. Its bytes never change: it may be kept for ever. It is shown as what it is and
// as nothing else, whatever a browser makes of it.
func (s *Server) serveAsset(w http.ResponseWriter, r *http.Request) {
	a, content, err := s.deps.Assets.PublicAsset(r.Context(), r.PathValue("token"), r.PathValue("name"))
	h := w.Header()
	if err != nil {
		if !errors.Is(err, campaign.ErrAssetNotFound) {
			s.problem(w, r, err)
			return
		}
		h.Set("Cache-Control", "no-store")
		s.writeProblem(w, r, notFound("picture"))
		return
	}
	h.Set("Content-Type", a.ContentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("ETag", `"`+a.SHA256+`"`)
	http.ServeContent(w, r, "", a.CreatedAt, bytes.NewReader(content))
}
