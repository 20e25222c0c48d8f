package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// Sources lists sources. account is for callers with rights on all, "" for the caller's own.
func (c *Client) Sources(ctx context.Context, account string, l List) (Page[Source], error) {
	v := l.values()
	setIf(v, "account", account)
	return get[Page[Source]](ctx, c, "/v1/sources", v)
}

// CreateSource makes one; key, unless empty, makes the call safe to repeat.
func (c *Client) CreateSource(ctx context.Context, in CreateSource, key string) (Source, error) {
	var opts []Option
	if key != "" {
		opts = append(opts, IdempotencyKey(key))
	}
	return post[Source](ctx, c, "/v1/sources", in, opts...)
}

// Source shows one.
func (c *Client) Source(ctx context.Context, id string) (Source, error) {
	return get[Source](ctx, c, sourcePath(id, ""), nil)
}

// PatchSource changes one; etag, unless empty, is the one that is to be changed.
func (c *Client) PatchSource(ctx context.Context, id, etag string, in PatchSource) (Source, error) {
	var out Source
	err := c.Do(ctx, http.MethodPatch, sourcePath(id, ""), nil, in, &out, ifMatch(etag)...)
	return out, err
}

func ifMatch(etag string) []Option {
	if etag == "" {
		return nil
	}
	return []Option{func(r *http.Request) { r.Header.Set("If-Match", etag) }}
}

// DeleteSource removes one; its contacts stay.
func (c *Client) DeleteSource(ctx context.Context, id string) error {
	return c.Do(ctx, http.MethodDelete, sourcePath(id, ""), nil, nil, nil)
}

// TestSource connects and tells what a run would meet.
func (c *Client) TestSource(ctx context.Context, id string) (SourceTest, error) {
	return post[SourceTest](ctx, c, sourcePath(id, "/test"), nil)
}

// SyncSource asks for a run now.
func (c *Client) SyncSource(ctx context.Context, id string, in SyncSource) (SourceRun, error) {
	return post[SourceRun](ctx, c, sourcePath(id, "/sync"), in)
}

// SourceRuns lists the runs of a source, newest first.
func (c *Client) SourceRuns(ctx context.Context, id string, l List) (Page[SourceRun], error) {
	return get[Page[SourceRun]](ctx, c, sourcePath(id, "/runs"), l.values())
}

// SourceRun shows one run, after it has ended or waitSeconds (at most 30) are over.
func (c *Client) SourceRun(ctx context.Context, id, run string, waitSeconds int) (SourceRun, error) {
	v := url.Values{}
	if waitSeconds > 0 {
		v.Set("wait_seconds", strconv.Itoa(waitSeconds))
	}
	return get[SourceRun](ctx, c, sourcePath(id, "/runs/"+url.PathEscape(run)), v)
}

func sourcePath(id, rest string) string { return "/v1/sources/" + url.PathEscape(id) + rest }
