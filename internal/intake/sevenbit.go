package intake

import (
	"bytes"
	"errors"

	"relayd/dkim"
	"relayd/internal/mail"
	"relayd/internal/sevenbit"
)

// clean makes a body that has octets above 127, or that came as BINARYMIME, 7-bit before it is signed: a host that
// does not offer 8BITMIME would force somebody to change it later, and that breaks signatures
// (docs/decisions/0016). The message begins anew under another queue ID, and what comes in is the body that is stored
// so far.
func (t *taking) clean() error {
	if !t.binary && t.header.signedByOthers() { // a change would break what they have signed
		return nil
	}
	scan := sevenbit.NewScanner(t.header.fields, t.binary)
	if _, err := t.body.WriteTo(scan); err != nil {
		return err
	}
	plan, err := scan.Plan()
	if err != nil || plan == nil {
		return err
	}
	was, section := *t, *t.header
	t.id = mail.NewQueueID(t.now)
	t.body, t.hash = t.newBody(), dkim.NewBodyHasher()
	t.bits, t.binary = false, false // from here on all rules hold
	t.lines = lineChecker{lines: bytes.Count(t.raw, []byte{'\n'}) + 1}
	err = t.rebuild(plan, was.body)
	if errors.Is(err, errNoRoom) && !was.binary {
		t.body.Abort()
		*t, *t.header = was, section
		return nil
	}
	was.body.Abort()
	return err
}

// rebuild takes the message anew, as planned.
func (t *taking) rebuild(plan *sevenbit.Plan, from bodyWriter) error {
	t.header.fields = plan.Header()
	if err := t.header.rewrite(); err != nil {
		return err
	}
	w := plan.NewWriter(t)
	if _, err := from.WriteTo(w); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return t.finish()
}

// signedByOthers tells whether a signature stays that relayd did not make.
func (h *header) signedByOthers() bool {
	for _, f := range h.fields {
		if f.Is("DKIM-Signature") && !h.drops(f) {
			return true
		}
	}
	return false
}

// checkBinaryHeader holds the header section of a binary message to lines. What stands behind it is for clean.
func (t *taking) checkBinaryHeader() error {
	var lines lineChecker
	if err := lines.check(t.raw); err != nil {
		return err
	}
	return lines.end()
}
