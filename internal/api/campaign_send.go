package api

import (
	"encoding/json"
	"time"
)

// Audience names the contacts that a campaign goes to, besides those that are uploaded to it. They are taken over when
// the campaign starts, and each is asked for again right before it is sent to.
type Audience struct {
	List         string          `json:"list"`
	Topic        string          `json:"topic,omitempty"`
	Segment      json.RawMessage `json:"segment,omitempty"` // conditions on attributes
	ExcludeLists []string        `json:"exclude_lists,omitempty"`
	Dedupe       string          `json:"dedupe,omitempty"` // "address" (default): one mail per mailbox; "contact" means the same, since a contact's key is its mailbox
}

// CampaignSend says how fast and how long. Zero values are the defaults.
type CampaignSend struct {
	MaxConcurrency      int            `json:"max_concurrency,omitempty"`       // SMTP transactions at a time; default 10
	MaxRatePerSecond    float64        `json:"max_rate_per_second,omitempty"`   // recipients that become due; 0: no bound of its own
	SpreadSeconds       int64          `json:"spread_seconds,omitempty"`        // recipients are spread evenly over this time; 0: at once
	TTLSeconds          int64          `json:"ttl_seconds,omitempty"`           // no attempt later than this after the planned time; default 86400
	Retry               *CampaignRetry `json:"retry,omitempty"`                 // of one recipient's message; default: the queue's policy
	MisfireGraceSeconds *int64         `json:"misfire_grace_seconds,omitempty"` // a schedule that is met later than this pauses; default 3600
}

// CampaignGuards pause a campaign whose recipients' hosts or mailboxes complain. A rate is a share, 0.05 for 5 %; 0 turns
// it off, absent means the default.
type CampaignGuards struct {
	BounceRate    *float64 `json:"bounce_rate,omitempty"`    // of finished recipients; default 0.1
	ComplaintRate *float64 `json:"complaint_rate,omitempty"` // of delivered ones; default 0.005
	DeferralRate  *float64 `json:"deferral_rate,omitempty"`  // of attempted ones, those that wait for another attempt now; default 0
	MinSample     int64    `json:"min_sample,omitempty"`     // recipients before a guard acts; default 200
	Action        string   `json:"action,omitempty"`         // "pause" (default) or "none": only show
}

// CampaignSchedule is the body of POST /v1/campaigns/{id}/schedule: a moment, or a time of day where each recipient is.
type CampaignSchedule struct {
	SendAt           time.Time `json:"send_at,omitzero"`
	SendAtLocal      string    `json:"send_at_local,omitempty"`     // 2026-11-27T09:00, without a zone
	FallbackTimezone string    `json:"fallback_timezone,omitempty"` // of recipients without a timezone attribute, with send_at_local
}

// PatchCampaign is the body of PATCH /v1/campaigns/{id}: what is absent stays. While a campaign is paused or scheduled it
// takes send and guards; a draft takes all of it.
type PatchCampaign struct {
	Name      *string           `json:"name,omitempty"`
	From      *Mailbox          `json:"from,omitempty"`
	ReplyTo   *string           `json:"reply_to,omitempty"`
	Template  *CampaignTemplate `json:"template,omitempty"`
	Data      map[string]any    `json:"data,omitempty"`
	OnMissing *string           `json:"on_missing,omitempty"`
	Audience  *Audience         `json:"audience,omitempty"`
	Send      *CampaignSend     `json:"send,omitempty"`
	Guards    *CampaignGuards   `json:"guards,omitempty"`
	Tags      map[string]string `json:"tags,omitempty"`
}

// CampaignCheck is the answer of POST /v1/campaigns/{id}/validate.
type CampaignCheck struct {
	OK         bool             `json:"ok"`
	Recipients RecipientFates   `json:"recipients"`
	Estimated  CampaignEstimate `json:"estimated"`
	Checks     []Check          `json:"checks"`
	Warnings   []Warning        `json:"warnings,omitempty"`
	Findings   []Finding        `json:"findings,omitempty"` // rules of deliverability that a message to one of them does not keep
}

// RecipientFates says what would become of the recipients if the campaign started now.
// Total = Suppressed + Unsubscribed + Invalid + RenderFailed + WillSend.
type RecipientFates struct {
	Total        int64 `json:"total"`
	Suppressed   int64 `json:"suppressed"`
	Unsubscribed int64 `json:"unsubscribed"`
	Invalid      int64 `json:"invalid"`
	RenderFailed int64 `json:"render_failed"` // with on_missing "skip": who lack a variable
	WillSend     int64 `json:"will_send"`
}

