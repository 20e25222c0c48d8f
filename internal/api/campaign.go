package api

import "time"

// CreateCampaign is the body of POST /v1/campaigns in its short form: template, data and recipients in one request.
// Unknown fields are refused by the caller that decodes it.
type CreateCampaign struct {
	Name       string            `json:"name"`
	From       Mailbox           `json:"from"`
	ReplyTo    string            `json:"reply_to,omitempty"`
	ReturnPath string            `json:"return_path,omitempty"` // reverse-path; default: the From address
	Stream     string            `json:"stream,omitempty"`      // label for List-Id and listings; default "broadcast"
	Template   CampaignTemplate  `json:"template"`
	Data       map[string]any    `json:"data,omitempty"`       // campaign scope: trusted, HTML in the HTML part
	OnMissing  string            `json:"on_missing,omitempty"` // what becomes of recipients who lack a variable: "error" (default), "default" or "skip"
	Recipients []Recipient       `json:"recipients,omitempty"`
	Audience   *Audience         `json:"audience,omitempty"`
	Send       CampaignSend      `json:"send,omitzero"`
	Guards     CampaignGuards    `json:"guards,omitzero"`
	Retry      *CampaignRetry    `json:"retry,omitempty"`       // short for send.retry
	TTLSeconds int64             `json:"ttl_seconds,omitempty"` // short for send.ttl_seconds
	Tags       map[string]string `json:"tags,omitempty"`
	Tracking   Tracking          `json:"tracking,omitzero"`
	Start      bool              `json:"start,omitempty"` // start at once, or refuse and store nothing
}

// Tracking asks for counts of opened messages and followed links. relayd counts neither: true is refused.
type Tracking struct {
	Opens  bool `json:"opens,omitempty"`
	Clicks bool `json:"clicks,omitempty"`
}

// CampaignTemplate is what every recipient's message is made of: a stored template, by its name, or one of the campaign's
// own.
type CampaignTemplate struct {
	Name      string              `json:"name,omitempty"`    // of a stored template; the fields below are empty then
	Version   int                 `json:"version,omitempty"` // of the stored template; 0: the one that is published at the start
	Subject   string              `json:"subject,omitempty"`
	HTML      string              `json:"html,omitempty"`
	Text      string              `json:"text,omitempty"` // "": made from HTML
	Preheader string              `json:"preheader,omitempty"`
	Images    []CampaignImage     `json:"images,omitempty"`
	Options   TemplateOptions     `json:"options,omitzero"`
	Variables map[string]Variable `json:"variables,omitempty"`
	Partials  map[string]Partial  `json:"partials,omitempty"` // what {{> name}} stands for
}

// Partial is source that templates share.
type Partial struct {
	HTML string `json:"html,omitempty"`
	Text string `json:"text,omitempty"` // "": made from HTML
}

// TemplateOptions steer how the message is put together.
type TemplateOptions struct {
	Images     string `json:"images,omitempty"`      // "cid" (default): parts of the message; "link": the url of each image
	AutoFooter bool   `json:"auto_footer,omitempty"` // add an unsubscribe line where the template has none
	AutoText   *bool  `json:"auto_text,omitempty"`   // make the text part from the HTML where there is none; default true
	Minify     bool   `json:"minify,omitempty"`      // take white space and comments that nobody sees out of the HTML
	InlineCSS  *bool  `json:"inline_css,omitempty"`  // write the rules of <style> into style attributes as well; default true
}

// CampaignImage is referred to in the HTML as src="cid:NAME" or src="asset:NAME".
type CampaignImage struct {
	Name        string `json:"name,omitempty"`
	ContentID   string `json:"content_id,omitempty"` // without angle brackets; default: made from the name
	ContentType string `json:"content_type,omitempty"`
	Content     string `json:"content,omitempty"` // base64
	URL         string `json:"url,omitempty"`     // https, for images that are linked to
	Mode        string `json:"mode,omitempty"`    // cid or link; default: options.images
}

// Variable declares a merge variable.
type Variable struct {
	Scope    string  `json:"scope,omitempty"`    // where its value comes from: campaign, contact or message
	Required bool    `json:"required,omitempty"` // a campaign or a message without it is refused
	Default  *string `json:"default,omitempty"`  // used where a recipient has none
	Type     string  `json:"type,omitempty"`     // html or text; campaign values are html unless they are text, all others text
}

