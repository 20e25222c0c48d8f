package campaign

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/checklist"
	contacts "relayd/internal/contact"
	"relayd/internal/mail"
)

// templateKey names a compiled template in the cache. A draft that changes has another revision.
type templateKey struct {
	account, name     string
	version, revision int
}

// markOfTemplate stands in boundaries and content IDs of what a stored template makes.
func markOfTemplate(account, name string) string {
	sum := sha256.Sum256([]byte(account + "\x00" + name))
	return hex.EncodeToString(sum[:10])
}

// parted is data by where it comes from: what the author of a campaign gives, and what belongs to one recipient.
type parted struct {
	data       map[string]any
	attributes map[string]any
}

// part sorts the data of a sample. For a single message all of it belongs to the message; for a campaign all that is not
// declared as the contact's is the campaign's.
func part(kind string, vars map[string]api.Variable, data, attributes map[string]any) parted {
	p := parted{data: map[string]any{}, attributes: map[string]any{}}
	maps.Copy(p.attributes, attributes)
	for name, x := range data {
		if v := vars[name]; kind == kindTransactional || v.Scope == "contact" || v.Scope == "message" {
			p.attributes[name] = x
		} else {
			p.data[name] = x
		}
	}
	return p
}

// compileSample compiles a stored template with what a sample has of a campaign.
func (s *Service) compileSample(account, name, kind string, t *api.CampaignTemplate, sample api.TemplateSample) (*composition, error) {
	data := part(kind, t.Variables, sample.Data, sample.Attributes).data
	if kind == kindBroadcast && len(sample.Data)+len(sample.Attributes) == 0 { // no data at all: a campaign will have it
		for variable, v := range t.Variables {
			if v.Scope == "campaign" && v.Default == nil {
				data[variable] = ""
			}
		}
	}
	return s.compileStored(account, name, kind, t, data, nil)
}

// compileStored compiles a stored template. from is whose message it makes, nil for nobody's in particular.
func (s *Service) compileStored(account, name, kind string, t *api.CampaignTemplate, data map[string]any, from *api.Mailbox) (*composition, error) {
	bad := &Invalid{}
	c := &composition{
		mark: markOfTemplate(account, name), single: kind == kindTransactional, account: account, name: name, host: s.cfg.Hostname,
		unsub: unsubscribeBase(s.publicURL()), mailbox: s.cfg.UnsubscribeMailbox,
	}
	if from == nil {
		from = &api.Mailbox{Email: "preview@" + previewDomain(s.cfg.Hostname)}
	}
	req := &api.CreateCampaign{Name: name, From: *from, Template: *t}
	c.addresses(req, bad)
	c.data(data, t, bad)
	set, err := c.content(t, bad)
	if err != nil {
		return nil, err
	}
	if c.single {
		if c.head, err = appendFrom(nil, from.Name, c.from); err != nil {
			return nil, err
		}
		c.assembleParts(set)
	} else if err := c.assemble(req, set); err != nil {
		return nil, err
	}
	c.lint(t, set)
	c.warnVariables(t)
	return c, nil
}

func appendFrom(b []byte, name string, from mail.Path) ([]byte, error) {
	text, err := mail.FormatAddress(name, from)
	if err != nil {
		return nil, &Invalid{Code: api.CodeInvalidParameter, Errors: []api.FieldError{{Pointer: "/from/name", Code: "header_line_break", Detail: err.Error()}}}
	}
	return mail.AppendRawField(b, "From", text)
}

// previewDomain is a domain for addresses of previews.
func previewDomain(host string) string {
	if strings.Contains(host, ".") {
		return host
	}
	return "relay.example"
}

// publicURL is where links of previews lead while none is configured.
func (s *Service) publicURL() string {
	if s.cfg.PublicURL == "" {
		return "https://" + previewDomain(s.cfg.Hostname)
	}
	return s.cfg.PublicURL
}

// compiled tells sizes.
func (c *composition) compiled() *api.TemplateCompiled {
	out := &api.TemplateCompiled{TextBytes: c.text.size, InlineImages: c.images, EstimatedMIMEBytes: int(c.guess())}
	if c.html != nil {
		out.HTMLBytes = c.html.size
	}
	return out
}

