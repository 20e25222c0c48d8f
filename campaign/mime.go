package campaign

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"fmt"
	"mime"
	"strings"
	"time"
	"unicode/utf8"

	"relayd/internal/api"
	"relayd/internal/mail"
)

// assemble makes the parts of the message that are the same for every recipient.
func (c *composition) assemble(req *api.CreateCampaign, set *imageSet) error {
	from, err := mail.FormatAddress(req.From.Name, c.from)
	if err != nil {
		return &Invalid{Code: api.CodeInvalidParameter, Errors: []api.FieldError{{Pointer: "/from/name", Code: "header_line_break", Detail: err.Error()}}}
	}
	if c.head, err = mail.AppendRawField(nil, "From", from); err != nil {
		return fmt.Errorf("assemble campaign: %w", err)
	}
	if req.ReplyTo != "" {
		p, err := parseAddress(req.ReplyTo)
		if err != nil {
			return fmt.Errorf("assemble campaign: %w", err)
		}
		c.head = append(c.head, "Reply-To: "+p.String()+"\r\n"...)
	}
	stream := req.Stream
	if stream == "" {
		stream = defaultStream
	}
	// RFC 2919: stable for all campaigns of a stream. RFC 8058 section 3.1: the pair as it stands.
	c.foot = append(c.foot, "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"+
		"List-Id: <"+stream+"."+c.from.Domain+">\r\n"+
		"Precedence: bulk\r\n"+
		"Feedback-ID: "+c.feedbackID(stream)+"\r\n"...)
	c.assembleParts(set)
	return nil
}

// assembleParts makes what stands around the text and the HTML.
func (c *composition) assembleParts(set *imageSet) {
	c.foot = append(c.foot, "MIME-Version: 1.0\r\n"...)
	if c.html == nil {
		c.foot = append(c.foot, "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: "+c.text.enc.String()+"\r\n\r\n"...)
		c.tail = []byte("\r\n")
		return
	}
	// "=_" stands in no text that is quoted-printable or base64, so that a boundary never meets itself in a part.
	alternative, related := "=_"+c.mark+"_a", "=_"+c.mark+"_r"
	c.foot = append(c.foot, "Content-Type: multipart/alternative; boundary=\""+alternative+"\"\r\n\r\n"...)
	c.toText = append(c.toText, "--"+alternative+"\r\n"+textHeader("plain", c.text.enc)...)
	c.toHTML = append(c.toHTML, "\r\n--"+alternative+"\r\n"...)
	c.tail = append(c.tail, "\r\n"...)
	for _, img := range set.list {
		if !img.used || img.url != "" {
			continue
		}
		if c.images == 0 {
			c.toHTML = append(c.toHTML, "Content-Type: multipart/related; type=\"text/html\";\r\n boundary=\""+related+"\"\r\n\r\n--"+related+"\r\n"...)
		}
		c.images++
		c.tail = append(c.tail, "--"+related+"\r\n"...)
		c.tail = img.appendPart(c.tail)
	}
	if c.images > 0 {
		c.tail = append(c.tail, "--"+related+"--\r\n\r\n"...)
	}
	c.toHTML = append(c.toHTML, textHeader("html", c.html.enc)...)
	c.tail = append(c.tail, "--"+alternative+"--\r\n"...)
}

func textHeader(subtype string, e encoding) string {
	return "Content-Type: text/" + subtype + "; charset=utf-8\r\nContent-Transfer-Encoding: " + e.String() + "\r\n\r\n"
}

// feedbackID is campaign:customer:type:sender as Gmail's feedback loop wants it: nothing in it differs per recipient,
// and the sender's part of 5 to 15 characters stays the same for all mail of the From domain.
func (c *composition) feedbackID(stream string) string {
	sum := sha256.Sum256([]byte(c.account + "\x00" + c.from.Domain))
	sender := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:10])
	account := strings.Map(func(r rune) rune {
		if r < 0x80 && (isLetter(byte(r)) || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.') {
			return r
		}
		return '-'
	}, c.account)
	return c.id.String() + ":" + account + ":" + stream + ":" + sender
}

// letter is what one recipient's message is made from.
type letter struct {
	id         mail.EnvelopeID
	to         mail.Path
	at         time.Time // Date: the same for every attempt
	attributes []attribute
	token      string // of the unsubscribe link
	head       []byte // From, Reply-To and To of a single message; nil: those of the campaign and the recipient
	messageID  string // of a single message, without angle brackets
}

