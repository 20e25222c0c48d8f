package api

import (
	"bytes"
	"encoding/json"
	"time"
)

// AttributeSchema is what a list wants of one attribute of its contacts.
type AttributeSchema struct {
	Type      string `json:"type"`                 // "string", "number", "bool" or "datetime" (RFC 3339; stored in UTC)
	MaxLength int    `json:"max_length,omitempty"` // of a string, in characters
	Enum      []any  `json:"enum,omitempty"`       // the only values; null allows that there is none
	Required  bool   `json:"required,omitempty"`
}

// Topic is one kind of mail of a list.
type Topic struct {
	Name        string `json:"name"`
	DisplayName string `json:"display_name,omitempty"`
	Default     string `json:"default,omitempty"` // of contacts who have not decided: "subscribed" (default) or "unsubscribed"
}

// CreateList is the body of POST /v1/lists.
type CreateList struct {
	Account          string                     `json:"account,omitempty"`
	Name             string                     `json:"name"`
	DisplayName      string                     `json:"display_name,omitempty"`
	OptIn            string                     `json:"opt_in,omitempty"` // "single" (default) or "double"
	Topics           []Topic                    `json:"topics,omitempty"`
	AttributesSchema map[string]AttributeSchema `json:"attributes_schema,omitempty"`
}

// PatchList is the body of PATCH /v1/lists/{id}: what is absent stays. Topics are the new topics, all of them: one that
// is missing goes, with what contacts have decided upon it.
type PatchList struct {
	DisplayName      *string                     `json:"display_name,omitempty"`
	OptIn            *string                     `json:"opt_in,omitempty"`
	Topics           *[]Topic                    `json:"topics,omitempty"`
	AttributesSchema *map[string]AttributeSchema `json:"attributes_schema,omitempty"`
}

// ContactList is a list of contacts.
type ContactList struct {
	ID                string                     `json:"id"`
	Account           string                     `json:"account"`
	Name              string                     `json:"name"`
	DisplayName       string                     `json:"display_name,omitempty"`
	OptIn             string                     `json:"opt_in"`
	Topics            []Topic                    `json:"topics"`
	AttributesSchema  map[string]AttributeSchema `json:"attributes_schema"`
	ContactCount      int64                      `json:"contact_count"`
	SubscribedCount   int64                      `json:"subscribed_count"`
	UnsubscribedCount int64                      `json:"unsubscribed_count"`
	PendingCount      int64                      `json:"pending_count"`
	CreatedAt         time.Time                  `json:"created_at"`
	UpdatedAt         time.Time                  `json:"updated_at"`
	ETag              string                     `json:"etag"`
}

// Consent proves that somebody asked for the mail of a list.
type Consent struct {
	At     time.Time `json:"at"`
	IP     string    `json:"ip,omitempty"`
	Source string    `json:"source,omitempty"` // the form or page
	Text   string    `json:"text,omitempty"`   // what was agreed to
}

// Subscription is what joins a contact to a list.
type Subscription struct {
	List      string            `json:"list"`
	Status    string            `json:"status"` // "subscribed", "unsubscribed" or "pending"
	Topics    map[string]string `json:"topics,omitempty"`
	Source    string            `json:"source,omitempty"`
	JoinedAt  time.Time         `json:"joined_at,omitzero"`
	ChangedAt time.Time         `json:"changed_at,omitzero"`
	Consent   *Consent          `json:"consent,omitempty"`
}

// Contact is one mailbox of an account. Subscription is the one to the list that was asked about, Subscriptions are all.
type Contact struct {
	ID              string         `json:"id"`
	Email           string         `json:"email"`
	EmailNormalized string         `json:"email_normalized"`
	SMTPUTF8        bool           `json:"smtputf8,omitempty"` // its local part needs a server with SMTPUTF8
	Attributes      map[string]any `json:"attributes"`
	Timezone        string         `json:"timezone,omitempty"`
	Locale          string         `json:"locale,omitempty"`
	Subscription    *Subscription  `json:"subscription,omitempty"`
	Subscriptions   []Subscription `json:"subscriptions,omitempty"`
	Deliverability  Deliverability `json:"deliverability"`
	Source          string         `json:"source,omitempty"`
	CreatedAt       time.Time      `json:"created_at"`
	UpdatedAt       time.Time      `json:"updated_at"`
	ETag            string         `json:"etag,omitempty"`
}

