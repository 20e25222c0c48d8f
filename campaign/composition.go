package campaign

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"relayd/internal/api"
	contacts "relayd/internal/contact"
	"relayd/internal/mail"
)

// composition is a campaign's message, compiled: everything that is the same for all recipients is in its final form.
// It is not changed after newComposition and may be used by many goroutines.
type composition struct {
	id       mail.QueueID
	mark     string // in boundaries and content IDs
	single   bool   // a message to one person or a few, without the fields of a list
	account  string
	name     string
	from     mail.Path
	reverse  mail.Path
	scope    scope
	skip     bool // recipients who lack a variable are left out
	subject  *program
	html     *program // nil: the message is text only
	text     *program
	head     []byte          // header fields before those that differ
	foot     []byte          // header fields behind them, with the empty line
	toText   []byte          // body up to the text
	toHTML   []byte          // between text and HTML
	tail     []byte          // behind the HTML: images, closing delimiters
	host     string          // in Message-ID
	unsub    string          // base of unsubscribe links
	mailbox  string          // for unsubscribe mail, "" for none
	postal   string          // address of the sender that a broadcast shows, "" for none
	list     contacts.ListID // that the unsubscribe link takes the recipient off; zero: all broadcasts
	warnings []api.Warning
	images   int
	size     atomic.Int64 // of the last message, for buffers
}

// What becomes of recipients who lack a variable that has no default.
const (
	missingError   = "error"   // the campaign is refused
	missingDefault = "default" // nothing stands in its place
	missingSkip    = "skip"    // they get no message: render_failed
)

const (
	maxNameLength = 200
	maxData       = 4 << 20
	maxSubject    = 1000 // bytes, rendered; our own limit for one header field is 2 KB encoded
	maxTags       = 20
	clippedHTML   = 102_000 // bytes behind which Gmail hides the rest
	defaultStream = "broadcast"
)

// newComposition compiles a request. An error is an *Invalid that tells all that is wrong with it.
func newComposition(id mail.QueueID, account string, req *api.CreateCampaign, hostname, publicURL string) (*composition, error) {
	bad := &Invalid{}
	c := &composition{id: id, mark: id.String(), account: account, name: req.Name, host: hostname, unsub: unsubscribeBase(publicURL)}
	c.addresses(req, bad)
	c.data(req.Data, &req.Template, bad)
	switch req.OnMissing {
	case "", missingError:
	case missingDefault:
		c.scope.blank = true
	case missingSkip:
		c.skip = true
	default:
		bad.add("/on_missing", api.CodeInvalidParameter, `%q is not "error", "default" or "skip"`, clip(req.OnMissing, 40))
	}
	set, err := c.content(&req.Template, bad)
	if err != nil {
		return nil, err
	}
	if err := c.assemble(req, set); err != nil {
		return nil, err
	}
	c.lint(&req.Template, set)
	return c, nil
}

// content compiles a template. What is wrong with it is added to bad, which is returned when it holds anything.
func (c *composition) content(t *api.CampaignTemplate, bad *Invalid) (*imageSet, error) {
	set := newImages(t, c.mark, c.host, bad)
	if err := bad.orNil(); err != nil {
		return nil, err
	}
	var err error
	if c.subject, err = compileSubject(t.Subject, &c.scope); err != nil {
		bad.template("/template/subject", err)
	}
	if t.HTML != "" {
		if c.html, err = c.compileHTML(t, set); err != nil {
			bad.template("/template/html", err)
		}
	}
	if err == nil {
		if c.text, err = c.compileText(t); err != nil {
			bad.template("/template/text", err)
		}
	}
	if err := bad.orNil(); err != nil {
		return nil, err
	}
	if c.single {
		c.checkSingle(bad)
	} else {
		c.checkUnsubscribe(t, bad)
	}
	if err := bad.orNil(); err != nil {
		return nil, err
	}
	for _, p := range []*program{c.html, c.text} {
		if p != nil {
			p.prepare()
		}
	}
	return set, nil
}

// checkSingle refuses values that only a campaign has.
func (c *composition) checkSingle(bad *Invalid) {
	for _, u := range c.uses() {
		switch {
		case !u.system:
		case u.root == "unsubscribe_url", u.root == "amazonSESUnsubscribeUrl", u.root == "campaign_name", u.root == "message_id":
			pointer := "/template/" + u.part
			bad.add(pointer, api.CodeTemplateVariable, "%s: %s is there in broadcasts only", u.place(), u.root)
		}
	}
}

