package testutil

import (
	"fmt"
	"strings"
)

// Message returns a plain message of about size octets with CRLF line ends; some lines begin with a dot.
func Message(from, to, subject string, size int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "From: <%s>\r\nTo: <%s>\r\nSubject: %s\r\nDate: Fri, 20 Nov 2026 12:00:00 +0000\r\n"+
		"Message-ID: <%s@test.example>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n",
		from, to, subject, strings.NewReplacer(" ", ".", "<", "", ">", "").Replace(subject))
	b.WriteString(Body(size - b.Len()))
	return b.String()
}

// Body returns at least one line, about size octets.
func Body(size int) string {
	var b strings.Builder
	for i := 0; b.Len() == 0 || b.Len() < size; i++ {
		if i%7 == 3 {
			b.WriteByte('.')
		}
		fmt.Fprintf(&b, "line %06d of a message that says nothing at all to anybody who reads it\r\n", i)
	}
	return b.String()
}
