package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"relayd/internal/mail"
	"relayd/spool"
)

// Attempt is one try of a bundle on the route of its site.
type Attempt struct {
	*engine
	route   *route
	session *Session // of the worker; nil when it has none
	bundle  *bundle
	body    []byte  // of a campaign's envelope: the message
	room    *[]byte // in which it is made, of rooms
	tls     string  // of the last session
	opened  func()  // told of each session that was opened
}

// engine is what all attempts share.
type engine struct {
	store    *spool.Store
	composer Composer
	gate     Gate
	opener   *opener
	book     *addressBook
	retrier  *retrier
	metrics  *metrics
	now      func() time.Time
	// classifier gives the rules of the day.
	classifier func() *Classifier
	// returnPath is that of a campaign's envelope; nil: the message's own.
	returnPath func(m *spool.Message, e *spool.Envelope) mail.Path
	rooms      sync.Pool // *[]byte: messages are made in the same memory one after the other
	tries      int       // rounds over the hosts
	wait       func(ctx context.Context, d time.Duration) error
}

// Report is what became of an attempt.
type Report struct {
	done    []settlement
	again   []*spool.Envelope // were not presented: another worker, or another time
	askers  []*spool.Envelope // were answered with a wish for a pause: another time, after the others
	suspend *pause            // the site wants a pause
	settled bool              // a transaction went to its end
}

// pause is why a site stops for a while.
type pause struct {
	cause string
	reply mail.Reply
	host  string
	phase Phase
	err   error
	rate  bool // it is about the number of messages
}

// Run tries the bundle: it renders what must be rendered, gets a session, asks the gate and sends; a connection that
// breaks is tried again, 1 s later and doubling, with the recipients that are still open.
func (a *Attempt) Run(ctx context.Context) Report {
	var rep Report
	envs := a.inTime(&rep, a.bundle.envs)
	defer a.leaveRoom()
	if len(envs) == 0 {
		return rep
	}
	if a.bundle.message.Campaign != "" && !a.compose(ctx, &rep) {
		return rep
	}
	var last error
	host := ""
	for try := 0; try < a.tries && len(envs) > 0; {
		a.leaves()
		reused := a.session != nil
		if !reused {
			if try > 0 && a.wait(ctx, time.Second<<(try-1)) != nil {
				rep.again = envs
				return rep
			}
			if !a.connect(ctx, &rep, envs) {
				return rep
			}
		}
		envs = a.wanted(ctx, &rep, a.inTime(&rep, envs))
		envs = a.fitting(&rep, envs)
		if len(envs) == 0 {
			return rep
		}
		var again bool
		host = a.session.Name()
		if envs, again, last = a.send(ctx, &rep, envs); !again {
			return rep
		}
		if !reused { // a host may close between messages: that is no trouble
			try++
		}
	}
	if len(envs) > 0 { // broken each time: it may be this message that breaks it, so this counts
		reply := mail.Reply{Code: 451, Status: mail.Status{Class: 4, Subject: 4, Detail: 2}, Text: "Connection broke: " + publicError(last)}
		for _, e := range envs {
			a.finish(&rep, e, a.retrier.presented(a.bundle.message, e, reply, a.now()), host)
		}
	}
	return rep
}

// compose renders the envelope of a campaign.
func (a *Attempt) compose(ctx context.Context, rep *Report) bool {
	m, e := a.bundle.message, a.bundle.envs[0]
	err := errors.New("no composer")
	if a.composer != nil {
		a.takeRoom()
		a.body, err = a.composer.Compose(ctx, m, e, *a.room)
	}
	if err == nil {
		return true
	}
	if ctx.Err() != nil {
		rep.again = a.bundle.envs
		return false
	}
	reply := mail.ReplyOf(err)
	res := a.retrier.unpresented(m, e, reply, a.now(), a.now().Add(localDelay))
	if reply.Permanent() {
		res = spool.Result{ID: e.ID, Outcome: spool.Failed, Reply: reply, Reason: reasonRender, At: a.now()}
	}
	a.finish(rep, e, res, "")
	return false
}

