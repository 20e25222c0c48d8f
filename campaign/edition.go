package campaign

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"relayd/internal/api"
	"relayd/internal/kv"
)

// CreateTemplate stores the first version of a template, a draft. A template that does not compile is not stored: the
// refusal is an *Invalid that names parts, lines and columns.
func (s *Service) CreateTemplate(ctx context.Context, account string, in *api.CreateTemplate) (api.Template, error) {
	draft, err := s.draft(ctx, account, in.Name, in.Kind, &in.TemplateSource)
	if err != nil {
		return api.Template{}, err
	}
	var r *templateRecord
	var e *edition
	err = s.db.Update(ctx, func(tx kv.Tx) error {
		if _, err := getTemplate(tx, account, in.Name); !errors.Is(err, ErrTemplateNotFound) {
			if err == nil {
				err = ErrTemplateExists
			}
			return err
		}
		n := 0
		prefix := templateKeyOf(account, "")
		err := tx.Scan(tableTemplate, prefix, kv.PrefixEnd(prefix), func(_, _ []byte) (bool, error) {
			n++
			return n < maxTemplates, nil
		})
		if err != nil {
			return fmt.Errorf("count templates: %w", err)
		}
		if n >= maxTemplates {
			return ErrTooMany
		}
		now := s.now().UTC()
		r = &templateRecord{Kind: draft.kind, Latest: 1, Revision: 1, Created: now, Updated: now}
		e = &edition{Version: 1, Created: now}
		return s.putDraft(tx, account, in.Name, r, e, draft)
	})
	if err != nil {
		return api.Template{}, wrapStore("create template", err)
	}
	s.log.Info("template.saved", "account", account, "reason", versioned(in.Name, e.Version))
	return r.api(account, in.Name, e), nil
}

// wrapStore leaves the errors that callers look for as they are.
func wrapStore(verb string, err error) error {
	if _, bad := errors.AsType[*Invalid](err); bad {
		return err
	}
	for _, known := range []error{ErrTemplateNotFound, ErrTemplateExists, ErrTooMany, ErrChanged, ErrAssetNotFound} {
		if errors.Is(err, known) {
			return err
		}
	}
	return fmt.Errorf("%s: %w", verb, err)
}

// compiledDraft is a source that is fit to be stored.
type compiledDraft struct {
	kind    string
	content []byte
	links   []string     // tokens of the assets that it links to
	c       *composition // nil for partials
}

// draft checks a source with its samples and takes in what it refers to.
func (s *Service) draft(ctx context.Context, account, name, kind string, source *api.TemplateSource) (*compiledDraft, error) {
	bad := &Invalid{}
	if !isTemplateName(name) {
		bad.add("/name", api.CodeInvalidParameter, "a name of 1 to 100 letters, digits, '-', '_' and '.' is needed")
	}
	switch kind {
	case "":
		kind = kindBroadcast
	case kindBroadcast, kindTransactional, kindPartial:
	default:
		bad.add("/kind", api.CodeInvalidParameter, `%q is not "broadcast", "transactional" or "partial"`, clip(kind, 40))
	}
	checkSamples(source.Samples, bad)
	if err := bad.orNil(); err != nil {
		return nil, err
	}
	content := &editionContent{Source: *source}
	if err := s.takeIn(ctx, account, content); err != nil {
		return nil, err
	}
	d := &compiledDraft{kind: kind}
	var err error
	if kind == kindPartial {
		err = checkPartial(content.template())
	} else {
		d.c, err = s.compileDraft(account, name, kind, content)
	}
	if err != nil {
		return nil, stripPointers(err)
	}
	for _, img := range content.template().Images {
		if _, rest, ok := strings.Cut(img.URL, "/a/"); ok {
			token, _, _ := strings.Cut(rest, "/")
			d.links = append(d.links, token)
		}
	}
	if d.content, err = encodeRow(content); err != nil {
		return nil, err
	}
	if len(d.content) > maxTemplate {
		return nil, &Invalid{Code: api.CodeMessageTooLarge, Detail: fmt.Sprintf("the template takes %d bytes with its images, more than %d", len(d.content), maxTemplate)}
	}
	return d, nil
}