// unsubscribeBase is what stands before the token in a link.
func unsubscribeBase(publicURL string) string { return strings.TrimSuffix(publicURL, "/") + "/u/" }

// addresses checks who the message is from.
func (c *composition) addresses(req *api.CreateCampaign, bad *Invalid) {
	var err error
	if req.Name == "" || len(req.Name) > maxNameLength || checkHeaderText(req.Name) != nil || !utf8.ValidString(req.Name) {
		bad.add("/name", api.CodeInvalidParameter, "a name of 1 to %d bytes without line breaks is needed", maxNameLength)
	}
	if c.from, err = parseAddress(req.From.Email); err != nil {
		bad.add("/from/email", api.CodeInvalidParameter, "%s", err)
	}
	if checkHeaderText(req.From.Name) != nil || len(req.From.Name) > maxNameLength || !utf8.ValidString(req.From.Name) {
		bad.add("/from/name", "header_line_break", "holds a line break or control character, or is longer than %d bytes", maxNameLength)
	}
	if req.ReplyTo != "" {
		if _, err := parseAddress(req.ReplyTo); err != nil {
			bad.add("/reply_to", api.CodeInvalidParameter, "%s", err)
		}
	}
	c.reverse = c.from
	if req.ReturnPath != "" {
		if c.reverse, err = parseAddress(req.ReturnPath); err != nil {
			bad.add("/return_path", api.CodeInvalidParameter, "%s", err)
		}
	}
	if s := req.Stream; s != "" && !isStream(s) {
		bad.add("/stream", api.CodeInvalidParameter, "1 to 40 lower-case letters, digits and '-'")
	}
	if len(req.Tags) > maxTags {
		bad.add("/tags", api.CodeInvalidParameter, "more than %d tags", maxTags)
	}
	for k, v := range req.Tags {
		if k == "" || len(k) > 64 || len(v) > 256 {
			bad.add("/tags", api.CodeInvalidParameter, "names of 1 to 64 bytes with values of up to 256")
			break
		}
	}
}

func isStream(s string) bool {
	return len(s) <= 40 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && s[0] != '-' && s[len(s)-1] != '-'
}

// parseAddress takes the addresses that campaigns go to and come from: with a dot in the domain, and such that every
// host takes them.
func parseAddress(s string) (mail.Path, error) {
	p, err := mail.ParsePath(strings.TrimSpace(s))
	switch {
	case err != nil:
		return p, err
	case strings.HasPrefix(p.Domain, "["):
		return p, fmt.Errorf("%w: address literal in place of a domain", mail.ErrBadPath)
	case !strings.Contains(p.Domain, "."):
		return p, fmt.Errorf("%w: domain has no dot", mail.ErrBadPath)
	case p.NeedsUTF8():
		return p, fmt.Errorf("%w: the local part needs SMTPUTF8, which many hosts do not have", mail.ErrBadPath)
	}
	return p, nil
}

