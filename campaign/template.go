package campaign

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"relayd/internal/api"
	"relayd/internal/mail"
)

// Limits of templates.
const (
	maxSource     = 1 << 20  // bytes of one part
	maxOutput     = 10 << 20 // bytes of one rendered part
	maxDepth      = 32       // blocks inside one another
	maxIterations = 100_000  // of all loops of one rendering
	maxTag        = 4096     // bytes between braces
	maxPartials   = 50       // partials that a template may name
	maxIncludes   = 1000     // times that partials stand in one part
	maxOps        = 50_000
)

// The parts of a template that are compiled, as errors name them.
const (
	partSubject   = "subject"
	partPreheader = "preheader"
	partHTML      = "html"
	partText      = "text"
	partData      = "data."
	partPartial   = "partials."
)

// mode says how a part treats what is merged into it.
type mode uint8

const (
	modeText    mode = iota // nothing is escaped
	modeSubject             // nothing is escaped, line breaks and controls are refused
	modeHTML                // escaped by context
)

// TemplateError is a defect of a template: where it stands, and what is wrong there.
type TemplateError struct {
	Code    string // "template_syntax", "template_variable_missing"…
	Part    string // "subject", "html", "data.Body"…
	Line    int    // from 1
	Column  int    // in characters, from 1
	Excerpt string // what stands there, cleaned, at most 60 bytes
	Detail  string
	Nearest string // the known name that resembles an unknown one most, "" for none
}

func (e *TemplateError) Error() string {
	s := fmt.Sprintf("%s:%d:%d: %s", e.Part, e.Line, e.Column, e.Detail)
	if e.Nearest != "" {
		s += fmt.Sprintf(" (did you mean %q?)", e.Nearest)
	}
	if e.Excerpt != "" {
		s += fmt.Sprintf(", near %q", e.Excerpt)
	}
	return s
}

func errorAt(part, src string, offset int, format string, args ...any) *TemplateError {
	line, column := position(src, offset)
	return &TemplateError{
		Code: api.CodeTemplateSyntax, Part: part, Line: line, Column: column,
		Excerpt: excerpt(src, offset), Detail: fmt.Sprintf(format, args...),
	}
}

// position returns line and column of a byte offset.
func position(src string, offset int) (line, column int) {
	before := src[:min(offset, len(src))]
	line = 1 + strings.Count(before, "\n")
	return line, 1 + utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:])
}

// cursor finds line and column of offsets that mostly grow, without beginning anew for each.
type cursor struct{ at, line, column int }

func (k *cursor) position(src string, offset int) (line, column int) {
	offset = min(offset, len(src))
	if offset < k.at || k.line == 0 {
		*k = cursor{line: 1, column: 1}
	}
	passed := src[k.at:offset]
	if n := strings.Count(passed, "\n"); n > 0 {
		k.line, k.column = k.line+n, 1
		passed = passed[strings.LastIndexByte(passed, '\n')+1:]
	}
	k.column += utf8.RuneCountInString(passed)
	k.at = offset
	return k.line, k.column
}

func excerpt(src string, offset int) string {
	s := src[min(offset, len(src)):]
	if end := strings.Index(s, "}}"); end >= 0 && end < 58 {
		return mail.CleanText(s[:end+2], 60)
	}
	if end := strings.IndexByte(s, '\n'); end >= 0 {
		s = s[:end]
	}
	return mail.CleanText(s, 60)
}

// use is one place where a template reads a variable of the root.
type use struct {
	name         string // as written: "Name", "shop.city"
	root         string // its first segment
	part         string
	line, column int
	required     bool // rendering fails where it is missing
	system       bool // one of ours: unsubscribe_url…
	constant     bool // the campaign's data has it
}

func (u use) place() string { return fmt.Sprintf("%s:%d:%d", u.part, u.line, u.column) }

// scope is what a template may read beside the contact: the campaign's data, trusted and constant.
type scope struct {
	data     map[string]any
	vars     map[string]api.Variable
	partials map[string]api.Partial
	single   bool // of one message: what it carries as html is its sender's
	blank    bool // what is missing is the empty text
}

// program is one compiled part: flat operations over static text that is encoded once.
type program struct {
	part string
	mode mode
	ops  []op
	uses []use
	size int      // of all static text
	enc  encoding // of static chunks

	slots int // of values that stand in it often: see number
}

type opcode uint8

const (
	opText   opcode = iota // emit chunk
	opOut                  // emit e, escaped
	opIf                   // go to .to unless e is true
	opUnless               // go to .to if e is true
	opJump                 // go to .to
	opHas                  // go to .to unless the contact has a value for .text
	opEach                 // set .frame to the first item of e, or go to .to
	opNext                 // set .frame to the next item and go to .to, or go on
	opWith                 // set .frame to e, or go to .to
)

type op struct {
	code   opcode
	esc    escape
	frame  int
	to     int
	text   string // static text, or the name for opHas
	chunk  *chunk // text, encoded
	breaks int    // line ends in text
	e      *expr
	slot   int // from 1, of opOut for a value that other operations show too; 0: none
}

// reservedNames are those that relayd fills in itself.
func reservedNames() []string {
	return []string{"unsubscribe_url", "amazonSESUnsubscribeUrl", "campaign_name", "message_id", "sender_address", "email", "contact"}
}

func isReserved(name string) bool {
	switch name {
	case "unsubscribe_url", "amazonSESUnsubscribeUrl", "campaign_name", "message_id", "sender_address", "email", "contact":
		return true
	}
	return false
}

// nearest returns the known name that resembles name most, "" where none is near.
func nearest(name string, known []string) string {
	best, most := "", 1+len(name)/4
	for _, k := range known {
		if d := distance(strings.ToLower(name), strings.ToLower(k)); k != name && d <= most && (best == "" || d < most) {
			best, most = k, d
		}
	}
	return best
}

// distance is the edit distance of Levenshtein, of short names.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
