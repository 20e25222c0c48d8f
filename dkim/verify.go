package dkim

import (
	"context"
	"io"
)

// TXTLookup finds the TXT records of a name, each with its strings joined.
type TXTLookup interface {
	LookupTXT(ctx context.Context, name string) ([]string, error)
}

// Verification is the verdict on one signature.
type Verification struct {
	Domain    string `json:"domain"`
	Selector  string `json:"selector"`
	Algorithm string `json:"algorithm"` // a= tag
	Result    string `json:"result"`    // pass, fail, temperror, permerror
	Error     string `json:"error,omitempty"`
}

// Verify checks the signatures of a message.
func Verify(ctx context.Context, r io.Reader, txt TXTLookup) ([]Verification, error) {
	panic("CONTRACT STUB")
}
