package dsn

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"mime/quotedprintable"
	"strings"
	"time"

	"relayd/internal/mail"
)

// Kind is what a notice tells of its recipients.
type Kind uint8

// The kinds of notices.
const (
	Failed  Kind = iota // given up or refused
	Delayed             // still tried
	Relayed             // taken by a host that sends no notices of its own (RFC 3461 section 5.2.2)
)

// action is the Action field (RFC 3464 section 2.3.3).
func (k Kind) action() string { return [...]string{"failed", "delayed", "relayed"}[k] }

// Notice is a notice about one message to some of its recipients.
type Notice struct {
	Kind       Kind
	Hostname   string    // Reporting-MTA, and the domain of the notice's sender
	To         mail.Path // the reverse-path of the message
	EnvelopeID string    // ENVID as the client gave it, "" for none
	QueueID    string    // of the message
	AcceptedAt time.Time // of the message
	At         time.Time // of the notice
	Subject    string    // of the message, decoded, for the text part; "" for none
	Header     []byte    // of the message: CRLF, complete or cut at the end of a field
	Message    []byte    // the whole message, CRLF, to go back instead of Header alone; nil for none. 7-bit unless UTF8
	UTF8       bool      // the message needs SMTPUTF8: it goes back as RFC 6533 says
	Omitted    Omission  // why Message is missing although it was asked for
	Recipients []Recipient
}

// Omission is why a message does not go back in full.
type Omission uint8

// The reasons of an omission.
const (
	NotAsked Omission = iota
	TooLarge
	EightBit   // has 8-bit octets, and the way back may not take them
	Unreadable // by a fault of ours
)

// text is for a person.
func (o Omission) text() string {
	return [...]string{
		TooLarge:   "Your message is too large to be returned in full: its header is attached.\r\n원본 메일이 커서 헤더만 첨부합니다.\r\n",
		EightBit:   "Your message cannot be returned in full: its header is attached.\r\n원본 메일 전체를 돌려드릴 수 없어 헤더만 첨부합니다.\r\n",
		Unreadable: "Your message could not be read to be returned: its header is attached.\r\n원본 메일을 읽지 못하여 헤더만 첨부합니다.\r\n",
	}[o]
}

// Recipient is one address that the notice is about.
type Recipient struct {
	To       mail.Path
	ORCPT    string // as the client gave it, "" for none
	Reply    mail.Reply
	Host     string // that gave the reply; "" when it is our own
	Expired  bool   // given up, not refused
	Attempts int
	LastAt   time.Time // of the last attempt, zero for none
	Until    time.Time // of a delayed one: no attempt after it
}

// Bounds of what is taken over from others.
const (
	maxHeader = 64 << 10 // of the original header
	maxField  = 600      // of one field of the report
)

// Compose returns the notice as a complete message, header first, CRLF line ends, 7-bit, without Received, Date and
// Message-ID, which the door adds. It goes out with the null reverse-path (RFC 3464 section 2). The same notice gives
// the same bytes.
func Compose(n Notice) ([]byte, error) {
	if len(n.Recipients) == 0 {
		return nil, errors.New("compose notice: no recipients")
	}
	if n.To.IsNull() {
		return nil, errors.New("compose notice: no notice is sent to the null reverse-path")
	}
	boundary := n.boundary()
	b, err := n.header(boundary)
	if err != nil {
		return nil, fmt.Errorf("compose notice: %w", err)
	}
	part := func(kind, description string) {
		b = append(b, "\r\n--"+boundary+"\r\nContent-Type: "+kind+"\r\nContent-Description: "+description+"\r\n"...)
	}
	b = append(b, "This is a multi-part message in MIME format.\r\n"...)
	part("text/plain; charset=utf-8", "Notification")
	b = append(b, "Content-Transfer-Encoding: quoted-printable\r\n\r\n"...)
	b = append(b, quoted([]byte(n.text()))...)
	part("message/delivery-status", "Delivery report")
	b = append(b, "\r\n"...)
	b = append(b, n.status()...)
	headers := map[Kind]string{Failed: "Undelivered message headers", Delayed: "Delayed message headers", Relayed: "Message headers"}[n.Kind]
	switch {
	case n.Message != nil && n.UTF8: // may be encoded (RFC 6532 section 3.7)
		part("message/global", "Undelivered message")
		b = append(append(b, "Content-Transfer-Encoding: base64\r\n\r\n"...), base64Lines(n.Message)...)
	case n.Message != nil:
		part("message/rfc822", "Undelivered message")
		b = append(append(b, "\r\n"...), n.Message...)
	case n.UTF8:
		part("message/global-headers", headers)
		b = append(b, quotedHeader(n.Header)...)
	default:
		part("text/rfc822-headers", headers)
		b = append(b, quotedHeader(n.Header)...)
	}
	return append(b, "\r\n--"+boundary+"--\r\n"...), nil
}

