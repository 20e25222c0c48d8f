package smtpd

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"

	"github.com/emersion/go-sasl"

	"relayd/internal/account"
	"relayd/internal/mail"
)

var errAuthFailed = refuse(535, 7, 8, "Authentication credentials are invalid")

// Verifiers is what an Authenticator must be able to do for SCRAM to be offered: account.Store. For a name that it does
// not know it returns account.ErrBadCredentials, with a verifier that looks like any other.
type Verifiers interface {
	Scram(ctx context.Context, username string) (account.Credential, account.Scram, error)
}

// mechanisms are those that are offered now, in this order.
func (s *session) mechanisms() []string {
	list := []string{sasl.Plain, sasl.Login}
	if _, ok := s.srv.deps.Authenticator.(Verifiers); ok {
		list = append(list, scramSHA256)
		if s.tls != "" {
			list = append(list, scramSHA256Plus)
		}
	}
	if s.srv.oauth != nil {
		list = append(list, sasl.OAuthBearer)
	}
	if len(s.certCredentials()) > 0 {
		list = append(list, sasl.External)
	}
	return list
}

// auth runs one AUTH exchange (RFC 4954). Nothing of it is logged but its result and, when it was right, the user.
func (s *session) auth(ctx context.Context, arg string) {
	name, initial, hasInitial := strings.Cut(arg, " ")
	name = strings.ToUpper(name)
	switch {
	case s.lis.policy.mayAuth(s) != nil:
		s.refuse(s.lis.policy.mayAuth(s)) // before anything of the argument is looked at
		return
	case s.helo == "":
		s.refuse(errHelloFirst)
		return
	case s.tx != nil:
		s.refuse(refuse(503, 5, 1, "AUTH is not allowed in a mail transaction"))
		return
	case s.cred != nil:
		s.refuse(refuse(503, 5, 1, "Already authenticated"))
		return
	case !slices.Contains(s.mechanisms(), name):
		s.refuse(refuse(504, 5, 4, "Mechanism is not known here, use one of "+strings.Join(s.mechanisms(), " ")))
		return
	}
	var got login
	mech := s.mechanism(ctx, name, &got)
	err := s.exchange(mech, initial, hasInitial)
	if s.closing {
		return
	}
	if b, ok := mech.(*bearerServer); ok && b.failed != nil { // it counts, whatever the client answered to the reason
		err = b.failed
	}
	if err == nil && got.cred == nil {
		err = errAuthFailed
	}
	if err != nil {
		s.authRefused(ctx, err, &got)
		return
	}
	if !s.srv.limits.login(s.place, got.cred.Account) {
		s.srv.metrics.rejected.WithLabelValues("connections_per_account").Inc()
		s.end(refuse(421, 7, 0, "Too many connections of this account"), "connections_per_account")
		return
	}
	s.cred = got.cred
	s.srv.metrics.auth.WithLabelValues("ok").Inc()
	s.wire.reply(mail.Reply{Code: 235, Status: mail.Status{Class: 2, Subject: 7}, Text: "Authenticated"})
}

// login is what an exchange has found out.
type login struct {
	username string              // as the client gave it, "" before it did
	cred     *account.Credential // nil unless the secret was right
	counted  bool                // as a failure
}

// mechanism returns the SASL server of that name, which must be one of mechanisms.
func (s *session) mechanism(ctx context.Context, name string, got *login) sasl.Server {
	check := func(username, password string) error {
		got.username = username
		if username == "" || password == "" || len(username) > 255 || len(password) > 1024 {
			return errAuthFailed
		}
		c, err := s.srv.deps.Authenticator.Authenticate(ctx, username, password)
		if err != nil {
			return authError(err)
		}
		got.cred = &c
		return nil
	}
	switch name {
	case sasl.Plain:
		return sasl.NewPlainServer(func(identity, username, password string) error {
			if identity != "" && identity != username { // nobody may act for another
				return errAuthFailed
			}
			return check(username, password)
		})
	case sasl.Login:
		return &loginServer{check: check}
	case sasl.OAuthBearer:
		return &bearerServer{check: func(identity, token string) error {
			cred, username, err := s.srv.oauth.check(token, s.srv.deps.Now())
			got.username = username
			if err == nil && identity != "" && identity != cred.Username { // nobody may act for another
				err = errAuthFailed
			}
			switch {
			case err == nil:
				got.cred = cred
			case errors.Is(err, errAuthFailed): // now: a client that has read why may hang up
				s.authFailed(ctx, got)
			}
			return err
		}}
	case sasl.External:
		return s.external(got)
	}
	return s.scram(ctx, name == scramSHA256Plus, got)
}

