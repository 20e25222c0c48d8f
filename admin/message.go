package admin

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"mime/quotedprintable"
	"strconv"
	"strings"
	"unicode/utf8"

	"relayd/internal/api"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

const (
	maxMessageTo = 50      // recipients of one call
	maxSubject   = 998     // bytes
	inTx         = 1 << 20 // messages up to this size become durable in one transaction with their idempotency key
)

// messageBody is the limit of the JSON around a message, whose base64 form is longer by a third.
func (s *Server) messageBody() int64 { return s.cfg.MaxMessageBytes/3*4 + smallBody }

func (s *Server) sendMessage(r *request, in *api.SendMessage) (any, error) {
	sub, message, err := s.submission(r, in)
	if err != nil {
		return nil, err
	}
	return idempotent(s, r, messageKeyLife, func(o *once) (api.MessageQueued, error) {
		out := api.MessageQueued{State: "queued", AcceptedAt: sub.Trace.At, Recipients: len(sub.Recipients)}
		if o == nil || len(message) > inTx {
			if err := o.reserve(r.Context()); err != nil {
				return out, err
			}
			id, err := s.deps.Intake.Accept(r.Context(), sub)
			out.ID = id.String()
			return out, err
		}
		return out, s.acceptOnce(r.Context(), o, sub, &out)
	})
}

// acceptOnce makes the message and its idempotency key durable together.
func (s *Server) acceptOnce(ctx context.Context, o *once, sub *intake.Submission, out *api.MessageQueued) error {
	p, err := s.deps.Intake.Prepare(ctx, sub)
	if err != nil {
		return err
	}
	out.ID = p.ID.String()
	err = s.deps.DB.Update(ctx, func(tx kv.Tx) error {
		if err := o.recordTx(tx, o.status, out); err != nil {
			return err
		}
		return p.PutTx(tx)
	})
	if err != nil {
		p.Drop()
		return err
	}
	o.recorded = true
	p.Added()
	return nil
}

// submission checks the request and builds the message. Recipients come from the list of the request alone: no header
// field adds one.
func (s *Server) submission(r *request, in *api.SendMessage) (*intake.Submission, []byte, error) {
	from, err := mailboxPath("/from", in.From)
	if err != nil {
		return nil, nil, err
	}
	if len(in.To) == 0 || len(in.To) > maxMessageTo {
		return nil, nil, invalid("/to", api.CodeRecipientInvalid, fmt.Sprintf("Give 1 to %d recipients.", maxMessageTo))
	}
	account, err := r.caller.account("")
	if err != nil {
		return nil, nil, err
	}
	sub := &intake.Submission{
		Account: account, Credential: r.caller.name(), Stream: in.Stream, Class: spool.Transactional, ReversePath: from,
		Trace: intake.Trace{Helo: s.deps.Hostname, ClientIP: remoteIP(r.Request), With: "HTTP", At: s.now()},
	}
	if !isStreamName(in.Stream) {
		return nil, nil, invalid("/stream", api.CodeInvalidParameter, "1 to 64 letters, digits, hyphens and underscores.")
	}
	seen := map[string]bool{}
	for i, box := range in.To {
		to, err := mailboxPath("/to/"+strconv.Itoa(i), box)
		if err != nil {
			return nil, nil, err
		}
		if !seen[to.Key()] {
			sub.Recipients = append(sub.Recipients, intake.Recipient{To: to})
		}
		seen[to.Key()] = true
	}
	message, err := s.message(r, in, account, from, sub.Recipients[0].To)
	if err != nil {
		return nil, nil, err
	}
	if int64(len(message)) > s.cfg.MaxMessageBytes {
		return nil, nil, invalid("", api.CodeMessageTooLarge, fmt.Sprintf("The message is larger than %d bytes.", s.cfg.MaxMessageBytes))
	}
	sub.Body = bytes.NewReader(message)
	return sub, message, nil
}

func isStreamName(s string) bool {
	bad := strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_'
	})
	return !bad && len(s) <= 64
}

func mailboxPath(pointer string, box api.Mailbox) (mail.Path, error) {
	p, err := mail.ParsePath(box.Email)
	if err != nil {
		return p, invalid(pointer+"/email", api.CodeRecipientInvalid, sentence(err.Error()))
	}
	if mail.CleanText(box.Name, 200) != box.Name {
		return p, invalid(pointer+"/name", api.CodeInvalidParameter, "A name is one line of at most 200 bytes without control characters.")
	}
	return p, nil
}

