package source

import (
	"errors"

	"relayd/internal/api"
)

// Sentinel errors.
var (
	ErrNotFound  = errors.New("no such source or run")
	ErrExists    = errors.New("the account has a source of this name")
	ErrTooMany   = errors.New("too many sources")
	ErrBadCursor = errors.New("not a cursor of sources")
	ErrETag      = errors.New("the source was changed meanwhile")
	ErrForbidden = errors.New("this key may not name this dsn_ref: source.dsn_refs lists those that it may")

	errBadRecord   = errors.New("bad source record")
	errSuperseded  = errors.New("the source was changed while it was read; the next run goes on")
	errInterrupted = errors.New("relayd stopped during the run; the next run goes on from the watermark")
)

// Invalid is a configuration that cannot be taken.
type Invalid struct{ Errors []api.FieldError }

func (e *Invalid) Error() string {
	if len(e.Errors) == 0 {
		return "bad source"
	}
	return e.Errors[0].Pointer + ": " + e.Errors[0].Detail
}

func (e *Invalid) add(pointer, detail string) {
	e.Errors = append(e.Errors, api.FieldError{Pointer: pointer, Code: api.CodeInvalidParameter, Detail: detail})
}
