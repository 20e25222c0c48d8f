package smtpd

import (
	"context"
	"log/slog"
	"strings"
)

// transcribe writes the dialogue to the log where its level is debug: commands and replies, never a secret and never
// a message.
func (s *session) transcribe() {
	if !s.srv.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	s.wire.said = func(reply string) {
		if strings.HasPrefix(reply, "334 ") { // salt and signature of SCRAM are enough to guess a password
			reply = "334 ***"
		}
		s.srv.log.Debug("reply.sent", "session", s.id, "line", strings.TrimSuffix(reply, "\r\n"))
	}
}

// trace notes a command. What is behind AUTH is a secret; so may be what is no command at all: a password typed too late.
func (s *session) trace(c command) {
	if s.wire.said == nil {
		return
	}
	line := "***"
	switch c.verb {
	case "AUTH":
		mech, _, more := strings.Cut(c.arg, " ")
		if line = "AUTH ***"; len(mech) <= 20 && isAtom(mech) {
			if line = "AUTH " + mech; more {
				line += " ***"
			}
		}
	case "EHLO", "HELO", "STARTTLS", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "VRFY", "HELP", "QUIT", "EXPN":
		if line = c.verb; c.arg != "" {
			line += " " + c.arg
		}
	}
	s.srv.log.Debug("command.received", "session", s.id, "line", line)
}
