package delivery

import (
	_ "embed"
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"relayd/internal/bounce"
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

// Classifier tells what replies mean: by the rules of rules.txt, after local ones if there are any.
type Classifier struct{ rules *rules }

// NewClassifier reads local rules, in the form of rules.txt: "" for none. They are asked before the built-in ones of
// their kind; a class may be given another blame or other actions, or be new.
func NewClassifier(local string) (*Classifier, error) {
	if local == "" {
		return &Classifier{loadRules()}, nil
	}
	if len(local) > maxLocalRules {
		return nil, fmt.Errorf("read rules: %d octets, and at most %d are taken", len(local), maxLocalRules)
	}
	r, err := loadRules().extended(local)
	if err != nil {
		return nil, err
	}
	return &Classifier{r}, nil
}

// maxLocalRules bounds a file of local rules, in octets.
const maxLocalRules = 1 << 20

// Classify is Classifier.Classify with the built-in rules.
func Classify(reply mail.Reply, phase Phase) Verdict {
	return (&Classifier{loadRules()}).Classify(reply, phase)
}

// Classify tells what a reply means: the enhanced status code first (RFC 3463), then the text. A 5yz is never retried
// but where the fault is ours; a 4yz never bounces. In PhaseConnect, and for 421 anywhere, a temporary reply is about
// the site and not about an envelope.
func (k *Classifier) Classify(reply mail.Reply, phase Phase) Verdict {
	if reply.Positive() {
		return Verdict{Class: "accepted", Blame: BlameNone, Action: ActionDeliver}
	}
	c := k.rules.classes[k.rules.class(reply)]
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
	// X.7 is about security and policy, whatever words come with it (RFC 3463 section 3.8).
	v.Suppress = v.Suppress && v.Hard && phase != PhaseConnect && phase != PhaseMail && reply.Status.Subject != 7
	return v
}

// Bounce is bounce.Classifier: what came back is classified as if it had been said at RCPT.
func (k *Classifier) Bounce(reply mail.Reply) bounce.Verdict {
	v := k.Classify(reply, PhaseRcpt)
	return bounce.Verdict{Class: v.Class, Recipient: v.Blame == BlameRecipient, Suppress: v.Suppress}
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

// extended returns the rules with local ones before them.
func (r *rules) extended(local string) (*rules, error) {
	mine := &rules{classes: maps.Clone(r.classes), codes: maps.Clone(r.codes)}
	if err := mine.read(local); err != nil {
		return nil, err
	}
	mine.sure = append(mine.sure, r.sure...)
	mine.statuses = append(mine.statuses, r.statuses...)
	mine.text = append(mine.text, r.text...)
	return mine, nil
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
	return r, r.read(text)
}

func (r *rules) read(text string) error {
	for n, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		kind, rest, _ := strings.Cut(line, " ")
		name, rest, _ := strings.Cut(strings.TrimSpace(rest), " ")
		if err := r.add(kind, name, strings.TrimSpace(rest)); err != nil {
			return fmt.Errorf("line %d: %w", n+1, err)
		}
	}
	return nil
}

func (r *rules) add(kind, name, rest string) error {
	if !isClassName(name) {
		return fmt.Errorf("%q is not the name of a class: 1 to 40 lower-case letters, digits and '_'", mail.CleanText(name, 60))
	}
	if _, known := r.classes[name]; !known && kind != "class" {
		return fmt.Errorf("unknown class %q; a line \"class %s …\" makes one", name, name)
	}
	if rest == "" {
		return fmt.Errorf("%q ends after the name of the class", kind)
	}
	switch kind {
	case "class":
		c, err := parseClass(name, strings.Fields(rest))
		if err != nil {
			return err
		}
		r.classes[name] = c
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
			if err != nil || code < 400 || code > 599 {
				return fmt.Errorf("%q is not a reply code of 400 to 599", mail.CleanText(f, 20))
			}
			r.codes[code] = name
		}
	default:
		return fmt.Errorf("%q is none of class, sure, status, text, code", mail.CleanText(kind, 20))
	}
	return nil
}

// parseClass reads the columns of a class.
func parseClass(name string, f []string) (class, error) {
	if len(f) != 4 {
		return class{}, fmt.Errorf("class %s has %d columns behind its name, and should have 4: BLAME ON4 ON5 SUPPRESS", name, len(f))
	}
	switch Blame(f[0]) {
	case BlameNone, BlameRecipient, BlameSender, BlameSource, BlameContent, BlameDestination, BlameUs:
	default:
		return class{}, fmt.Errorf("class %s: blame %q is none of none, recipient, sender, source, content, destination, us", name, f[0])
	}
	for _, a := range f[1:3] {
		switch Action(a) {
		case ActionRetry, ActionBounce, ActionSuspend:
		case ActionDeliver:
			return class{}, fmt.Errorf("class %s: a refusal cannot mean deliver", name)
		default:
			return class{}, fmt.Errorf("class %s: action %q is none of retry, bounce, suspend", name, a)
		}
	}
	if Action(f[1]) == ActionBounce {
		return class{}, fmt.Errorf("class %s: a temporary refusal never bounces", name)
	}
	if f[3] != "yes" && f[3] != "no" {
		return class{}, fmt.Errorf("class %s: suppress %q is neither yes nor no", name, f[3])
	}
	return class{name, Blame(f[0]), Action(f[1]), Action(f[2]), f[3] == "yes"}, nil
}

func isClassName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= 40
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
