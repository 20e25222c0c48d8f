package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// IfMatch makes a change depend on the ETag of what is changed.
func IfMatch(etag string) Option {
	return func(r *http.Request) { r.Header.Set("If-Match", etag) }
}

// Templates lists stored templates by name, without their sources.
func (c *Client) Templates(ctx context.Context, account string, l List) (Page[Template], error) {
	v := l.values()
	setIf(v, "account", account)
	return get[Page[Template]](ctx, c, "/v1/templates", v)
}

// CreateTemplate stores the first version of a template, a draft.
func (c *Client) CreateTemplate(ctx context.Context, in CreateTemplate) (Template, error) {
	return post[Template](ctx, c, "/v1/templates", in)
}

// Template shows a version with its source; 0 is the latest one.
func (c *Client) Template(ctx context.Context, name string, version int) (Template, error) {
	v := url.Values{}
	if version > 0 {
		v.Set("version", strconv.Itoa(version))
	}
	return get[Template](ctx, c, templatePath(name, ""), v)
}

// TemplateVersions lists the versions of a template, the latest first.
func (c *Client) TemplateVersions(ctx context.Context, name string, l List) (Page[Template], error) {
	return get[Page[Template]](ctx, c, templatePath(name, "/versions"), l.values())
}

// PatchTemplate changes the latest version where it is a draft, else it makes the next one.
func (c *Client) PatchTemplate(ctx context.Context, name string, in PatchTemplate, opts ...Option) (Template, error) {
	var out Template
	err := c.Do(ctx, http.MethodPatch, templatePath(name, ""), nil, in, &out, opts...)
	return out, err
}

// DeleteTemplate removes a template with all its versions.
func (c *Client) DeleteTemplate(ctx context.Context, name string, opts ...Option) error {
	return c.Do(ctx, http.MethodDelete, templatePath(name, ""), nil, nil, nil, opts...)
}

// PublishTemplate makes a version the one that is sent; 0 is the latest one.
func (c *Client) PublishTemplate(ctx context.Context, name string, version int) (Template, error) {
	return post[Template](ctx, c, templatePath(name, "/publish"), PublishTemplate{version})
}

// RenderTemplate shows the message that a version makes of data.
func (c *Client) RenderTemplate(ctx context.Context, name string, in RenderTemplate) (RenderedTemplate, error) {
	return post[RenderedTemplate](ctx, c, templatePath(name, "/render"), in)
}

// ValidateTemplate checks a version, or a source that is not stored, with all its samples.
func (c *Client) ValidateTemplate(ctx context.Context, name string, in RenderTemplate) (TemplateValidation, error) {
	return post[TemplateValidation](ctx, c, templatePath(name, "/validate"), in)
}

func templatePath(name, rest string) string { return "/v1/templates/" + url.PathEscape(name) + rest }
