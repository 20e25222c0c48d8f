package delivery

import (
	_ "embed"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"relayd/internal/mail"
)

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
	Class    string `json:"class"`    // closed set, see rules.txt: mailbox_unknown, mailbox_full, rate, greylist, spam…
	Hard     bool   `json:"hard"`     // a retry cannot help
	Blame    Blame  `json:"blame"`    //
	Action   Action `json:"action"`   //
	Suppress bool   `json:"suppress"` // the mailbox does not exist: never send to it again
}

// Classify tells what a reply means: the enhanced status code first (RFC 3463), then the text. A 5yz is never retried
// but where the fault is ours; a 4yz never bounces. In PhaseConnect, and for 421 anywhere, a temporary reply is about
// the site and not about an envelope.
func Classify(reply mail.Reply, phase Phase) Verdict {
	if reply.Positive() {
		return Verdict{Class: "accepted", Blame: BlameNone, Action: ActionDeliver}
	}
	rules := loadRules()
	c := rules.classes[rules.class(reply)]
	v := Verdict{Class: c.name, Blame: c.blame, Action: c.on4}
	if reply.Permanent() {
		v.Action, v.Suppress = c.on5, c.suppress
		if phase == PhaseConnect && (c.blame == BlameSource || c.blame == BlameUs) { // says nothing about any envelope
			v.Action = ActionSuspend
		}
	} else if phase == PhaseConnect || reply.Code == 421 {
		v.Action = ActionSuspend
	}
	v.Hard = v.Action == ActionBounce
	v.Suppress = v.Suppress && v.Hard && phase != PhaseConnect && phase != PhaseMail
	return v
}

//go:embed rules.txt
var rulesText string

// loadRules reads the rules once; a test reads them too, so they are known to be right.
var loadRules = sync.OnceValue(func() *rules {
	r, err := parseRules(rulesText)
	if err != nil {
		panic(err) // embedded text
	}
	return r
})

// rules are the data of Classify.
type rules struct {
	classes  map[string]class
	sure     []textRule
	statuses []statusRule
	text     []textRule
	codes    map[int]string
}

type class struct {
	name     string
	blame    Blame
	on4, on5 Action
	suppress bool
}

type textRule struct {
	class   string
	pattern *regexp.Regexp
}

// statusRule matches subject.detail with detail within low and high.
type statusRule struct {
	class              string
	subject, low, high int
}

const classUnknown = "unknown"

// class finds the class of a reply that is not positive.
func (r *rules) class(reply mail.Reply) string {
	for _, t := range r.sure {
		if t.pattern.MatchString(reply.Text) {
			return t.class
		}
	}
	for _, s := range r.statuses {
		if reply.Status.Subject == s.subject && reply.Status.Detail >= s.low && reply.Status.Detail <= s.high {
			return s.class
		}
	}
	for _, t := range r.text {
		if t.pattern.MatchString(reply.Text) {
			return t.class
		}
	}
	if name, ok := r.codes[reply.Code]; ok {
		return name
	}
	return classUnknown
}

func parseRules(text string) (*rules, error) {
	r := &rules{classes: map[string]class{}, codes: map[int]string{}}
	for n, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		kind, rest, _ := strings.Cut(line, " ")
		name, rest, _ := strings.Cut(strings.TrimSpace(rest), " ")
		if err := r.add(kind, name, strings.TrimSpace(rest)); err != nil {
			return nil, fmt.Errorf("read rules, line %d: %w", n+1, err)
		}
	}
	return r, nil
}

func (r *rules) add(kind, name, rest string) error {
	if _, known := r.classes[name]; !known && kind != "class" {
		return fmt.Errorf("unknown class %q", name)
	}
	switch kind {
	case "class":
		f := strings.Fields(rest)
		if len(f) != 4 {
			return fmt.Errorf("class %q has %d columns", name, len(f))
		}
		r.classes[name] = class{name, Blame(f[0]), Action(f[1]), Action(f[2]), f[3] == "yes"}
	case "sure", "text":
		p, err := regexp.Compile("(?i)" + rest)
		if err != nil {
			return err
		}
		if kind == "sure" {
			r.sure = append(r.sure, textRule{name, p})
		} else {
			r.text = append(r.text, textRule{name, p})
		}
	case "status":
		for f := range strings.FieldsSeq(rest) {
			s, err := parseStatusRule(name, f)
			if err != nil {
				return err
			}
			r.statuses = append(r.statuses, s)
		}
	case "code":
		for f := range strings.FieldsSeq(rest) {
			code, err := strconv.Atoi(f)
			if err != nil {
				return err
			}
			r.codes[code] = name
		}
	default:
		return fmt.Errorf("unknown rule %q", kind)
	}
	return nil
}

// parseStatusRule reads "7.28" or "7.500-7.599".
func parseStatusRule(name, s string) (statusRule, error) {
	from, to, ranged := strings.Cut(s, "-")
	if !ranged {
		to = from
	}
	a, _, okA := mail.ParseStatus("5." + from)
	b, _, okB := mail.ParseStatus("5." + to)
	if !okA || !okB || a.Subject != b.Subject {
		return statusRule{}, fmt.Errorf("bad status %q", s)
	}
	return statusRule{name, a.Subject, a.Detail, b.Detail}, nil
}
