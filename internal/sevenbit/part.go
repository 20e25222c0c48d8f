package sevenbit

import (
	"mime"
	"strings"

	"relayd/internal/mail"
)

// encoding is a Content-Transfer-Encoding (RFC 2045 section 6).
type encoding uint8

const (
	unlabelled encoding = iota // means 7bit
	sevenBit
	eightBit
	binaryLabel
	quotedPrintable
	base64Encoding
	unknown // not for us to change
)

var encodingNames = [...]string{"7bit", "7bit", "8bit", "binary", "quoted-printable", "base64", ""}

func (e encoding) String() string { return encodingNames[e] }

// plain tells the encodings that are none: the octets of the part stand as they are.
func (e encoding) plain() bool { return e <= binaryLabel }

func parseEncoding(h mail.Header) encoding {
	if h.Count(encodingField) == 0 {
		return unlabelled
	}
	switch strings.ToLower(h.Get(encodingField)) {
	case "7bit":
		return sevenBit
	case "8bit":
		return eightBit
	case "binary":
		return binaryLabel
	case "quoted-printable":
		return quotedPrintable
	case "base64":
		return base64Encoding
	}
	return unknown
}

const encodingField = "Content-Transfer-Encoding"

// kind is what a part consists of.
type kind uint8

const (
	leaf  kind = iota
	multi      // parts between boundaries
	whole      // a message of its own: message/rfc822
)

// part is one node of the tree. Number 0 is the message itself.
type part struct {
	parent int
	depth  int
	kind   kind
	enc    encoding
	text   bool // type text
	fixed  bool // below something that others have signed or encrypted
	sealed bool // multipart/signed or multipart/encrypted: what is below is fixed

	// What the scanner has seen.
	eight   bool   // octets above 127 in the content of a leaf
	rough   string // "NUL", "bare CR"…: what no line may hold, in the content of a leaf
	stuck   bool   // octets above 127 outside of a leaf's content, in a header for one: nothing makes them 7-bit
	binding encoding
	changed bool // binding is its new label
}

// newPart reads what the header section of a part says. A text says why nobody should rely on it.
func newPart(h mail.Header, parent part, at int, digest bool) (p part, boundary, irregular string) {
	p = part{parent: at, depth: parent.depth + 1, fixed: parent.fixed || parent.sealed, enc: parseEncoding(h)}
	if h.Count("Content-Type") > 1 || h.Count(encodingField) > 1 {
		return p, "", "a field of its header stands twice"
	}
	value := strings.ToLower(h.Get("Content-Type"))
	switch {
	case value == "" && digest: // RFC 2046 section 5.1.5
		value = "message/rfc822"
	case value == "": // RFC 2045 section 5.2
		value = "text/plain"
	}
	kindOf, sub, _ := strings.Cut(value, "/")
	switch strings.TrimSpace(kindOf) {
	case "text":
		p.text = true
		return p, "", ""
	case "multipart":
	case "message":
		sub, _, _ = strings.Cut(sub, ";")
		switch strings.TrimSpace(sub) {
		case "rfc822":
			if p.enc.plain() {
				p.kind = whole
			}
		case "global": // RFC 6532 section 3.7: may be encoded
		case "delivery-status", "disposition-notification", "feedback-report":
			p.text = true
		default: // partial, external-body: RFC 2046 sections 5.2.2.1 and 5.2.3 allow 7bit only
			p.fixed = true
		}
		return p, "", ""
	default:
		return p, "", ""
	}
	if !p.enc.plain() { // RFC 2045 section 6.4 forbids it: some readers decode, others do not
		return p, "", "it is a multipart with an encoding"
	}
	kindOf, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	boundary = params["boundary"]
	if err != nil || strings.Contains(value, "boundary*") || !isBoundary(boundary) {
		return p, "", "its boundary cannot be read"
	}
	p.kind = multi
	p.sealed = kindOf == "multipart/signed" || kindOf == "multipart/encrypted"
	return p, boundary, ""
}

// maxBoundary bounds what RFC 2046 section 5.1.1 bounds at 70; longer ones are seen.
const maxBoundary = 200

func isBoundary(s string) bool {
	if s == "" || len(s) > maxBoundary || s[len(s)-1] == ' ' {
		return false
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
