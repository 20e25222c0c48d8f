// Package bounce reads what comes back to return paths: delivery status notifications (RFC 3464), bounces in the forms
// that mail systems used before there was one, feedback reports (RFC 5965), answers of machines (RFC 3834). It tells
// whom a message is about and what became of the mail to them. It decides nothing: what a recipient is suppressed for
// is for the caller, who knows to whom the mail was sent.
//
// What comes in is hostile: everything is bounded, no parser is strict, and no text of it is trusted to be clean. Parse
// never fails; what is not understood is of the kind None.
package bounce