// warnVariables notes variables without which a message cannot be made and that nothing declares.
func (c *composition) warnVariables(t *api.CampaignTemplate) {
	for _, u := range c.variableUses() {
		v, declared := t.Variables[u.Name]
		if !u.Required || declared && (v.Default != nil || v.Required) || len(c.warnings) >= maxWarnings {
			continue
		}
		c.warnings = append(c.warnings, api.Warning{
			Code: "variable_without_default", Detail: fmt.Sprintf("%q (%s) has no default: a message to somebody who has none cannot be made", u.Name, strings.Join(u.Places, ", ")),
		})
	}
}

// variableUses lists what the template reads, by name.
func (c *composition) variableUses() []api.VariableUse {
	byName := map[string]*api.VariableUse{}
	for _, u := range c.uses() {
		if u.root == "" || u.system {
			continue
		}
		v := byName[u.name]
		if v == nil {
			v = &api.VariableUse{Name: u.name, Places: []string{}}
			byName[u.name] = v
		}
		_, hasDefault := c.scope.vars[u.root]
		hasDefault = hasDefault && c.scope.vars[u.root].Default != nil
		v.Required = v.Required || u.required && !u.constant && !hasDefault
		if place := u.place(); len(v.Places) < maxPlaces && !slices.Contains(v.Places, place) {
			v.Places = append(v.Places, place)
		}
	}
	list := make([]api.VariableUse, 0, len(byName))
	for _, name := range sortedKeys(byName) {
		list = append(list, *byName[name])
	}
	return list
}

// tellLacks makes one recipient's message without keeping it, and says what it lacks: an *Invalid that points into the
// data. prefix is what pointers begin with.
func tellLacks(c *composition, kind, name string, version int, sample api.TemplateSample, prefix string) error {
	p := part(kind, c.scope.vars, sample.Data, sample.Attributes)
	attributes, err := attributesOf(p.attributes)
	if err != nil {
		return &Invalid{Code: api.CodeInvalidParameter, Errors: []api.FieldError{{Pointer: prefix + "/data", Code: api.CodeInvalidParameter, Detail: err.Error()}}}
	}
	return c.lacking(&contact{address: "ann@example.com", attributes: attributes, system: system{messageID: "x@y"}}, name, version, prefix)
}

// lacking says what a message to a contact lacks.
func (c *composition) lacking(ct *contact, name string, version int, prefix string) error {
	missing, err := c.check(ct)
	bad := &Invalid{}
	told := map[string]bool{}
	for _, u := range missing {
		if told[u.name] {
			continue
		}
		told[u.name] = true
		var places []string
		for _, other := range c.uses() {
			if place := other.place(); other.name == u.name && len(places) < maxPlaces && !slices.Contains(places, place) {
				places = append(places, place)
			}
		}
		known := reservedNames()
		for _, a := range ct.attributes {
			known = append(known, a.name)
		}
		detail := "used in " + strings.Join(places, " and ")
		if near := nearest(u.name, append(known, sortedKeys(c.scope.data)...)); near != "" {
			detail += fmt.Sprintf("; did you mean %q?", near)
		}
		if bad.Detail == "" {
			at := ""
			if version > 0 {
				at = fmt.Sprintf("@%d", version)
			}
			bad.Detail = fmt.Sprintf("Template %s%s needs '%s' and no default is declared.", name, at, clip(u.name, 60))
		}
		bad.Code = api.CodeTemplateVariable
		pointer := prefix + "/data/" + strings.ReplaceAll(escapePointer(u.name), ".", "/")
		bad.add(pointer, "required", "%s", detail)
	}
	if err != nil && len(bad.Errors) == 0 {
		code := "render_failed"
		if errors.Is(err, errHeaderControl) {
			code = "header_line_break"
		}
		bad.add(prefix+"/data", code, "%s", err)
	}
	return bad.orNil()
}

