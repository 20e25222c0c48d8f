package smtpd

import (
	"errors"
	"strconv"

	"relayd/internal/mail"
)

// maxText keeps a reply within 512 octets (RFC 5321 section 4.5.3.1.5).
const maxText = 480

// appendReply appends r as one line. A reply that should have an enhanced status code and has none gets class.0.0
// (RFC 2034 section 4). What is not printable ASCII becomes '?'.
func appendReply(b []byte, r mail.Reply) []byte {
	b = strconv.AppendInt(b, int64(r.Code), 10)
	class := r.Code / 100
	if r.Status.IsZero() && class != 3 {
		r.Status.Class = class
	}
	if !r.Status.IsZero() {
		b = append(append(b, ' '), r.Status.String()...)
	}
	b = append(b, ' ')
	for i := range min(len(r.Text), maxText) {
		c := r.Text[i]
		if c < ' ' || c > '~' {
			c = '?'
		}
		b = append(b, c)
	}
	return append(b, "\r\n"...)
}

// replyOf is the one place where an error becomes a reply. What is not a *mail.Error with a 4yz or 5yz reply is our
// own fault, and temporary.
func replyOf(err error) mail.Reply {
	r := mail.ReplyOf(err)
	if r.Code < 400 || r.Code > 599 {
		r = mail.ReplyOf(errors.New("no reply"))
	}
	return r
}

func ok(subject, detail int, text string) mail.Reply {
	return mail.Reply{Code: 250, Status: mail.Status{Class: 2, Subject: subject, Detail: detail}, Text: text}
}

// refuse makes the refusal of a command. The class of the status is that of the code.
func refuse(code, subject, detail int, text string) *mail.Error {
	return mail.Refuse(code, mail.Status{Class: code / 100, Subject: subject, Detail: detail}, text, nil)
}