// Recipient is one contact of a campaign.
type Recipient struct {
	Email      string         `json:"email"`
	Attributes map[string]any `json:"attributes,omitempty"`
}

// CampaignRetry spaces the attempts of one recipient's message.
type CampaignRetry struct {
	MaxAttempts     int     `json:"max_attempts"`
	IntervalSeconds int64   `json:"interval_seconds"`
	BackoffRate     float64 `json:"backoff_rate"`
}

// Campaign is what listings and actions answer.
type Campaign struct {
	ID            string            `json:"id"` // "cmp_…", sorts by time of creation
	Account       string            `json:"account"`
	Name          string            `json:"name"`
	State         string            `json:"state"` // draft scheduled preparing running paused cancelling cancelled completed completed_with_failures failed
	Reason        string            `json:"reason,omitempty"`
	Detail        string            `json:"detail,omitempty"` // of the reason, for people
	From          Mailbox           `json:"from"`
	Subject       string            `json:"subject"`
	Stream        string            `json:"stream"`
	Total         int64             `json:"total"`
	VariablesUsed []string          `json:"variables_used,omitempty"`
	Warnings      []Warning         `json:"warnings,omitempty"`
	Tags          map[string]string `json:"tags,omitempty"`
	InFlight      int64             `json:"in_flight,omitempty"` // answer of pause: messages in an SMTP transaction that will finish
	Audience      *Audience         `json:"audience,omitempty"`
	Send          CampaignSend      `json:"send,omitzero"`
	Guards        CampaignGuards    `json:"guards,omitzero"`
	Schedule      *CampaignSchedule `json:"schedule,omitempty"`
	ETag          string            `json:"etag,omitempty"`
	CreatedAt     time.Time         `json:"created_at"`
	StartedAt     time.Time         `json:"started_at,omitzero"`
	FinishedAt    time.Time         `json:"finished_at,omitzero"`
}

