package bounce

import (
	"bytes"
	"cmp"
	"io"
	"strconv"
	"strings"

	"relayd/internal/mail"
)

// Origin is the reverse-path that a message came with. Mail systems report with the null one (RFC 5321 section 4.5.5, RFC 3464
// section 2), but not all of them; people forward reports, and write about them, with their own.
type Origin uint8

// The origins.
const (
	UnknownPath Origin = iota // a Return-Path field may tell that it was null
	NullPath
	OtherPath // the Return-Path field is the sender's, and tells nothing
)

// Parse reads a message and tells what it is. It reads at most 8 MiB and fails only where r does. It takes as much memory as
// the message has octets, and little more, where r tells its Size.
func Parse(r io.Reader, from Origin, c Classifier) (*Report, error) {
	var raw bytes.Buffer
	if sized, ok := r.(interface{ Size() int64 }); ok {
		raw.Grow(int(min(sized.Size(), maxMessage)) + bytes.MinRead)
	}
	if _, err := raw.ReadFrom(io.LimitReader(r, maxMessage)); err != nil {
		return nil, err
	}
	m := parsePart(normal(raw.Bytes()))
	m.origin = from
	if from == UnknownPath && strings.TrimSpace(m.get("return-path")) == "<>" {
		m.origin = NullPath
	}
	rep := &Report{Kind: None, Recipients: []Recipient{}}
	for _, read := range []func(*Report, *part) bool{readFeedback, readStatus, readUnsubscribe, readAutoReply, readFreeForm} {
		if read(rep, m) {
			break
		}
	}
	rep.classify(c)
	return rep, nil
}

// readStatus reads a message/delivery-status part, wherever it stands: gateways wrap reports. Who forwards one, or
// answers it, may leave that part in, and reports nothing.
func readStatus(rep *Report, m *part) bool {
	if m.kind != "multipart/report" && (patterns().answer.MatchString(m.subject()) || m.origin == OtherPath && !m.fromSystem()) {
		return false
	}
	found := false
	kinds := map[Kind][]Recipient{}
	left := maxText
	m.walk(func(p *part) {
		switch {
		case p.kind == "message/delivery-status" || p.kind == "message/global-delivery-status":
			found = true
			text := normal(p.text())
			text = text[:min(len(text), left)]
			left -= len(text)
			for _, g := range groups(text) {
				if mta := g.get("reporting-mta"); mta != "" && rep.Reporter == "" {
					_, mta, _ = strings.Cut(mta, ";")
					rep.Reporter = mail.CleanText(strings.TrimSpace(mta), 255)
				}
				if to, kind, ok := statusOf(g); ok && len(kinds[kind]) < maxRecipients {
					kinds[kind] = append(kinds[kind], to)
				}
			}
		case found && (p.kind == "message/rfc822" || p.kind == "text/rfc822-headers" || p.kind == "message/global" || p.kind == "message/global-headers"):
			rep.original(parsePart(normal(p.text())))
		}
	})
	for _, k := range []Kind{Bounce, Delay, Delivered} {
		if len(kinds[k]) > 0 {
			rep.Kind, rep.Recipients = k, kinds[k]
			return true
		}
	}
	return false
}

// statusOf reads the fields of one recipient.
func statusOf(g *part) (to Recipient, kind Kind, ok bool) {
	to.Address = address(g.get("final-recipient"))
	if original := address(g.get("original-recipient")); original != "" {
		to.Address = original // the address that the mail was sent to
	}
	action := strings.ToLower(strings.TrimSpace(g.get("action")))
	action, _, _ = strings.Cut(action, " ")
	status, _, _ := mail.ParseStatus(strings.TrimSpace(g.get("status")))
	if to.Address == "" || action == "" && status.IsZero() {
		return to, "", false
	}
	diagnostic := g.get("diagnostic-code")
	if kind, rest, found := strings.Cut(diagnostic, ";"); found && !strings.ContainsAny(strings.TrimSpace(kind), " <@") {
		diagnostic = rest
	}
	to.reply = replyIn(diagnostic)
	if to.reply.Text == "" {
		to.reply.Text = strings.TrimSpace(diagnostic)
	}
	if to.reply.Status.IsZero() || to.reply.Status.Subject == 0 && to.reply.Status.Detail == 0 {
		to.reply.Status = status
	}
	if to.reply.Code == 0 && status.Class != 2 && status.Class != 4 { // no reply: words of the system that reports
		to.reply.Status = cmp.Or(statusInWords(diagnostic), to.reply.Status)
	}
	switch {
	case action == "failed", action == "" && status.Class == 5:
		kind = Bounce
	case action == "delayed", action == "" && status.Class == 4:
		kind = Delay
	case action == "delivered" || action == "relayed" || action == "expanded", action == "" && status.Class == 2:
		kind = Delivered
	default:
		return to, "", false
	}
	// what was given up for time is no permanent refusal, whatever code it is put into
	if expired := status.Subject == 4 && status.Detail == 7; to.reply.Code == 0 || expired {
		to.reply.Code = map[int]int{2: 250, 4: 450, 5: 550}[cmp.Or(to.reply.Status.Class, status.Class)]
		if expired && kind == Bounce {
			to.reply.Code = 450
		}
	}
	return to, kind, true
}