const (
	maxTemplateSamples = 20
	maxSampleBytes     = 1 << 20
)

func checkSamples(samples []api.TemplateSample, bad *Invalid) {
	if len(samples) > maxTemplateSamples {
		bad.add("/samples", api.CodeInvalidParameter, "more than %d samples", maxTemplateSamples)
		return
	}
	names := map[string]bool{}
	for i, sample := range samples {
		pointer := fmt.Sprintf("/samples/%d/name", i)
		if sample.Name == "" || len(sample.Name) > 100 || checkHeaderText(sample.Name) != nil {
			bad.add(pointer, api.CodeInvalidParameter, "a name of 1 to 100 bytes without line breaks is needed")
		} else if names[sample.Name] {
			bad.add(pointer, api.CodeInvalidParameter, "%q is there twice", sample.Name)
		}
		names[sample.Name] = true
	}
}

// stripPointers makes pointers into a campaign those into a template, whose fields stand at the top.
func stripPointers(err error) error {
	if bad, ok := errors.AsType[*Invalid](err); ok {
		for i := range bad.Errors {
			bad.Errors[i].Pointer = strings.TrimPrefix(bad.Errors[i].Pointer, "/template")
		}
	}
	return err
}

// compileDraft compiles a source as it would be sent: with the first sample's data of the campaign, and with each other
// sample, so that all of them can be shown.
func (s *Service) compileDraft(account, name, kind string, content *editionContent) (*composition, error) {
	t := content.template()
	var first *composition
	samples := atLeastOne(content.Source.Samples)
	for i, sample := range samples {
		c, err := s.compileSample(account, name, kind, t, sample)
		if err != nil {
			if bad, ok := errors.AsType[*Invalid](err); ok && len(content.Source.Samples) > 0 {
				for j := range bad.Errors {
					if rest, found := strings.CutPrefix(bad.Errors[j].Pointer, "/data"); found {
						bad.Errors[j].Pointer = fmt.Sprintf("/samples/%d/data%s", i, rest)
					}
				}
			}
			return nil, err
		}
		if first == nil {
			first = c
		}
		if len(content.Source.Samples) == 0 {
			break
		}
		if err := tellLacks(c, kind, name, 0, sample, fmt.Sprintf("/samples/%d", i)); err != nil {
			return nil, err
		}
	}
	return first, nil
}

// atLeastOne returns at least one sample.
func atLeastOne(list []api.TemplateSample) []api.TemplateSample {
	if len(list) == 0 {
		return []api.TemplateSample{{}}
	}
	return list
}

// checkPartial compiles a partial by itself, where what its users give it is not known.
func checkPartial(t *api.CampaignTemplate) error {
	bad := &Invalid{}
	if strings.TrimSpace(t.HTML) == "" && strings.TrimSpace(t.Text) == "" {
		bad.add("/html", "required", "a partial needs html or text")
	}
	if t.Subject != "" || t.Preheader != "" {
		bad.add("/subject", api.CodeInvalidParameter, "a partial has no subject and no preheader")
	}
	checkPartials(map[string]api.Partial{"self": {HTML: t.HTML, Text: t.Text}}, bad)
	for part, src := range map[string]string{partHTML: t.HTML, partText: t.Text} {
		if _, err := lex(part, normalLines(src), true); err != nil {
			bad.template("/"+part, err)
		}
	}
	return bad.orNil()
}