// mostRoom bounds what one long message leaves behind.
const mostRoom = 1 << 20

func (a *Attempt) takeRoom() {
	if a.room, _ = a.rooms.Get().(*[]byte); a.room == nil {
		a.room = new([]byte)
	}
}

// leaveRoom is for the end of the attempt: nobody reads the message any more.
func (a *Attempt) leaveRoom() {
	if a.room == nil {
		return
	}
	if cap(a.body) > cap(*a.room) {
		*a.room = a.body[:0]
	}
	if cap(*a.room) <= mostRoom {
		a.rooms.Put(a.room)
	}
	a.body, a.room = nil, nil
}

// localDelay is the wait after a fault of our own.
const localDelay = time.Minute

// pausedDelay keeps what was leased of a stream that is paused from coming round at once.
const pausedDelay = 5 * time.Second

// NotYet is what a Gate returns for an envelope that is wanted, but not before a time: it waits without spending an
// attempt.
type NotYet struct {
	Until  time.Time
	Reason string // of a closed set, for history and log
}

func (e *NotYet) Error() string {
	return "not before " + e.Until.UTC().Format(time.RFC3339) + ": " + e.Reason
}

// inTime lets a message expire whose sender has said how long it is of use: a code that comes late is worse than none. Other
// mail is tried once more, however late it is.
func (a *Attempt) inTime(rep *Report, envs []*spool.Envelope) []*spool.Envelope {
	m := a.bundle.message
	if !m.Deadline || !a.now().After(m.ExpiresAt) {
		return envs
	}
	for _, e := range envs {
		reply := e.LastReply
		if reply.Code == 0 {
			reply = mail.Reply{Code: 451, Status: mail.Status{Class: 4, Subject: 4, Detail: 7}, Text: "Its time was over before it could be sent"}
		}
		a.finish(rep, e, spool.Result{ID: e.ID, Outcome: spool.Expired, Reason: reasonAge, Reply: reply}, "")
	}
	return nil
}

// wanted asks the gate, right before MAIL FROM.
func (a *Attempt) wanted(ctx context.Context, rep *Report, envs []*spool.Envelope) []*spool.Envelope {
	if a.gate == nil {
		return envs
	}
	m := a.bundle.message
	open := make([]*spool.Envelope, 0, len(envs))
	reasons, err := a.gate.Blocked(ctx, m, envs)
	later, early := errors.AsType[*NotYet](err)
	for i, e := range envs {
		switch {
		case early:
			res := a.retrier.unpresented(m, e, mail.Reply{}, a.now(), later.Until)
			res.Reason = cmp.Or(res.Reason, later.Reason)
			a.finish(rep, e, res, "")
		case err != nil && ctx.Err() != nil:
			rep.again = append(rep.again, e)
		case err != nil:
			a.finish(rep, e, a.retrier.unpresented(m, e, mail.ReplyOf(err), a.now(), a.now().Add(localDelay)), "")
		case reasons[i] == "":
			open = append(open, e)
		case reasons[i] == "paused": // waits in its queue, which is not offered meanwhile
			a.finish(rep, e, spool.Result{ID: e.ID, Outcome: spool.Deferred, NextAttempt: a.now().Add(pausedDelay)}, "")
		case reasons[i] == "cancelled":
			a.finish(rep, e, spool.Result{ID: e.ID, Outcome: spool.Cancelled, Reason: reasons[i]}, "")
		default:
			a.finish(rep, e, spool.Result{ID: e.ID, Outcome: spool.Suppressed, Reason: reasons[i]}, "")
		}
	}
	return open
}

