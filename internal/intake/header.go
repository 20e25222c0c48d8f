package intake

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"relayd/dkim"
	"relayd/internal/mail"
)

// header is the header section on its way from what was handed in to what leaves.
type header struct {
	taking    *taking
	fields    mail.Header
	from      address
	out       []byte // as it leaves, CRLF, without the empty line; signatures first once sign was called
	messageID string
	subject   string
	utf8      bool // a field holds UTF-8
}

// once are the fields that a message has at most once (RFC 5322 section 3.6). Receivers differ in which of two they show.
var once = []string{
	"From", "Sender", "Reply-To", "To", "Cc", "Date", "Message-ID", "In-Reply-To", "References", "Subject",
	"MIME-Version", "Content-Type", "Content-Transfer-Encoding",
}

// newHeader checks the section and rewrites it.
func (t *taking) newHeader(raw []byte) (*header, error) {
	h := &header{taking: t}
	if err := h.parse(raw); err != nil {
		return nil, err
	}
	if err := h.checkFields(); err != nil {
		return nil, err
	}
	if err := h.checkSenders(); err != nil {
		return nil, err
	}
	if err := h.readControls(); err != nil {
		return nil, err
	}
	return h, h.rewrite()
}

// parse splits the section into fields, of printable ASCII, blanks and tabs only, and with SMTPUTF8 of UTF-8.
func (h *header) parse(raw []byte) error {
	fields, err := mail.ParseHeader(raw)
	if err != nil {
		text := strings.TrimPrefix(err.Error(), mail.ErrBadHeader.Error()+": ")
		return mail.Refuse(554, mail.Status{Class: 5, Subject: 6}, "Bad header: "+text+"; an empty line ends the header", err)
	}
	for _, f := range fields {
		if err := h.checkField(f); err != nil {
			return err
		}
	}
	h.fields = fields
	return nil
}

func (h *header) checkField(f mail.Field) error {
	if len(f.Raw) <= len(f.Name) || f.Raw[len(f.Name)] != ':' { // obsolete blank: some readers do not see the field
		return refuse(554, 6, 0, "Header field "+clean(f.Name)+" has a blank before its colon")
	}
	eight := false
	for _, c := range f.Raw {
		switch {
		case c >= 0x80 && !h.taking.sub.UTF8:
			return refuse(554, 6, 9, "Header field "+clean(f.Name)+" is not ASCII: use encoded words (RFC 2047)")
		case c >= 0x80:
			eight = true
		case c == 0x7f, c < ' ' && c != '\t' && c != '\r' && c != '\n':
			return refuse(554, 6, 0, "Header field "+clean(f.Name)+" has a control character")
		}
	}
	if eight && !utf8.Valid(f.Raw) { // RFC 6532 section 3.1
		return refuse(554, 6, 9, "Header field "+clean(f.Name)+" is not UTF-8")
	}
	h.utf8 = h.utf8 || eight
	for line := range bytes.SplitSeq(f.Raw, []byte("\r\n")) {
		if len(line) > 0 && len(bytes.Trim(line, " \t")) == 0 { // some readers take it for the end of the header
			return refuse(554, 6, 0, "Header field "+clean(f.Name)+" has a blank continuation line")
		}
	}
	return nil
}

func clean(s string) string { return mail.CleanText(s, 64) }

// checkFields refuses what stands twice or too often.
func (h *header) checkFields() error {
	for _, name := range once {
		if h.fields.Count(name) > 1 {
			return refuse(554, 6, 0, "Header field "+name+" stands more than once")
		}
	}
	if h.fields.Count("Received") > h.taking.in.cfg.MaxHops {
		return refuse(554, 4, 6, "Too many hops: this message is in a loop")
	}
	return nil
}

