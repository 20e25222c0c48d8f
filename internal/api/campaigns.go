package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Campaigns lists campaigns, newest first. account is for callers with rights on all, "" for the caller's own.
func (c *Client) Campaigns(ctx context.Context, account string, l List) (CampaignList, error) {
	v := l.values()
	setIf(v, "account", account)
	return get[CampaignList](ctx, c, "/v1/campaigns", v)
}

// CreateCampaign makes one; key, unless empty, makes the call safe to repeat.
func (c *Client) CreateCampaign(ctx context.Context, in CreateCampaign, key string) (Campaign, error) {
	var opts []Option
	if key != "" {
		opts = append(opts, IdempotencyKey(key))
	}
	return post[Campaign](ctx, c, "/v1/campaigns", in, opts...)
}

// Campaign shows one.
func (c *Client) Campaign(ctx context.Context, id string) (Campaign, error) {
	return get[Campaign](ctx, c, campaignPath(id, ""), nil)
}

// CampaignProgress counts its recipients by state.
func (c *Client) CampaignProgress(ctx context.Context, id string) (Progress, error) {
	return get[Progress](ctx, c, campaignPath(id, "/progress"), nil)
}

// CampaignAction is start, pause, resume or cancel. Each may be repeated.
func (c *Client) CampaignAction(ctx context.Context, id, action string) (Campaign, error) {
	return post[Campaign](ctx, c, campaignPath(id, "/"+url.PathEscape(action)), nil)
}

// CampaignRecipients lists what became of each recipient, of those in one state or of all for "".
func (c *Client) CampaignRecipients(ctx context.Context, id, state string, l List) (RecipientList, error) {
	v := l.values()
	setIf(v, "state", state)
	return get[RecipientList](ctx, c, campaignPath(id, "/recipients"), v)
}

// ImportOptionsHeader carries ImportOptions as JSON beside an upload.
const ImportOptionsHeader = "X-Import-Options"

// AddRecipients streams a CSV ("text/csv") or JSON lines ("application/x-ndjson") upload into a draft.
func (c *Client) AddRecipients(ctx context.Context, id, contentType string, body io.Reader, options ImportOptions) (ImportReport, error) {
	var out ImportReport
	b, err := json.Marshal(options)
	if err != nil {
		return out, fmt.Errorf("encode import options: %w", err)
	}
	header := func(r *http.Request) { r.Header.Set(ImportOptionsHeader, string(b)) }
	err = c.send(ctx, http.MethodPost, campaignPath(id, "/recipients"), nil, contentType, body, &out, []Option{header})
	return out, err
}

func campaignPath(id, rest string) string { return "/v1/campaigns/" + url.PathEscape(id) + rest }
