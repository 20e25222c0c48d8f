package smtpd

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"relayd/internal/mail"
)

// Limits of one command line with its CRLF: RFC 5321 section 4.5.3.1.4 and what the extensions add to it, SIZE
// (RFC 1870 section 3) 26, BODY (RFC 6152) 17, AUTH (RFC 4954 section 5) 500, DSN (RFC 3461 section 5) 100 and 500,
// SMTPUTF8 (RFC 6531 section 3.4) 10, REQUIRETLS (RFC 8689) 11, FUTURERELEASE (RFC 4865 section 4) 34.
const (
	maxCommand = 512
	maxMail    = maxCommand + 26 + 17 + 500 + 100 + 9 + 10 + 11 + 34
	maxRcpt    = maxCommand + 500
	maxEnvID   = 100
	maxORCPT   = 500
)

// MaxHold bounds HOLDFOR and HOLDUNTIL (RFC 4865).
const MaxHold = 30 * 24 * time.Hour

// command is one command line: the verb in upper case, and what stands behind the first blank.
type command struct{ verb, arg string }

// parseCommand splits a line. Arguments hold printable ASCII only, but for the paths of MAIL and RCPT, which may hold
// UTF-8 where SMTPUTF8 is said (RFC 6531 section 3.3): mail.ParsePath and the session look at them.
func parseCommand(line []byte) (command, *mail.Error) {
	eight := false
	for _, c := range line {
		if c < ' ' || c == 0x7f {
			return command{}, refuse(500, 5, 2, "Command has a control character")
		}
		eight = eight || c >= 0x80
	}
	verb, arg, _ := bytes.Cut(line, []byte{' '})
	c := command{strings.ToUpper(string(verb)), string(bytes.TrimRight(arg, " "))}
	if eight && (c.verb != "MAIL" && c.verb != "RCPT" || len(c.verb) != len(verb) || !utf8.Valid(line)) { // ToUpper("\u0131") is "I"
		return command{}, refuse(500, 5, 2, "Command has a character that is not printable ASCII")
	}
	most := maxCommand
	switch c.verb {
	case "MAIL":
		most = maxMail
	case "RCPT":
		most = maxRcpt
	case "AUTH":
		most = maxLine
	}
	if len(line)+2 > most {
		return c, refuse(500, 5, 2, "Command line is longer than "+strconv.Itoa(most)+" octets")
	}
	return c, nil
}

// isHTTP tells the verbs with which a browser that was led to this port begins.
func (c command) isHTTP() bool {
	switch c.verb {
	case "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "PATCH", "TRACE", "PRI":
		return true
	}
	return false
}

