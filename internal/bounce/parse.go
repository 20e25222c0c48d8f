package bounce

import (
	"bytes"
	"cmp"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"relayd/internal/mail"
)

// Parse reads a message and tells what it is. It reads at most 8 MiB and fails only where r does.
func Parse(r io.Reader, c Classifier) (*Report, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxMessage))
	if err != nil {
		return nil, err
	}
	m := parsePart(normal(raw))
	rep := &Report{Kind: None, Recipients: []Recipient{}}
	for _, read := range []func(*Report, *part) bool{readFeedback, readStatus, readUnsubscribe, readAutoReply, readFreeForm} {
		if read(rep, m) {
			break
		}
	}
	rep.classify(c)
	return rep, nil
}

// readStatus reads a message/delivery-status part, wherever it stands.
func readStatus(rep *Report, m *part) bool {
	found := false
	kinds := map[Kind][]Recipient{}
	m.walk(func(p *part) {
		switch {
		case p.kind == "message/delivery-status" || p.kind == "message/global-delivery-status":
			found = true
			for _, g := range groups(normal(p.text())) {
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
	subject := strings.ToLower(mail.DecodeText(m.get("subject")))
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
	r := mail.Reply{Text: text}
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

// compiled are the patterns of free text.
type compiled struct {
	reply, status, address, bounceSubject, bounceSender, bounceText, delayText, autoSubject, original *regexp.Regexp
}

// patterns are compiled once; a test reads them all.
var patterns = sync.OnceValue(func() *compiled {
	return &compiled{
		reply:         regexp.MustCompile(`(?:^|[^\d.@])([45][0-5]\d)[ -]+\(?#?((?:[45]\.\d{1,3}\.\d{1,3})?)`),
		status:        regexp.MustCompile(`(?:\b)[245]\.\d{1,3}\.\d{1,3}\b`),
		address:       regexp.MustCompile(`[A-Za-z0-9!#$%&'*+/=?^_{|}~.\-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9\-]{0,62}\.)+[A-Za-z0-9\-]{2,63}`),
		bounceSubject: regexp.MustCompile(`(?i)undeliver|undelivered|delivery (status|failure|failed|problem|report|notification)|returned? (mail|to sender|message)|mail (delivery|system) (fail|error|subsystem)|failure notice|failed (mail|delivery)|could ?n[o']t (be )?(sent|deliver)|not delivered|message (delivery )?(delayed|not delivered|undeliverable)|warning: (could not send|message)|non ?-?deliver|nicht zustellbar|unzustellbar|non remis|no entregado|mancata consegna|반송|전송 ?실패|발송 ?실패|配信不能|退信`),
		bounceSender:  regexp.MustCompile(`(?i)mailer[-_.]?daemon|post ?master|mail delivery (sub)?system|mail-?administrator|<>`),
		bounceText:    regexp.MustCompile(`(?i)could not be delivered|was not delivered|wasn't delivered|not able to deliver|unable to deliver|permanent fatal errors|permanent error|did not reach|delivery (to the following|has failed|failed)|undeliverable|cannot be delivered|couldn't be delivered|returned to (the )?sender|no such user|user unknown|unknown user|전달하지 못|반송`),
		delayText:     regexp.MustCompile(`(?i)delayed|will (be )?(retr|keep trying|continue)|still (being )?(tr(y|ied)|retried)|not yet been delivered|warning message only|you do not need to resend`),
		autoSubject:   regexp.MustCompile(`(?i)^\W{0,3}(auto(matic|mated|matische|maattisch)?[- ]?(reply|response|antwort|respond)|auto:|out of (the )?office|ooo\b|on vacation|vacation|away from|abwesenheit|abwesend|réponse automatique|absence|respuesta automática|risposta automatica|fuori ufficio|부재|자동 ?(응답|회신)|自動(応答|返信)|自动回复)`),
		original:      regexp.MustCompile(`(?im)^[-\s>*]*(-+ ?(this is a copy|original message|below this line|the body of the message|message header|unsent message|included is)|original message follows|below is a copy|a copy of the (original )?message|message headers? follow|received: from)`),
	}
})

// readAutoReply knows the answers of machines to mail that arrived.
func readAutoReply(rep *Report, m *part) bool {
	subject := strings.TrimSpace(mail.DecodeText(m.get("subject")))
	if patterns().bounceSender.MatchString(m.get("from")) && patterns().bounceSubject.MatchString(subject) {
		return false
	}
	auto := strings.ToLower(m.get("auto-submitted"))
	automatic := strings.HasPrefix(auto, "auto-replied") || patterns().autoSubject.MatchString(subject)
	for _, name := range []string{"x-autoreply", "x-autorespond", "x-autogenerated", "x-autoreply-from", "x-mail-autoreply"} {
		if v := strings.ToLower(m.get(name)); v != "" && v != "no" {
			automatic = true
		}
	}
	switch strings.ToLower(m.get("precedence")) {
	case "auto_reply", "auto-reply", "autoreply":
		automatic = true
	}
	m.walk(func(p *part) {
		if p.kind == "message/disposition-notification" { // a receipt, RFC 8098
			automatic = true
		}
	})
	if automatic && m.get("x-failed-recipients") != "" || automatic && patterns().bounceSubject.MatchString(subject) {
		return false
	}
	if automatic {
		rep.Kind = AutoReply
		if a := address(m.get("from")); a != "" {
			rep.Recipients = append(rep.Recipients, Recipient{Address: a})
		}
	}
	return automatic
}

// readFreeForm reads bounces without a delivery status: qmail's, Exim's, Sendmail's of old, Exchange's, and others.
func readFreeForm(rep *Report, m *part) bool {
	failed := m.get("x-failed-recipients")
	subject := mail.DecodeText(m.get("subject"))
	sender := patterns().bounceSender.MatchString(m.get("from")) || strings.TrimSpace(m.get("return-path")) == "<>"
	titled := patterns().bounceSubject.MatchString(subject)
	var text []byte
	m.walk(func(p *part) {
		if strings.HasPrefix(p.kind, "text/plain") && len(text) == 0 {
			text = normal(p.text())
			text = text[:min(len(text), maxFreeText)]
		}
	})
	if len(text) == 0 && strings.HasPrefix(m.kind, "text/html") {
		text = patterns().tags().ReplaceAll(normal(m.text()), []byte(" "))
		text = text[:min(len(text), maxFreeText)]
	}
	if at := patterns().original.FindIndex(text); at != nil && at[0] > 0 {
		rest := parsePart(bytes.TrimLeft(text[at[1]:], "\n -"))
		rep.original(rest)
		text = text[:at[0]]
	}
	says := patterns().bounceText.Match(text)
	late := patterns().delayText.Match(text) && !strings.Contains(strings.ToLower(string(text)), "permanent")
	if failed == "" && !(sender && (titled || says)) && !(titled && says) {
		return false
	}
	own := map[string]bool{address(m.get("from")): true, address(m.get("to")): true, address(m.get("return-path")): true}
	rep.Recipients = recipientsIn(string(text), failed, own)
	if len(rep.Recipients) == 0 && !(sender && says) {
		return false
	}
	rep.Kind = Bounce
	if late && failed == "" {
		rep.Kind = Delay
	}
	return true
}

var tagPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`<[/!a-zA-Z][^<>@]{0,900}>`) })

func (*compiled) tags() *regexp.Regexp { return tagPattern() }

// recipientsIn finds the addresses that a text is about, each with what is said after it, up to the next one.
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
	for i, span := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		a := address(text[span[0]:span[1]])
		if _, known := index[a]; listed && !known || isService(a) {
			continue
		}
		end = min(end, span[1]+2048)
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
		if out[i].reply.Code == 0 {
			out[i].reply.Code = 550 // a bounce without a code is one all the same
		}
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