// fitting settles what the host cannot take, going by its EHLO.
func (a *Attempt) fitting(rep *Report, envs []*spool.Envelope) []*spool.Envelope {
	if reply, ok := a.session.fits(a.transaction(envs)); !ok {
		res := spool.Result{Outcome: spool.Failed, Reply: reply, Reason: reasonEightBit}
		if reply.Code == 552 {
			res.Outcome, res.Reason = spool.Bounced, reasonSize
		}
		for _, e := range envs {
			res.ID = e.ID
			a.finish(rep, e, res, a.session.Name())
		}
		return nil
	}
	if a.session.ext.smtpUTF8 {
		return envs
	}
	open := envs[:0:0]
	for _, e := range envs {
		if !e.To.NeedsUTF8() && !a.bundle.message.UTF8 && !a.bundle.message.ReversePath.NeedsUTF8() {
			open = append(open, e)
			continue
		}
		a.finish(rep, e, spool.Result{ID: e.ID, Outcome: spool.Failed, Reason: reasonUTF8, Reply: mail.Reply{ // RFC 6531 section 3.5
			Code: 550, Status: mail.Status{Class: 5, Subject: 6, Detail: 7}, Text: "Message or address needs SMTPUTF8, and the host does not offer it",
		}}, a.session.Name())
	}
	return open
}

func (a *Attempt) transaction(envs []*spool.Envelope) *Transaction {
	m := a.bundle.message
	t := &Transaction{
		From: m.ReversePath, Size: m.Size, EightBit: m.EightBit, EnvelopeID: m.EnvelopeID, RetHeaders: m.RetHeaders, RetFull: m.RetFull,
		Recipients: make([]Recipient, len(envs)), UTF8: m.UTF8, RequireTLS: m.RequireTLS,
	}
	for i, e := range envs {
		t.Recipients[i] = Recipient{e.To, e.Notify, e.ORCPT}
	}
	if m.Campaign != "" {
		t.Size = int64(len(a.body))
		t.EightBit = false // the composer's promise
		if a.returnPath != nil && len(envs) == 1 {
			t.From = a.returnPath(m, envs[0])
		}
		t.Body = func(_ context.Context, w io.Writer) error {
			_, err := w.Write(a.body)
			return err
		}
		return t
	}
	t.Body = func(ctx context.Context, w io.Writer) error {
		if _, err := w.Write(m.Header); err != nil {
			return err
		}
		if _, err := w.Write(crlf); err != nil {
			return err
		}
		_, err := a.store.WriteBody(ctx, m.ID, w)
		return err
	}
	return t
}

// send presents the envelopes once. It returns those that are still open, and whether to try them on a new session.
func (a *Attempt) send(ctx context.Context, rep *Report, envs []*spool.Envelope) (open []*spool.Envelope, again bool, err error) {
	s := a.session
	a.tls = s.TLS
	reused := s.sent > 0
	t := a.transaction(envs)
	answers, err := s.Send(ctx, t)
	if s.broken {
		a.session = nil
		defer s.Close()
	}
	f := faultOf(err)
	closing := err != nil && f.kind == faultReply
	if closing && reused && !reached(answers) { // "421 that was enough for one connection" is no trouble
		return envs, true, nil
	}
	var said tally
	for _, ans := range answers {
		said.taken += boolInt(ans.Reply.Positive())
		said.together += boolInt(ans.Phase == PhaseData)
	}
	for i, e := range envs {
		if ans := answers[i]; ans.Reply.IsZero() {
			open = append(open, e)
		} else {
			a.answer(rep, s, e, ans, said)
		}
	}
	switch {
	case err == nil:
		rep.settled = true
		return nil, false, nil
	case f.kind == faultInDoubt:
		for _, e := range open {
			reply := mail.Reply{Code: 451, Status: mail.Status{Class: 4, Subject: 4, Detail: 2}, Text: "Reply to the message was lost: it may have been delivered"}
			res := a.retrier.presented(a.bundle.message, e, reply, a.now())
			if res.Outcome == spool.Deferred {
				res.Reason = reasonInDoubt
			}
			a.metrics.inDoubt.Inc()
			a.finish(rep, e, res, s.Name())
		}
		return nil, false, nil
	case f.kind == faultLocal && ctx.Err() == nil && s.ctx.Err() == nil: // the store could not read the message
		for _, e := range open {
			a.finish(rep, e, a.retrier.unpresented(a.bundle.message, e, mail.ReplyOf(err), a.now(), a.now().Add(localDelay)), "")
		}
		return nil, false, nil
	case f.kind == faultLocal:
		rep.again = append(rep.again, open...)
		return nil, false, nil
	case closing && len(open) > 0 && rep.suspend == nil:
		rep.suspend = &pause{cause: causeThrottled, reply: f.reply, host: s.Name(), phase: PhaseMail}
	}
	if !reused { // it took the connection and no message: another host may do better
		a.book.dead.add(s.Addr.Addr().String(), a.now().Add(deadFor))
	}
	if rep.suspend != nil {
		rep.again = append(rep.again, open...)
		return nil, false, nil
	}
	return open, len(open) > 0, err
}