// Deliverability tells whether campaigns write to a contact at all.
type Deliverability struct {
	State  string `json:"state"`            // "ok", or "suppressed"
	Reason string `json:"reason,omitempty"` // of the suppression
}

// Attributes are what is known of a contact. Numbers keep the form in which they came.
type Attributes map[string]any

// UnmarshalJSON reads an object.
func (a *Attributes) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return d.Decode((*map[string]any)(a))
}

// PutContact is the body of PUT and PATCH /v1/contacts/{id or email:addr} and one item of a batch. PUT replaces the
// attributes, PATCH lays them over those that stand there, null removes one.
type PutContact struct {
	Email            string            `json:"email,omitempty"`
	Attributes       Attributes        `json:"attributes,omitempty"`
	Timezone         *string           `json:"timezone,omitempty"`
	Locale           *string           `json:"locale,omitempty"`
	List             string            `json:"list,omitempty"`   // the list that status, topics and consent are about
	Status           any               `json:"status,omitempty"` // in any spelling of a subscription status
	Topics           map[string]string `json:"topics,omitempty"`
	Consent          *Consent          `json:"consent,omitempty"`
	AllowResubscribe bool              `json:"allow_resubscribe,omitempty"`
}

// ContactBatch is the body of POST /v1/contacts/batch.
type ContactBatch struct {
	Account          string       `json:"account,omitempty"`
	List             string       `json:"list"`
	Mode             string       `json:"mode,omitempty"` // "atomic" (default): all or nothing; "partial"
	AllowResubscribe bool         `json:"allow_resubscribe,omitempty"`
	Contacts         []PutContact `json:"contacts"`
}

// ContactBatchResult is its answer; Results are in the order of the request.
type ContactBatchResult struct {
	RowCounts
	Results []ContactResult `json:"results"`
}

// ContactResult is what became of one item.
type ContactResult struct {
	Index int         `json:"index"`
	Email string      `json:"email"`
	State string      `json:"state"` // "created", "updated", "unchanged", "skipped_unsubscribed", "skipped_erased" or "rejected"
	Error *FieldError `json:"error,omitempty"`
}

// RowCounts are counted in rows. RowsRead is the sum of all the others but Duplicates, which are among them: rows of an
// address that the same import had created or changed before; the last one wins.
type RowCounts struct {
	RowsRead            int64 `json:"rows_read"`
	Created             int64 `json:"created"`
	Updated             int64 `json:"updated"`
	Unchanged           int64 `json:"unchanged"`
	SkippedUnsubscribed int64 `json:"skipped_unsubscribed"` // said subscribed; what else they say is taken
	SkippedErased       int64 `json:"skipped_erased"`
	SkippedExisting     int64 `json:"skipped_existing"` // with on_conflict=skip
	Rejected            int64 `json:"rejected"`
	Duplicates          int64 `json:"duplicates"`
}

// ContactErased is the answer of DELETE /v1/contacts/{id}.
type ContactErased struct {
	ID     string `json:"id"`
	Erased bool   `json:"erased"` // no import brings the address back
}

// CreateSegment is the body of POST /v1/segments: whom of a list it means. Where is a condition, such as
// {"all":[{"attr":"Gender","eq":"F"},{"attr":"CreateTime","lt":"2026-01-01"}]}; absent: everybody.
type CreateSegment struct {
	Account      string          `json:"account,omitempty"`
	Name         string          `json:"name"`
	List         string          `json:"list"`
	Topic        string          `json:"topic,omitempty"`
	Where        json.RawMessage `json:"where,omitempty"`
	IncludeLists []string        `json:"include_lists,omitempty"` // subscribed to each of these too
	ExcludeLists []string        `json:"exclude_lists,omitempty"` // members of these are left out
}

// PatchSegment is the body of PATCH /v1/segments/{id}: what is absent stays.
type PatchSegment struct {
	Name         *string          `json:"name,omitempty"`
	List         *string          `json:"list,omitempty"`
	Topic        *string          `json:"topic,omitempty"`
	Where        *json.RawMessage `json:"where,omitempty"`
	IncludeLists *[]string        `json:"include_lists,omitempty"`
	ExcludeLists *[]string        `json:"exclude_lists,omitempty"`
}

// Segment is a stored question about the members of a list.
type Segment struct {
	ID      string `json:"id"`
	Account string `json:"account"`
	CreateSegment
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	ETag      string    `json:"etag"`
}

// SegmentCount is the answer of POST /v1/segments/{id}/count.
type SegmentCount struct {
	Count int64 `json:"count"`
}