// putDraft writes a version and its template.
func (s *Service) putDraft(tx kv.Tx, account, name string, r *templateRecord, e *edition, d *compiledDraft) error {
	e.Updated, e.Revision = r.Updated, r.Revision
	e.Variables, e.Compiled, e.Warnings, e.Links = nil, nil, nil, d.links
	if d.c != nil {
		e.Variables, e.Compiled, e.Warnings = d.c.variablesUsed(), d.c.compiled(), d.c.warnings
	}
	if err := putEdition(tx, account, name, e, d.content); err != nil {
		return err
	}
	return putRow(tx, tableTemplate, templateKeyOf(account, name), r)
}

// PatchTemplate changes the latest version where it is a draft; where it is published the change makes the next version.
// match is the ETag that the template must have, "" for any: ErrChanged.
func (s *Service) PatchTemplate(ctx context.Context, account, name, match string, in *api.PatchTemplate) (api.Template, error) {
	var r *templateRecord
	var e *edition
	for range 5 { // compiling is too slow for a transaction: begin anew when somebody changes it meanwhile
		before, _, content, err := s.edition(ctx, account, name, 0)
		if err != nil {
			return api.Template{}, err
		}
		if err := unchanged(match, before.etag()); err != nil {
			return api.Template{}, err
		}
		source := content.Source
		patch(&source, in)
		draft, err := s.draft(ctx, account, name, before.Kind, &source)
		if err != nil {
			return api.Template{}, err
		}
		err = s.db.Update(ctx, func(tx kv.Tx) (err error) {
			if r, err = getTemplate(tx, account, name); err != nil {
				return err
			}
			if r.Revision != before.Revision {
				return ErrChanged
			}
			if e, err = getEdition(tx, account, name, r.Latest); err != nil {
				return err
			}
			now := s.now().UTC()
			if !e.Published.IsZero() {
				if r.Latest++; r.Latest > maxVersions {
					return ErrTooMany
				}
				e = &edition{Version: r.Latest, Created: now}
			}
			r.Revision++
			r.Updated = now
			return s.putDraft(tx, account, name, r, e, draft)
		})
		if errors.Is(err, ErrChanged) && match == "" {
			continue
		}
		if err != nil {
			return api.Template{}, wrapStore("change template", err)
		}
		s.log.Info("template.saved", "account", account, "reason", versioned(name, e.Version))
		return r.api(account, name, e), nil
	}
	return api.Template{}, ErrChanged
}

func patch(s *api.TemplateSource, in *api.PatchTemplate) {
	for dst, src := range map[*string]*string{&s.Subject: in.Subject, &s.Preheader: in.Preheader, &s.HTML: in.HTML, &s.Text: in.Text} {
		if src != nil {
			*dst = *src
		}
	}
	if in.Variables != nil {
		s.Variables = *in.Variables
	}
	if in.Partials != nil {
		s.Partials = *in.Partials
	}
	if in.Images != nil {
		s.Images = *in.Images
	}
	if in.Options != nil {
		s.Options = *in.Options
	}
	if in.Samples != nil {
		s.Samples = *in.Samples
	}
}

// edition reads a version; 0 is the latest one.
func (s *Service) edition(ctx context.Context, account, name string, version int) (r *templateRecord, e *edition, c *editionContent, err error) {
	err = s.db.View(ctx, func(tx kv.Tx) (err error) {
		if r, err = getTemplate(tx, account, name); err != nil {
			return err
		}
		if version == 0 {
			version = r.Latest
		}
		if e, err = getEdition(tx, account, name, version); err != nil {
			return err
		}
		c, err = getContentOf(tx, account, name, e)
		return err
	})
	return r, e, c, err
}

// Template shows a version with its source; 0 is the latest one.
func (s *Service) Template(ctx context.Context, account, name string, version int) (api.Template, error) {
	r, e, c, err := s.edition(ctx, account, name, version)
	if err != nil {
		return api.Template{}, err
	}
	t := r.api(account, name, e)
	t.TemplateSource = c.Source
	return t, nil
}

