package bounce

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"strings"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/htmlindex"

	"relayd/internal/mail"
)

// part is a message or a part of one.
type part struct {
	fields []field
	kind   string // media type, lower case
	params map[string]string
	body   []byte // as it came
	origin Origin // of the message itself
}

type field struct{ name, value string } // name in lower case, value unfolded

// get returns the first value of a field.
func (p *part) get(name string) string {
	for _, f := range p.fields {
		if f.name == name {
			return f.value
		}
	}
	return ""
}

// text returns the body decoded, within bounds.
func (p *part) text() []byte {
	body := p.body[:min(len(p.body), maxText)]
	switch strings.ToLower(p.get("content-transfer-encoding")) {
	case "quoted-printable":
		out, _ := io.ReadAll(quotedprintable.NewReader(bytes.NewReader(body))) // as far as it can be read
		return out
	case "base64":
		clean := bytes.Map(func(r rune) rune {
			if r <= ' ' {
				return -1
			}
			return r
		}, body)
		out := make([]byte, base64.StdEncoding.DecodedLen(len(clean)))
		n, _ := base64.StdEncoding.Decode(out, clean)
		return out[:n]
	}
	return body
}

// words returns the text of a part in UTF-8, as far as its charset is known, with lines that end with LF.
func (p *part) words() []byte {
	b := p.text()
	if enc := charset(p.params["charset"]); enc != nil {
		if out, err := enc.NewDecoder().Bytes(b); err == nil {
			b = out
		}
	}
	return normal(b)
}

// freeText returns the words that a message says in its first part of plain text, or in HTML where it has no other:
// the first maxFreeText octets of them.
func (p *part) freeText() []byte {
	var text []byte
	var html *part
	p.walk(func(p *part) {
		switch {
		case strings.HasPrefix(p.kind, "text/plain") && len(bytes.TrimSpace(text)) == 0:
			text = p.words()
		case p.kind == "text/html" && html == nil:
			html = p
		}
	})
	if len(bytes.TrimSpace(text)) == 0 && html != nil {
		text = patterns().tag.ReplaceAll(html.words(), []byte(" "))
	}
	return text[:min(len(text), maxFreeText)]
}

// subject and from return the fields decoded (RFC 2047), as far as their charset is known.
func (p *part) subject() string { return strings.TrimSpace(decodeWords(p.get("subject"))) }
func (p *part) from() string    { return decodeWords(p.get("from")) }

// fromSystem tells whether the author calls itself a mail system.
func (p *part) fromSystem() bool { return patterns().bounceSender.MatchString(p.from()) }

func decodeWords(s string) string {
	d := mime.WordDecoder{CharsetReader: func(name string, in io.Reader) (io.Reader, error) {
		enc := charset(name)
		if enc == nil {
			return nil, fmt.Errorf("unknown charset %q", name)
		}
		return enc.NewDecoder().Reader(in), nil
	}}
	if t, err := d.DecodeHeader(s); err == nil {
		return t
	}
	return s
}

// charset finds an encoding by its name; nil where it cannot be read.
func charset(name string) encoding.Encoding {
	enc, err := htmlindex.Get(name)
	if err != nil || enc == encoding.Replacement {
		return nil
	}
	return enc
}

// normal ends every line with LF alone, whether it ended with CRLF, LF or CR. It does so in the place of b.
func normal(b []byte) []byte {
	lines := b[:0]
	for len(b) > 0 {
		line, rest, cut := bytes.Cut(b, []byte("\r"))
		if lines = append(lines, line...); cut {
			lines = append(lines, '\n')
			rest = bytes.TrimPrefix(rest, []byte("\n"))
		}
		b = rest
	}
	return lines
}

