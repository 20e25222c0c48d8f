package campaign

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	netmail "net/mail"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/text/encoding/htmlindex"

	"relayd/internal/api"
	contacts "relayd/internal/contact"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Broadcast makes a campaign of a submitted message, and starts or schedules it: the message's text is the template, and
// merge tags in it are filled from what is known of each recipient (intake.Broadcaster). Nothing is stored when it
// returns an error; a refusal is a *mail.Error.
func (s *Service) Broadcast(ctx context.Context, b *intake.Broadcast) error {
	req, err := s.requestOf(ctx, b)
	if err != nil {
		return refusal(err)
	}
	var sc *schedule
	if b.SendAt.After(s.now()) {
		sc, req.Start = &schedule{At: b.SendAt.UTC()}, false
	}
	also := make([]Also, 0, len(b.Also))
	for _, fn := range b.Also {
		also = append(also, func(tx kv.Tx, _ api.Campaign) error { return fn(tx) })
	}
	_, err = s.create(ctx, b.ID, b.Account, req, sc, also)
	return refusal(err)
}

// refusal makes a reply of what is the sender's to mend.
func refusal(err error) error {
	bad, ok := errors.AsType[*Invalid](err)
	if !ok {
		return err
	}
	text := bad.Detail
	for i, e := range bad.Errors {
		switch {
		case i == 0 && e.Detail != text:
			text = strings.TrimSpace(text + " " + e.Detail)
		case e.Pointer == "/audience/list":
			text = e.Detail
		}
		if e.Code == "list_not_found" {
			text = "Header field X-Relay-List: " + e.Detail
			break
		}
	}
	return mail.Refuse(554, mail.Status{Class: 5, Subject: 6, Detail: 0}, "Campaign refused: "+mail.CleanText(text, 400), err)
}

func wrong(format string, args ...any) error {
	return &Invalid{Code: api.CodeInvalidParameter, Detail: fmt.Sprintf(format, args...)}
}

// requestOf reads a message as what POST /v1/campaigns takes.
func (s *Service) requestOf(ctx context.Context, b *intake.Broadcast) (*api.CreateCampaign, error) {
	m, err := netmail.ReadMessage(bytes.NewReader(b.Message))
	if err != nil {
		return nil, wrong("the header cannot be read: %s", err)
	}
	from, err := netmail.ParseAddress(m.Header.Get("From"))
	if err != nil {
		return nil, wrong("header field From: %s", err)
	}
	req := &api.CreateCampaign{
		Name: b.Name, From: api.Mailbox{Email: from.Address, Name: from.Name}, ReturnPath: b.ReversePath.String(), Stream: b.Stream, Start: true,
	}
	if text := m.Header.Get("Reply-To"); text != "" {
		reply, err := netmail.ParseAddress(text)
		if err != nil {
			return nil, wrong("header field Reply-To: %s", err)
		}
		req.ReplyTo = reply.Address
	}
	req.Template.Subject = mail.DecodeText(m.Header.Get("Subject"))
	req.Template.Options.AutoFooter = true
	parts := &partReader{to: &req.Template}
	if err := parts.read(m.Header.Get("Content-Type"), m.Header.Get("Content-Transfer-Encoding"), "", "", m.Body, 0); err != nil {
		return nil, err
	}
	if b.TTL > 0 {
		req.Send.TTLSeconds = int64(b.TTL / time.Second)
	}
	for _, tag := range b.Tags {
		if req.Tags == nil {
			req.Tags = map[string]string{}
		}
		key, value, _ := strings.Cut(tag, ":")
		req.Tags[key] = value
	}
	if b.List != "" {
		req.Audience = &api.Audience{List: b.List}
		return req, nil
	}
	for _, to := range b.Recipients {
		attributes, err := s.mergeData(ctx, b.Account, to)
		if err != nil {
			return nil, err
		}
		req.Recipients = append(req.Recipients, api.Recipient{Email: to.String(), Attributes: attributes})
	}
	return req, nil
}

// mergeData is what contacts know of a mailbox.
func (s *Service) mergeData(ctx context.Context, account string, to mail.Path) (map[string]any, error) {
	if s.contacts == nil {
		return nil, nil
	}
	f, err := s.contacts.Get(ctx, account, "email:"+to.String())
	if errors.Is(err, contacts.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find contact: %w", err)
	}
	return mergeDataOf(f)
}

