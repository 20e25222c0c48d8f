package intake

import (
	"slices"
	"strings"

	"relayd/internal/account"
	"relayd/internal/mail"
)

// CheckSender tells whether a credential may use a domain as the sender's, and may send now at all. A refusal is a
// *mail.Error, a temporary one where a quota is used up or the spool takes nothing new.
func (in *Intake) CheckSender(c account.Credential, domain string) error {
	owner := c.Account
	if owner == "" {
		owner = "default"
	}
	var domains []string
	if len(c.Domains) > 0 {
		domains = c.Domains
	}
	if err := in.checkDomain(owner, domains, domain, "Sender domain"); err != nil {
		return err
	}
	if err := in.deps.Spool.Admit(); err != nil {
		return err
	}
	if in.deps.Quota == nil {
		return nil
	}
	return in.deps.Quota.Check(owner, c.Username)
}

// checkDomain refuses a domain that is not the account's, or not among domains (nil: all of the account). A domain of
// another account and one that nobody has get the same answer.
func (in *Intake) checkDomain(owner string, domains []string, domain, what string) error {
	d, known := in.deps.Domains.Domain(domain)
	if !known || d.Account != owner && (d.Account != "" || owner != "default") {
		return errNotRegistered(what, domain)
	}
	if domains != nil && !slices.ContainsFunc(domains, func(s string) bool { return strings.EqualFold(s, domain) }) {
		return refuse(550, 7, 1, what+" "+domain+" is not one that this credential may use")
	}
	return nil
}

func errNotRegistered(what, domain string) *mail.Error {
	return refuse(550, 7, 1, what+" "+domain+" is not registered for this account: run relayctl domain add "+domain)
}

// CheckRecipient tells whether mail to that address can be taken at all: destinations are domains, since queues, limits
// and routes are by domain. utf8 tells that the client said SMTPUTF8. A refusal is a *mail.Error.
func CheckRecipient(to mail.Path, utf8 bool) error {
	switch {
	case to.IsNull():
		return refuse(501, 1, 3, "Recipient is not a mail address")
	case strings.HasPrefix(to.Domain, "["):
		return refuse(550, 1, 2, "Recipients at address literals are not accepted")
	case !strings.Contains(to.Domain, "."):
		return refuse(550, 1, 2, "Recipient domain is not fully qualified")
	case to.NeedsUTF8() && !utf8:
		return refuse(553, 6, 7, "Recipients outside ASCII need SMTPUTF8")
	}
	return nil
}
