package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
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

// CampaignAction is start, pause, resume, cancel, unschedule, retry-failed or clone. Each but clone may be repeated.
func (c *Client) CampaignAction(ctx context.Context, id, action string) (Campaign, error) {
	return post[Campaign](ctx, c, campaignPath(id, "/"+url.PathEscape(action)), nil)
}

// AwaitProgress is CampaignProgress when it differs from what the answer with that ETag said, or after so many seconds. tag
// names the new answer; changed is false where nothing has.
func (c *Client) AwaitProgress(ctx context.Context, id, known string, seconds int) (p Progress, tag string, changed bool, err error) {
	v := url.Values{"wait_seconds": {strconv.Itoa(seconds)}}
	header := func(r *http.Request) {
		if known != "" {
			r.Header.Set("If-None-Match", known)
		}
	}
	res, err := c.roundTrip(ctx, http.MethodGet, campaignPath(id, "/progress"), v, "", nil, []Option{header})
	if err != nil {
		if problem, ok := errors.AsType[*Problem](err); ok && problem.Status == http.StatusNotModified {
			return p, known, false, nil
		}
		return p, known, false, err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&p); err != nil {
		return p, known, false, fmt.Errorf("decode answer: %w", err)
	}
	return p, res.Header.Get("ETag"), true, nil
}

// PatchCampaign changes one whose ETag is etag, "*" for whatever it is now.
func (c *Client) PatchCampaign(ctx context.Context, id, etag string, in PatchCampaign) (Campaign, error) {
	var out Campaign
	match := func(r *http.Request) { r.Header.Set("If-Match", etag) }
	err := c.Do(ctx, http.MethodPatch, campaignPath(id, ""), nil, in, &out, match)
	return out, err
}

// DeleteCampaign forgets a draft, or one that has ended.
func (c *Client) DeleteCampaign(ctx context.Context, id string) error {
	return c.Do(ctx, http.MethodDelete, campaignPath(id, ""), nil, nil, nil)
}

// ValidateCampaign tells what would become of one.
func (c *Client) ValidateCampaign(ctx context.Context, id string) (CampaignCheck, error) {
	return post[CampaignCheck](ctx, c, campaignPath(id, "/validate"), nil)
}

// PreviewCampaign makes one recipient's message.
func (c *Client) PreviewCampaign(ctx context.Context, id string, in PreviewCampaign) (CampaignPreview, error) {
	return post[CampaignPreview](ctx, c, campaignPath(id, "/preview"), in)
}

// TestCampaign sends a test message.
func (c *Client) TestCampaign(ctx context.Context, id string, in TestCampaign) (TestSent, error) {
	return post[TestSent](ctx, c, campaignPath(id, "/test"), in)
}

// ScheduleCampaign makes one start by itself.
func (c *Client) ScheduleCampaign(ctx context.Context, id string, in CampaignSchedule) (Campaign, error) {
	return post[Campaign](ctx, c, campaignPath(id, "/schedule"), in)
}

// CampaignReport tells how one went.
func (c *Client) CampaignReport(ctx context.Context, id string) (CampaignReport, error) {
	return get[CampaignReport](ctx, c, campaignPath(id, "/report"), nil)
}

// CampaignReportCSV streams a row for each recipient to w.
func (c *Client) CampaignReportCSV(ctx context.Context, id string, w io.Writer) (int64, error) {
	return c.Download(ctx, campaignPath(id, "/report"), url.Values{"format": {"csv"}}, w)
}

// Compliance shows what the law asks of an account's campaigns.
func (c *Client) Compliance(ctx context.Context, account string) (Compliance, error) {
	v := url.Values{}
	setIf(v, "account", account)
	return get[Compliance](ctx, c, "/v1/compliance", v)
}

// SetCompliance replaces it.
func (c *Client) SetCompliance(ctx context.Context, account string, in Compliance) (Compliance, error) {
	v := url.Values{}
	setIf(v, "account", account)
	var out Compliance
	err := c.Do(ctx, http.MethodPut, "/v1/compliance", v, in, &out)
	return out, err
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
