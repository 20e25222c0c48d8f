package campaign

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"relayd/internal/api"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

// Preview makes one recipient's message by the code that sends, and keeps nothing of it.
func (s *Service) Preview(ctx context.Context, account, id string, in *api.PreviewCampaign) (api.CampaignPreview, error) {
	r, err := s.read(ctx, account, id)
	if err != nil {
		return api.CampaignPreview{}, err
	}
	c, err := s.compile(ctx, r)
	if err != nil {
		return api.CampaignPreview{}, err
	}
	if in, err = s.withSample(ctx, r, in); err != nil {
		return api.CampaignPreview{}, err
	}
	to, attributes, err := s.pick(ctx, r, c, in.Contact, in.Data)
	if err != nil {
		return api.CampaignPreview{}, err
	}
	l := s.letterTo(r, to, attributes)
	msg, body, err := c.write(nil, &l)
	if err != nil {
		return api.CampaignPreview{}, renderInvalid(err)
	}
	p := api.CampaignPreview{To: to.String(), Bytes: len(msg), Headers: map[string]string{}, Findings: c.findings(msg, l.at)}
	fields, err := mail.ParseHeader(msg[:body-len("\r\n")])
	if err != nil {
		return p, fmt.Errorf("read preview: %w", err)
	}
	for _, f := range fields {
		p.Headers[f.Name] = mail.DecodeText(f.Value())
	}
	p.Subject = p.Headers["Subject"]
	ct := c.contact(&l)
	if c.html != nil {
		if p.HTML, err = c.plain(c.html, ct); err != nil {
			return p, renderInvalid(err)
		}
	}
	p.Text, err = c.plain(c.text, ct)
	return p, renderInvalid(err)
}

// withSample puts what the named sample of the stored template has of a recipient under the data of the request. What it
// has of a campaign is not used: this campaign has its own.
func (s *Service) withSample(ctx context.Context, r *record, in *api.PreviewCampaign) (*api.PreviewCampaign, error) {
	if in.Sample == "" {
		return in, nil
	}
	bad := &Invalid{}
	if in.Contact != "" {
		bad.add("/sample", api.CodeInvalidParameter, "give either a contact or a sample")
		return nil, bad
	}
	req, err := s.request(ctx, r)
	if err != nil {
		return nil, err
	}
	t := req.Template
	if t.Name == "" {
		bad.add("/sample", api.CodeInvalidParameter, "the campaign's template is its own: samples are those of stored templates")
		return nil, bad
	}
	if t.Version == 0 {
		_, key, err := s.resolve(ctx, r.Account, api.TemplateRef{Name: t.Name}, kindBroadcast, "/sample")
		if err != nil {
			return nil, err
		}
		t.Version = key.version
	}
	_, _, content, err := s.edition(ctx, r.Account, t.Name, t.Version)
	if err != nil {
		return nil, err
	}
	sample, err := pickSample(content.Source.Samples, &api.RenderTemplate{Sample: in.Sample})
	if err != nil {
		return nil, err
	}
	out := *in
	out.Data = part(kindBroadcast, content.Source.Variables, sample.Data, sample.Attributes).attributes
	for name, x := range sample.Data {
		if _, ofCampaign := req.Data[name]; !ofCampaign {
			out.Data[name] = x // nothing declares whose it is
		}
	}
	maps.Copy(out.Data, in.Data)
	return &out, nil
}

// plain runs one part of the message without the encoding for transport.
func (c *composition) plain(p *program, ct *contact) (string, error) {
	m := machines.Get().(*machine) //nolint:forcetypeassert // the pool holds nothing else
	defer m.release()
	m.buf = nil
	err := m.run(p, &c.scope, ct, encodeNone)
	return string(m.buf), err
}

// renderInvalid makes what a message lacks the caller's to mend.
func renderInvalid(err error) error {
	if err == nil {
		return nil
	}
	return &Invalid{Code: "render_failed", Detail: mail.CleanText(err.Error(), 1000)}
}

// letterTo is a message outside of the fan-out: the numbers of its recipients are never given to one that is.
func (s *Service) letterTo(r *record, to mail.Path, attributes []attribute) letter {
	return letter{
		id: mail.EnvelopeID{Message: mail.NewQueueID(s.now()), N: 0}, to: to, at: s.now(), attributes: attributes,
		token: s.tokens.seal(forUnsubscribe, claim{r.ID, r.Members.list(), r.Account, to.String()}),
	}
}

// pick finds the recipient that a preview or test is made for: the contact that is named, with data in place of its
// attributes where some are given; else the first of the campaign; else one without attributes.
func (s *Service) pick(
	ctx context.Context, r *record, c *composition, name string, data map[string]any,
) (to mail.Path, attributes []attribute, err error) {
	bad := func(pointer, format string, args ...any) error {
		e := &Invalid{}
		e.add(pointer, api.CodeRecipientInvalid, format, args...)
		return e.orNil()
	}
	if name == "" {
		to, attributes, err = s.firstRecipient(ctx, r)
		if err != nil {
			return to, nil, err
		}
		if to.Domain == "" {
			to = c.from
		}
	} else {
		address := strings.TrimPrefix(name, "email:")
		if to, err = parseAddress(address); err != nil {
			if s.contacts == nil || !strings.HasPrefix(name, "con_") {
				return to, nil, bad("/contact", "%q: %s", clip(name, 100), err)
			}
			f, err := s.contacts.Get(ctx, r.Account, name)
			if err != nil {
				return to, nil, bad("/contact", "no contact %q in this account", clip(name, 100))
			}
			to = f.To
		}
		if attributes, err = s.attributesOfRecipient(ctx, r, to); err != nil {
			return to, nil, err
		}
		if attributes == nil && data == nil {
			return to, nil, bad("/contact", "%s is neither a recipient of this campaign nor a contact: give data with it", to)
		}
	}
	if data != nil {
		if attributes, err = attributesOf(data); err != nil {
			return to, nil, bad("/data", "%s", err)
		}
	}
	return to, attributes, nil
}