// message makes the message of a stored template, or of the request itself.
func (s *Server) message(r *request, in *api.SendMessage, account string, from, to mail.Path) ([]byte, error) {
	if in.Template == nil {
		if in.Data != nil {
			return nil, invalid("/data", api.CodeInvalidParameter, "Data is for a template.")
		}
		return messageOf(in, from)
	}
	if in.Subject != "" || in.Text != "" || in.HTML != "" || len(in.Raw) > 0 {
		return nil, invalid("/template", api.CodeInvalidParameter, "Give either template or the parts of a message.")
	}
	head, err := addressesOf(in, from)
	if err != nil {
		return nil, err
	}
	return s.deps.Templates.SingleMessage(r.Context(), account, *in.Template, in.Data, head, from, to)
}

// messageOf returns the message of the request (RFC 5322). The intake adds what is missing, such as Date.
func messageOf(in *api.SendMessage, from mail.Path) ([]byte, error) {
	if len(in.Raw) > 0 {
		if in.Subject != "" || in.Text != "" || in.HTML != "" || in.ReplyTo != nil {
			return nil, invalid("/raw", api.CodeInvalidParameter, "Give either raw or the parts of a message.")
		}
		return crlf(in.Raw), nil
	}
	if in.Text == "" && in.HTML == "" {
		return nil, invalid("/text", api.CodeInvalidParameter, "Give raw, text or html.")
	}
	if mail.CleanText(in.Subject, maxSubject) != in.Subject {
		return nil, invalid("/subject", api.CodeInvalidParameter, "A subject is one line of at most 998 bytes without control characters.")
	}
	if strings.ContainsRune(in.Text, 0) || strings.ContainsRune(in.HTML, 0) {
		return nil, invalid("/text", api.CodeInvalidParameter, "A body must not hold NUL.")
	}
	header, err := headerOf(in, from)
	if err != nil {
		return nil, err
	}
	b := bytes.NewBuffer(header)
	if in.Text != "" && in.HTML != "" {
		boundary := rand.Text()
		fmt.Fprintf(b, "Content-Type: multipart/alternative; boundary=\"%s\"\r\n\r\n", boundary)
		fmt.Fprintf(b, "--%s\r\n", boundary)
		writePart(b, "text/plain", in.Text)
		fmt.Fprintf(b, "\r\n--%s\r\n", boundary)
		writePart(b, "text/html", in.HTML)
		fmt.Fprintf(b, "\r\n--%s--\r\n", boundary)
		return b.Bytes(), nil
	}
	if in.HTML != "" {
		writePart(b, "text/html", in.HTML)
	} else {
		writePart(b, "text/plain", in.Text)
	}
	return b.Bytes(), nil
}

func headerOf(in *api.SendMessage, from mail.Path) ([]byte, error) {
	b, err := addressesOf(in, from)
	if err != nil {
		return nil, err
	}
	b, err = mail.AppendField(b, "Subject", in.Subject)
	return append(b, "MIME-Version: 1.0\r\n"...), err
}

// addressesOf writes From, To and Reply-To.
func addressesOf(in *api.SendMessage, from mail.Path) ([]byte, error) {
	type field struct {
		name  string
		boxes []api.Mailbox
	}
	fields := []field{{"From", []api.Mailbox{{Email: from.String(), Name: in.From.Name}}}, {"To", in.To}}
	if in.ReplyTo != nil {
		fields = append(fields, field{"Reply-To", []api.Mailbox{*in.ReplyTo}})
	}
	var b []byte
	for _, f := range fields {
		var list []string
		for i, box := range f.boxes {
			p, err := mailboxPath("/"+strings.ReplaceAll(strings.ToLower(f.name), "-", "_")+"/"+strconv.Itoa(i), box)
			if err != nil {
				return nil, err
			}
			if p.NeedsUTF8() {
				return nil, invalid("", api.CodeRecipientInvalid, "Local parts outside ASCII can only be sent with raw.")
			}
			text, err := mail.FormatAddress(box.Name, p)
			if err != nil {
				return nil, err
			}
			list = append(list, text)
		}
		var err error
		if b, err = mail.AppendRawField(b, f.name, strings.Join(list, ", ")); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// writePart writes header and body of a text part. Quoted-printable keeps lines short and passes every server.
func writePart(b *bytes.Buffer, mediaType, text string) {
	fmt.Fprintf(b, "Content-Type: %s; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n", mediaType)
	w := quotedprintable.NewWriter(b)
	_, _ = io.WriteString(w, strings.ToValidUTF8(text, string(utf8.RuneError)))
	_ = w.Close()
	if !bytes.HasSuffix(b.Bytes(), []byte("\r\n")) {
		b.WriteString("\r\n")
	}
}

// crlf turns bare LFs into CRLF. Bare CRs stay, for the intake to refuse.
func crlf(b []byte) []byte {
	out := make([]byte, 0, len(b)+len(b)/32)
	for i, c := range b {
		if c == '\n' && (i == 0 || b[i-1] != '\r') {
			out = append(out, '\r')
		}
		out = append(out, c)
	}
	return out
}