// data checks the campaign's merge data.
func (c *composition) data(data map[string]any, t *api.CampaignTemplate, bad *Invalid) {
	c.scope = scope{data: data, vars: t.Variables, partials: t.Partials, single: c.single}
	checkPartials(t.Partials, bad)
	size := 0
	for _, name := range sortedKeys(data) {
		pointer := "/data/" + escapePointer(name)
		if isReserved(name) {
			bad.add(pointer, api.CodeInvalidParameter, "%q is filled in by relayd", name)
		}
		if len(name) > maxAttributeName {
			bad.add(pointer, api.CodeInvalidParameter, "name longer than %d bytes", maxAttributeName)
		}
		if s, ok := data[name].(string); ok {
			size += len(s)
			if len(s) > maxSource || !utf8.ValidString(s) {
				bad.add(pointer, api.CodeInvalidParameter, "longer than %d bytes, or not UTF-8", maxSource)
			}
			continue
		}
		if !checkNested(data[name], 0, &size) {
			bad.add(pointer, api.CodeInvalidParameter, "merge tags stand only in values of the first level; lists nest at most %d deep", maxDepth)
		}
	}
	if size > maxData {
		bad.add("/data", api.CodeInvalidParameter, "more than %d bytes", maxData)
	}
	for _, name := range sortedKeys(t.Variables) {
		v, pointer := t.Variables[name], "/template/variables/"+escapePointer(name)
		switch {
		case v.Type != "" && v.Type != "html" && v.Type != "text":
			bad.add(pointer+"/type", api.CodeInvalidParameter, `%q is not "html" or "text"`, clip(v.Type, 40))
		case v.Type == "html" && v.Scope == "contact":
			bad.add(pointer+"/type", api.CodeInvalidParameter, "what a contact has is always text")
		case v.Scope != "" && v.Scope != "campaign" && v.Scope != "contact" && v.Scope != "message":
			bad.add(pointer+"/scope", api.CodeInvalidParameter, `%q is not "campaign", "contact" or "message"`, clip(v.Scope, 40))
		case isReserved(name):
			bad.add(pointer, api.CodeInvalidParameter, "%q is filled in by relayd", name)
		}
		if _, given := data[name]; v.Required && v.Scope == "campaign" && !given && v.Default == nil {
			bad.add("/data/"+escapePointer(name), "required", "the template declares %q as required", name)
		}
	}
}

// checkPartials checks names and sizes; what is in partials is checked where they stand.
func checkPartials(partials map[string]api.Partial, bad *Invalid) {
	if len(partials) > maxPartials {
		bad.add("/template/partials", api.CodeInvalidParameter, "more than %d partials", maxPartials)
	}
	for _, name := range sortedKeys(partials) {
		pointer, p := "/template/partials/"+escapePointer(name), partials[name]
		if !isPartialName(name) {
			bad.add(pointer, api.CodeInvalidParameter, "a partial's name has 1 to %d letters, digits, '-', '_', '.' and '/'", maxAttributeName)
		}
		if len(p.HTML) > maxSource || len(p.Text) > maxSource || !utf8.ValidString(p.HTML) || !utf8.ValidString(p.Text) {
			bad.add(pointer, api.CodeInvalidParameter, "longer than %d bytes, or not UTF-8", maxSource)
		}
	}
}

func checkNested(x any, depth int, size *int) bool {
	if *size++; depth > maxDepth {
		return false
	}
	switch x := x.(type) {
	case string:
		*size += len(x)
		return !strings.Contains(x, "{{")
	case []any:
		for _, y := range x {
			if !checkNested(y, depth+1, size) {
				return false
			}
		}
	case map[string]any:
		for k, y := range x {
			*size += len(k)
			if !checkNested(y, depth+1, size) {
				return false
			}
		}
	}
	return true
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// escapePointer writes a name as a token of a JSON Pointer, RFC 6901 section 3.
func escapePointer(s string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(clip(s, 100))
}

func (e *Invalid) template(pointer string, err error) {
	if t, ok := errors.AsType[*TemplateError](err); ok {
		switch {
		case t.Part == partPreheader:
			pointer = "/template/preheader"
		case strings.HasPrefix(t.Part, partPartial):
			pointer = "/template/partials/" + escapePointer(strings.TrimPrefix(t.Part, partPartial))
		case strings.HasPrefix(t.Part, partData):
			pointer = "/data/" + escapePointer(strings.TrimPrefix(t.Part, partData))
		}
		e.add(pointer, t.Code, "%s", t)
		return
	}
	e.add(pointer, api.CodeTemplateSyntax, "%s", err)
}

func compileSubject(src string, sc *scope) (*program, error) {
	if strings.TrimSpace(src) == "" {
		return nil, errorAt(partSubject, src, 0, "a subject is needed")
	}
	return compilePart(partSubject, strings.TrimSpace(src), modeSubject, sc)
}

// uses lists where variables are read, in all parts.
func (c *composition) uses() []use {
	list := slices.Clone(c.subject.uses)
	for _, p := range []*program{c.html, c.text} {
		if p != nil {
			list = append(list, p.uses...)
		}
	}
	return list
}

// variablesUsed lists their names, sorted.
func (c *composition) variablesUsed() []string {
	names := map[string]bool{}
	for _, u := range c.uses() {
		if u.root != "" {
			names[u.name] = true
		}
	}
	return sortedKeys(names)
}
