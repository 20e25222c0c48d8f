package api

import (
	"fmt"
	"strings"
)

// Problem is the body of every error answer (RFC 9457) and the error that Client returns for it.
type Problem struct {
	Type      string       `json:"type"`
	Title     string       `json:"title"`
	Status    int          `json:"status"`
	Code      string       `json:"code"` // stable; programs decide by it
	Detail    string       `json:"detail,omitempty"`
	RequestID string       `json:"request_id,omitempty"`
	Errors    []FieldError `json:"errors,omitempty"`
}

// FieldError is one thing that is wrong with a request.
type FieldError struct {
	Pointer string `json:"pointer,omitempty"` // JSON Pointer (RFC 6901) into the body, or the name of a query parameter
	Code    string `json:"code"`
	Detail  string `json:"detail"`
}

// Codes of problems. The list only grows.
const (
	CodeInvalidJSON           = "invalid_json"
	CodeUnknownField          = "unknown_field"
	CodeInvalidParameter      = "invalid_parameter"
	CodeUnauthorized          = "unauthorized"
	CodeForbiddenScope        = "forbidden_scope"
	CodeNotFound              = "not_found"
	CodeMethodNotAllowed      = "method_not_allowed"
	CodeUnsupportedMediaType  = "unsupported_media_type"
	CodeConflict              = "conflict"
	CodeETagMismatch          = "etag_mismatch"
	CodeImportInProgress      = "import_in_progress"
	CodeImportTooManyErrors   = "import_too_many_errors"
	CodeDigestMismatch        = "digest_mismatch"
	CodeIdempotencyKeyInUse   = "idempotency_key_in_use"
	CodeIdempotencyKeyReused  = "idempotency_key_reused"
	CodeTemplateSyntax        = "template_syntax"
	CodeTemplateVariable      = "template_variable_missing"
	CodeFromNotVerified       = "from_not_verified"
	CodeDomainNotReady        = "domain_not_ready"
	CodeRecipientSuppressed   = "recipient_suppressed"
	CodeRecipientInvalid      = "recipient_invalid"
	CodeMessageTooLarge       = "message_too_large"
	CodeMessageRefused        = "message_refused"
	CodeBodyTooLarge          = "body_too_large"
	CodeQueueFull             = "queue_full"
	CodeCampaignStateConflict = "campaign_state_conflict"
	CodeAudienceEmpty         = "audience_empty"
	CodeCursorMismatch        = "cursor_mismatch"
	CodeTimeout               = "timeout"
	CodeStorageUnavailable    = "storage_unavailable"
	CodeQuotaExceeded         = "quota_exceeded"
	CodeRateLimited           = "rate_limited"
	CodeInternal              = "internal"
)

// Error returns the detail and each field's error in one line.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.Code)
	for _, e := range p.Errors {
		if e.Detail == p.Detail && e.Pointer != "" { // the whole error is about one field: name it
			b.WriteString(": " + e.Pointer)
			break
		}
	}
	if p.Detail != "" {
		b.WriteString(": " + p.Detail)
	} else if p.Title != "" {
		b.WriteString(": " + p.Title)
	}
	for i, e := range p.Errors {
		if i == 10 {
			fmt.Fprintf(&b, "; and %d more", len(p.Errors)-i)
			break
		}
		if e.Detail == p.Detail {
			continue
		}
		b.WriteString("; ")
		if e.Pointer != "" {
			b.WriteString(e.Pointer + ": ")
		}
		b.WriteString(e.Detail)
	}
	return b.String()
}
