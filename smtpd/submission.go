package smtpd

import (
	"errors"

	"relayd/internal/intake"
	"relayd/internal/mail"
)

// policy is what a kind of listener allows. A nil error allows.
type policy interface {
	mayAuth(s *session) *mail.Error             // asked by EHLO as well: what is refused is not offered
	beforeMail(s *session) *mail.Error          // may this client begin a transaction at all?
	mayMail(s *session, m mailArgs) *mail.Error // with this reverse-path?
	mayRcpt(s *session, r rcptArgs) *mail.Error // to this recipient?
}

var (
	errNeedTLS  = refuse(530, 7, 0, "Say STARTTLS first")
	errAuthTLS  = refuse(538, 7, 11, "Encryption is required before AUTH: say STARTTLS first")
	errNeedAuth = refuse(530, 7, 0, "Authentication is required")
	errNullPath = refuse(553, 7, 1, "The null reverse-path is not for submission")
)

// submissionPolicy takes mail of authenticated clients (RFC 6409), who authenticate under TLS only.
type submissionPolicy struct{ senders Senders }

func (submissionPolicy) mayAuth(s *session) *mail.Error {
	if s.tls == "" && s.lis.tls != NoTLS {
		return errAuthTLS
	}
	return nil
}

func (submissionPolicy) beforeMail(s *session) *mail.Error {
	switch {
	case s.cred != nil:
		return nil
	case s.tls == "" && s.lis.tls != NoTLS:
		return errNeedTLS
	}
	return errNeedAuth
}

// mayMail lets a credential use its own sender domains (RFC 6409 section 6.1). Bounces go to the reverse-path, so that
// a message without one would be nobody's.
func (p submissionPolicy) mayMail(s *session, m mailArgs) *mail.Error {
	if m.from.IsNull() {
		return errNullPath
	}
	if p.senders == nil {
		return nil
	}
	return asError(p.senders.CheckSender(*s.cred, m.from.Domain))
}

func (submissionPolicy) mayRcpt(s *session, r rcptArgs) *mail.Error {
	return asError(intake.CheckRecipient(r.to, s.tx.mail.utf8))
}

func asError(err error) *mail.Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*mail.Error](err); ok {
		return e
	}
	return &mail.Error{Reply: replyOf(err), Err: err}
}
