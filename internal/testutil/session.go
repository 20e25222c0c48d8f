package testutil

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5" //nolint:gosec // CRAM-MD5
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

type mxSession struct {
	mx      *MX
	id      int
	conn    net.Conn
	r       *bufio.Reader
	w       *bufio.Writer
	tls     string
	user    string
	mail    *Mail
	chunks  []byte // of BDAT
	taken   int
	heloed  bool
	closing bool
}

func (s *mxSession) attach(c net.Conn) {
	s.conn, s.r, s.w = c, bufio.NewReaderSize(c, 64<<10), bufio.NewWriter(c)
}

func (s *mxSession) handshake() bool {
	c := tls.Server(s.conn, s.mx.TLS)
	if c.HandshakeContext(context.Background()) != nil {
		return false
	}
	s.attach(c)
	s.tls = strings.ReplaceAll(tls.VersionName(c.ConnectionState().Version), " ", "")
	return true
}

func (s *mxSession) serve() {
	s.attach(s.conn)
	defer func() { _ = s.w.Flush() }()
	if s.mx.Implicit && !s.handshake() {
		return
	}
	if !s.step("CONNECT", "", "220 "+s.mx.Hostname+" ESMTP") {
		return
	}
	for !s.closing {
		if s.r.Buffered() == 0 && s.w.Flush() != nil {
			return
		}
		line, err := s.r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		verb, arg, _ := strings.Cut(line, " ")
		verb = strings.ToUpper(verb)
		s.mx.note(func() { s.mx.commands = append(s.mx.commands, line) })
		if !s.command(verb, arg) {
			return
		}
	}
}

func (s *mxSession) command(verb, arg string) bool {
	switch verb {
	case "EHLO":
		lines := append([]string{s.mx.Hostname}, s.mx.Extensions...)
		if s.mx.offersTLS() && s.tls == "" {
			lines = append(lines, "STARTTLS")
		}
		if s.mx.Auth != "" {
			lines = append(lines, "AUTH "+s.mx.Auth)
		}
		s.heloed = true
		return s.step(verb, arg, "250-"+strings.Join(lines[:len(lines)-1], "\n250-")+"\n250 "+lines[len(lines)-1])
	case "HELO":
		s.heloed = true
		return s.step(verb, arg, "250 "+s.mx.Hostname)
	case "STARTTLS":
		return s.startTLS(arg)
	case "AUTH":
		return s.auth(arg)
	case "MAIL":
		from, ok := path(arg, "FROM:")
		if !ok || !s.heloed || s.mail != nil {
			return s.say("503 5.5.1 bad sequence or syntax")
		}
		s.mail = &Mail{From: from, TLS: s.tls, Session: s.id, MailArg: arg, User: s.user}
		ok = s.step(verb, arg, "250 2.1.0 ok")
		return ok
	case "RCPT":
		to, ok := path(arg, "TO:")
		if !ok || s.mail == nil {
			return s.say("503 5.5.1 MAIL first")
		}
		return s.rcpt(arg, to)
	case "DATA":
		if s.mail == nil || len(s.mail.To) == 0 {
			return s.say("503 5.5.1 RCPT first")
		}
		return s.data(arg)
	case "BDAT":
		return s.chunk(arg)
	case "RSET":
		s.mail, s.chunks = nil, nil
		return s.step(verb, arg, "250 2.0.0 ok")
	case "NOOP":
		return s.step(verb, arg, "250 2.0.0 ok")
	case "QUIT":
		s.closing = true
		return s.step(verb, arg, "221 2.0.0 bye")
	}
	return s.step(verb, arg, "500 5.5.2 what?")
}

func path(arg, prefix string) (string, bool) {
	if len(arg) < len(prefix)+2 || !strings.EqualFold(arg[:len(prefix)], prefix) || arg[len(prefix)] != '<' {
		return "", false
	}
	p, _, ok := strings.Cut(arg[len(prefix)+1:], ">")
	return p, ok
}

func (s *mxSession) rcpt(arg, to string) bool {
	reply, act := s.ask("RCPT", arg, to, "250 2.1.5 ok")
	if strings.HasPrefix(reply, "2") {
		s.mail.To = append(s.mail.To, to)
		s.mail.RcptArg = append(s.mail.RcptArg, arg)
	}
	return s.do(act, reply)
}

func (s *mxSession) data(arg string) bool {
	reply, act := s.ask("DATA", arg, "", "354 go on")
	if !s.do(act, reply) || !strings.HasPrefix(reply, "354") {
		s.mail = nil
		return !act.Drop && !act.Reset
	}
	if s.w.Flush() != nil {
		return false
	}
	data, err := s.readData()
	if err != nil {
		return false
	}
	return s.finish(data)
}

// finish answers the end of a message.
func (s *mxSession) finish(data []byte) bool {
	s.mail.Data, s.mail.At = data, time.Now()
	reply, act := s.ask("DOT", "", "", "250 2.0.0 taken")
	taken := s.mail
	s.mail = nil
	if strings.HasPrefix(reply, "2") {
		s.taken++
		if s.mx.Received != nil {
			s.mx.Received(taken)
		}
		s.mx.note(func() { s.mx.mails = append(s.mx.mails, taken) })
	}
	return s.do(act, reply)
}