// boundary is unlikely in any message and the same each time.
func (n *Notice) boundary() string {
	h := sha256.New()
	h.Write([]byte(n.QueueID + n.To.String()))
	if n.Kind != Failed {
		h.Write([]byte(n.Kind.action()))
	}
	h.Write(n.Header)
	return "=_" + hex.EncodeToString(h.Sum(nil)[:16])
}

func (n *Notice) header(boundary string) ([]byte, error) {
	from := mail.Path{Local: "MAILER-DAEMON", Domain: n.Hostname}
	var b []byte
	var errs []error
	add := func(name, value string) {
		var err error
		b, err = mail.AppendRawField(b, name, value)
		errs = append(errs, err)
	}
	to := n.To.String()
	add("From", `"Mail Delivery System" <`+from.String()+`>`)
	if n.To.NeedsUTF8() { // the address stands in the envelope; a header cannot carry it
		to = "undisclosed-recipients:;"
	}
	add("To", to)
	add("Subject", map[Kind]string{
		Failed: "Undelivered Mail Returned to Sender", Delayed: "Delayed Mail (still being retried)", Relayed: "Mail Relayed (no confirmation of delivery)",
	}[n.Kind])
	add("Auto-Submitted", "auto-replied") // RFC 3834 section 5
	if id := n.originalID(); id != "" {
		add("In-Reply-To", id)
		add("References", id)
	}
	add("MIME-Version", "1.0")
	add("Content-Type", `multipart/report; report-type=delivery-status; boundary="`+boundary+`"`)
	return append(b, "\r\n"...), errors.Join(errs...)
}

// originalID is the Message-ID of the message when it is one that a header can carry.
func (n *Notice) originalID() string {
	h, err := mail.ParseHeader(n.Header)
	if err != nil {
		return ""
	}
	id := h.Get("Message-ID")
	if len(id) < 3 || len(id) > 250 || id[0] != '<' || id[len(id)-1] != '>' || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return ""
	}
	return id
}

// text tells a person what happened, in English and Korean.
func (n *Notice) text() string {
	var b strings.Builder
	expired := true
	for _, r := range n.Recipients {
		expired = expired && r.Expired
	}
	fmt.Fprintf(&b, "This is the mail system at %s.\r\n\r\n", n.Hostname)
	switch {
	case n.Kind == Delayed:
		b.WriteString("Your message is still on its way to the recipients below. There is nothing to do:\r\nit will be tried again.\r\n" +
			"아래 수신자에게 메일 전달이 지연되고 있습니다. 계속 다시 시도하므로 조치하실 일은 없습니다.\r\n")
	case n.Kind == Relayed:
		b.WriteString("Your message was handed to the mail system of the recipients below, which does not\r\nconfirm deliveries.\r\n" +
			"아래 수신자의 메일 시스템에 메일을 넘겼습니다. 그 시스템은 전달 결과를 알려 주지 않습니다.\r\n")
	case expired:
		b.WriteString("Your message could not be delivered in time to the recipients below.\r\nNo further attempt will be made.\r\n" +
			"아래 수신자에게 메일을 전달하지 못했습니다.\r\n")
	default:
		b.WriteString("Your message could not be delivered to the recipients below.\r\n아래 수신자에게 메일을 전달하지 못했습니다.\r\n")
	}
	b.WriteString(n.Omitted.text())
	if n.Subject != "" {
		fmt.Fprintf(&b, "\r\nSubject: %s\r\n", mail.CleanText(n.Subject, 200))
	}
	for _, r := range n.Recipients {
		fmt.Fprintf(&b, "\r\n<%s>\r\n", r.To)
		if r.Host != "" {
			fmt.Fprintf(&b, "    host %s said: %s\r\n", mail.CleanText(r.Host, 300), r.Reply)
		} else {
			fmt.Fprintf(&b, "    %s\r\n", r.Reply)
		}
	}
	fmt.Fprintf(&b, "\r\nQueue ID / 접수 번호: %s\r\n", n.QueueID)
	return b.String()
}

// status is the machine's part (RFC 3464 section 2).
func (n *Notice) status() []byte {
	var b bytes.Buffer
	field := func(name, value string) {
		fmt.Fprintf(&b, "%s: %s\r\n", name, foldText(mail.CleanText(strings.TrimSpace(value), maxField)))
	}
	if n.EnvelopeID != "" {
		field("Original-Envelope-Id", decodeXtext(n.EnvelopeID))
	}
	field("Reporting-MTA", "dns; "+n.Hostname)
	field("X-Relay-Queue-ID", n.QueueID)
	field("Arrival-Date", n.AcceptedAt.Format(time.RFC1123Z))
	for _, r := range n.Recipients {
		b.WriteString("\r\n")
		if kind, addr, ok := strings.Cut(r.ORCPT, ";"); ok {
			field("Original-Recipient", original(kind, addr))
		}
		field("Final-Recipient", final(r.To))
		field("Action", n.Kind.action())
		field("Status", r.status(n.Kind).String())
		if r.Host != "" {
			host := r.Host // NAME[ADDRESS]; the name may be an address literal
			if i := strings.LastIndexByte(host, '['); i > 0 {
				host = host[:i]
			}
			field("Remote-MTA", "dns; "+host)
		}
		if !r.Reply.IsZero() {
			field("Diagnostic-Code", "smtp; "+r.Reply.String())
		}
		if !r.LastAt.IsZero() {
			field("Last-Attempt-Date", r.LastAt.Format(time.RFC1123Z))
		}
		if n.Kind == Delayed && !r.Until.IsZero() {
			field("Will-Retry-Until", r.Until.Format(time.RFC1123Z))
		}
	}
	return b.Bytes()
}

