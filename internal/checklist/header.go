package checklist

import (
	"fmt"
	"mime"
	netmail "net/mail"
	"strings"
	"time"
	"unicode"

	"relayd/internal/mail"
)

// singles are the fields of which a message has one at most (RFC 5322 section 3.6, RFC 2045, RFC 2369, RFC 8058).
var singles = []string{
	"From", "To", "Cc", "Bcc", "Subject", "Date", "Message-ID", "Reply-To", "Sender", "In-Reply-To", "References", "MIME-Version",
	"Content-Type", "Content-Transfer-Encoding", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Id", "Precedence",
	"Feedback-ID", "Auto-Submitted",
}

// author is F01: one From with one address at a domain that can be.
func (c *check) author() {
	if n := c.header.Count("From"); n != 1 {
		c.add("F01", Error, "header/From", fmt.Sprintf("%d From fields", n), "write exactly one From with one address")
		return
	}
	list, err := netmail.ParseAddressList(c.header.Get("From"))
	if err != nil || len(list) != 1 {
		c.add("F01", Error, "header/From", "From does not hold exactly one address", `write From as "Name" <address@domain>`)
		return
	}
	p, err := mail.ParsePath(list[0].Address)
	if err != nil || !strings.Contains(p.Domain, ".") || strings.HasPrefix(p.Domain, "[") {
		c.add("F01", Error, "header/From", "the address is not at a domain of the Internet", "use an address at a domain that has DNS records")
		return
	}
	c.from = strings.ToLower(p.Domain)
}

// single is F02.
func (c *check) single() {
	for _, name := range singles {
		if n := c.header.Count(name); n > 1 {
			c.add("F02", Error, "header/"+name, fmt.Sprintf("stands %d times", n), "keep one")
		}
	}
	for _, name := range []string{"From", "Date"} {
		if c.header.Count(name) == 0 && name != "From" {
			c.add("F02", Error, "header/"+name, "is missing", "relayd adds it to what it sends itself")
		}
	}
}

// messageID is F03. That no other message has it, and that a retry keeps it, no single message can show.
func (c *check) messageID() {
	id := strings.TrimSpace(c.header.Get("Message-ID"))
	left, right, at := strings.Cut(strings.Trim(id, "<>"), "@")
	bad := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("<>,;:\\\"()[]@", r) }
	switch {
	case id == "":
		c.add("F03", Error, "header/Message-ID", "is missing", "relayd adds it to what it sends itself")
	case !strings.HasPrefix(id, "<") || !strings.HasSuffix(id, ">") || !at || left == "" || right == "" || strings.ContainsFunc(left, bad) || strings.ContainsFunc(right, bad):
		c.add("F03", Error, "header/Message-ID", "is not of the form <id@domain>", "write it after RFC 5322 section 3.6.4")
	case c.opts.Host != "" && !strings.EqualFold(right, c.opts.Host):
		c.add("F03", Warning, "header/Message-ID", "is not at "+clean(c.opts.Host), "use the host that makes the message")
	}
}

// date is F04.
func (c *check) date() {
	text := c.header.Get("Date")
	if text == "" {
		return // F02 says so
	}
	t, err := netmail.ParseDate(text)
	if err != nil {
		c.add("F04", Error, "header/Date", "cannot be read", "write it after RFC 5322 section 3.3")
		return
	}
	if off := c.opts.Now.Sub(t); !c.opts.Now.IsZero() && (off > 5*time.Minute || off < -5*time.Minute) {
		c.add("F04", Warning, "header/Date", "is "+off.Abs().Round(time.Second).String()+" away from now", "set the clock right; a message that was queued may be older")
	}
}

// injection is F07, for what a reader sees of the header once it is decoded.
func (c *check) injection() {
	for _, f := range c.header {
		value := f.Value()
		if strings.ContainsAny(value, "\x00\r\n") {
			c.add("F07", Error, "header/"+clean(f.Name), "holds NUL or a line break", "refuse such values before they reach a header")
			continue
		}
		decoded := decodeWords(value)
		if i := strings.IndexFunc(decoded, isControl); i >= 0 {
			c.add("F07", Error, "header/"+clean(f.Name), "holds a control character, or one that reorders text, once it is decoded", "take it out")
		}
	}
}

func decodeWords(s string) string {
	decoded, err := (&mime.WordDecoder{}).DecodeHeader(s)
	if err != nil {
		return s
	}
	return decoded
}

func isControl(r rune) bool {
	return r < ' ' && r != '\t' || r == 0x7f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x2028 || r == 0x2029
}

// oneClick is F08 (RFC 8058 sections 3.1 and 4).
func (c *check) oneClick() {
	if !c.opts.Broadcast {
		return
	}
	value := c.header.Get("List-Unsubscribe")
	https := 0
	for _, uri := range uris(value) {
		if strings.HasPrefix(uri, "https://") {
			https++
		}
	}
	switch {
	case value == "":
		c.add("F08", Error, "header/List-Unsubscribe", "is missing", "broadcasts need one-click unsubscribing: send them as a campaign")
	case https != 1:
		c.add("F08", Error, "header/List-Unsubscribe", fmt.Sprintf("holds %d https URIs in place of one", https), "give one https URI, and a mailto if you like")
	}
	if post := strings.TrimSpace(c.header.Get("List-Unsubscribe-Post")); post != "List-Unsubscribe=One-Click" {
		c.add("F08", Error, "header/List-Unsubscribe-Post", "is not List-Unsubscribe=One-Click", "write the pair as RFC 8058 has it")
	}
	for _, f := range c.header {
		if !f.Is("DKIM-Signature") {
			continue
		}
		signed := ":" + tag(f.Value(), "h") + ":"
		if !strings.Contains(signed, ":list-unsubscribe:") || !strings.Contains(signed, ":list-unsubscribe-post:") {
			c.add("F08", Error, "header/DKIM-Signature", "does not cover List-Unsubscribe and List-Unsubscribe-Post", "sign after both are there")
		}
	}
}

