package spool

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"relayd/internal/mail"
)

// Selector selects live envelopes. Its fields are joined by "and"; a zero field selects everything.
type Selector struct {
	Domain    string // of the recipient
	Sender    string // reverse-path, "<>" for the null one, "@domain" for all of a domain
	Recipient string // forward-path
	Account   string
	Stream    string
	Campaign  string
	State     string        // ready, deferred, held, leased
	Class     string        // urgent, transactional, bulk
	OlderThan time.Duration // since acceptance
	NewerThan time.Duration
	Reply     string            // substring of the last reply, any case
	Messages  []mail.QueueID    // any of these
	Envelopes []mail.EnvelopeID // or of these
	Site      string            // set of MX hosts, or smarthost, that the queue goes to
	// SiteDomains are the queue domains that go to Site. Delivery knows them, not the store: who uses a selector with a
	// site fills them in. They are no part of the text form.
	SiteDomains map[string]bool
}

// Bounds of the text form.
const (
	maxSelector = 64 << 10
	maxIDs      = 1000
	maxSite     = 255
)

var classNames = [classes]string{"urgent", "transactional", "bulk"}

// String returns the name used in selectors and the API.
func (c Class) String() string {
	if c < classes {
		return classNames[c]
	}
	return "unknown"
}

// ParseSelector reads the text form, terms with blanks between them:
//
//	domain=example.com state=deferred age>2h reply="mailbox full"
//
// The terms are domain, from, to, account, stream, campaign, site, state, class, reply, id (a queue ID or an envelope ID,
// may be repeated), age>DURATION and age<DURATION (units s, m, h, d). A value with blanks stands in double quotes. The
// empty text selects everything. The error wraps ErrSelector and names the term.
func ParseSelector(text string) (Selector, error) {
	var s Selector
	if len(text) > maxSelector {
		return s, fmt.Errorf("%w: longer than %d bytes", ErrSelector, maxSelector)
	}
	seen := map[string]bool{}
	for rest := strings.TrimLeft(text, " \t"); rest != ""; rest = strings.TrimLeft(rest, " \t") {
		at := strings.IndexAny(rest, "=<> \t\"")
		if at < 1 || !strings.Contains("=<>", rest[at:at+1]) {
			word, _, _ := strings.Cut(rest, " ")
			return Selector{}, fmt.Errorf("%w: %q is not a term like domain=example.com or age>2h", ErrSelector, word)
		}
		name, op := rest[:at], rest[at]
		value, tail, err := parseValue(rest[at+1:])
		if err != nil {
			return Selector{}, fmt.Errorf("%w: %s: %w", ErrSelector, name, err)
		}
		if key := name + string(op); seen[key] && name != "id" {
			return Selector{}, fmt.Errorf("%w: %s is given twice", ErrSelector, name)
		} else {
			seen[key] = true
		}
		if err := s.set(name, op, value); err != nil {
			return Selector{}, fmt.Errorf("%w: %w", ErrSelector, err)
		}
		rest = tail
	}
	return s, nil
}

// parseValue reads a value up to a blank, or in double quotes as Go writes them.
func parseValue(s string) (value, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		at := strings.IndexAny(s, " \t")
		if at < 0 {
			at = len(s)
		}
		return s[:at], s[at:], nil
	}
	quoted, err := strconv.QuotedPrefix(s)
	if err != nil {
		return "", "", fmt.Errorf("quote without end")
	}
	value, err = strconv.Unquote(quoted)
	if err != nil {
		return "", "", fmt.Errorf("quoted value: %w", err)
	}
	if rest = s[len(quoted):]; rest != "" && rest[0] != ' ' && rest[0] != '\t' {
		return "", "", fmt.Errorf("no blank behind the quoted value")
	}
	return value, rest, nil
}

// set takes one term.
func (s *Selector) set(name string, op byte, value string) error {
	if name == "age" {
		return s.setAge(op, value)
	}
	if op != '=' {
		return fmt.Errorf("%s takes =, not %c", name, op)
	}
	if value == "" {
		return fmt.Errorf("%s has no value", name)
	}
	var err error
	switch name {
	case "domain":
		s.Domain, err = mail.ParseDomain(value, true)
	case "from":
		s.Sender, err = parseSender(value)
	case "to":
		var p mail.Path
		p, err = mail.ParsePath(value)
		s.Recipient = p.String()
	case "account":
		s.Account = value
	case "stream":
		s.Stream = value
	case "campaign":
		s.Campaign = value
	case "site":
		if s.Site = value; len(value) > maxSite {
			return fmt.Errorf("site is longer than %d bytes", maxSite)
		}
	case "state":
		s.State = value
		if !slices.Contains(stateNames[:StateFinished], value) {
			err = fmt.Errorf("not one of %s", strings.Join(stateNames[:StateFinished], ", "))
		}
	case "class":
		s.Class = value
		if !slices.Contains(classNames[:], value) {
			err = fmt.Errorf("not one of %s", strings.Join(classNames[:], ", "))
		}
	case "reply":
		s.Reply = value
	case "id":
		err = s.addID(value)
	default:
		return fmt.Errorf("unknown term %q: use domain, from, to, account, stream, campaign, site, state, class, age, reply or id", name)
	}
	if err != nil {
		return fmt.Errorf("%s=%s: %w", name, value, err)
	}
	return nil
}

