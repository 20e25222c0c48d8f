package smtpd

import "relayd/internal/mail"

var (
	errNoAuth    = refuse(503, 5, 1, "AUTH is not offered here")
	errNoMailbox = refuse(550, 1, 1, "No such recipient here")
)

// inboundPolicy takes mail for addresses that relayd has issued: return paths, complaint and unsubscribe mailboxes.
// It relays nothing. None is issued yet, so that every recipient is refused.
type inboundPolicy struct{}

func (inboundPolicy) mayAuth(*session) *mail.Error { return errNoAuth }

func (inboundPolicy) beforeMail(*session) *mail.Error { return nil }

func (inboundPolicy) mayMail(*session, mailArgs) *mail.Error { return nil }

func (inboundPolicy) mayRcpt(*session, rcptArgs) *mail.Error { return errNoMailbox }
