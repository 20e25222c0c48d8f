package campaign

import (
	"errors"
	"fmt"
	"strings"

	"relayd/internal/api"
)

// Sentinel errors.
var (
	ErrNotFound    = errors.New("no such campaign")
	ErrBadCursor   = errors.New("bad cursor")
	ErrContentType = errors.New("recipients are uploaded as text/csv or application/x-ndjson") // 415
	ErrBadToken    = errors.New("bad unsubscribe token")                                       // 404, whatever was wrong with it
)

// Invalid is a request that was refused before anything was stored: 422. Code is the problem's own code, one of the
// list in api.
type Invalid struct {
	Code   string
	Detail string
	Errors []api.FieldError
}

// Error returns the detail, then each field's error.
func (e *Invalid) Error() string {
	var b strings.Builder
	b.WriteString(e.Detail)
	for i, f := range e.Errors {
		if i == 10 {
			fmt.Fprintf(&b, "; and %d more", len(e.Errors)-i)
			break
		}
		fmt.Fprintf(&b, "; %s: %s", f.Pointer, f.Detail)
	}
	return strings.TrimPrefix(b.String(), "; ")
}

// StateError tells that an action does not fit the campaign's state: 409 campaign_state_conflict.
type StateError struct{ Action, State string }

func (e *StateError) Error() string {
	return fmt.Sprintf("%s is not possible: the campaign is %s", e.Action, e.State)
}

// maxFieldErrors bounds the list in one Invalid.
const maxFieldErrors = 100

func (e *Invalid) add(pointer, code, format string, args ...any) {
	if len(e.Errors) < maxFieldErrors {
		e.Errors = append(e.Errors, api.FieldError{Pointer: pointer, Code: code, Detail: fmt.Sprintf(format, args...)})
	}
}

// orNil returns e as an error if it holds one.
func (e *Invalid) orNil() error {
	if len(e.Errors) == 0 {
		return nil
	}
	if e.Code == "" {
		e.Code = e.Errors[0].Code
	}
	if e.Detail == "" {
		e.Detail = e.Errors[0].Detail
	}
	return e
}

// unchanged refuses a change of what is not as the caller saw it: match is the ETag that it saw, "" for whatever it is.
func unchanged(match, etag string) error {
	if match != "" && match != etag {
		return ErrChanged
	}
	return nil
}