func (s *Selector) addID(value string) error {
	if len(s.Messages)+len(s.Envelopes) >= maxIDs {
		return fmt.Errorf("more than %d", maxIDs)
	}
	if strings.Contains(value, ".") {
		id, err := mail.ParseEnvelopeID(value)
		s.Envelopes = append(s.Envelopes, id)
		return err
	}
	id, err := mail.ParseQueueID(value)
	s.Messages = append(s.Messages, id)
	return err
}

func parseSender(value string) (string, error) {
	if value == "<>" {
		return value, nil
	}
	if domain, ok := strings.CutPrefix(value, "@"); ok {
		d, err := mail.ParseDomain(domain, true)
		return "@" + d, err
	}
	p, err := mail.ParsePath(value)
	return p.String(), err
}

func (s *Selector) setAge(op byte, value string) error {
	d, err := parseAge(value)
	if err != nil {
		return err
	}
	switch op {
	case '>':
		s.OlderThan = d
	case '<':
		s.NewerThan = d
	default:
		return fmt.Errorf("age takes > or <, not %c", op)
	}
	return nil
}

// parseAge is time.ParseDuration with days.
func parseAge(value string) (time.Duration, error) {
	var d time.Duration
	rest := value
	if days, after, ok := strings.Cut(value, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 32)
		if err != nil || n > 36500 {
			return 0, fmt.Errorf("age %q: not a duration like 90m, 2h or 3d", value)
		}
		d, rest = time.Duration(n)*24*time.Hour, after //nolint:gosec // at most 100 years
	}
	if rest != "" {
		more, err := time.ParseDuration(rest)
		if err != nil || more < 0 || more > 36500*24*time.Hour {
			return 0, fmt.Errorf("age %q: not a duration like 90m, 2h or 3d", value)
		}
		d += more
	}
	if d <= 0 {
		return 0, fmt.Errorf("age %q: not above zero", value)
	}
	return d, nil
}

// String is the inverse of ParseSelector.
func (s Selector) String() string {
	var terms []string
	add := func(term, value string) {
		if value == "" {
			return
		}
		if strings.ContainsAny(value, " \t\"") || strconv.Quote(value) != `"`+value+`"` {
			value = strconv.Quote(value)
		}
		terms = append(terms, term+value)
	}
	add("domain=", s.Domain)
	add("from=", s.Sender)
	add("to=", s.Recipient)
	add("account=", s.Account)
	add("stream=", s.Stream)
	add("campaign=", s.Campaign)
	add("site=", s.Site)
	add("state=", s.State)
	add("class=", s.Class)
	if s.OlderThan > 0 {
		add("age>", s.OlderThan.String())
	}
	if s.NewerThan > 0 {
		add("age<", s.NewerThan.String())
	}
	add("reply=", s.Reply)
	for _, id := range s.Messages {
		add("id=", id.String())
	}
	for _, id := range s.Envelopes {
		add("id=", id.String())
	}
	return strings.Join(terms, " ")
}

// IsZero tells that the selector selects every envelope.
func (s Selector) IsZero() bool { return s.String() == "" }

// check refuses fields that ParseSelector would refuse.
func (s Selector) check() error {
	if s.State != "" && !slices.Contains(stateNames[:StateFinished], s.State) {
		return fmt.Errorf("%w: state=%s: not one of %s", ErrSelector, s.State, strings.Join(stateNames[:StateFinished], ", "))
	}
	if s.Class != "" && !slices.Contains(classNames[:], s.Class) {
		return fmt.Errorf("%w: class=%s: not one of %s", ErrSelector, s.Class, strings.Join(classNames[:], ", "))
	}
	if s.Site != "" && s.SiteDomains == nil {
		return fmt.Errorf("%w: site=%s: the domains of the site are not known here", ErrSelector, s.Site)
	}
	if len(s.Messages)+len(s.Envelopes) > maxIDs {
		return fmt.Errorf("%w: more than %d IDs", ErrSelector, maxIDs)
	}
	return nil
}

// ofQueues tells whether the selector asks for anything that a queue's name decides.
func (s *Selector) ofQueues() bool {
	return s.Account != "" || s.Stream != "" || s.Campaign != "" || s.Domain != "" || s.Site != ""
}

// matchQueue judges what the name of the queue decides.
func (s *Selector) matchQueue(q Queue) bool {
	return (s.Account == "" || q.Account == s.Account) && (s.Stream == "" || q.Stream == s.Stream) &&
		(s.Campaign == "" || q.Stream == s.Campaign) && (s.Site == "" || s.SiteDomains[q.Domain])
}

// matchEnvelope judges what the envelope decides, but for its state.
func (s *Selector) matchEnvelope(e *Envelope, now time.Time) bool {
	age := now.Sub(e.ID.Message.Time())
	return (s.Domain == "" || e.To.Domain == s.Domain) &&
		(s.Recipient == "" || e.To.String() == s.Recipient) &&
		(s.Class == "" || e.Class.String() == s.Class) &&
		(s.OlderThan == 0 || age > s.OlderThan) && (s.NewerThan == 0 || age < s.NewerThan) &&
		(s.Reply == "" || strings.Contains(strings.ToLower(e.LastReply.String()), strings.ToLower(s.Reply)))
}

// matchMessage judges what the message decides.
func (s *Selector) matchMessage(m *Message) bool {
	if s.Campaign != "" && m.Campaign != s.Campaign {
		return false
	}
	switch {
	case s.Sender == "":
		return true
	case s.Sender == "<>":
		return m.ReversePath.IsNull()
	case s.Sender[0] == '@':
		return !m.ReversePath.IsNull() && m.ReversePath.Domain == s.Sender[1:]
	}
	return m.ReversePath.String() == s.Sender
}