func (s *mxSession) readData() ([]byte, error) {
	var data []byte
	var faults []string
	for {
		line, err := s.r.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) {
			faults = append(faults, "endless line")
			line, err = s.r.ReadSlice('\n')
		}
		if err != nil {
			return nil, err
		}
		text, ok := bytes.CutSuffix(line, []byte("\r\n"))
		switch {
		case !ok:
			faults = append(faults, "bare LF")
		case bytes.IndexByte(text, '\r') >= 0:
			faults = append(faults, "bare CR")
		case bytes.IndexByte(text, 0) >= 0:
			faults = append(faults, "NUL")
		case len(text) > 999:
			faults = append(faults, fmt.Sprintf("line of %d octets", len(text)))
		}
		if ok && len(text) == 1 && text[0] == '.' {
			break
		}
		data = append(data, bytes.TrimPrefix(line, []byte("."))...)
	}
	if len(faults) > 0 {
		s.mx.note(func() { s.mx.faults = append(s.mx.faults, faults...) })
	}
	return data, nil
}

func (s *mxSession) startTLS(arg string) bool {
	reply, act := s.ask("STARTTLS", arg, "", "220 2.0.0 go on")
	if s.mx.TLS == nil && act.Reply == "" && !act.BadTLS {
		return s.say("502 5.5.1 no TLS")
	}
	if act.BadTLS {
		_ = s.say("220 2.0.0 go on")
		_ = s.say("this is not TLS")
		_ = s.w.Flush()
		_, _ = io.CopyN(io.Discard, s.conn, 1)
		return false
	}
	if !s.do(act, reply) || !strings.HasPrefix(reply, "220") {
		return !act.Drop
	}
	_ = s.w.Flush()
	s.heloed, s.mail = false, nil
	return s.handshake()
}

// auth knows PLAIN, LOGIN and CRAM-MD5.
func (s *mxSession) auth(arg string) bool {
	reply, act := s.ask("AUTH", arg, "", "235 2.7.0 welcome")
	mech, first, _ := strings.Cut(arg, " ")
	ask := func(challenge string) string {
		_ = s.say("334 " + base64.StdEncoding.EncodeToString([]byte(challenge)))
		_ = s.w.Flush()
		line, _ := s.r.ReadString('\n')
		b, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(line))
		return string(b)
	}
	initial := func(challenge string) string {
		if first == "" {
			return ask(challenge)
		}
		b, _ := base64.StdEncoding.DecodeString(first)
		return string(b)
	}
	user, ok := "", false
	switch strings.ToUpper(mech) {
	case "PLAIN":
		if f := strings.Split(initial(""), "\x00"); len(f) == 3 {
			user, ok = f[1], s.mx.Users[f[1]] == f[2]
		}
	case "LOGIN":
		user = initial("User Name") // as Exim's manual has it; others ask in other words
		ok = s.mx.Users[user] == ask("Password")
	case "CRAM-MD5":
		const challenge = "<1.2@mx.test>"
		var sum string
		user, sum, _ = strings.Cut(ask(challenge), " ")
		h := hmac.New(md5.New, []byte(s.mx.Users[user]))
		h.Write([]byte(challenge))
		ok = sum == hex.EncodeToString(h.Sum(nil))
	}
	if _, known := s.mx.Users[user]; act.Reply == "" && (!ok || !known) {
		reply = "535 5.7.8 bad credentials"
	} else if act.Reply == "" {
		s.user = user
	}
	return s.do(act, reply)
}

// ask asks the rule about a step.
func (s *mxSession) ask(verb, arg, to, usual string) (reply string, act Act) {
	step := Step{Verb: verb, Arg: arg, To: to, Session: s.id, Message: s.taken, TLS: s.tls != ""}
	if s.mail != nil {
		step.From = s.mail.From
	}
	s.mx.note(func() {
		step.Seen = s.mx.seen[verb]
		s.mx.seen[verb]++
	})
	if s.mx.Rule != nil {
		act = s.mx.Rule(step)
	}
	if act.Reply != "" {
		return act.Reply, act
	}
	return usual, act
}

// do carries an act out and tells whether the session goes on.
func (s *mxSession) do(act Act, reply string) bool {
	if act.Stall != nil {
		_ = s.w.Flush()
		select {
		case <-act.Stall:
		case <-s.mx.done:
			return false
		}
	}
	if act.Reset {
		_ = s.w.Flush()
		if c, ok := s.conn.(*net.TCPConn); ok {
			_ = c.SetLinger(0)
		}
		_ = s.conn.Close()
		return false
	}
	_, _ = s.w.Write(act.Raw)
	if act.Drop && act.Reply == "" {
		_ = s.w.Flush()
		return false
	}
	if !act.Swallow {
		_ = s.say(reply)
	}
	return !act.Drop
}

func (s *mxSession) step(verb, arg, usual string) bool {
	reply, act := s.ask(verb, arg, "", usual)
	if verb == "MAIL" && !strings.HasPrefix(reply, "2") {
		s.mail = nil
	}
	return s.do(act, reply)
}

func (s *mxSession) say(reply string) bool {
	_, err := s.w.WriteString(strings.ReplaceAll(reply, "\n", "\r\n") + "\r\n")
	return err == nil
}
