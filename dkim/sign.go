package dkim

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"relayd/internal/mail"
)

// over says how often a name stands in h= beyond the fields that are there: a field of that name added later breaks the
// signature (RFC 6376 section 8.15).
type over int

const (
	never over = iota
	whenPresent
	always
)

// signedFields are the header fields that a signature covers, in the order of its h= tag (RFC 6376 section 5.4.1,
// RFC 8058 section 4 for the last pair).
var signedFields = []struct {
	name string
	over over
}{
	{"from", always},
	{"to", never},
	{"cc", never},
	{"subject", always},
	{"date", never},
	{"message-id", never},
	{"reply-to", never},
	{"sender", never},
	{"mime-version", never},
	{"content-type", never},
	{"content-transfer-encoding", never},
	{"in-reply-to", never},
	{"references", never},
	{"list-id", never},
	{"feedback-id", never},
	{"list-unsubscribe", whenPresent},
	{"list-unsubscribe-post", whenPresent},
}

// maxSignedFields bounds the h= tag.
const maxSignedFields = 500

const lineLength = 76 // of a folded signature, so that a mark of quotation still fits (RFC 5322 section 2.1.1: 78)

// Sign returns one DKIM-Signature field per key, in the order of the keys, each folded and ended by CRLF, to stand
// before header. The header section has CRLF line ends and a From field; the empty line behind it is not needed.
// bodyHash is BodyHasher.Sum of the body as it will be sent. The result depends on nothing but the arguments, so that a
// retry repeats it. No keys is ErrNoKey: a caller cannot send unsigned by mistake.
func Sign(keys []*Key, header []byte, bodyHash [sha256.Size]byte, now time.Time) ([]byte, error) {
	if len(keys) == 0 {
		return nil, ErrNoKey
	}
	names, canon, err := coverHeader(header)
	if err != nil {
		return nil, fmt.Errorf("sign message: %w", err)
	}
	middle := signatureMiddle(names, bodyHash, now)
	out := make([]byte, 0, len(keys)*usualSignature)
	for _, k := range keys {
		start := len(out)
		out = append(append(out, k.tags...), middle...)
		sum := sha256.Sum256(appendRelaxed(canon, fieldName, out[start+len(fieldName)+1:]))
		sig, err := k.sign(sum[:])
		if err != nil {
			return nil, fmt.Errorf("sign message for %s with selector %s: %w", k.Domain, k.Selector, err)
		}
		out = appendFoldedBase64(out, sig)
		out = append(out, crlf...)
	}
	return out, nil
}

// usualSignature is the room that one signature takes.
const usualSignature = 1024

// signedPlace is where a name stands in signedFields, -1 for nowhere.
func signedPlace(name string) int {
	for j := range signedFields {
		if len(name) == len(signedFields[j].name) && strings.EqualFold(name, signedFields[j].name) {
			return j
		}
	}
	return -1
}

// coverHeader returns the names of the h= tag and the fields that they stand for in relaxed form, with room behind them
// for the signature's own.
func coverHeader(header []byte) (names []string, canon []byte, err error) {
	fields, err := mail.ParseHeader(header)
	if err != nil {
		return nil, nil, err
	}
	places := make([]int, len(fields)) // in signedFields
	for i, f := range fields {
		places[i] = signedPlace(f.Name)
	}
	if !slices.Contains(places, 0) {
		return nil, nil, errors.New("no From field")
	}
	canon = make([]byte, 0, len(header)+usualSignature)
	names = make([]string, 0, 32)
	for j, s := range signedFields {
		before := len(names)
		// Of several fields of one name the last one is taken first (RFC 6376 section 5.4.2).
		for i, place := range slices.Backward(places) {
			if place != j {
				continue
			}
			colon := bytes.IndexByte(fields[i].Raw, ':')
			canon = append(appendRelaxed(canon, s.name, fields[i].Raw[colon+1:]), crlf...)
			names = append(names, s.name)
		}
		if s.over == always || s.over == whenPresent && len(names) > before {
			names = append(names, s.name)
		}
	}
	if len(names) > maxSignedFields {
		return nil, nil, fmt.Errorf("%d header fields to sign, at most %d", len(names), maxSignedFields)
	}
	return names, canon, nil
}

const fieldName = "DKIM-Signature"

// signatureTags is the start of a key's signatures.
func signatureTags(k *Key) string {
	line := fieldName + ": v=1; a=" + k.signatureAlgorithm() + "; c=relaxed/relaxed;"
	var b strings.Builder
	for _, tag := range []string{" d=" + k.Domain + ";", " s=" + k.Selector + ";"} {
		if len(line)+len(tag) > lineLength {
			b.WriteString(line + "\r\n")
			line = ""
		}
		line += tag
	}
	return b.String() + line + "\r\n"
}

// signatureMiddle is what stands between the tags of the key and the signature itself.
func signatureMiddle(names []string, bodyHash [sha256.Size]byte, now time.Time) []byte {
	b := make([]byte, 0, usualSignature)
	b = strconv.AppendInt(append(b, " t="...), now.Unix(), 10)
	b = append(b, "; h="...)
	line := 0 // where it begins
	for i, name := range names {
		end := byte(':')
		if i == len(names)-1 {
			end = ';'
		}
		if len(b)-line+len(name)+1 > lineLength {
			b = append(b, crlf...)
			line = len(b)
			b = append(b, "  "...)
		}
		b = append(append(b, name...), end)
	}
	b = base64.StdEncoding.AppendEncode(append(b, "\r\n bh="...), bodyHash[:])
	return append(b, ";\r\n b="...)
}

func appendFoldedBase64(b, data []byte) []byte {
	text := base64.StdEncoding.AppendEncode(nil, data)
	for first := true; len(text) > 0; first = false {
		n := lineLength - 2
		if first {
			n = lineLength - len(" b=")
		} else {
			b = append(b, "\r\n  "...)
		}
		n = min(n, len(text))
		b = append(b, text[:n]...)
		text = text[n:]
	}
	return b
}