// tag returns a tag of a DKIM signature, in lower case and without blanks.
func tag(value, name string) string {
	for item := range strings.SplitSeq(value, ";") {
		k, v, _ := strings.Cut(item, "=")
		if strings.TrimSpace(k) == name {
			return strings.ToLower(strings.Join(strings.Fields(v), ""))
		}
	}
	return ""
}

// uris are those of a field of RFC 2369.
func uris(value string) []string {
	var list []string
	for item := range strings.SplitSeq(value, ",") {
		item = strings.TrimSpace(item)
		if strings.HasPrefix(item, "<") && strings.HasSuffix(item, ">") {
			list = append(list, item[1:len(item)-1])
		}
	}
	return list
}

// listFields is F10.
func (c *check) listFields() {
	if !c.opts.Broadcast {
		return
	}
	id := c.header.Get("List-Id")
	open, end := strings.LastIndexByte(id, '<'), strings.LastIndexByte(id, '>')
	if open < 0 || end < open || !strings.Contains(id[open:end], ".") {
		c.add("F10", Warning, "header/List-Id", "is missing or not of the form <list.domain>", "give each list an id that stays (RFC 2919)")
	}
	if !strings.EqualFold(strings.TrimSpace(c.header.Get("Precedence")), "bulk") {
		c.add("F10", Warning, "header/Precedence", "is not bulk", "else vacation programs answer")
	}
}

// feedback is F11, the fields of Gmail's feedback loop.
func (c *check) feedback() {
	value := strings.TrimSpace(c.header.Get("Feedback-ID"))
	if value == "" {
		if c.opts.Broadcast {
			c.add("F11", Warning, "header/Feedback-ID", "is missing", "Gmail reports complaints by it: campaign:customer:type:sender")
		}
		return
	}
	ids := strings.Split(value, ":")
	sender := ids[len(ids)-1]
	if len(ids) > 4 || len(sender) < 5 || len(sender) > 15 {
		c.add("F11", Warning, "header/Feedback-ID", "is not up to three identifiers and a sender of 5 to 15 characters", "write campaign:customer:type:sender")
	}
	seen := map[string]bool{}
	for _, id := range ids {
		if id != "" && seen[id] {
			c.add("F11", Warning, "header/Feedback-ID", "names "+clean(id)+" twice", "use an identifier in one place only")
		}
		seen[id] = true
	}
}

// subject is F12.
func (c *check) subject() {
	subject := strings.ToLower(strings.TrimSpace(decodeWords(c.header.Get("Subject"))))
	if subject == "" {
		c.add("F12", Warning, "header/Subject", "is empty", "say what the message is about")
	}
	for _, prefix := range []string{"re:", "fwd:", "fw:", "aw:", "wg:"} {
		if strings.HasPrefix(subject, prefix) && c.header.Get("In-Reply-To") == "" && c.header.Get("References") == "" {
			c.add("F12", Warning, "header/Subject", "begins like an answer that it is not", "take "+prefix+" away")
			break
		}
	}
	list, err := netmail.ParseAddressList(c.header.Get("From"))
	if err != nil || len(list) != 1 {
		return
	}
	name := list[0].Name
	if strings.ContainsFunc(name, isPicture) {
		c.add("F12", Warning, "header/From", "the name of the sender holds a pictograph", "name the sender in letters")
	}
	if open := strings.LastIndexByte(name, '('); open >= 0 && strings.Trim(name[open:], "()0123456789") == "" && len(name)-open > 2 {
		c.add("F12", Warning, "header/From", "the name of the sender looks like a count of messages", "take "+clean(name[open:])+" away")
	}
	if to, err := netmail.ParseAddressList(c.header.Get("To")); err == nil && len(to) == 1 && name != "" && strings.EqualFold(name, to[0].Name) && to[0].Address != list[0].Address {
		c.add("F12", Warning, "header/From", "the name of the sender is that of the recipient", "name the sender")
	}
}

func isPicture(r rune) bool {
	return r >= 0x1f000 && r <= 0x1faff || r >= 0x2600 && r <= 0x27bf || r == 0xfe0f || unicode.Is(unicode.Co, r)
}

// mixed is F14, as far as one message shows it.
func (c *check) mixed() {
	if !c.opts.Broadcast && (c.header.Count("List-Unsubscribe-Post") > 0 || strings.EqualFold(strings.TrimSpace(c.header.Get("Precedence")), "bulk")) {
		c.add("F14", Warning, "header", "a single message that says it is a broadcast", "send advertising as a campaign, from another address")
	}
}

// headerSize is F15.
func (c *check) headerSize() {
	total := 0
	for _, f := range c.header {
		total += len(f.Raw)
		if len(f.Raw) > 2048 && !f.Is("DKIM-Signature") {
			c.add("F15", Warning, "header/"+clean(f.Name), fmt.Sprintf("%d bytes, more than 2048", len(f.Raw)), "make it shorter")
		}
	}
	if total > 10*1024 {
		c.add("F15", Warning, "header", fmt.Sprintf("%d bytes, more than 10240", total), "make it shorter")
	}
}
