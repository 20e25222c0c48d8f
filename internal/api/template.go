package api

import "time"

// TemplateSource is what an author writes. In a partial only HTML and Text are used.
type TemplateSource struct {
	Subject   string              `json:"subject,omitempty"`
	Preheader string              `json:"preheader,omitempty"`
	HTML      string              `json:"html,omitempty"`
	Text      string              `json:"text,omitempty"` // "": made from HTML
	Variables map[string]Variable `json:"variables,omitempty"`
	Partials  map[string]Partial  `json:"partials,omitempty"` // go before the account's templates of kind "partial"
	Images    []CampaignImage     `json:"images,omitempty"`   // go before the account's assets
	Options   TemplateOptions     `json:"options,omitzero"`
	Samples   []TemplateSample    `json:"samples,omitempty"`
}

// TemplateSample is data to render a template with.
type TemplateSample struct {
	Name       string         `json:"name"`
	Data       map[string]any `json:"data,omitempty"`       // a campaign's or a message's
	Attributes map[string]any `json:"attributes,omitempty"` // a contact's
}

// CreateTemplate is the body of POST /v1/templates.
type CreateTemplate struct {
	Name string `json:"name"`           // letters, digits, '-', '_' and '.'
	Kind string `json:"kind,omitempty"` // broadcast (default): for campaigns; transactional: for messages; partial: for {{> name}}
	TemplateSource
}

// PatchTemplate is the body of PATCH /v1/templates/{name}: fields that are there replace those of the latest version. A
// version that is published stays as it is; the change makes the next one.
type PatchTemplate struct {
	Subject   *string              `json:"subject,omitempty"`
	Preheader *string              `json:"preheader,omitempty"`
	HTML      *string              `json:"html,omitempty"`
	Text      *string              `json:"text,omitempty"`
	Variables *map[string]Variable `json:"variables,omitempty"`
	Partials  *map[string]Partial  `json:"partials,omitempty"`
	Images    *[]CampaignImage     `json:"images,omitempty"`
	Options   *TemplateOptions     `json:"options,omitempty"`
	Samples   *[]TemplateSample    `json:"samples,omitempty"`
}

// Template is one version of a stored template. Listings leave its source out.
type Template struct {
	Name          string            `json:"name"`
	Account       string            `json:"account"`
	Kind          string            `json:"kind"`
	Version       int               `json:"version"`
	State         string            `json:"state"`               // draft or published
	Published     int               `json:"published,omitempty"` // the version that a reference without a version means; 0: none yet
	VariablesUsed []string          `json:"variables_used,omitempty"`
	Compiled      *TemplateCompiled `json:"compiled,omitempty"`
	Warnings      []Warning         `json:"warnings,omitempty"`
	ETag          string            `json:"etag"`
	CreatedAt     time.Time         `json:"created_at"`
	UpdatedAt     time.Time         `json:"updated_at"`
	PublishedAt   time.Time         `json:"published_at,omitzero"`
	TemplateSource
}

// TemplateCompiled says what a version makes.
type TemplateCompiled struct {
	HTMLBytes          int `json:"html_bytes"`
	TextBytes          int `json:"text_bytes"`
	InlineImages       int `json:"inline_images"`
	EstimatedMIMEBytes int `json:"estimated_mime_bytes"`
}

// PublishTemplate is the body of POST /v1/templates/{name}/publish.
type PublishTemplate struct {
	Version int `json:"version,omitempty"` // 0: the latest one
}

// RenderTemplate is the body of POST /v1/templates/{name}/render and …/validate.
type RenderTemplate struct {
	Version    int             `json:"version,omitempty"`    // 0: the latest one, draft or not
	Sample     string          `json:"sample,omitempty"`     // name of a sample whose data is used
	Contact    string          `json:"contact,omitempty"`    // of render: "email:ann@example.com" or an ID; its attributes and address are used (contacts:read)
	Data       map[string]any  `json:"data,omitempty"`       // over that of the sample
	Attributes map[string]any  `json:"attributes,omitempty"` // over those of the sample and the contact
	From       *Mailbox        `json:"from,omitempty"`
	To         string          `json:"to,omitempty"`
	Source     *CreateTemplate `json:"source,omitempty"` // of validate: in place of what is stored
}

// RenderedTemplate is a message as it would be sent.
type RenderedTemplate struct {
	Name      string            `json:"name"`
	Version   int               `json:"version,omitempty"`
	Subject   string            `json:"subject"`
	HTML      string            `json:"html,omitempty"`
	Text      string            `json:"text"`
	Headers   map[string]string `json:"headers"`
	MIMEBytes int               `json:"mime_bytes"`
	Findings  []Finding         `json:"findings"`
}

// Finding is one rule of deliverability that a message does not keep.
type Finding struct {
	ID      string `json:"id"`    // F01 to F20
	Level   string `json:"level"` // error, warning or info
	Pointer string `json:"pointer,omitempty"`
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Detail  string `json:"detail"`
	Advice  string `json:"advice,omitempty"`
	Sample  string `json:"sample,omitempty"` // the one whose message it is about
}

// TemplateValidation is the answer of POST /v1/templates/{name}/validate. OK is false where a finding is an error.
type TemplateValidation struct {
	OK        bool              `json:"ok"`
	Name      string            `json:"name"`
	Version   int               `json:"version,omitempty"`
	Variables []VariableUse     `json:"variables"`
	Compiled  *TemplateCompiled `json:"compiled,omitempty"`
	Warnings  []Warning         `json:"warnings"`
	Findings  []Finding         `json:"findings"`
}

// VariableUse says where a template reads a variable.
type VariableUse struct {
	Name     string   `json:"name"`
	Required bool     `json:"required"` // a message cannot be made without it
	Places   []string `json:"places"`   // part:line:column
}

// TemplateRef names a stored template.
type TemplateRef struct {
	Name    string `json:"name"`
	Version int    `json:"version,omitempty"` // 0: the published one
}