// Templates lists the templates of an account by name, without their sources. cursor is the last name seen.
func (s *Service) Templates(ctx context.Context, account, cursor string, limit int) (list []api.Template, next string, err error) {
	prefix := templateKeyOf(account, "")
	from := prefix
	if cursor != "" {
		from = append(templateKeyOf(account, cursor), 0)
	}
	err = s.db.View(ctx, func(tx kv.Tx) error {
		list, next = []api.Template{}, ""
		type item struct {
			name string
			r    templateRecord
		}
		var found []item
		err := tx.Scan(tableTemplate, from, kv.PrefixEnd(prefix), func(k, v []byte) (bool, error) {
			if len(found) == limit {
				next = found[limit-1].name
				return false, nil
			}
			it := item{name: string(k[len(prefix):])}
			if err := decodeRow(v, &it.r); err != nil {
				return false, err
			}
			found = append(found, it)
			return true, nil
		})
		if err != nil {
			return err
		}
		for _, it := range found {
			e, err := getEdition(tx, account, it.name, it.r.Latest)
			if err != nil {
				return err
			}
			list = append(list, it.r.api(account, it.name, e))
		}
		return nil
	})
	return list, next, err
}

// TemplateVersions lists the versions of a template, the latest first. before is the last one seen, 0 for none.
func (s *Service) TemplateVersions(ctx context.Context, account, name string, before, limit int) (list []api.Template, next int, err error) {
	err = s.db.View(ctx, func(tx kv.Tx) error {
		list, next = []api.Template{}, 0
		r, err := getTemplate(tx, account, name)
		if err != nil {
			return err
		}
		v := r.Latest
		if before > 0 {
			v = min(v, before-1)
		}
		for ; v >= 1 && len(list) < limit; v-- {
			e, err := getEdition(tx, account, name, v)
			if err != nil {
				return err
			}
			list = append(list, r.api(account, name, e))
		}
		if v >= 1 {
			next = v + 1
		}
		return nil
	})
	return list, next, err
}

// DeleteTemplate removes a template with all its versions. What was sent with them, and campaigns that have started, keep
// what they have.
func (s *Service) DeleteTemplate(ctx context.Context, account, name, match string) error {
	err := s.db.Update(ctx, func(tx kv.Tx) error {
		r, err := getTemplate(tx, account, name)
		if err != nil {
			return err
		}
		if err := unchanged(match, r.etag()); err != nil {
			return err
		}
		return deleteTemplate(tx, account, name, r)
	})
	if err != nil {
		return wrapStore("delete template", err)
	}
	s.log.Info("template.removed", "account", account, "reason", name)
	return nil
}

// PublishTemplate makes a version the one that references without a version mean, and freezes it; 0 is the latest one.
// Publishing again changes nothing but which one it is.
func (s *Service) PublishTemplate(ctx context.Context, account, name string, version int) (api.Template, error) {
	before, e, content, err := s.edition(ctx, account, name, version)
	if err != nil {
		return api.Template{}, err
	}
	var draft *compiledDraft
	if e.Published.IsZero() { // partials and assets as they are now: from here on they are frozen too
		if draft, err = s.draft(ctx, account, name, before.Kind, &content.Source); err != nil {
			return api.Template{}, err
		}
	}
	var r *templateRecord
	err = s.db.Update(ctx, func(tx kv.Tx) (err error) {
		if r, err = getTemplate(tx, account, name); err != nil {
			return err
		}
		if e, err = getEdition(tx, account, name, e.Version); err != nil {
			return err
		}
		if r.Published == e.Version {
			return nil
		}
		if r.Revision != before.Revision {
			return ErrChanged
		}
		r.Published = e.Version
		r.Revision++
		r.Updated = s.now().UTC()
		if draft == nil {
			return putRow(tx, tableTemplate, templateKeyOf(account, name), r)
		}
		e.Published = r.Updated
		return s.putDraft(tx, account, name, r, e, draft)
	})
	if err != nil {
		return api.Template{}, wrapStore("publish template", err)
	}
	s.log.Info("template.published", "account", account, "reason", versioned(name, e.Version))
	return r.api(account, name, e), nil
}