// Warning is something that a marketer should know and that does not stop the campaign.
type Warning struct {
	Code   string `json:"code"`
	Part   string `json:"part,omitempty"`
	Line   int    `json:"line,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// CampaignList is one page of campaigns, newest first.
type CampaignList struct {
	Data       []Campaign `json:"data"`
	HasMore    bool       `json:"has_more"`
	NextCursor string     `json:"next_cursor,omitempty"`
}

// Progress is GET /v1/campaigns/{id}/progress. Counts always sum to Total.
type Progress struct {
	ID               string             `json:"id"`
	Name             string             `json:"name"`
	State            string             `json:"state"`
	Reason           string             `json:"reason,omitempty"`
	Detail           string             `json:"detail,omitempty"`
	Total            int64              `json:"total"`
	Counts           Counts             `json:"counts"`
	Rate             Rate               `json:"rate"`
	LimitedBy        string             `json:"limited_by"`
	LimitedDetail    string             `json:"limited_detail,omitempty"` // what is known of it, for people
	LimitedUntil     *time.Time         `json:"limited_until,omitempty"`
	ETA              *time.Time         `json:"eta"`
	CreatedAt        time.Time          `json:"created_at"`
	StartedAt        *time.Time         `json:"started_at"`
	FirstDeliveredAt *time.Time         `json:"first_delivered_at"`
	SnapshotAt       *time.Time         `json:"snapshot_at"`
	FinishedAt       *time.Time         `json:"finished_at"`
	Guards           GuardState         `json:"guards,omitzero"`
	Providers        []ProviderProgress `json:"providers"`
}

// Counts has one number per state of a recipient.
type Counts struct {
	Pending      int64 `json:"pending"`
	Sending      int64 `json:"sending"`
	Deferred     int64 `json:"deferred"`
	Delivered    int64 `json:"delivered"`
	Bounced      int64 `json:"bounced"`
	Failed       int64 `json:"failed"`
	Suppressed   int64 `json:"suppressed"`
	Unsubscribed int64 `json:"unsubscribed"`
	RenderFailed int64 `json:"render_failed"`
	Expired      int64 `json:"expired"`
	Cancelled    int64 `json:"cancelled"`
	Invalid      int64 `json:"invalid"`
	InDoubt      int64 `json:"in_doubt"`
}

// Sum adds all of them.
func (c Counts) Sum() int64 {
	return c.Pending + c.Sending + c.Deferred + c.Finished()
}

// Finished adds the states that a recipient does not leave.
func (c Counts) Finished() int64 {
	return c.Delivered + c.Bounced + c.Failed + c.Suppressed + c.Unsubscribed + c.RenderFailed + c.Expired + c.Cancelled +
		c.Invalid + c.InDoubt
}

// Rate is in finished messages per second.
type Rate struct {
	Last10s float64 `json:"last_10s"`
	Average float64 `json:"average"`
}

// ProviderProgress is the part of a campaign that one mailbox provider receives.
type ProviderProgress struct {
	Name           string     `json:"name"`
	Delivered      int64      `json:"delivered"`
	Waiting        int64      `json:"waiting"` // due, and not yet attempted
	Deferred       int64      `json:"deferred"`
	LimitPerSecond float64    `json:"limit_per_second,omitempty"` // messages that its hosts may get, as configured or learned
	State          string     `json:"state"`                      // ok, backoff (we leave it alone until then), suspended (an operator did)
	Until          *time.Time `json:"until,omitempty"`
	Reason         string     `json:"reason,omitempty"` // the reply, or who suspended it
}

// RecipientResult tells what became of one recipient.
type RecipientResult struct {
	Address     string     `json:"address"`
	State       string     `json:"state"` // one of the names in Counts
	Reason      string     `json:"reason,omitempty"`
	Attempts    int        `json:"attempts"`
	SMTP        *SMTPReply `json:"smtp,omitempty"`
	Message     string     `json:"message,omitempty"` // envelope ID, "" before it is queued
	NextAttempt *time.Time `json:"next_attempt,omitempty"`
	At          *time.Time `json:"at,omitempty"` // of the outcome
}

// SMTPReply is the last reply that an attempt met.
type SMTPReply struct {
	Code     int    `json:"code"`
	Enhanced string `json:"enhanced,omitempty"`
	Text     string `json:"text,omitempty"`
	Host     string `json:"host,omitempty"`
	TLS      string `json:"tls,omitempty"`
}

// RecipientList is one page of results.
type RecipientList struct {
	Data       []RecipientResult `json:"data"`
	HasMore    bool              `json:"has_more"`
	NextCursor string            `json:"next_cursor,omitempty"`
}

// ImportOptions steer POST /v1/campaigns/{id}/recipients. The zero value recognises everything by itself.
type ImportOptions struct {
	ColumnMap     map[string]string `json:"column_map,omitempty"`     // header → "email", "status" or "attributes.NAME" ("" drops the column)
	Delimiter     string            `json:"delimiter,omitempty"`      // "auto" (default), ",", ";" or a TAB
	DefaultStatus string            `json:"default_status,omitempty"` // of rows without a status: "subscribed" (default), "unsubscribed" or "error"
	MaxErrors     int               `json:"max_errors,omitempty"`     // how many row errors the report lists; default 1000, at most 10000
}

// ImportReport counts rows: RowsRead = Created + Duplicates + SkippedUnsubscribed + Rejected.
type ImportReport struct {
	RowsRead            int64         `json:"rows_read"`
	Created             int64         `json:"created"`
	Duplicates          int64         `json:"duplicates"` // rows of an address seen before; the last row wins
	SkippedUnsubscribed int64         `json:"skipped_unsubscribed"`
	Rejected            int64         `json:"rejected"`
	Errors              []ImportError `json:"errors"`
	ErrorsTruncated     bool          `json:"errors_truncated"`
	BytesRead           int64         `json:"bytes_read"`
	Total               int64         `json:"total"` // recipients of the campaign after this import
}

// ImportError is one row that was not imported.
type ImportError struct {
	Line       int64  `json:"line"`        // of the row's beginning, from 1
	ByteOffset int64  `json:"byte_offset"` // of the row's beginning, from 0
	Column     string `json:"column,omitempty"`
	Value      string `json:"value,omitempty"` // cleaned, at most 200 bytes
	Code       string `json:"code"`
	Detail     string `json:"detail,omitempty"`
}