// original is the ORCPT that the client gave; an address with UTF-8 is written in ASCII (RFC 6533 section 3).
func original(kind, addr string) string {
	if !strings.EqualFold(kind, "utf-8") {
		return kind + "; " + decodeXtext(addr)
	}
	if strings.ContainsFunc(addr, func(r rune) bool { return r > '~' }) {
		addr = unicodeXtext(addr)
	}
	return "utf-8; " + addr // encoded by the client otherwise
}

// final is the address that was tried.
func final(p mail.Path) string {
	if p.NeedsUTF8() {
		return "utf-8; " + unicodeXtext(p.String())
	}
	return "rfc822; " + p.String()
}

// unicodeXtext writes an address with UTF-8 for a report of 7 bits: utf-8-addr-xtext of RFC 6533 section 3.
func unicodeXtext(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r > ' ' && r <= '~' && r != '\\' && r != '+' && r != '=' {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\x{%02X}`, r)
		}
	}
	return b.String()
}

// status is the code of the Status field: of a failure permanent always, since nothing more will be tried.
func (r *Recipient) status(k Kind) mail.Status {
	switch st := r.Reply.Status; {
	case k == Relayed:
		return mail.Status{Class: 2, Subject: st.Subject, Detail: st.Detail}
	case k == Delayed:
		return mail.Status{Class: 4, Subject: st.Subject, Detail: st.Detail}
	case r.Expired:
		return mail.Status{Class: 5, Subject: 4, Detail: 7} // delivery time expired
	case st.IsZero():
		return mail.Status{Class: 5}
	default:
		return mail.Status{Class: 5, Subject: st.Subject, Detail: st.Detail}
	}
}

// asciiOnly keeps a field of the report on its line and readable for every parser.
func asciiOnly(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= ' ' && r <= '~' {
			return r
		}
		return '?'
	}, s)
}

// foldText breaks long text at blanks, as a header would be.
func foldText(s string) string {
	var b strings.Builder
	col := 0
	for i, word := range strings.Split(asciiOnly(s), " ") {
		if i > 0 {
			if col+1+len(word) > 70 && word != "" {
				b.WriteString("\r\n")
				col = 0
			}
			b.WriteByte(' ')
			col++
		}
		b.WriteString(word)
		col += len(word)
	}
	return b.String()
}

// decodeXtext undoes the encoding of ENVID and ORCPT (RFC 3461 section 4).
func decodeXtext(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '+' && i+2 < len(s) {
			if c, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
				b.WriteByte(c[0])
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// quotedHeader is the third part from its encoding on: as it is where every line can travel as it is.
func quotedHeader(h []byte) []byte {
	if len(h) > maxHeader {
		h = h[:maxHeader]
		if i := bytes.LastIndex(h, []byte("\r\n")); i >= 0 {
			h = h[:i+2]
		}
	}
	if n := bytes.Count(h, []byte("\r\n")); bytes.Count(h, []byte("\r")) != n || bytes.Count(h, []byte("\n")) != n {
		h = bytes.ReplaceAll(h, []byte("\r\n"), []byte("\n"))
		h = bytes.ReplaceAll(bytes.ReplaceAll(h, []byte("\r"), []byte("?")), []byte("\n"), []byte("\r\n"))
	}
	for line := range bytes.SplitSeq(h, []byte("\r\n")) {
		if len(line) > 998 || bytes.IndexFunc(line, func(r rune) bool { return r >= 0x80 || r < ' ' && r != '\t' }) >= 0 {
			return append([]byte("Content-Transfer-Encoding: quoted-printable\r\n\r\n"), quoted(h)...)
		}
	}
	return append([]byte("\r\n"), h...)
}

// base64Lines encodes in lines of 76.
func base64Lines(b []byte) []byte {
	text := base64.StdEncoding.EncodeToString(b)
	out := make([]byte, 0, len(text)+len(text)/76*2+2)
	for len(text) > 76 {
		out = append(append(out, text[:76]...), "\r\n"...)
		text = text[76:]
	}
	return append(out, text...)
}

func quoted(text []byte) []byte {
	var b bytes.Buffer
	w := quotedprintable.NewWriter(&b)
	_, _ = w.Write(text) // to memory
	_ = w.Close()
	return b.Bytes()
}