// RenderTemplate makes the message of a version, as it would be sent, from given data.
func (s *Service) RenderTemplate(ctx context.Context, account, name string, in *api.RenderTemplate) (api.RenderedTemplate, error) {
	r, e, content, err := s.edition(ctx, account, name, in.Version)
	if err != nil {
		return api.RenderedTemplate{}, err
	}
	if r.Kind == kindPartial {
		return api.RenderedTemplate{}, &Invalid{Code: api.CodeInvalidParameter, Detail: "a partial makes no message: render a template that names it"}
	}
	if in, err = s.withContact(ctx, account, in); err != nil {
		return api.RenderedTemplate{}, err
	}
	sample, err := pickSample(content.Source.Samples, in)
	if err != nil {
		return api.RenderedTemplate{}, err
	}
	out, err := s.renderSample(account, name, r.Kind, e.Version, content.template(), sample, in)
	return out, stripPointers(err)
}

// withContact puts what is known of the contact that a request names under what it gives itself.
func (s *Service) withContact(ctx context.Context, account string, in *api.RenderTemplate) (*api.RenderTemplate, error) {
	if in.Contact == "" {
		return in, nil
	}
	bad := &Invalid{}
	if s.contacts == nil {
		bad.add("/contact", "contact_not_found", "there are no contacts here")
		return nil, bad.orNil()
	}
	f, err := s.contacts.Get(ctx, account, in.Contact)
	switch {
	case errors.Is(err, contacts.ErrNotFound):
		bad.add("/contact", "contact_not_found", "no contact %q in this account", clip(in.Contact, 80))
		return nil, bad.orNil()
	case err != nil:
		if _, _, malformed := contacts.ParseRef(in.Contact); malformed != nil {
			bad.add("/contact", api.CodeInvalidParameter, "%s", malformed)
			return nil, bad.orNil()
		}
		return nil, fmt.Errorf("find contact: %w", err)
	}
	out := *in
	if out.Attributes, err = mergeDataOf(f); err != nil {
		return nil, err
	}
	maps.Copy(out.Attributes, in.Attributes)
	if out.To == "" {
		out.To = f.To.String()
	}
	return &out, nil
}

// pickSample lays what a request gives over the sample that it names.
func pickSample(samples []api.TemplateSample, in *api.RenderTemplate) (api.TemplateSample, error) {
	out := api.TemplateSample{Name: in.Sample, Data: map[string]any{}, Attributes: map[string]any{}}
	if in.Sample != "" {
		i := slices.IndexFunc(samples, func(s api.TemplateSample) bool { return s.Name == in.Sample })
		if i < 0 {
			var names []string
			for _, s := range samples {
				names = append(names, s.Name)
			}
			detail := fmt.Sprintf("no sample is named %q", clip(in.Sample, 60))
			if near := nearest(in.Sample, names); near != "" {
				detail += fmt.Sprintf("; did you mean %q?", near)
			}
			return out, &Invalid{Code: api.CodeInvalidParameter, Errors: []api.FieldError{{Pointer: "/sample", Code: api.CodeInvalidParameter, Detail: detail}}}
		}
		maps.Copy(out.Data, samples[i].Data)
		maps.Copy(out.Attributes, samples[i].Attributes)
	}
	maps.Copy(out.Data, in.Data)
	maps.Copy(out.Attributes, in.Attributes)
	return out, nil
}

func (s *Service) renderSample(account, name, kind string, version int, t *api.CampaignTemplate, sample api.TemplateSample, in *api.RenderTemplate) (api.RenderedTemplate, error) {
	out := api.RenderedTemplate{Name: name, Version: version, Headers: map[string]string{}, Findings: []api.Finding{}}
	p := part(kind, t.Variables, sample.Data, sample.Attributes)
	c, err := s.compileStored(account, name, kind, t, p.data, in.From)
	if err != nil {
		return out, err
	}
	to := "ann@example.com"
	if in.To != "" {
		to = in.To
	}
	path, err := parseAddress(to)
	if err != nil {
		return out, &Invalid{Code: api.CodeRecipientInvalid, Errors: []api.FieldError{{Pointer: "/to", Code: api.CodeRecipientInvalid, Detail: err.Error()}}}
	}
	attributes, err := attributesOf(p.attributes)
	if err != nil {
		return out, &Invalid{Code: api.CodeInvalidParameter, Errors: []api.FieldError{{Pointer: "/attributes", Code: api.CodeInvalidParameter, Detail: err.Error()}}}
	}
	now := s.now()
	l := &letter{to: path, at: now, attributes: attributes, token: "preview", messageID: "preview@" + c.host}
	if err := c.lacking(c.contact(l), name, version, ""); err != nil {
		return out, err
	}
	if c.single {
		l.head = append(append(slices.Clip(c.head), "To: "...), path.String()+"\r\n"...)
	}
	return out, c.preview(l, now, &out)
}