// mergeDataOf is what a contact brings to a message.
func mergeDataOf(f *contacts.Found) (map[string]any, error) {
	data := make(map[string]any, len(f.Attributes)+2)
	for _, a := range f.Attributes {
		v := a.Value()
		if raw, ok := v.(json.RawMessage); ok {
			d := json.NewDecoder(bytes.NewReader(raw))
			d.UseNumber()
			if err := d.Decode(&v); err != nil {
				return nil, fmt.Errorf("attribute of contact: %w", err)
			}
		}
		data[a.Name] = v
	}
	for name, text := range map[string]string{"timezone": f.Timezone, "locale": f.Locale} {
		if _, has := data[name]; !has && text != "" {
			data[name] = text
		}
	}
	return data, nil
}

// Bounds of a message that becomes a template.
const (
	maxPartDepth = 8
	maxParts     = 100
	maxPartText  = 4 << 20
)

// partReader takes a message apart: the first text, the first HTML, and images with a Content-ID.
type partReader struct {
	to    *api.CampaignTemplate
	parts int
}

func (p *partReader) read(contentType, encoding, disposition, contentID string, r io.Reader, depth int) error {
	if p.parts++; depth > maxPartDepth || p.parts > maxParts {
		return wrong("the message has more than %d parts, or nests them deeper than %d", maxParts, maxPartDepth)
	}
	if contentType == "" {
		contentType = "text/plain"
	}
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return wrong("Content-Type %q: %s", clip(contentType, 80), err)
	}
	if strings.HasPrefix(kind, "multipart/") {
		return p.multi(params["boundary"], r, depth)
	}
	body, err := decodePart(encoding, r)
	if err != nil {
		return err
	}
	attached := strings.HasPrefix(strings.ToLower(strings.TrimSpace(disposition)), "attachment")
	switch {
	case kind == "text/plain" && !attached && p.to.Text == "":
		p.to.Text, err = textOf(body, params["charset"])
	case kind == "text/html" && !attached && p.to.HTML == "":
		p.to.HTML, err = textOf(body, params["charset"])
	case strings.HasPrefix(kind, "image/") && contentID != "":
		id := strings.Trim(strings.TrimSpace(contentID), "<>")
		name := params["name"]
		if name == "" {
			name = id
		}
		p.to.Images = append(p.to.Images, api.CampaignImage{
			Name: name, ContentID: id, ContentType: kind, Content: base64.StdEncoding.EncodeToString(body),
		})
	default:
		return wrong("a part of type %s: a campaign takes one text, one HTML and images that the HTML shows", clip(kind, 60))
	}
	return err
}

func (p *partReader) multi(boundary string, r io.Reader, depth int) error {
	if boundary == "" {
		return wrong("a multipart without a boundary")
	}
	mr := multipart.NewReader(r, boundary)
	for {
		part, err := mr.NextRawPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return wrong("a multipart cannot be read: %s", err)
		}
		h := part.Header
		err = p.read(h.Get("Content-Type"), h.Get("Content-Transfer-Encoding"), h.Get("Content-Disposition"), h.Get("Content-ID"), part, depth+1)
		if err != nil {
			return err
		}
	}
}

// decodePart undoes the encoding for transport.
func decodePart(encoding string, r io.Reader) ([]byte, error) {
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "", "7bit", "8bit", "binary":
	case "quoted-printable":
		r = quotedprintable.NewReader(r)
	case "base64":
		r = base64.NewDecoder(base64.StdEncoding, r)
	default:
		return nil, wrong("Content-Transfer-Encoding %q is not known", clip(encoding, 40))
	}
	b, err := io.ReadAll(io.LimitReader(r, maxPartText+1))
	switch {
	case err != nil:
		return nil, wrong("a part cannot be decoded: %s", err)
	case len(b) > maxPartText:
		return nil, wrong("a part of more than %d bytes", maxPartText)
	}
	return b, nil
}

// textOf brings a text into UTF-8.
func textOf(b []byte, charset string) (string, error) {
	switch strings.ToLower(charset) {
	case "", "us-ascii", "utf-8", "utf8":
	default:
		enc, err := htmlindex.Get(charset)
		if err != nil {
			return "", wrong("charset %q is not known", clip(charset, 40))
		}
		if b, err = enc.NewDecoder().Bytes(b); err != nil {
			return "", wrong("the text is not %s", clip(charset, 40))
		}
	}
	if !utf8.Valid(b) {
		return "", wrong("the text is not UTF-8: name its charset in Content-Type")
	}
	return strings.ReplaceAll(string(b), "\r\n", "\n"), nil
}