// checkSenders holds From and Sender to the domains of who submits.
func (h *header) checkSenders() error {
	t := h.taking
	if h.fields.Count("From") == 0 {
		return refuse(554, 6, 0, "Header field From is missing")
	}
	var err error
	if h.from, err = parseMailbox(h.fields.Get("From")); err != nil {
		return mail.Refuse(554, mail.Status{Class: 5, Subject: 6}, "Header field From: "+err.Error(), err)
	}
	if t.sub.Internal {
		return nil
	}
	if err := t.in.checkDomain(t.account, t.sub.Domains, h.from.path.Domain, "From domain"); err != nil {
		return err
	}
	if other := h.from.foreignDomain(); other != "" {
		return refuse(550, 7, 1, "Display name of From shows an address at "+clean(other))
	}
	if h.fields.Count("Sender") == 0 {
		return nil
	}
	sender, err := parseMailbox(h.fields.Get("Sender"))
	if err != nil {
		return mail.Refuse(554, mail.Status{Class: 5, Subject: 6}, "Header field Sender: "+err.Error(), err)
	}
	if other := sender.foreignDomain(); other != "" {
		return refuse(550, 7, 1, "Display name of Sender shows an address at "+clean(other))
	}
	return t.in.checkDomain(t.account, t.sub.Domains, sender.path.Domain, "Sender field's domain")
}

// rewrite removes what must not leave, and adds Received and what is missing (RFC 6409 section 8).
func (h *header) rewrite() error {
	out := make([]byte, 0, 2048+len(h.taking.raw))
	out = h.appendReceived(out)
	for _, f := range h.fields {
		if !h.drops(f) {
			out = append(out, f.Raw...)
			if !bytes.HasSuffix(f.Raw, []byte("\r\n")) {
				out = append(out, "\r\n"...)
			}
		}
	}
	var err error
	if strings.TrimSpace(h.fields.Get("Date")) == "" {
		if out, err = mail.AppendRawField(out, "Date", date(h.taking.now)); err != nil {
			return err
		}
	}
	if h.messageID = clip(h.fields.Get("Message-ID")); h.messageID == "" {
		h.messageID = "<" + h.taking.id.String() + "@" + h.taking.in.deps.Hostname + ">"
		if out, err = mail.AppendRawField(out, "Message-ID", h.messageID); err != nil {
			return err
		}
	}
	h.subject = mail.CleanText(mail.DecodeText(h.fields.Get("Subject")), 200)
	h.out = out
	return nil
}

func clip(s string) string { return s[:min(len(s), 998)] }

// drops tells the fields that do not leave: what names hidden recipients, what only the last hop writes, our control
// fields, signatures that what we add would break, and an empty field that we fill.
func (h *header) drops(f mail.Field) bool {
	switch strings.ToLower(f.Name) {
	case "bcc", "resent-bcc", "return-path":
		return true
	case "dkim-signature":
		return h.ours(f)
	case "date", "message-id":
		return f.Value() == ""
	}
	return len(f.Name) >= 8 && strings.EqualFold(f.Name[:8], "X-Relay-")
}

// ours tells whether a DKIM-Signature claims a domain that relayd signs for. Those of others stay.
func (h *header) ours(f mail.Field) bool {
	for tag := range strings.SplitSeq(f.Value(), ";") {
		name, value, _ := strings.Cut(tag, "=")
		if strings.TrimSpace(name) != "d" {
			continue
		}
		d, err := mail.ParseDomain(strings.TrimSpace(value), false)
		if err != nil {
			return true // no verifier can use it
		}
		_, known := h.taking.in.deps.Domains.Domain(d)
		return known || d == h.from.path.Domain
	}
	return true
}

