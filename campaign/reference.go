package campaign

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"relayd/internal/api"
	"relayd/internal/kv"
)

// takeIn gives a version what its source names and does not hold: templates of kind partial, and assets.
func (s *Service) takeIn(ctx context.Context, account string, c *editionContent) error {
	return s.db.View(ctx, func(tx kv.Tx) error {
		c.Partials, c.Images = map[string]api.Partial{}, nil
		sources := []string{c.Source.Subject, c.Source.Preheader, c.Source.HTML, c.Source.Text}
		for p := range maps.Values(c.Source.Partials) {
			sources = append(sources, p.HTML, p.Text)
		}
		for i := 0; i < len(sources) && i < 4+4*maxPartials; i++ {
			for _, name := range partialNames(sources[i]) {
				if _, own := c.Source.Partials[name]; own || !isTemplateName(name) || len(c.Partials) >= maxPartials {
					continue
				}
				if _, there := c.Partials[name]; there {
					continue
				}
				p, err := storedPartial(tx, account, name)
				if errors.Is(err, ErrTemplateNotFound) {
					continue // the compiler says so, unless the tag has a body of its own
				}
				if err != nil {
					return err
				}
				c.Partials[name] = p
				sources = append(sources, p.HTML, p.Text)
			}
		}
		return s.takeAssets(tx, account, c, sources)
	})
}

// storedPartial is the published version of a partial, else its latest.
func storedPartial(tx kv.Tx, account, name string) (api.Partial, error) {
	r, err := getTemplate(tx, account, name)
	if err != nil {
		return api.Partial{}, err
	}
	if r.Kind != kindPartial {
		return api.Partial{}, ErrTemplateNotFound
	}
	version := r.Published
	if version == 0 {
		version = r.Latest
	}
	e, err := getEdition(tx, account, name, version)
	if err != nil {
		return api.Partial{}, err
	}
	c, err := getContentOf(tx, account, name, e)
	if err != nil {
		return api.Partial{}, err
	}
	return api.Partial{HTML: c.Source.HTML, Text: c.Source.Text}, nil
}

// partialNames lists what {{> name}} and {{#> name}} in a source name.
func partialNames(src string) []string {
	toks, err := scan("", src)
	if err != nil {
		return nil // the compiler says so
	}
	var names []string
	for _, t := range toks {
		rest, found := strings.CutPrefix(strings.TrimPrefix(t.text, "#"), ">")
		if !t.tag || t.raw || t.hidden || !found {
			continue
		}
		name := strings.Trim(firstWord(strings.TrimSpace(rest)), `"'`)
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