// original notes which mail a report is about.
func (r *Report) original(m *part) {
	if list := m.get("list-unsubscribe"); r.ListUnsubscribe == "" {
		r.ListUnsubscribe = list
	}
	if id := m.get("message-id"); r.MessageID == "" && len(id) <= 998 {
		r.MessageID = mail.CleanText(strings.Trim(id, "<> "), 998)
	}
}

// readFeedback reads a message/feedback-report part (RFC 5965).
func readFeedback(rep *Report, m *part) bool {
	var feedback, original *part
	m.walk(func(p *part) {
		switch {
		case p.kind == "message/feedback-report" && feedback == nil:
			if all := groups(normal(p.text())); len(all) > 0 {
				feedback = all[0]
			}
		case feedback != nil && original == nil && (p.kind == "message/rfc822" || p.kind == "text/rfc822-headers"):
			original = parsePart(normal(p.text()))
		}
	})
	if feedback == nil {
		return false
	}
	switch strings.ToLower(strings.TrimSpace(feedback.get("feedback-type"))) {
	case "opt-out", "opt-out-list":
		rep.Kind = Unsubscribe
	case "auth-failure", "dmarc":
		rep.Kind = AuthFailure
	case "not-spam":
		rep.Kind = None
	default:
		rep.Kind = Complaint
	}
	rep.Reporter = mail.CleanText(feedback.get("user-agent"), 255)
	seen := map[string]bool{}
	add := func(value string) {
		if a := address(value); a != "" && !seen[a] && len(rep.Recipients) < maxRecipients {
			seen[a] = true
			rep.Recipients = append(rep.Recipients, Recipient{Address: a})
		}
	}
	for _, f := range feedback.fields {
		if f.name == "original-rcpt-to" || f.name == "removal-recipient" {
			add(f.value)
		}
	}
	if original != nil {
		rep.original(original)
		if to := original.get("to"); len(rep.Recipients) == 0 && strings.Count(to, "@") == 1 {
			add(to)
		}
	}
	return true
}

// readUnsubscribe knows mail to an unsubscribe address: its subject says so.
func readUnsubscribe(rep *Report, m *part) bool {
	subject := strings.ToLower(m.subject())
	word, _, _ := strings.Cut(strings.TrimSpace(subject), " ")
	if word != "unsubscribe" && word != "remove" && word != "수신거부" {
		return false
	}
	rep.Kind = Unsubscribe
	if a := address(m.get("from")); a != "" {
		rep.Recipients = append(rep.Recipients, Recipient{Address: a})
	}
	return true
}

// replyIn finds an SMTP reply in text: a code, an enhanced status code, or both.
func replyIn(text string) mail.Reply {
	text = strings.Join(strings.Fields(text), " ")
	r := mail.Reply{Text: text[:min(len(text), maxSaid)]}
	if m := patterns().reply.FindStringSubmatch(text); m != nil {
		r.Code, _ = strconv.Atoi(m[1])
		if st, _, ok := mail.ParseStatus(m[2]); ok && st.Class == r.Code/100 {
			r.Status = st
		}
	}
	if r.Status.IsZero() {
		if m := patterns().status.FindString(text); m != "" {
			if st, _, ok := mail.ParseStatus(m); ok && (r.Code == 0 || st.Class == r.Code/100) {
				r.Status = st
			}
		}
	}
	if r.Code == 0 && !r.Status.IsZero() {
		r.Code = map[int]int{2: 250, 4: 450, 5: 550}[r.Status.Class]
	}
	return r
}

// readAutoReply knows the answers of machines to mail that arrived. What calls itself automatic may be a bounce still:
// Exim's and Exchange's do.
func readAutoReply(rep *Report, m *part) bool {
	subject := m.subject()
	titled, system := patterns().bounceSubject.MatchString(subject), m.fromSystem()
	sure := patterns().autoSubject.MatchString(subject)
	if m.get("x-failed-recipients") != "" || titled && system && !sure {
		return false
	}
	m.walk(func(p *part) {
		if p.kind == "message/disposition-notification" { // a receipt, RFC 8098
			sure = true
		}
	})
	automatic := sure || strings.HasPrefix(strings.ToLower(m.get("auto-submitted")), "auto-replied")
	for _, name := range []string{"x-autoreply", "x-autorespond", "x-autoresponder", "x-autogenerated", "x-autoreply-from", "x-mail-autoreply"} {
		if v := strings.ToLower(m.get(name)); v != "" && v != "no" {
			automatic = true
		}
	}
	switch strings.ToLower(m.get("precedence")) {
	case "auto_reply", "auto-reply", "autoreply":
		automatic = true
	}
	if !automatic {
		return false
	}
	if (titled || system) && !sure && readFreeForm(rep, m) {
		return true
	}
	rep.Kind = AutoReply
	if a := address(m.get("from")); a != "" {
		rep.Recipients = append(rep.Recipients, Recipient{Address: a})
	}
	return true
}

