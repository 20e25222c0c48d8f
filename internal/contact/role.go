package contact

import (
	"strings"

	"relayd/internal/mail"
)

// IsRole tells that a mailbox is named for a function, so that who reads it may be several people, none of whom asked for
// mail: those of RFC 2142, and others that are as usual.
func IsRole(to mail.Path) bool {
	name, _, _ := strings.Cut(to.Local, "+")
	switch strings.ToLower(name) {
	case "info", "marketing", "sales", "support", // RFC 2142 section 3
		"abuse", "noc", "security", // section 4
		"postmaster", "hostmaster", "usenet", "news", "webmaster", "www", "uucp", "ftp", // section 5
		"admin", "administrator", "root", "sysadmin", "it", "helpdesk", "help", "service", "contact", "office", "hello", "mail",
		"billing", "accounts", "accounting", "invoice", "invoices", "orders", "jobs", "careers", "hr", "legal", "privacy", "press", "media",
		"team", "all", "everyone", "staff", "list", "mailer-daemon", "noreply", "no-reply", "donotreply", "do-not-reply":
		return true
	}
	return false
}
