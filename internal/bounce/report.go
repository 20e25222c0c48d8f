package bounce

import (
	"relayd/internal/mail"
)

// Kind is what a message is.
type Kind string

// The closed set of kinds.
const (
	Bounce      Kind = "bounce"       // mail to a recipient was given up
	Delay       Kind = "delay"        // it is still tried
	Delivered   Kind = "delivered"    // it arrived, or was relayed
	Complaint   Kind = "complaint"    // a recipient calls it spam
	Unsubscribe Kind = "unsubscribe"  // a recipient wants no more
	AuthFailure Kind = "auth-failure" // a report on SPF, DKIM or DMARC
	AutoReply   Kind = "auto-reply"   // vacation, receipt, ticket
	None        Kind = "none"         // nothing of the kind: a person's mail
)

// Report is what a message tells.
type Report struct {
	Kind       Kind        `json:"kind"`
	Recipients []Recipient `json:"recipients"`
	MessageID  string      `json:"message_id,omitempty"` // of the mail that it is about
	Reporter   string      `json:"reporter,omitempty"`   // Reporting-MTA, or User-Agent of a feedback report

	ListUnsubscribe string `json:"-"` // of the mail that it is about, as it came
}

// Recipient is one address that a message is about.
type Recipient struct {
	Address    string `json:"address"`
	Status     string `json:"status,omitempty"` // enhanced status code, "" where none is told
	Class      string `json:"class,omitempty"`  // as the classifier calls it
	Hard       bool   `json:"hard"`             // the address itself is at fault, for good
	Suppress   bool   `json:"suppress"`         // the mailbox does not exist: never send to it again
	Diagnostic string `json:"diagnostic,omitempty"`

	reply mail.Reply
}

// Verdict is what a classifier makes of a reply.
type Verdict struct {
	Class     string
	Recipient bool // the recipient's address is to blame
	Suppress  bool // the mailbox does not exist
}

// Classifier tells what a reply means: delivery.Classifier, in the words of this package.
type Classifier func(reply mail.Reply) Verdict

// softClasses are about the recipient's mailbox, but not for good.
var softClasses = [...]string{"mailbox_full", "mailbox_refuses"}

// classify completes the recipients of a bounce. What is said beyond maxFreeText octets in all is not classified, and so
// suppresses nobody: it would cost seconds.
func (r *Report) classify(c Classifier) {
	var last mail.Reply // many recipients often have one reply, and to classify it costs
	var v Verdict
	left := maxFreeText
	for i := range r.Recipients {
		to := &r.Recipients[i]
		if !to.reply.Status.IsZero() {
			to.Status = to.reply.Status.String()
		}
		to.Diagnostic = mail.ReplyText(to.reply.Text)
		if r.Kind != Bounce || c == nil {
			continue
		}
		if i == 0 || to.reply != last {
			if left -= len(to.reply.Text); left < 0 {
				continue
			}
			v, last = c(to.reply), to.reply
		}
		to.Class = v.Class
		if !to.reply.Permanent() || !v.Recipient || aboutOthers(to.reply.Status) {
			continue
		}
		to.Hard = true
		for _, soft := range softClasses {
			to.Hard = to.Hard && v.Class != soft
		}
		to.Suppress = to.Hard && v.Suppress
	}
}

// aboutOthers tells a status that is never about the recipient's address, whatever words come with it: X.7 is security
// and policy, X.1.7 and X.1.8 are the sender's address (RFC 3463).
func aboutOthers(s mail.Status) bool {
	return s.Subject == 7 || s.Subject == 1 && (s.Detail == 7 || s.Detail == 8)
}

// Bounds of a report.
const (
	maxRecipients = 1000
	maxMessage    = 8 << 20 // octets that are looked at
	maxText       = 256 << 10
	maxFreeText   = 32 << 10 // that is searched for words
	maxSaid       = 2 << 10  // of it that is taken for what is said of one recipient
	maxParts      = 64
	maxDepth      = 8
	maxLine       = 8 << 10
)
