package main

import (
	"fmt"
	"io"
	"net"
	"strings"

	"relayd/internal/mail"
)

// dialogue writes down an SMTP session line by line from what both sides say, in the order in which they say it. It
// needs no word about who speaks: SMTP without pipelining takes turns. Secrets and the message itself are not kept.
type dialogue struct {
	out   io.Writer // nil: only remember
	lines []string

	part     string // of a line that is not complete
	client   bool   // the client's turn
	auth     bool   // the client answers a challenge
	data     bool   // the client sends the message
	last     string // the command that the server answers
	size     int
	deaf     bool // under STARTTLS: what passes below is not for reading
	offered  bool // STARTTLS was offered
	answered bool // the server has answered EHLO
}

// Write takes what was read or written.
func (d *dialogue) Write(p []byte) (int, error) {
	if d.deaf {
		return len(p), nil
	}
	text := d.part + string(p)
	for {
		line, rest, ok := strings.Cut(text, "\n")
		if !ok {
			break
		}
		text = rest
		d.line(strings.TrimSuffix(line, "\r"))
	}
	d.part = text
	return len(p), nil
}

func (d *dialogue) line(s string) {
	switch {
	case d.data:
		d.size += len(s) + 2
		if s == "." {
			d.data, d.client = false, false
			d.show("C: (" + plural(d.size-3, "octet", "octets") + ")")
		}
	case d.client:
		d.command(s)
	default:
		d.reply(s)
	}
}

func (d *dialogue) command(s string) {
	d.client = false
	verb, _, _ := strings.Cut(s, " ")
	switch {
	case d.auth:
		s = "***"
	case strings.EqualFold(verb, "AUTH"):
		if f := strings.Fields(s); len(f) > 2 {
			s = f[0] + " " + f[1] + " ***"
		}
	}
	d.auth = false
	d.last = strings.ToUpper(verb)
	d.show("C: " + s)
}

func (d *dialogue) reply(s string) {
	d.show("S: " + s)
	if strings.HasSuffix(strings.ToUpper(s), "STARTTLS") {
		d.offered = true
	}
	if len(s) > 3 && s[3] == '-' {
		return // more lines follow
	}
	d.client = true
	switch {
	case strings.HasPrefix(s, "334"):
		d.auth = true
	case strings.HasPrefix(s, "354"):
		d.data, d.size = true, 0
	case d.last == "EHLO" || d.last == "HELO":
		d.answered = true
	case d.last == "STARTTLS" && strings.HasPrefix(s, "220"):
		d.deaf = true
	}
}

func (d *dialogue) show(s string) {
	s = mail.CleanText(s, 2000)
	d.lines = append(d.lines, s)
	if d.out != nil {
		fmt.Fprintln(d.out, s)
	}
}

// note is a remark of our own.
func (d *dialogue) note(s string) {
	*d = dialogue{out: d.out, lines: d.lines}
	d.show("   (" + s + ")")
}

// encrypted goes on with what is said inside TLS: it is the client's turn.
func (d *dialogue) encrypted() {
	d.note("TLS begins")
	d.client = true
}

// noStartTLS tells that the server answered EHLO and did not offer STARTTLS.
func (d *dialogue) noStartTLS() bool { return d.answered && !d.offered }

// heardConn lets a dialogue hear both directions of a connection until d is nil.
type heardConn struct {
	net.Conn
	d *dialogue
}

func (c *heardConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.d != nil {
		_, _ = c.d.Write(p[:n])
	}
	return n, err
}

func (c *heardConn) Write(p []byte) (int, error) {
	if c.d != nil {
		_, _ = c.d.Write(p)
	}
	return c.Conn.Write(p)
}