// CampaignEstimate is what sending will take.
type CampaignEstimate struct {
	Seconds    int64            `json:"seconds"` // at the campaign's own bounds: rate, spread, concurrency with half a second for each
	Bytes      int64            `json:"bytes"`
	ByProvider map[string]int64 `json:"by_provider"`
}

// Check is one condition of a good campaign.
type Check struct {
	ID      string   `json:"id"`
	OK      bool     `json:"ok"`
	Detail  string   `json:"detail,omitempty"`
	Count   int64    `json:"count,omitempty"`
	Pointer string   `json:"pointer,omitempty"`
	Sample  []string `json:"sample,omitempty"`

	Remaining *int64 `json:"remaining,omitempty"` // of quota_24h: recipients that the account may have more
}

// PreviewCampaign is the body of POST /v1/campaigns/{id}/preview. Contact is an address that the campaign goes to, or
// "email:ADDRESS"; Sample one of the stored template that the campaign names, in place of a contact. With Data the
// recipient has these attributes instead.
type PreviewCampaign struct {
	Contact string         `json:"contact,omitempty"`
	Sample  string         `json:"sample,omitempty"`
	Data    map[string]any `json:"data,omitempty"`
}

// CampaignPreview is one recipient's message, made by the code that sends.
type CampaignPreview struct {
	To      string            `json:"to"`
	Subject string            `json:"subject"`
	HTML    string            `json:"html,omitempty"`
	Text    string            `json:"text"`
	Headers map[string]string `json:"headers"`
	Bytes   int               `json:"bytes"` // of the message without signatures

	Findings []Finding `json:"findings,omitempty"` // rules of deliverability that it does not keep
}

// TestCampaign is the body of POST /v1/campaigns/{id}/test: to whom, and with whose data.
type TestCampaign struct {
	To        []string       `json:"to"`
	AsContact string         `json:"as_contact,omitempty"`
	Data      map[string]any `json:"data,omitempty"`
}

// TestSent names the messages of a test.
type TestSent struct {
	Messages []string `json:"messages"` // queue IDs, in the order of to
}

// Compliance is what the law of an account's country asks of all its campaigns.
type Compliance struct {
	AdLabel       bool   `json:"ad_label"`              // "(광고)" before each subject
	QuietHours    bool   `json:"quiet_hours"`           // nothing is sent from QuietFrom to QuietUntil where the recipient is
	QuietFrom     string `json:"quiet_from,omitempty"`  // default 21:00
	QuietUntil    string `json:"quiet_until,omitempty"` // default 08:00
	Timezone      string `json:"timezone,omitempty"`    // of recipients without one; default Asia/Seoul
	SenderName    string `json:"sender_name,omitempty"` // in the footer
	PostalAddress string `json:"postal_address"`        // in the footer, "" for none
	Contact       string `json:"contact,omitempty"`     // in the footer: an address or telephone number
}

// GuardState shows the rates that guards look at, in Progress.
type GuardState struct {
	BounceRate    float64 `json:"bounce_rate"`
	ComplaintRate float64 `json:"complaint_rate"`
	DeferralRate  float64 `json:"deferral_rate"`
	Sample        int64   `json:"sample"`
	State         string  `json:"state"` // ok, warn (half of a limit is reached), tripped
}

// CampaignReport is GET /v1/campaigns/{id}/report.
type CampaignReport struct {
	Progress
	From     Mailbox           `json:"from"`
	Subject  string            `json:"subject"`
	Stream   string            `json:"stream"`
	Tags     map[string]string `json:"tags,omitempty"`
	Attempts map[string]int64  `json:"attempts"` // finished recipients by number of attempts
	Reasons  []ReportReason    `json:"reasons"`  // why recipients were not reached, the most frequent first
	Domains  []ReportDomain    `json:"domains"`  // the largest first, at most 50
}

// ReportReason counts recipients that ended alike.
type ReportReason struct {
	State    string `json:"state"`
	Enhanced string `json:"enhanced,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Count    int64  `json:"count"`
	Sample   string `json:"sample,omitempty"` // one reply
}

// ReportDomain counts the recipients of one domain.
type ReportDomain struct {
	Domain    string `json:"domain"`
	Total     int64  `json:"total"`
	Delivered int64  `json:"delivered"`
	Bounced   int64  `json:"bounced"`
}