// appendReceived writes the trace field (RFC 5321 section 4.4). It names a recipient only where there is one: the others
// may be hidden from each other. Where the client is to be hidden, its name and address stand in the spool and in the log
// only.
func (h *header) appendReceived(b []byte) []byte {
	t := h.taking
	tr := t.sub.Trace
	b = append(b, "Received:"...)
	if !t.in.cfg.HideClient && (tr.Helo != "" || tr.ClientIP != "") {
		b = append(append(b, " from "...), atom(tr.Helo)...)
		if ip, err := netip.ParseAddr(tr.ClientIP); err == nil {
			b = append(append(append(b, " ("...), literal(ip)...), ')')
		}
		b = append(b, "\r\n\t"...)
	} else {
		b = append(b, ' ')
	}
	with := tr.With
	if with == "" {
		with = "LOCAL"
	}
	b = append(append(append(b, "by "...), t.in.deps.Hostname...), " (relayd)"...)
	b = append(append(b, " with "...), atom(with)...)
	if tr.TLS != "" {
		b = append(append(append(b, "\r\n\t("...), comment(tr.TLS)...), ')')
	}
	b = append(append(b, "\r\n\tid "...), t.id.String()...)
	if len(t.sub.Recipients) == 1 {
		b = append(append(append(b, "\r\n\tfor <"...), asciiPath(t.sub.Recipients[0].To)...), '>')
	}
	return append(append(append(b, ";\r\n\t"...), date(t.now)...), "\r\n"...)
}

func date(t time.Time) string { return t.UTC().Format("Mon, 02 Jan 2006 15:04:05 -0700") }

func literal(ip netip.Addr) string {
	if ip = ip.Unmap(); ip.Is6() {
		return "[IPv6:" + ip.String() + "]"
	}
	return "[" + ip.String() + "]"
}

// atom keeps what a trace field can carry of a word of others.
func atom(s string) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || strings.ContainsRune(`()<>@,;\"`, r) {
			return '?'
		}
		return r
	}, s[:min(len(s), 255)])
	if s == "" {
		return "unknown"
	}
	return s
}

func comment(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '(' || r == ')' || r == '\\' {
			return '?'
		}
		return r
	}, s[:min(len(s), 200)])
}

func asciiPath(p mail.Path) string {
	return strings.Map(func(r rune) rune {
		if r > '~' {
			return '?'
		}
		return r
	}, p.String())
}

// sign puts the signatures before the section. A domain without a key refuses the message, unless its sign is "none".
func (h *header) sign(bodyHash [32]byte) error {
	keys, err := h.keys()
	if err != nil || len(keys) == 0 {
		return err
	}
	sigs, err := dkim.Sign(keys, h.out, bodyHash, h.taking.now)
	if err != nil {
		return fmt.Errorf("sign message %s: %w", h.taking.id, err)
	}
	h.out = append(sigs, h.out...)
	return nil
}

// needsHash tells whether the message is signed, or compared with another.
func (h *header) needsHash() bool {
	d, _ := h.taking.in.deps.Domains.Domain(h.from.path.Domain)
	return h.taking.sub.Internal || h.taking.key != "" || h.taking.campaign != "" || d.Sign != "none"
}

// keys returns the active keys of the From domain; none where the message is to leave unsigned.
func (h *header) keys() ([]*dkim.Key, error) {
	in, name := h.taking.in, h.from.path.Domain
	if h.taking.sub.Internal {
		keys := in.ownKeys(name)
		if len(keys) == 0 {
			in.deps.Log.Warn("message.unsigned", "queue_id", h.taking.id.String(), "domain", name)
		}
		return keys, nil
	}
	d, known := in.deps.Domains.Domain(name)
	if !known { // gone since it was checked
		return nil, errNotRegistered("From domain", name)
	}
	if d.Sign == "none" {
		return nil, nil
	}
	keys := in.deps.Keys.Keys(name)
	if len(keys) == 0 {
		return nil, mail.Refuse(550, mail.Status{Class: 5, Subject: 7, Detail: 5},
			"No DKIM key for "+name+": run relayctl domain add "+name, errors.New("no active key"))
	}
	return keys, nil
}

// ownKeys returns the keys for our own mail: of its From domain or a parent of it, else of the host's. A DSN of a relay
// that signs for neither leaves unsigned, for it must not be lost.
func (in *Intake) ownKeys(from string) []*dkim.Key {
	for _, name := range []string{from, in.deps.Hostname} {
		for name != "" {
			if keys := in.deps.Keys.Keys(strings.ToLower(name)); len(keys) > 0 {
				return keys
			}
			_, name, _ = strings.Cut(name, ".")
		}
	}
	return nil
}
