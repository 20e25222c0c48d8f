package campaign

import (
	"slices"
	"strings"

	"relayd/internal/api"
)

// What is written around an author's source.
const (
	htmlFooter     = `<p style="font-size:12px;color:#666666"><a href="{{unsubscribe_url}}">Unsubscribe</a></p>`
	textFooter     = "\n-- \nUnsubscribe: {{unsubscribe_url}}\n"
	preheaderOpen  = `<div style="display:none;max-height:0;overflow:hidden;mso-hide:all">`
	preheaderClose = `</div>`
)

// compileHTML compiles the HTML, and where it has style rules compiles it again with them in its style attributes.
func (c *composition) compileHTML(t *api.CampaignTemplate, set *imageSet) (*program, error) {
	var sh *sheet
	if t.Options.InlineCSS == nil || *t.Options.InlineCSS {
		sh = &sheet{}
	}
	prog, err := c.compileStyled(t, set, sh, nil)
	if err != nil || sh == nil {
		return prog, err
	}
	styled := sh.styles()
	c.warnings = append(c.warnings, sh.warnings...)
	if len(styled) == 0 {
		return prog, nil
	}
	again, err := c.compileStyled(t, set, nil, styled)
	if err != nil || !sameTags(prog, again) {
		c.warnings = append(c.warnings, api.Warning{Code: "css_not_inlined", Part: partHTML, Detail: "style rules stay in <style>: the branches of the template cannot be told apart"})
		return prog, nil
	}
	again.uses = prog.uses // which tell places of the source as it was written
	return again, nil
}

// sameTags tells whether two programs merge the same values in the same way.
func sameTags(a, b *program) bool {
	return len(a.uses) == len(b.uses) && slices.EqualFunc(tagsOf(a), tagsOf(b), func(x, y op) bool {
		return x.code == y.code && x.esc == y.esc && x.frame == y.frame
	})
}

func tagsOf(p *program) []op {
	var list []op
	for _, o := range p.ops {
		if o.code != opText {
			list = append(list, o)
		}
	}
	return list
}

func (c *composition) compileStyled(t *api.CampaignTemplate, set *imageSet, sh *sheet, styled map[string]string) (*program, error) {
	comp := newCompiler(partHTML, modeHTML, &c.scope)
	comp.images, comp.sheet, comp.styled = set, sh, styled
	if t.Options.Minify {
		comp.mini = &minifier{off: c.keepsSpace(t)}
	}
	preheader := func() error {
		comp.pending = append(comp.pending, preheaderOpen...)
		was := *comp
		comp.value, comp.escaped, comp.plain, comp.scopes = false, true, escText, []int{0}
		err := comp.source(partPreheader, t.Preheader)
		comp.value, comp.escaped, comp.plain, comp.scopes = was.value, was.escaped, was.plain, was.scopes
		comp.pending = append(comp.pending, preheaderClose...)
		return err
	}
	if t.Preheader != "" {
		if hasBody(t.HTML) {
			comp.onBody = preheader
		} else if err := preheader(); err != nil {
			return nil, err
		}
	}
	if err := comp.source(partHTML, c.withFooter(t)); err != nil {
		return nil, err
	}
	return comp.finish()
}

// keepsSpace tells whether a style somewhere in the HTML shows white space as it stands.
func (c *composition) keepsSpace(t *api.CampaignTemplate) bool {
	found := keepsSpace().MatchString(t.HTML)
	for _, p := range c.scope.partials {
		found = found || keepsSpace().MatchString(p.HTML)
	}
	for _, x := range c.scope.data {
		s, ok := x.(string)
		found = found || ok && keepsSpace().MatchString(s)
	}
	return found
}

func hasBody(src string) bool {
	i := strings.Index(strings.ToLower(src), "<body")
	return i >= 0 && len(src) > i+5 && (isSpace(src[i+5]) || src[i+5] == '>')
}

// withFooter adds the unsubscribe line to HTML that has none, where the template asks for that.
func (c *composition) withFooter(t *api.CampaignTemplate) string {
	if !t.Options.AutoFooter || c.mentionsUnsubscribe(t.HTML) {
		return t.HTML
	}
	if i := strings.LastIndex(strings.ToLower(t.HTML), "</body"); i >= 0 && len(strings.ToLower(t.HTML)) == len(t.HTML) {
		return t.HTML[:i] + htmlFooter + t.HTML[i:]
	}
	return t.HTML + htmlFooter
}

func (c *composition) mentionsUnsubscribe(src string) bool {
	has := func(s string) bool {
		return strings.Contains(s, "unsubscribe_url") || strings.Contains(s, "amazonSESUnsubscribeUrl")
	}
	for name, x := range c.scope.data {
		if s, ok := x.(string); ok && has(s) && strings.Contains(src, name) {
			return true
		}
	}
	for name, p := range c.scope.partials {
		if (has(p.HTML) || has(p.Text)) && strings.Contains(src, name) {
			return true
		}
	}
	return has(src)
}

func (c *composition) compileText(t *api.CampaignTemplate) (*program, error) {
	src, converted := t.Text, false
	if strings.TrimSpace(src) == "" {
		if t.HTML == "" {
			return nil, errorAt(partText, "", 0, "a template needs html or text")
		}
		if t.Options.AutoText != nil && !*t.Options.AutoText {
			return nil, errorAt(partText, "", 0, "a text part is needed: write one, or leave out options.auto_text")
		}
		var err error
		if src, err = htmlToText(partHTML, c.withFooter(t)); err != nil {
			return nil, err
		}
		converted = true
	}
	if !c.mentionsUnsubscribe(src) && (converted && c.html.reads("unsubscribe_url") || t.Options.AutoFooter) {
		src += textFooter
	}
	comp := newCompiler(partText, modeText, &c.scope)
	comp.converted = converted
	if err := comp.source(partText, src); err != nil {
		return nil, err
	}
	return comp.finish()
}

// reads tells whether the program shows one of our own values.
func (p *program) reads(name string) bool {
	return slices.ContainsFunc(p.uses, func(u use) bool {
		return u.system && (u.root == name || name == "unsubscribe_url" && u.root == "amazonSESUnsubscribeUrl")
	})
}

// checkUnsubscribe requires a visible link in every part: mailbox providers and the law do.
func (c *composition) checkUnsubscribe(t *api.CampaignTemplate, bad *Invalid) {
	if c.html != nil && !c.html.reads("unsubscribe_url") {
		bad.add("/template/html", "unsubscribe_link_missing",
			`no unsubscribe link: add <a href="{{unsubscribe_url}}">Unsubscribe</a>, or set template.options.auto_footer`)
	}
	if !c.text.reads("unsubscribe_url") && (t.Text != "" || c.html == nil) {
		bad.add("/template/text", "unsubscribe_link_missing",
			"no unsubscribe link: add {{unsubscribe_url}}, or set template.options.auto_footer")
	}
}
