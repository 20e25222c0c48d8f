package checklist

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"strings"
	"unicode/utf8"

	"relayd/internal/mail"
)

// body is the tree of a message's parts, as far as it can be read.
type body struct {
	parts   []*part // all of them, a multipart before those in it
	problem string  // why the tree ends where it does
}

// part is one entity (RFC 2045 section 2.4).
type part struct {
	name     string // "text", "html", or its media type
	kind     string // media type in lower case
	params   map[string]string
	encoding string
	parent   *part
	text     string // of texts, decoded, with LF line ends
	broken   string // why it could not be decoded
}

// Limits of trees that are read.
const (
	maxParts = 200
	maxDepth = 10
)

func parseBody(h mail.Header, b []byte) *body {
	t := &body{}
	t.read(h, b, nil, 0)
	return t
}

func (t *body) read(h mail.Header, b []byte, parent *part, depth int) {
	p := &part{parent: parent, kind: "text/plain", encoding: strings.ToLower(strings.TrimSpace(h.Get("Content-Transfer-Encoding")))}
	t.parts = append(t.parts, p)
	if value := h.Get("Content-Type"); value != "" {
		kind, params, err := mime.ParseMediaType(value)
		if err != nil {
			t.problem = "a Content-Type cannot be read"
		}
		p.kind, p.params = kind, params
	}
	switch p.name = p.kind; p.kind {
	case "text/plain":
		p.name = "text"
	case "text/html":
		p.name = "html"
	}
	if !strings.HasPrefix(p.kind, "multipart/") {
		if strings.HasPrefix(p.kind, "text/") {
			p.decode(b)
		}
		return
	}
	if len(t.parts) >= maxParts || depth >= maxDepth {
		t.problem = fmt.Sprintf("more than %d parts, or %d inside one another", maxParts, maxDepth)
		return
	}
	pieces, ok := split(b, p.params["boundary"])
	if !ok {
		t.problem = p.kind + " does not end with its boundary"
	}
	for _, piece := range pieces {
		head, rest, found := bytes.Cut(piece, []byte("\r\n\r\n"))
		if bytes.HasPrefix(piece, []byte("\r\n")) {
			head, rest, found = nil, piece[2:], true
		}
		sub, err := mail.ParseHeader(append(append([]byte(nil), head...), "\r\n"...))
		if len(head) == 0 {
			sub, err = nil, nil
		}
		if !found || err != nil {
			t.problem = "the header of a part cannot be read"
			continue
		}
		if t.read(sub, rest, p, depth+1); len(t.parts) >= maxParts {
			return
		}
	}
}

// split cuts the body of a multipart (RFC 2046 section 5.1.1); ok tells that it has a beginning and an end.
func split(b []byte, boundary string) (pieces [][]byte, ok bool) {
	if boundary == "" || len(boundary) > 70 {
		return nil, false
	}
	mark := []byte("--" + boundary)
	start := -1
	for at := 0; at < len(b); {
		end := bytes.Index(b[at:], []byte("\r\n"))
		next := len(b)
		if end >= 0 {
			next = at + end + 2
		}
		line := bytes.TrimRight(b[at:next], " \t\r\n")
		if bytes.HasPrefix(line, mark) && (len(line) == len(mark) || string(line[len(mark):]) == "--") {
			if start >= 0 {
				pieces = append(pieces, b[start:max(start, at-2)])
			}
			if start = next; len(line) > len(mark) {
				return pieces, true
			}
		}
		at = next
	}
	return pieces, false
}

func (p *part) decode(b []byte) {
	var r io.Reader = bytes.NewReader(b)
	switch p.encoding {
	case "quoted-printable":
		r = quotedprintable.NewReader(r)
	case "base64":
		r = base64.NewDecoder(base64.StdEncoding, r)
	case "", "7bit", "8bit", "binary":
	default:
		p.broken = "its transfer encoding is not known"
	}
	text, err := io.ReadAll(r)
	if err != nil {
		p.broken = "its " + p.encoding + " cannot be decoded"
	}
	if !utf8.Valid(text) {
		p.broken = "it is not UTF-8"
	}
	p.text = strings.ReplaceAll(string(text), "\r\n", "\n")
}

// leaf returns the first part of a name, nil for none.
func (t *body) leaf(name string) *part {
	for _, p := range t.parts {
		if p.name == name {
			return p
		}
	}
	return nil
}