// preview makes the message and shows its parts.
func (c *composition) preview(l *letter, now time.Time, out *api.RenderedTemplate) error {
	msg, body, err := c.write(nil, l)
	if err != nil {
		return renderProblem(err)
	}
	out.MIMEBytes = len(msg)
	h, err := mail.ParseHeader(msg[:body-2])
	if err != nil {
		return fmt.Errorf("preview template: %w", err)
	}
	for _, f := range h {
		out.Headers[f.Name] = strings.Join(strings.Fields(f.Value()), " ")
	}
	m := machines.Get().(*machine) //nolint:forcetypeassert // the pool holds nothing else
	defer m.release()
	ct := c.contact(l)
	if out.Subject, err = c.writeSubject(m, ct); err != nil {
		return renderProblem(err)
	}
	for _, p := range []*program{c.text, c.html} {
		if p == nil {
			continue
		}
		m.buf = nil
		if err := m.run(p, &c.scope, ct, encodeNone); err != nil {
			return renderProblem(err)
		}
		if p == c.html {
			out.HTML = string(m.buf)
		} else {
			out.Text = string(m.buf)
		}
	}
	out.Findings = c.findings(msg, now)
	return nil
}

// renderProblem is the answer for a message that cannot be made.
func renderProblem(err error) error {
	if r, ok := errors.AsType[*RenderError](err); ok {
		return &Invalid{Code: r.Code(), Detail: r.Error()}
	}
	return err
}

// findings looks at a message as the mailbox provider does.
func (c *composition) findings(msg []byte, now time.Time) []api.Finding {
	list := []api.Finding{}
	for _, f := range checklist.Check(msg, checklist.Options{Broadcast: !c.single, Now: now, Host: c.host, PostalAddress: c.postal}) {
		if f.ID == "F08" && f.Pointer == "header/List-Unsubscribe" && strings.HasPrefix(c.unsub, "http://") {
			continue // a loopback address, for tests
		}
		list = append(list, api.Finding{ID: f.ID, Level: f.Level, Pointer: f.Pointer, Line: f.Line, Column: f.Column, Detail: f.Detail, Advice: f.Advice})
	}
	return list
}

// ValidateTemplate checks a version, or the source in the request, with the data of the request or of each sample.
func (s *Service) ValidateTemplate(ctx context.Context, account, name string, in *api.RenderTemplate) (api.TemplateValidation, error) {
	out := api.TemplateValidation{OK: true, Name: name, Variables: []api.VariableUse{}, Warnings: []api.Warning{}, Findings: []api.Finding{}}
	kind, content := kindBroadcast, &editionContent{}
	if in.Source != nil {
		content.Source = in.Source.TemplateSource
		if kind = in.Source.Kind; kind == "" {
			kind = kindBroadcast
		}
		d, err := s.draft(ctx, account, name, kind, &content.Source)
		if err != nil {
			return out, err
		}
		if err := decodeRow(d.content, content); err != nil {
			return out, err
		}
	} else {
		r, e, stored, err := s.edition(ctx, account, name, in.Version)
		if err != nil {
			return out, err
		}
		kind, content, out.Version = r.Kind, stored, e.Version
	}
	if kind == kindPartial {
		return out, nil
	}
	samples := []api.TemplateSample{{Data: in.Data, Attributes: in.Attributes}}
	given := in.Sample != "" || len(in.Data)+len(in.Attributes) > 0
	if given {
		one, err := pickSample(content.Source.Samples, in)
		if err != nil {
			return out, err
		}
		samples[0] = one
	} else if len(content.Source.Samples) > 0 {
		samples = content.Source.Samples
		given = true
	}
	t := content.template()
	c, err := s.compileSample(account, name, kind, t, samples[0])
	if err != nil {
		return out, stripPointers(err)
	}
	out.Variables, out.Compiled, out.Warnings = c.variableUses(), c.compiled(), append(out.Warnings, c.warnings...)
	for _, sample := range samples {
		if !given {
			sample = placeholders(c, t)
		}
		rendered, err := s.renderSample(account, name, kind, out.Version, t, sample, in)
		if err != nil {
			return out, stripPointers(err)
		}
		for _, f := range rendered.Findings {
			f.Sample = sample.Name
			out.OK = out.OK && f.Level != checklist.Error
			out.Findings = append(out.Findings, f)
		}
	}
	return out, nil
}

