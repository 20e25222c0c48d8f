package delivery

import "relayd/internal/mail"

// Phase is the point of a session at which a reply came.
type Phase uint8

// The phases of a session.
const (
	PhaseConnect Phase = iota // greeting, EHLO, STARTTLS, AUTH
	PhaseMail
	PhaseRcpt
	PhaseData // to DATA, and to the final dot
)

// Action is what a verdict asks for.
type Action string

// The closed set of actions.
const (
	ActionDeliver Action = "deliver" // a positive reply
	ActionRetry   Action = "retry"   // this envelope waits for its next attempt
	ActionBounce  Action = "bounce"  // this envelope is refused for good
	ActionSuspend Action = "suspend" // the site wants a pause: no envelope is to blame
)

// Blame names who has to change something.
type Blame string

// The closed set of blames.
const (
	BlameNone        Blame = "none"
	BlameRecipient   Blame = "recipient"   // the mailbox
	BlameSender      Blame = "sender"      // the sender's domain: authentication, policy
	BlameSource      Blame = "source"      // our address or its reputation
	BlameContent     Blame = "content"     // of the message
	BlameDestination Blame = "destination" // their host or its policy
	BlameUs          Blame = "us"          // our configuration
)

// Verdict is the meaning of a reply.
type Verdict struct {
	Class    string `json:"class"`    // closed set, see the rules: mailbox_unknown, mailbox_full, rate, greylist, spam…
	Hard     bool   `json:"hard"`     // a retry cannot help
	Blame    Blame  `json:"blame"`    //
	Action   Action `json:"action"`   //
	Suppress bool   `json:"suppress"` // the mailbox does not exist: never send to it again
}

// Classify tells what a reply means.
func Classify(reply mail.Reply, phase Phase) Verdict { panic("CONTRACT STUB") }

// ParseReply reads "550 5.1.1 text", for the command line.
func ParseReply(text string) (mail.Reply, error) { panic("CONTRACT STUB") }