// firstRecipient returns one recipient of a campaign, of a draft's list where it goes to one.
func (s *Service) firstRecipient(ctx context.Context, r *record) (to mail.Path, attributes []attribute, err error) {
	err = s.db.View(ctx, func(tx kv.Tx) error {
		rows, err := scanRecipients(tx, r.ID, 0, 1)
		if err != nil {
			return err
		}
		if len(rows) == 1 && !rows[0].unsubscribed {
			to = rows[0].to
			attributes, err = readAttributes(nil, rows[0].data)
			return err
		}
		if r.Audience == nil {
			return nil
		}
		a, err := audienceOf(r)
		if err != nil {
			return err
		}
		page, _, _, err := s.contacts.PageTx(tx, a, [12]byte{}, 1)
		if err != nil || len(page) == 0 {
			return err
		}
		rec, err := recipientOf(&page[0])
		to, attributes = rec.to, rec.attributes
		return err
	})
	return to, attributes, err
}

// attributesOfRecipient returns the merge data of one recipient: as it was uploaded, or as contacts have it.
func (s *Service) attributesOfRecipient(ctx context.Context, r *record, to mail.Path) (list []attribute, err error) {
	n := number(r.ID, to.Key())
	err = s.db.View(ctx, func(tx kv.Tx) error {
		v, err := tx.Get(tableRecipient, recipientKey(r.ID, n))
		if err != nil || v == nil {
			return err
		}
		rec, data, err := decodeRecipient(string(v))
		if err != nil || rec.to.Key() != to.Key() {
			return err
		}
		list, err = readAttributes([]attribute{}, data)
		return err
	})
	if err != nil || list != nil {
		return list, err
	}
	return s.attributesFor(ctx, r.Account, to)
}

const (
	maxTests   = 10
	testPrefix = "[TEST] "
)

// Test sends the message of one recipient to other addresses, at once and as transactional mail, with "[TEST]" before
// the subject. It is not counted, and the campaign stays as it is.
func (s *Service) Test(ctx context.Context, account, id string, in *api.TestCampaign) (api.TestSent, error) {
	sent := api.TestSent{Messages: []string{}}
	r, err := s.read(ctx, account, id)
	if err != nil {
		return sent, err
	}
	bad := &Invalid{}
	var list []mail.Path
	if len(in.To) == 0 || len(in.To) > maxTests {
		bad.add("/to", api.CodeInvalidParameter, "1 to %d addresses are needed", maxTests)
	}
	for i, text := range in.To[:min(len(in.To), maxTests)] {
		to, err := parseAddress(text)
		if err != nil {
			bad.add(fmt.Sprintf("/to/%d", i), api.CodeRecipientInvalid, "%q: %s", clip(text, 100), err)
			continue
		}
		if !slices.ContainsFunc(list, func(p mail.Path) bool { return p.Key() == to.Key() }) {
			list = append(list, to)
		}
	}
	if err := bad.orNil(); err != nil {
		return sent, err
	}
	c, err := s.compile(ctx, r)
	if err != nil {
		return sent, err
	}
	if err := s.ready(r, c, 1); err != nil {
		return sent, err
	}
	_, attributes, err := s.pick(ctx, r, c, in.AsContact, in.Data)
	if err != nil {
		return sent, err
	}
	for _, to := range list {
		l := s.letterTo(r, to, attributes)
		msg, err := c.test(&l)
		if err != nil {
			return sent, renderInvalid(err)
		}
		queued, err := s.intake.Accept(ctx, &intake.Submission{
			Account: r.Account, Class: spool.Transactional, ReversePath: c.reverse, Recipients: []intake.Recipient{{To: to}},
			Trace: intake.Trace{With: "LOCAL", At: s.now()}, Tags: []string{"test"}, Body: bytes.NewReader(msg),
		})
		if err != nil {
			return sent, err
		}
		sent.Messages = append(sent.Messages, queued.String())
	}
	return sent, nil
}

// test makes a message whose subject says that it is one.
func (c *composition) test(l *letter) ([]byte, error) {
	msg, body, err := c.write(nil, l)
	if err != nil {
		return nil, err
	}
	fields, err := mail.ParseHeader(msg[:body-len("\r\n")])
	if err != nil {
		return nil, fmt.Errorf("read test message: %w", err)
	}
	var out []byte
	for _, f := range fields {
		if !strings.EqualFold(f.Name, "Subject") {
			out = append(out, f.Raw...)
			continue
		}
		if out, err = appendSubject(out, testPrefix+mail.DecodeText(f.Value())); err != nil {
			return nil, err
		}
	}
	return append(append(out, "\r\n"...), msg[body:]...), nil
}