func (s *session) scram(ctx context.Context, plus bool, got *login) sasl.Server {
	verifiers, _ := s.srv.deps.Authenticator.(Verifiers)
	var cred *account.Credential
	return &scramServer{
		find: func(username string) account.Scram {
			got.username = username
			c, v, err := verifiers.Scram(ctx, username)
			if err == nil {
				cred = &c
			}
			return v
		},
		right:   func() { got.cred = cred },
		binding: func(kind string) ([]byte, bool) { return channelBinding(s.state, s.cert, kind) },
		plus:    plus,
		offered: s.tls != "",
		nonce:   newNonce(),
	}
}

// authError is what the client is told of an error of the Authenticator.
func authError(err error) error {
	if errors.Is(err, account.ErrBadCredentials) {
		return errAuthFailed
	}
	return mail.Refuse(454, mail.Status{Class: 4, Subject: 7}, "Temporary authentication failure", err)
}

// exchange feeds the client's responses to mech until it is done.
func (s *session) exchange(mech sasl.Server, initial string, hasInitial bool) error {
	var response []byte
	if hasInitial {
		var err error
		if response, err = decodeResponse(strings.TrimSpace(initial)); err != nil {
			return err
		}
	}
	for {
		challenge, done, err := mech.Next(response)
		if err != nil {
			if _, ok := errors.AsType[*mail.Error](err); !ok { // the mechanism's own: a malformed response
				err = refuse(501, 5, 2, "Response is malformed")
			}
			return err
		}
		if done {
			return nil
		}
		s.wire.write("334 " + base64.StdEncoding.EncodeToString(challenge) + "\r\n")
		line, err := s.wire.readLine(s.srv.cfg.CommandTimeout, &s.srv.stopping)
		switch {
		case errors.Is(err, errLineTooLong):
			return refuse(500, 5, 6, "Response is too long")
		case errors.Is(err, errBareCR):
			return refuse(501, 5, 2, "Response has a bare CR")
		case err != nil:
			s.lost(err)
			return err
		case string(line) == "*":
			return refuse(501, 7, 0, "Authentication was cancelled")
		}
		if response, err = decodeResponse(string(line)); err != nil {
			return err
		}
	}
}

// decodeResponse decodes base64; "=" is the empty initial response (RFC 4954 section 4).
func decodeResponse(s string) ([]byte, error) {
	if s == "=" {
		return []byte{}, nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, refuse(501, 5, 2, "Response is not base64")
	}
	return b, nil
}

// authRefused answers a failed AUTH. A wrong user and a wrong password get the same answer, held back by the same time;
// the session ends with the last one allowed.
func (s *session) authRefused(ctx context.Context, err error, got *login) {
	if !errors.Is(err, errAuthFailed) {
		result := "malformed"
		if replyOf(err).Temporary() {
			result = "error"
			s.srv.log.Warn("auth.deferred", "session", s.id, "ip", s.ip, "err", err)
		}
		s.srv.metrics.auth.WithLabelValues(result).Inc()
		s.refuse(err)
		return
	}
	if s.authFailed(ctx, got); s.authFailures >= s.srv.cfg.MaxAuthFailures {
		s.end(refuse(421, 7, 0, "Too many authentication failures"), "auth_failures")
		return
	}
	s.refuse(err)
}

// authFailed counts a failure, once, and waits for as long as its answer is to be held back.
func (s *session) authFailed(ctx context.Context, got *login) {
	if got.counted {
		return
	}
	got.counted = true
	s.authFailures++
	s.srv.metrics.auth.WithLabelValues("failed").Inc()
	s.srv.log.Info("auth.failed", "session", s.id, "listener", s.lis.name, "ip", s.ip, "count", s.authFailures)
	wait(ctx, s.srv.limits.failure(s.source, got.username))
}

// loginServer is the LOGIN mechanism, which was never standardised and which old clients need: two prompts, user name
// and password. go-sasl has only its client.
type loginServer struct {
	check    func(username, password string) error
	username []byte
	step     int
}

// Next implements sasl.Server. A nil response means that the client sent no initial one.
func (l *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	switch l.step {
	case 0:
		l.step = 1
		if response == nil {
			return []byte("Username:"), false, nil
		}
		fallthrough
	case 1:
		l.step = 2
		l.username = response
		return []byte("Password:"), false, nil
	case 2:
		l.step = 3
		return nil, true, l.check(string(l.username), string(response))
	}
	return nil, false, sasl.ErrUnexpectedClientResponse
}