// parseHello checks the argument of EHLO and HELO, which goes into Received: a host name or an address literal. Names
// are not checked further, real clients send their NetBIOS names.
func parseHello(arg string) (string, *mail.Error) {
	if arg == "" || len(arg) > 255 {
		return "", refuse(501, 5, 4, "Say who you are: a host name or an address literal")
	}
	for i := range len(arg) {
		c := arg[i]
		if !isAlnum(c) && !strings.ContainsRune(".-_:[]", rune(c)) {
			return "", refuse(501, 5, 4, "That is neither a host name nor an address literal")
		}
	}
	return arg, nil
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// mailArgs are the arguments of MAIL.
type mailArgs struct {
	from       mail.Path // null for <>
	size       int64     // 0 for none
	envID      string    // as given, xtext
	retHeaders bool
	retFull    bool
	utf8       bool          // SMTPUTF8
	binary     bool          // BODY=BINARYMIME
	requireTLS bool          // REQUIRETLS
	holdFor    time.Duration // HOLDFOR, 0 for none
	holdUntil  time.Time     // HOLDUNTIL, zero for none
}

// parseMail reads "FROM:<path> parameters".
func parseMail(arg string) (mailArgs, *mail.Error) {
	var m mailArgs
	path, params, err := cutPath(arg, "FROM:")
	if err != nil {
		return m, err
	}
	if path != "" {
		p, perr := mail.ParsePath(path)
		if perr != nil {
			return m, mail.Refuse(553, mail.Status{Class: 5, Subject: 1, Detail: 7}, "Reverse-path is not a mail address", perr)
		}
		m.from = p
	}
	if !isASCII(params) {
		return m, refuse(501, 5, 4, "Parameter has a character that is not printable ASCII")
	}
	if err := eachParam(params, m.param); err != nil {
		return m, err
	}
	switch {
	case !m.utf8 && !isASCII(path):
		return m, refuse(553, 6, 7, "Addresses outside ASCII need SMTPUTF8")
	case m.holdFor > 0 && !m.holdUntil.IsZero(): // RFC 4865 section 4.1
		return m, refuse(501, 5, 4, "HOLDFOR and HOLDUNTIL exclude each other")
	}
	return m, nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func (m *mailArgs) param(key, value string) *mail.Error {
	switch key {
	case "SIZE": // RFC 1870 section 3: at most 20 digits
		n, err := strconv.ParseUint(value, 10, 63)
		if len(value) > 20 || value == "" || err != nil && strings.Trim(value, "0123456789") != "" {
			return refuse(501, 5, 4, "SIZE is not a number")
		}
		if err != nil { // beyond 63 bits
			n = 1<<63 - 1
		}
		m.size = int64(n) //nolint:gosec // 63 bits
	case "BODY": // RFC 6152, RFC 3030 section 3
		switch strings.ToUpper(value) {
		case "7BIT", "8BITMIME":
		case "BINARYMIME":
			m.binary = true
		default:
			return refuse(501, 5, 4, "BODY is neither 7BIT nor 8BITMIME nor BINARYMIME")
		}
	case "RET": // RFC 3461 section 4.3
		switch strings.ToUpper(value) {
		case "FULL":
			m.retFull = true
		case "HDRS":
			m.retHeaders = true
		default:
			return refuse(501, 5, 4, "RET is neither FULL nor HDRS")
		}
	case "ENVID": // RFC 3461 section 4.4
		if len(value) > maxEnvID || !isXtext(value) {
			return refuse(501, 5, 4, "ENVID is not printable xtext of 1 to 100 characters")
		}
		m.envID = value
	case "AUTH": // RFC 4954 section 5: who submitted it first; our own credential decides instead
		if !isXtext(value) {
			return refuse(501, 5, 4, "AUTH is not xtext")
		}
	case "SMTPUTF8": // RFC 6531 section 3.4
		if value != "" {
			return refuse(501, 5, 4, "SMTPUTF8 has no value")
		}
		m.utf8 = true
	case "REQUIRETLS": // RFC 8689 section 3
		if value != "" {
			return refuse(501, 5, 4, "REQUIRETLS has no value")
		}
		m.requireTLS = true
	case "HOLDFOR": // RFC 4865 section 4: future-release-integer = %x31-39 *8DIGIT
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || value[0] == '0' || len(value) > 9 || time.Duration(n)*time.Second > MaxHold {
			return refuse(501, 5, 4, "HOLDFOR is not a number of seconds from 1 to "+strconv.Itoa(int(MaxHold/time.Second)))
		}
		m.holdFor = time.Duration(n) * time.Second
	case "HOLDUNTIL": // RFC 4865 section 4 with erratum 2040
		at, ok := parseDateTime(value)
		if !ok {
			return refuse(501, 5, 4, "HOLDUNTIL is not a time like 2026-11-20T12:00:00Z")
		}
		m.holdUntil = at
	default:
		return refuse(555, 5, 4, "MAIL parameter is not known here")
	}
	return nil
}

// parseDateTime reads date-time (RFC 3339 section 5.6), in which 't' and 'z' may be lower case. time.Parse takes more
// (golang/go#54580): an hour of one digit, a comma before the fraction, an offset of 24 hours or of 60 minutes.
func parseDateTime(s string) (time.Time, bool) {
	s = strings.ToUpper(s)
	at, err := time.Parse(time.RFC3339, s)
	if err != nil || s[len("2006-01-02T15")] != ':' || strings.Contains(s, ",") {
		return time.Time{}, false
	}
	if !strings.HasSuffix(s, "Z") {
		if offset := s[len(s)-len("24:00"):]; offset[:2] > "23" || offset[3:] > "59" {
			return time.Time{}, false
		}
	}
	return at.UTC(), true
}

// rcptArgs are the arguments of RCPT.
type rcptArgs struct {
	to     mail.Path
	notify string // as given, in upper case
	orcpt  string // as given
}

// parseRcpt reads "TO:<path> parameters". Where host is not empty, the path <Postmaster> is that of the host (RFC 5321
// section 4.5.1).
func parseRcpt(arg, host string) (rcptArgs, *mail.Error) {
	var r rcptArgs
	path, params, err := cutPath(arg, "TO:")
	if err != nil {
		return r, err
	}
	if host != "" && strings.EqualFold(path, "postmaster") {
		path += "@" + host
	}
	p, perr := mail.ParsePath(path)
	if perr != nil {
		return r, mail.Refuse(501, mail.Status{Class: 5, Subject: 1, Detail: 3}, "Forward-path is not a mail address", perr)
	}
	r.to = p
	return r, eachParam(params, r.param)
}

func (r *rcptArgs) param(key, value string) *mail.Error {
	switch key {
	case "NOTIFY": // RFC 3461 section 4.1
		v := strings.ToUpper(value)
		if !isNotify(v) {
			return refuse(501, 5, 4, "NOTIFY is neither NEVER nor a list of SUCCESS, FAILURE, DELAY")
		}
		r.notify = v
	case "ORCPT": // RFC 3461 section 4.2
		kind, addr, found := strings.Cut(value, ";")
		if strings.EqualFold(kind, "utf-8") { // any of its forms, kept as one that needs no SMTPUTF8 (RFC 6533 section 3)
			addr = embedUnicode(addr)
		}
		if !found || len(kind)+1+len(addr) > maxORCPT || !isAtom(kind) || !isXtext(addr) {
			return refuse(501, 5, 4, "ORCPT is not an address type, ';' and printable xtext")
		}
		r.orcpt = kind + ";" + addr
	default:
		return refuse(555, 5, 4, "RCPT parameter is not known here")
	}
	return nil
}

func isNotify(v string) bool {
	if v == "NEVER" {
		return true
	}
	seen := map[string]bool{}
	for word := range strings.SplitSeq(v, ",") {
		if seen[word] || word != "SUCCESS" && word != "FAILURE" && word != "DELAY" {
			return false
		}
		seen[word] = true
	}
	return true
}

func isAtom(s string) bool {
	for i := range len(s) {
		if !isAlnum(s[i]) && s[i] != '-' {
			return false
		}
	}
	return s != ""
}

// isXtext takes xtext (RFC 3461 section 4) of at least one character that decodes to printable ASCII.
func isXtext(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch c {
		case '=':
			return false
		case '+':
			if i+2 >= len(s) || !isUpperHex(s[i+1]) || !isUpperHex(s[i+2]) {
				return false
			}
			v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return false
			}
			c = byte(v)
			i += 2
		}
		if c < ' ' || c > '~' {
			return false
		}
	}
	return s != ""
}