// placeholders gives every variable that is needed its own name as its value.
func placeholders(c *composition, t *api.CampaignTemplate) api.TemplateSample {
	sample := api.TemplateSample{Data: map[string]any{}, Attributes: map[string]any{}}
	for name, v := range t.Variables {
		if v.Scope == "campaign" && v.Default == nil {
			sample.Data[name] = name
		}
	}
	for _, u := range c.uses() {
		if u.root != "" && !u.system && !u.constant && u.required && u.root == u.name {
			sample.Attributes[u.root] = u.root
		}
	}
	return sample
}

// ErrNotPublished tells that a template has no version that may be sent.
var ErrNotPublished = errors.New("no published version")

// resolve returns the content of a published version; 0 is the one that is published last.
func (s *Service) resolve(ctx context.Context, account string, ref api.TemplateRef, kind, pointer string) (t *api.CampaignTemplate, key templateKey, err error) {
	refuse := func(code, format string, args ...any) error {
		bad := &Invalid{}
		bad.add(pointer, code, format, args...)
		return bad.orNil()
	}
	version := ref.Version
	r, e, content, err := s.edition(ctx, account, ref.Name, 0)
	if err == nil {
		if version == 0 {
			version = r.Published
		}
		if version == 0 {
			return nil, key, refuse(api.CodeConflict, "template %s has no published version: run relayctl template publish %s", ref.Name, ref.Name)
		}
		if e.Version != version {
			_, e, content, err = s.edition(ctx, account, ref.Name, version)
		}
	}
	switch {
	case errors.Is(err, ErrTemplateNotFound):
		return nil, key, refuse(api.CodeNotFound, "there is no template %q of that version", clip(ref.Name, 60))
	case err != nil:
		return nil, key, err
	case r.Kind != kind:
		return nil, key, refuse(api.CodeInvalidParameter, "template %s is of kind %s; here one of kind %s is needed", ref.Name, r.Kind, kind)
	case e.Published.IsZero():
		return nil, key, refuse(api.CodeConflict, "version %d of template %s is a draft: run relayctl template publish %s --version %d", version, ref.Name, ref.Name, version)
	}
	return content.template(), templateKey{account, ref.Name, version, e.Revision}, nil
}

// SingleMessage makes the message of POST /v1/messages from a stored template. head holds From, Reply-To and To; to is
// the first recipient. What the data lacks is an *Invalid that points at it.
func (s *Service) SingleMessage(ctx context.Context, account string, ref api.TemplateRef, data map[string]any, head []byte, from, to mail.Path) ([]byte, error) {
	t, key, err := s.resolve(ctx, account, ref, kindTransactional, "/template")
	if err != nil {
		return nil, err
	}
	c, err := s.templates.get(key, func() (*composition, error) {
		return s.compileStored(account, ref.Name, kindTransactional, t, nil, nil)
	})
	if err != nil {
		return nil, err
	}
	attributes, err := attributesOf(data)
	if err != nil {
		return nil, &Invalid{Code: api.CodeInvalidParameter, Errors: []api.FieldError{{Pointer: "/data", Code: api.CodeInvalidParameter, Detail: err.Error()}}}
	}
	now := s.now()
	l := &letter{to: to, at: now, attributes: attributes, head: head, messageID: mail.NewQueueID(now).String() + "@" + c.host}
	ct := c.contact(l)
	ct.system.sender = from.String()
	if err := c.lacking(ct, ref.Name, key.version, ""); err != nil {
		return nil, err
	}
	msg, _, err := c.write(nil, l)
	if err != nil {
		return nil, renderProblem(err)
	}
	return bytes.Clone(msg), nil
}
