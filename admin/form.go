package admin

import (
	"bytes"
	"mime"
	"net/textproto"
	"net/url"
	"strings"
)

// formOf tells what the body of an unsubscribe request asks for. It looks at the body alone: what mailbox providers say
// about it in Content-Type is not always right, and the example of RFC 8058 has another boundary in its header than in
// its body (errata 5117, 5559).
func formOf(body []byte) string {
	if len(bytes.TrimSpace(body)) == 0 {
		return formEmpty
	}
	fields := urlencodedFields
	if bytes.HasPrefix(bytes.TrimLeft(body, "\r\n"), []byte("--")) {
		fields = multipartFields
	}
	form := formOther
	fields(body, func(name, value string) {
		switch {
		case strings.EqualFold(name, "List-Unsubscribe") && strings.EqualFold(value, "One-Click"):
			form = formOneClick
		case name == "confirm" && value == "1" && form == formOther:
			form = formPage
		}
	})
	return form
}

func urlencodedFields(body []byte, field func(name, value string)) {
	for pair := range strings.SplitSeq(string(bytes.TrimSpace(body)), "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(name)
		if err != nil {
			continue
		}
		if value, err = url.QueryUnescape(value); err != nil {
			continue
		}
		field(strings.TrimSpace(name), strings.TrimSpace(value))
	}
}

// multipartFields reads multipart/form-data leniently: the first line is the delimiter, whatever the header of the request
// says, lines may end in LF, and the closing delimiter may be missing.
func multipartFields(body []byte, field func(name, value string)) {
	lines := strings.Split(strings.ReplaceAll(strings.TrimLeft(string(body), "\r\n"), "\r\n", "\n"), "\n")
	delimiter := strings.TrimRight(lines[0], " \t")
	if len(delimiter) < 3 {
		return
	}
	name, value, inHeader := "", []string(nil), true
	for _, line := range lines[1:] {
		switch {
		case strings.HasPrefix(line, delimiter):
			if name != "" {
				field(name, strings.TrimSpace(strings.Join(value, "\n")))
			}
			name, value, inHeader = "", nil, true
		case inHeader && strings.TrimSpace(line) == "":
			inHeader = false
		case inHeader:
			if n := partName(line); n != "" {
				name = n
			}
		default:
			value = append(value, line)
		}
	}
	if name != "" {
		field(name, strings.TrimSpace(strings.Join(value, "\n")))
	}
}

// partName returns the name in a Content-Disposition line, "" for any other.
func partName(line string) string {
	key, value, ok := strings.Cut(line, ":")
	if !ok || textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(key)) != "Content-Disposition" {
		return ""
	}
	_, params, err := mime.ParseMediaType(value)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(params["name"])
}