// embedUnicode writes what is not ASCII as utf-8-addr-xtext does. A control character stays as it is, for isXtext to see.
func embedUnicode(s string) string {
	if isASCII(s) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if r < utf8.RuneSelf || !unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\x{%X}`, r)
		}
	}
	return b.String()
}

func isUpperHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'A' && c <= 'F' }

// cutPath takes "FROM:<path>" apart; the path comes without its brackets.
// Deviation: RFC 5321 section 3.3 forbids blanks behind the colon; many clients send one.
func cutPath(arg, keyword string) (path, params string, err *mail.Error) {
	if len(arg) < len(keyword) || !strings.EqualFold(arg[:len(keyword)], keyword) {
		return "", "", refuse(501, 5, 4, "Syntax: "+keyword+"<address>")
	}
	s := strings.TrimLeft(arg[len(keyword):], " ")
	if !strings.HasPrefix(s, "<") {
		return "", "", refuse(501, 5, 4, "Syntax: "+keyword+"<address>")
	}
	end := pathEnd(s)
	if end < 0 {
		return "", "", refuse(501, 5, 4, "Syntax: "+keyword+"<address>")
	}
	params = s[end+1:]
	if params != "" && params[0] != ' ' {
		return "", "", refuse(501, 5, 4, "Address and parameters are not separated by a blank")
	}
	return s[1:end], strings.Trim(params, " "), nil
}

// pathEnd finds the '>' that is not inside a quoted local part.
func pathEnd(s string) int {
	quoted := false
	for i := 1; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == '>' && !quoted:
			return i
		}
	}
	return -1
}

// eachParam hands every esmtp-param (RFC 5321 section 4.1.2) to fn, the key in upper case. None may come twice.
func eachParam(params string, fn func(key, value string) *mail.Error) *mail.Error {
	var seen []string
	for word := range strings.FieldsFuncSeq(params, func(r rune) bool { return r == ' ' }) {
		key, value, found := strings.Cut(word, "=")
		key = strings.ToUpper(key)
		if !isAtom(key) || found && value == "" || strings.Contains(value, "=") && key != "AUTH" {
			return refuse(501, 5, 4, "Parameter is malformed")
		}
		if slices.Contains(seen, key) {
			return refuse(501, 5, 4, "Parameter is given twice")
		}
		seen = append(seen, key)
		if err := fn(key, value); err != nil {
			return err
		}
	}
	return nil
}
