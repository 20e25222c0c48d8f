package api

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Asset is a picture that templates show, as a part of the mail or by its public URL.
type Asset struct {
	ID          string    `json:"id"`
	Account     string    `json:"account"`
	Name        string    `json:"name"` // templates say asset:NAME
	ContentType string    `json:"content_type"`
	Bytes       int       `json:"bytes"`
	SHA256      string    `json:"sha256"`
	Width       int       `json:"width,omitempty"` // pixels; 0 where not known
	Height      int       `json:"height,omitempty"`
	URL         string    `json:"url,omitempty"` // "" without admin.public_url
	CreatedAt   time.Time `json:"created_at"`
}

// Assets lists assets, newest first.
func (c *Client) Assets(ctx context.Context, account string, l List) (Page[Asset], error) {
	v := l.values()
	setIf(v, "account", account)
	return get[Page[Asset]](ctx, c, "/v1/assets", v)
}

// Asset shows one.
func (c *Client) Asset(ctx context.Context, id string) (Asset, error) {
	return get[Asset](ctx, c, "/v1/assets/"+url.PathEscape(id), nil)
}

// UploadAsset stores a picture under a name. What was there under that name stays at its own URL.
func (c *Client) UploadAsset(ctx context.Context, name, contentType string, body io.Reader) (Asset, error) {
	var out Asset
	err := c.Upload(ctx, "/v1/assets", url.Values{"name": {name}}, contentType, body, &out)
	return out, err
}

// DeleteAsset removes one; force removes it even where templates link to it.
func (c *Client) DeleteAsset(ctx context.Context, id string, force bool) error {
	v := url.Values{}
	if force {
		v.Set("force", "true")
	}
	return c.Do(ctx, http.MethodDelete, "/v1/assets/"+url.PathEscape(id), v, nil, nil)
}
