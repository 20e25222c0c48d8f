package campaign

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"relayd/internal/api"
	contacts "relayd/internal/contact"
)

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