// write appends the message to buf and returns it with the offset of its body. The same letter gives the same bytes.
func (c *composition) write(buf []byte, l *letter) (msg []byte, body int, err error) {
	m := machines.Get().(*machine) //nolint:forcetypeassert // the pool holds nothing else
	defer m.release()
	ct := c.contact(l)
	subject, err := c.writeSubject(m, ct)
	if err != nil {
		return nil, 0, err
	}
	if l.head != nil {
		buf = append(buf, l.head...)
	} else {
		buf = append(append(buf, c.head...), "To: "...)
		buf = append(append(buf, l.to.String()...), "\r\n"...)
	}
	if buf, err = appendSubject(buf, subject); err != nil {
		return nil, 0, &RenderError{Part: partSubject, Err: err}
	}
	buf = append(buf, "Date: "...)
	buf = l.at.UTC().AppendFormat(buf, "Mon, 02 Jan 2006 15:04:05 -0700")
	buf = append(buf, "\r\nMessage-ID: <"...)
	buf = append(buf, ct.system.messageID...)
	buf = append(buf, ">\r\n"...)
	if !c.single {
		buf = c.appendUnsubscribe(buf, ct, l)
	}
	buf = append(buf, c.foot...)
	body = len(buf)
	m.buf = append(buf, c.toText...)
	if err := m.run(c.text, &c.scope, ct, c.text.enc); err != nil {
		return nil, 0, err
	}
	if c.html != nil {
		m.buf = append(m.buf, c.toHTML...)
		if err := m.run(c.html, &c.scope, ct, c.html.enc); err != nil {
			return nil, 0, err
		}
	}
	return append(m.buf, c.tail...), body, nil
}

// appendUnsubscribe writes List-Unsubscribe. The https URI stands first (RFC 8058 section 3.1 allows others behind it).
func (c *composition) appendUnsubscribe(buf []byte, ct *contact, l *letter) []byte {
	buf = append(buf, "List-Unsubscribe: <"...)
	buf = append(buf, ct.system.unsubscribeURL...)
	if c.mailbox != "" {
		buf = append(append(buf, ">,\r\n <mailto:"...), c.mailbox...)
		buf = append(append(buf, "?subject="...), l.token...)
	}
	return append(buf, ">\r\n"...)
}

func (c *composition) contact(l *letter) *contact {
	if c.single {
		return &contact{address: l.to.String(), attributes: l.attributes, system: system{messageID: l.messageID, sender: c.from.String()}}
	}
	return &contact{address: l.to.String(), attributes: l.attributes, system: system{
		unsubscribeURL: c.unsub + l.token, campaignName: c.name, messageID: l.id.String() + "@" + c.host, sender: c.from.String(),
	}}
}

func (c *composition) writeSubject(m *machine, ct *contact) (string, error) {
	m.buf = m.small[:0]
	if err := m.run(c.subject, &c.scope, ct, encodeNone); err != nil {
		return "", err
	}
	m.small = m.buf
	s := strings.TrimSpace(string(m.buf))
	if checkHeaderText(s) != nil {
		return "", &RenderError{Part: partSubject, Err: errHeaderControl}
	}
	if len(s) > maxSubject {
		return "", &RenderError{Part: partSubject, Err: fmt.Errorf("longer than %d bytes", maxSubject)}
	}
	return s, nil
}

func (m *machine) release() {
	clear(m.frames[:m.deep])
	m.encoder, m.scope, m.contact, m.prog, m.deep, m.lenient, m.missing = encoder{}, nil, nil, nil, 0, false, nil
	if cap(m.scratch) > 1<<20 {
		m.scratch = nil
	}
	machines.Put(m)
}

// check tells what a message to this contact would lack, and why else it could not be made.
func (c *composition) check(ct *contact) (missing []*use, err error) {
	m := machines.Get().(*machine) //nolint:forcetypeassert // the pool holds nothing else
	defer m.release()
	m.lenient = true
	_, err = c.writeSubject(m, ct)
	for _, p := range []*program{c.text, c.html} {
		if err == nil && p != nil {
			m.buf = nil
			err = m.run(p, &c.scope, ct, encodeVoid)
		}
	}
	return m.missing, err
}

// appendSubject writes the field with encoded words (RFC 2047) where it needs them: quoted-printable for a few accents,
// base64 for other scripts.
func appendSubject(b []byte, s string) ([]byte, error) {
	odd, long, run := 0, false, 0
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' {
			odd++
		}
		if run++; s[i] == ' ' {
			run = 0
		}
		long = long || run > 900
	}
	switch {
	case odd == 0 && !long && !strings.Contains(s, "=?"):
	case odd*4 < len(s) && !long && !strings.Contains(s, "=?"):
		s = mime.QEncoding.Encode("utf-8", s)
	default:
		s = encodedWords(s)
	}
	return mail.AppendRawField(b, "Subject", s)
}

// encodedWords writes all of s in encoded words of at most 75 characters, none of which splits a character.
func encodedWords(s string) string {
	const most = 45 // bytes: 60 characters of base64 beside "=?utf-8?b?" and "?="
	var b strings.Builder
	for s != "" {
		n := 0
		for n < len(s) {
			_, size := utf8.DecodeRuneInString(s[n:])
			if n+size > most {
				break
			}
			n += size
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("=?utf-8?b?" + base64.StdEncoding.EncodeToString([]byte(s[:n])) + "?=")
		s = s[n:]
	}
	return b.String()
}
