package api

import "time"

// Suppression says why an address gets no mail.
type Suppression struct {
	Account   string    `json:"account,omitempty"`
	Email     string    `json:"email"`
	Scope     string    `json:"scope"`  // global: no mail at all; broadcast: no campaigns
	Reason    string    `json:"reason"` // hard_bounce, complaint, unsubscribe, manual, invalid
	Source    string    `json:"source,omitempty"`
	Note      string    `json:"note,omitempty"`
	CreatedAt time.Time `json:"created_at,omitzero"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

// SuppressionAdded is the answer of POST /v1/suppressions. Created is false where the entry was there already.
type SuppressionAdded struct {
	Suppression
	Created bool `json:"created"`
}

// SuppressionCheck is the answer of GET /v1/suppressions/{email}.
type SuppressionCheck struct {
	Email     string               `json:"email"`
	Entries   []Suppression        `json:"entries"`
	Effective SuppressionEffective `json:"effective"`
}

// SuppressionEffective says for each class of mail whether it is "blocked" or "allowed".
type SuppressionEffective struct {
	Transactional string `json:"transactional"`
	Broadcast     string `json:"broadcast"`
}

// SuppressionRemoved is the answer of DELETE /v1/suppressions/{email}.
type SuppressionRemoved struct {
	Email   string `json:"email"`
	Removed int    `json:"removed"`
}

// SuppressionImport is the answer of POST /v1/suppressions/import. Rows that are wrong are skipped, the others stand.
type SuppressionImport struct {
	Rows      int        `json:"rows"`
	Created   int        `json:"created"`
	Unchanged int        `json:"unchanged"`
	Rejected  int        `json:"rejected"`
	Errors    []RowError `json:"errors,omitempty"` // the first 100
}

// RowError is one row of an upload that was not taken.
type RowError struct {
	Row    int    `json:"row"` // line in the upload, from 1
	Column string `json:"column,omitempty"`
	Value  string `json:"value,omitempty"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
}