// readFreeForm reads bounces without a delivery status: qmail's, Exim's, Sendmail's of old, Exchange's, and others.
// People write about bounces too, and forward them: what does not come from a mail system has to tell a status code in
// words of its own to be taken for one, and may not come with a reverse-path; an answer or a forwarded message never is.
func readFreeForm(rep *Report, m *part) bool {
	failed := m.get("x-failed-recipients")
	subject := m.subject()
	if failed == "" && patterns().answer.MatchString(subject) {
		return false
	}
	sender := m.fromSystem() || m.origin == NullPath
	titled := patterns().bounceSubject.MatchString(subject)
	text := m.freeText()
	if !sender {
		text = patterns().quoted.ReplaceAll(text, nil)
	}
	var original *part
	if at := patterns().original.FindIndex(text); at != nil && at[0] > 0 {
		original = parsePart(bytes.TrimLeft(text[at[1]:], "\n -"))
		text = text[:at[0]]
	}
	says := patterns().bounceText.Match(text)
	late := patterns().delayText.Match(text) && !strings.Contains(strings.ToLower(string(text)), "permanent")
	if failed == "" && !(sender && (titled || says)) && !(titled && says && m.origin != OtherPath && !replyIn(string(text)).Status.IsZero()) {
		return false
	}
	own := map[string]bool{address(m.get("from")): true, address(m.get("to")): true, address(m.get("return-path")): true}
	to := recipientsIn(string(text), failed, own)
	if len(to) == 0 && !(sender && says) {
		return false
	}
	if original != nil {
		rep.original(original)
	}
	rep.Kind, rep.Recipients = Bounce, append(rep.Recipients, to...)
	switch {
	case failed != "":
	case late:
		rep.Kind = Delay
	case !says && patterns().doneText.Match(text):
		rep.Kind = Delivered
	}
	return true
}

// recipientsIn finds the addresses that a text is about, each with what is said after it, up to the next other one.
func recipientsIn(text, failed string, own map[string]bool) []Recipient {
	var out []Recipient
	index := map[string]int{}
	add := func(a, says string) {
		i, known := index[a]
		if !known {
			if a == "" || own[a] || len(out) >= maxRecipients {
				return
			}
			i = len(out)
			index[a] = i
			out = append(out, Recipient{Address: a})
		}
		if r := replyIn(says); out[i].reply.Code == 0 && (r.Code != 0 || out[i].reply.Text == "") {
			out[i].reply = r
		}
	}
	for a := range strings.SplitSeq(failed, ",") {
		add(address(a), "")
	}
	listed := len(out) > 0 // the header names them all
	at := patterns().address.FindAllStringIndex(text, maxRecipients)
	for i := 0; i < len(at); i++ {
		span := at[i]
		a := address(text[span[0]:span[1]])
		for i+1 < len(at) && address(text[at[i+1][0]:at[i+1][1]]) == a { // a reply that names it again goes on
			i++
		}
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		if _, known := index[a]; listed && !known || isService(a) {
			continue
		}
		end = min(end, span[1]+maxSaid)
		add(a, text[span[1]:end])
	}
	if len(out) > 0 && out[0].reply.Code == 0 { // what is said before the first address, or around all of them
		r := replyIn(text)
		for i := range out {
			if out[i].reply.Code == 0 && (len(out) == 1 || r.Code == 0) {
				words := out[i].reply.Text
				out[i].reply = r
				if out[i].reply.Text = words; words == "" {
					out[i].reply.Text = r.Text
				}
			}
		}
	}
	for i := range out {
		if out[i].reply.Code != 0 {
			continue
		}
		r := mail.Reply{Code: 550, Text: out[i].reply.Text} // a bounce without a code is one all the same
		if i > 0 && out[i-1].reply.Text == r.Text {
			r.Status = out[i-1].reply.Status
		} else {
			r.Status = statusInWords(r.Text)
		}
		out[i].reply = r
	}
	return out
}

// isService tells an address that a bounce names without being about it.
func isService(a string) bool {
	local, _, _ := strings.Cut(strings.ToLower(a), "@")
	switch local {
	case "postmaster", "mailer-daemon", "abuse", "support", "helpdesk", "noreply", "no-reply":
		return true
	}
	return false
}
