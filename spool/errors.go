package spool

import "errors"

// Errors of the store.
var (
	ErrNotFound  = errors.New("no such message")
	ErrLeaseLost = errors.New("envelope is not under this lease")
	ErrDeposed   = errors.New("store was taken over by another process")
	ErrSchema    = errors.New("store was written by a newer version")
	ErrVersion   = errors.New("record version is unknown")
	ErrCorrupt   = errors.New("record is corrupt")
	ErrSelector  = errors.New("bad selector")
	ErrCursor    = errors.New("bad cursor")
	ErrAction    = errors.New("unknown action")
	ErrInvalid   = errors.New("invalid message or envelope")
)
