package checklist

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"relayd/internal/mail"
)

// Levels of findings.
const (
	Error   = "error"   // large providers refuse such mail, or a standard forbids it
	Warning = "warning" // it costs readers or reputation
	Info    = "info"
)

// Finding is one rule that a message does not keep.
type Finding struct {
	ID      string // "F01" to "F20"
	Level   string
	Pointer string // what it is about: "header/Subject", "html", "text", "message"
	Line    int    // in that part as decoded, from 1; 0 where no line is to blame
	Column  int    // in characters, from 1
	Detail  string // what is wrong
	Advice  string // what to do
}

// String is one line: id, level, place, detail and advice.
func (f Finding) String() string {
	place := f.Pointer
	if f.Line > 0 {
		place += fmt.Sprintf(":%d:%d", f.Line, f.Column)
	}
	return f.ID + " " + f.Level + " " + place + ": " + f.Detail + " (" + f.Advice + ")"
}

// Options say what a message is meant to be.
type Options struct {
	Broadcast     bool      // many recipients: unsubscribe links are required
	Now           time.Time // when it is sent; zero: its Date is not compared
	Host          string    // of our Message-IDs, "" for any
	Domains       []string  // besides that of From, where links may lead; empty: links are not compared
	PostalAddress string    // that a broadcast must show, "" where none is configured
}

// maxFindings bounds what one message is told.
const maxFindings = 100

// check is one look at one message.
type check struct {
	opts     Options
	msg      []byte
	header   mail.Header
	from     string // domain of the author, "" where there is none
	body     *body
	findings []Finding
}

// Check returns what is wrong with a message, with its header and its body, in the order of the rules. It reads hostile
// input: every defect becomes a finding.
func Check(msg []byte, opts Options) []Finding {
	c := &check{opts: opts, msg: msg}
	head, rest, found := bytes.Cut(msg, []byte("\r\n\r\n"))
	if !found {
		c.add("F05", Error, "message", "the header does not end: there is no empty line", "put CRLF CRLF between header and body")
		return c.findings
	}
	var err error
	if c.header, err = mail.ParseHeader(append(append([]byte(nil), head...), "\r\n"...)); err != nil {
		c.add("F05", Error, "header", "the header cannot be read: "+clean(err.Error()), "write one field per line, \"Name: value\"")
		return c.findings
	}
	c.body = parseBody(c.header, rest)
	for _, rule := range []func(){
		c.author, c.single, c.messageID, c.date, c.lines, c.structure, c.injection, c.oneClick, c.visibleLink, c.listFields, c.feedback,
		c.subject, c.content, c.mixed, c.headerSize, c.htmlSize, c.size, c.amp, c.lookAlikes, c.postalAddress,
	} {
		if rule(); len(c.findings) >= maxFindings {
			break
		}
	}
	return c.findings
}

func (c *check) add(id, level, pointer, detail, advice string) {
	c.findings = append(c.findings, Finding{ID: id, Level: level, Pointer: pointer, Detail: detail, Advice: advice})
}

// addAt is add with a place in a part.
func (c *check) addAt(id, level string, p *part, offset int, detail, advice string) {
	before := p.text[:min(offset, len(p.text))]
	line := 1 + strings.Count(before, "\n")
	column := 1 + len([]rune(before[strings.LastIndexByte(before, '\n')+1:]))
	c.findings = append(c.findings, Finding{id, level, p.name, line, column, detail, advice})
}

func clean(s string) string { return mail.CleanText(s, 120) }