// reached tells that the host has judged any recipient, or the message, before it closed the session.
func reached(answers []Answer) bool {
	for _, a := range answers {
		if a.Phase > PhaseMail {
			return true
		}
	}
	return false
}

// tally is how many recipients of a transaction were taken, and how many got one reply together, that to the message.
type tally struct{ taken, together int }

// answer turns the reply for one recipient into its result.
func (a *Attempt) answer(rep *Report, s *Session, e *spool.Envelope, ans Answer, said tally) {
	v := a.classifier().Classify(ans.Reply, ans.Phase)
	if ans.Phase == PhaseData && said.together > 1 {
		v.Suppress = false // who knows which of them is meant
	}
	if v.Action == ActionSuspend && ans.Reply.Permanent() && a.route.smart == nil {
		v.Action = ActionRetry // an MX that wants AUTH will not want it less after a pause
	}
	m := a.bundle.message
	now := a.now()
	if a.blames(s.origin, s.Name(), ans.Reply, v) && v.Action == ActionBounce { // from another address it may be welcome
		if res := a.retrier.presented(m, e, ans.Reply, now); res.Outcome == spool.Deferred {
			a.finish(rep, e, res, s.Name())
			return
		}
	}
	switch {
	case v.Action == ActionDeliver:
		a.finish(rep, e, spool.Result{ID: e.ID, Outcome: spool.Delivered, Presented: true, Reply: ans.Reply}, s.Name())
		rep.done[len(rep.done)-1].relayed = !s.ext.dsn
	case v.Action == ActionBounce:
		a.finish(rep, e, spool.Result{ID: e.ID, Outcome: spool.Bounced, Presented: true, Reply: ans.Reply, Suppress: v.Suppress}, s.Name())
	case v.Action == ActionSuspend:
		rep.askers = append(rep.askers, e)
		if rep.suspend == nil {
			rep.suspend = &pause{cause: causeThrottled, reply: ans.Reply, host: s.Name(), phase: ans.Phase}
			if v.Class == classAuthRequired {
				rep.suspend.cause = causeAuth
			}
		}
	case v.Class == classTooMany && said.taken > 0: // RFC 5321 section 4.5.3.1.10: the others in another transaction
		rep.again = append(rep.again, e)
	default:
		a.finish(rep, e, a.retrier.presented(m, e, ans.Reply, now), s.Name())
	}
}

// Classes that attempts treat in their own way.
const (
	classAuthRequired = "auth_required"
	classTooMany      = "too_many_recipients"
)

// finish completes a result and notes it.
func (a *Attempt) finish(rep *Report, e *spool.Envelope, res spool.Result, host string) {
	res.At = a.now()
	if host != "" {
		res.Host, res.TLS = host, a.tls
	}
	rep.done = append(rep.done, settlement{message: a.bundle.message, envelope: e, result: res})
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait: %w", ctx.Err())
	}
}
