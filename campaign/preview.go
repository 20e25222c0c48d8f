package campaign

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/checklist"
	"relayd/internal/mail"
)

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