// lines is F05 (RFC 5321 section 4.5.3.1.6, RFC 5322 section 2.1.1).
func (c *check) lines() {
	inHeader, long, broken, high := true, false, false, false
	number := 0
	for rest := c.msg; len(rest) > 0; {
		number++
		end := bytes.IndexByte(rest, '\n')
		line := rest
		if end >= 0 {
			line = rest[:end+1]
		}
		rest = rest[len(line):]
		text := bytes.TrimSuffix(line, []byte("\r\n"))
		if (len(text) == len(line) || bytes.IndexByte(text, '\r') >= 0) && !broken && len(line) > 0 && (end >= 0 || bytes.IndexByte(text, '\r') >= 0) {
			broken = true
			c.addLine(number, "a CR or LF stands alone", "end lines with CRLF")
		}
		if len(text) > 998 && !long {
			long = true
			c.addLine(number, fmt.Sprintf("a line of %d bytes, more than 998", len(text)), "encode bodies, fold header fields")
		}
		if inHeader && !high && bytes.ContainsFunc(text, func(r rune) bool { return r >= 0x80 }) {
			high = true
			c.addLine(number, "the header holds characters outside of ASCII", "encode them after RFC 2047")
		}
		if inHeader && len(text) > 78 && bytes.ContainsAny(bytes.TrimLeft(text, " \t"), " \t") && bytes.LastIndexByte(text[:78], 0x20) > bytes.IndexByte(text, ':')+1 {
			c.findings = append(c.findings, Finding{"F05", Info, "header", number, 1, fmt.Sprintf("a line of %d bytes, more than 78", len(text)), "fold it at white space"})
		}
		inHeader = inHeader && len(text) > 0
	}
}

func (c *check) addLine(number int, detail, advice string) {
	c.findings = append(c.findings, Finding{"F05", Error, "message", number, 1, detail, advice})
}

// structure is F06.
func (c *check) structure() {
	if c.body.problem != "" {
		c.add("F06", Error, "message", c.body.problem, "build the message with a MIME library")
	}
	for _, p := range c.body.parts {
		switch {
		case p.broken != "":
			c.add("F06", Error, p.name, p.broken, "encode it as UTF-8 in quoted-printable or base64")
		case strings.HasPrefix(p.kind, "text/") && strings.ContainsFunc(p.text, func(r rune) bool { return r >= 0x80 }):
			if charset := strings.ToLower(p.params["charset"]); charset != "utf-8" {
				c.add("F06", Error, p.name, "characters outside of ASCII in the charset "+clean(charset), "say charset=utf-8")
			}
			if p.encoding != "quoted-printable" && p.encoding != "base64" {
				c.add("F06", Warning, p.name, "characters outside of ASCII without a transfer encoding", "use quoted-printable or base64")
			}
		}
	}
	html := c.body.leaf("html")
	if html == nil {
		return
	}
	at := html.parent
	if at != nil && at.kind == "multipart/related" {
		at = at.parent
	}
	if at == nil || at.kind != "multipart/alternative" {
		c.add("F06", Error, "html", "HTML without a text beside it", "send multipart/alternative with text/plain first")
		return
	}
	for _, p := range c.body.parts {
		if p.parent == at {
			if p.kind != "text/plain" {
				c.add("F06", Error, "message", "multipart/alternative begins with "+clean(p.kind), "put text/plain first: the last part is the preferred one")
			}
			break
		}
	}
	for _, p := range c.body.parts {
		if strings.HasPrefix(p.kind, "image/") && strings.Contains(html.text, "cid:") && (p.parent == nil || p.parent.kind != "multipart/related") {
			c.add("F06", Warning, p.name, "an image beside multipart/related", "put images that the HTML shows into multipart/related with it")
		}
	}
}

// size is F17.
func (c *check) size() {
	if len(c.msg) > 25<<20 {
		c.add("F17", Warning, "message", fmt.Sprintf("%d bytes, more than 25 MB", len(c.msg)), "link to large files in place of sending them")
	}
}

// amp is F18.
func (c *check) amp() {
	if p := c.body.leaf("text/x-amp-html"); p != nil {
		c.add("F18", Warning, p.name, "an AMP part", "only senders who are registered for it may send one")
	}
}
