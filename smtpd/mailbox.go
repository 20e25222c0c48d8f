package smtpd

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"time"

	"relayd/internal/account"
	"relayd/internal/intake"
	"relayd/internal/mail"
	"relayd/internal/mailauth"
)

// InboundKind is why an inbound recipient is known here.
type InboundKind string

// The kinds of recipients, a closed set.
const (
	Bounce      InboundKind = "bounce"      // a return path that we issued
	Complaint   InboundKind = "complaint"   // fbl@: the feedback loops of mailbox providers
	Unsubscribe InboundKind = "unsubscribe" // unsubscribe@: the mailto of List-Unsubscribe, its token in the subject
	Operator    InboundKind = "operator"    // postmaster@ and abuse@, which RFC 5321 section 4.5.1 and RFC 2142 ask for
)

// The mailboxes on the return-path host.
const (
	complaintMailbox   = "fbl"
	unsubscribeMailbox = "unsubscribe"
)

// UnsubscribeMailbox is the address for List-Unsubscribe on a return-path host.
func UnsubscribeMailbox(host string) mail.Path {
	return mail.Path{Local: unsubscribeMailbox, Domain: host}
}

// InboundHandler takes inbound mail over. A nil error means that what follows from it is durable; a *mail.Error is the
// reply; any other error is temporary.
type InboundHandler interface {
	HandleInbound(ctx context.Context, in *InboundMail) error
}

// ReturnPaths checks the MAC of a return path: mail.VERP. It does no I/O.
type ReturnPaths interface {
	Open(local string, now time.Time) (mail.EnvelopeID, error)
}

// InboundDeps are what inbound listeners work with.
type InboundDeps struct {
	Handler     InboundHandler
	ReturnPaths ReturnPaths
	Host        string // domain of the return paths and mailboxes that we issued
	// Domains are those for which postmaster and abuse are answered, beside Host and the host name: account.Store.
	Domains interface {
		Domain(name string) (account.Domain, bool)
	}
	HasOperator bool // somebody reads postmaster and abuse
	Resolver    mailauth.Resolver
}

// InboundMail is one message for recipients that we issued.
type InboundMail struct {
	ID         mail.QueueID // names it in the 250 reply and in the log
	From       mail.Path    // null for a DSN
	Recipients []InboundRecipient
	RequireTLS bool // REQUIRETLS (RFC 8689): whoever hands it on must ask for it as well
	Auth       AuthResults
	Trace      intake.Trace
	Source     netip.Prefix // who handed it in: one IPv4 address or one IPv6 /64
	// Message is the whole message as it came, CRLF line ends only, with our Received and Authentication-Results before it,
	// and without Authentication-Results of others in our name. It is in memory: reading it again is Seek.
	Message io.ReadSeeker
	Size    int64
}

// InboundRecipient is one recipient and what its address says.
type InboundRecipient struct {
	To       mail.Path
	Kind     InboundKind
	Envelope mail.EnvelopeID // Bounce: the envelope that the return path was issued for
}

// isOne tells whether two recipients are the same in spite of their spelling.
func (r InboundRecipient) isOne(other InboundRecipient) bool {
	return r.Kind == other.Kind && r.Envelope == other.Envelope && strings.EqualFold(r.To.Local, other.To.Local) && r.To.Domain == other.To.Domain
}

var errNoMailbox = refuse(550, 1, 1, "No such recipient here")

// mailbox tells what an address is to us. Everything that we did not issue gets the same refusal, so that nothing comes
// in that would have to be bounced.
func (d *InboundDeps) mailbox(to mail.Path, hostname string, now time.Time) (InboundRecipient, *mail.Error) {
	r := InboundRecipient{To: to}
	if d == nil {
		return r, errNoMailbox
	}
	local := strings.ToLower(to.Local)
	if local == "postmaster" || local == "abuse" {
		_, ours := d.Domains.Domain(to.Domain)
		switch {
		case !ours && to.Domain != d.Host && !strings.EqualFold(to.Domain, hostname):
			return r, errNoMailbox
		case !d.HasOperator:
			return r, refuse(550, 1, 1, "Nobody reads "+local+" here: no operator address is configured")
		}
		r.Kind = Operator
		return r, nil
	}
	if to.Domain != d.Host {
		return r, errNoMailbox
	}
	switch {
	case local == complaintMailbox:
		r.Kind = Complaint
	case local == unsubscribeMailbox:
		r.Kind = Unsubscribe
	case mail.IsVERP(to.Local):
		id, err := d.ReturnPaths.Open(to.Local, now)
		if err != nil {
			return r, errNoMailbox
		}
		r.Kind, r.Envelope = Bounce, id
	default:
		return r, errNoMailbox
	}
	return r, nil
}

var errInboundFull = refuse(452, 3, 1, "Too much mail comes in at once, please come back later")

// isRefusal tells a reply from an error of ours.
func isRefusal(err error) bool {
	_, ok := errors.AsType[*mail.Error](err)
	return ok
}