// parsePart reads a header and leaves the rest as the body. Lines that are no fields end the header where they stand.
func parsePart(b []byte) *part {
	p := &part{}
	var value []byte // of the last field, until all its lines are read
	end := func() {
		if n := len(p.fields); n > 0 {
			p.fields[n-1].value = string(value)
		}
	}
	for len(b) > 0 && len(p.fields) < 1000 {
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		if len(bytes.TrimSpace(line)) == 0 {
			b = rest
			break
		}
		if (line[0] == ' ' || line[0] == '\t') && len(p.fields) > 0 {
			if len(value)+len(line) <= maxLine {
				if len(value) > 0 {
					value = append(value, ' ')
				}
				value = append(value, bytes.TrimSpace(line)...)
			}
			b = rest
			continue
		}
		name, first, ok := bytes.Cut(line, []byte(":"))
		name = bytes.TrimRight(name, " \t")
		if !ok || len(name) == 0 || bytes.ContainsAny(name, " \t") {
			if bytes.HasPrefix(line, []byte("From ")) && len(p.fields) == 0 { // of an mbox
				b = rest
				continue
			}
			break
		}
		end()
		first = bytes.TrimSpace(first)
		value = append(value[:0], first[:min(len(first), maxLine)]...)
		p.fields = append(p.fields, field{name: strings.ToLower(string(name))})
		b = rest
	}
	end()
	p.body = b
	kind, params, err := mime.ParseMediaType(p.get("content-type"))
	if err != nil {
		kind, _, _ = strings.Cut(p.get("content-type"), ";")
		kind = strings.ToLower(strings.TrimSpace(kind))
	}
	if kind == "" {
		kind = "text/plain"
	}
	p.kind, p.params = kind, params
	return p
}

// walk calls fn for the message and each of its parts, in their order, attached messages included.
func (p *part) walk(fn func(*part)) {
	left := maxParts
	p.walkTo(fn, &left, maxDepth)
}

func (p *part) walkTo(fn func(*part), left *int, depth int) {
	if *left--; *left < 0 || depth == 0 {
		return
	}
	fn(p)
	boundary := p.params["boundary"]
	if !strings.HasPrefix(p.kind, "multipart/") || boundary == "" {
		return
	}
	for _, b := range splitParts(p.body, boundary, *left) {
		parsePart(b).walkTo(fn, left, depth-1)
	}
}

// splitParts cuts a body at its boundary lines. A missing last one is no harm.
func splitParts(body []byte, boundary string, most int) [][]byte {
	var parts [][]byte
	mark := []byte("--" + boundary)
	start := -1
	for at := 0; at < len(body) && len(parts) <= most; {
		end := bytes.IndexByte(body[at:], '\n')
		next := len(body)
		if end >= 0 {
			next = at + end + 1
		}
		line := bytes.TrimRight(body[at:next], " \t\n")
		if rest, ok := bytes.CutPrefix(line, mark); ok && (len(rest) == 0 || string(rest) == "--") {
			if start >= 0 {
				parts = append(parts, body[start:at])
			}
			if start = next; len(rest) > 0 {
				return parts
			}
		}
		at = next
	}
	if start >= 0 && start < len(body) {
		parts = append(parts, body[start:])
	}
	return parts
}

// groups reads the blocks of fields of a delivery status or a feedback report.
func groups(b []byte) []*part {
	var out []*part
	for len(b) > 0 && len(out) <= maxRecipients {
		b = bytes.TrimLeft(b, " \t\n")
		before := len(b)
		p := parsePart(b)
		if len(p.fields) == 0 { // a line that is no field
			_, b, _ = bytes.Cut(b, []byte("\n"))
			continue
		}
		out = append(out, p)
		if b = p.body; len(b) >= before {
			break
		}
	}
	return out
}

// address takes an address out of "rfc822; <a@b>" or the like, "" where there is none.
func address(value string) string {
	if kind, rest, ok := strings.Cut(value, ";"); ok && !strings.Contains(kind, "@") {
		value = rest
	}
	value = strings.TrimSpace(value)
	if i := strings.LastIndexByte(value, '<'); i >= 0 {
		value, _, _ = strings.Cut(value[i+1:], ">")
	}
	value = strings.Trim(value, " \t<>()\"';,:")
	p, err := mail.ParsePath(value)
	if err != nil || p.IsNull() {
		return ""
	}
	return p.String()
}
