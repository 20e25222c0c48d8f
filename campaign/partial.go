package campaign

import (
	"slices"
	"strings"
)

// fragment is source that a partial stands for: a named one of the template, or the body of {{#*inline "x"}} or of
// {{#> layout}}, which sees what is in sight where it was written.
type fragment struct {
	part, src string
	toks      []token
	converted bool
	written   *sight // of a body; nil for a named partial
}

// sight is what a body sees.
type sight struct {
	scopes    []int
	including []string
	partialScope
}

// partialScope is what partials add to what is in sight. It is replaced as a whole, never changed.
type partialScope struct {
	bodies  *bodyList
	aliases map[string]*expr // {{> card title="x"}}: names that the partial got
	level   int              // index of the frame that the aliases belong to
}

// bodyList holds the bodies in sight, the innermost first.
type bodyList struct {
	name string // "@partial-block" for the body of {{#> layout}}
	body *fragment
	next *bodyList
}

const partialBlock = "@partial-block"

func (l *bodyList) named(name string) *bodyList {
	for ; l != nil; l = l.next {
		if l.name == name {
			return l
		}
	}
	return nil
}

// isBodied tells {{#> layout}} and {{#*inline "x"}}, whose body is compiled elsewhere.
func (t token) isBodied() bool {
	return t.tag && !t.raw && (strings.HasPrefix(t.text, "#>") || strings.HasPrefix(t.text, "#*"))
}

// bodyEnd returns the index of the tag that closes toks[i], -1 for none.
func bodyEnd(toks []token, i int) int {
	depth := 0
	for j := i; j < len(toks); j++ {
		switch t := toks[j]; {
		case !t.tag || t.hidden || t.raw:
		case strings.HasPrefix(t.text, "#"):
			depth++
		case strings.HasPrefix(t.text, "/"):
			if depth--; depth == 0 {
				return j
			}
		}
	}
	return -1
}

// bodyOf finds the end of a body and checks that it closes what was opened.
func (c *compiler) bodyOf(toks []token, i int) (int, error) {
	t := toks[i]
	name := strings.Trim(firstWord(strings.TrimSpace(t.text[2:])), `"'`)
	end := bodyEnd(toks, i)
	if end < 0 {
		return 0, errorAt(c.part, c.src, t.at, "{{%s}} without its {{/%s}}", clip(t.text, 40), name)
	}
	if closed := strings.Trim(strings.TrimSpace(toks[end].text[1:]), `"'`); closed != name {
		line, _ := position(c.src, t.at)
		return 0, errorAt(c.part, c.src, toks[end].at, "{{/%s}} closes {{#%s}} of line %d", closed, name, line)
	}
	return end, nil
}

// bodied compiles {{#> layout}}…{{/layout}} and takes note of {{#*inline "x"}}…{{/inline}}.
func (c *compiler) bodied(t token, body []token) error {
	f := &fragment{part: c.part, src: c.src, toks: body, converted: c.converted, written: &sight{slices.Clone(c.scopes), c.including, c.partialScope}}
	if strings.HasPrefix(t.text, "#*") {
		word, rest, _ := strings.Cut(strings.TrimSpace(t.text[2:]), " ")
		name := strings.TrimSpace(rest)
		quoted := len(name) > 2 && (name[0] == '"' || name[0] == '\'') && name[len(name)-1] == name[0]
		if word != "inline" || !quoted {
			return errorAt(c.part, c.src, t.at, `{{#*inline "name"}} is the only decorator`)
		}
		// The body sees itself not: what it names by its own name is what had that name before.
		c.bodies = &bodyList{name[1 : len(name)-1], f, c.bodies}
		return nil
	}
	call, err := c.call(t, 2)
	if err != nil {
		return err
	}
	// Inline partials in the body are for the layout.
	was := c.partialScope
	for i := 0; i < len(body); i++ {
		if !body[i].isBodied() {
			continue
		}
		end, err := c.bodyOf(body, i)
		if err == nil && strings.HasPrefix(body[i].text, "#*") {
			err = c.bodied(body[i], body[i+1:end])
		}
		if err != nil {
			return err
		}
		i = end
	}
	c.bodies = &bodyList{partialBlock, f, c.bodies}
	err = c.include(t, call, f)
	c.partialScope = was
	return err
}

// partialCall is what a tag says beside the partial's name.
type partialCall struct {
	name    string
	context *expr
	given   map[string]*expr
}

// call parses a partial's tag: {{> name context key=value}}.
func (c *compiler) call(t token, skip int) (*partialCall, error) {
	p := &parser{c: c, s: t.text[skip:], at: t.inner + skip}
	p.blanks()
	call := &partialCall{}
	start := p.pos
	if p.pos < len(p.s) && (p.s[p.pos] == '"' || p.s[p.pos] == '\'') {
		e, err := p.term(0, false)
		if err != nil {
			return nil, err
		}
		call.name = e.lit.s
	} else {
		call.name = p.word()
	}
	if !isPartialName(call.name) && call.name != partialBlock {
		p.pos = start
		return nil, p.fail("the name of a partial is needed: letters, digits, '-', '_', '.' and '/'")
	}
	for {
		p.blanks()
		if p.pos == len(p.s) {
			return call, nil
		}
		at := p.pos
		if key := p.word(); key != "" && p.pos < len(p.s) && p.s[p.pos] == '=' {
			p.pos++
			e, err := p.term(0, true)
			if err != nil {
				return nil, err
			}
			if call.given == nil {
				call.given = map[string]*expr{}
			}
			if call.given[key] != nil || len(call.given) == maxArgs {
				return nil, p.fail("%s is given twice, or there are more than %d values", key, maxArgs)
			}
			call.given[key] = e
			continue
		}
		p.pos = at
		if call.context != nil || call.given != nil {
			return nil, p.fail("unexpected %q", firstWord(p.s[p.pos:]))
		}
		if w := firstWord(p.s[p.pos:]); w == "this" || w == "." {
			p.pos += len(w)
			continue
		}
		var err error
		if call.context, err = p.term(0, true); err != nil {
			return nil, err
		}
	}
}

func isPartialName(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isLetter(c) && (c < '0' || c > '9') && strings.IndexByte("-_./", c) < 0 {
			return false
		}
	}
	return s != "" && len(s) <= maxAttributeName
}

// partial compiles {{> name}}.
func (c *compiler) partial(t token) error {
	call, err := c.call(t, 1)
	if err != nil {
		return err
	}
	return c.include(t, call, nil)
}

// include compiles what a partial stands for in the place of its tag. fallback is the body of a tag that has one.
func (c *compiler) include(t token, call *partialCall, fallback *fragment) error {
	if c.includes++; c.includes > maxIncludes {
		return errorAt(c.part, c.src, t.at, "more than %d partials in one part", maxIncludes)
	}
	if c.nesting >= maxDepth {
		return errorAt(c.part, c.src, t.at, "more than %d partials inside one another", maxDepth)
	}
	f, err := c.find(t, call.name, fallback)
	if err != nil {
		return err
	}
	was := *c
	c.nesting++
	frames := c.frames
	if f.written != nil {
		c.scopes, c.including, c.partialScope = f.written.scopes, f.written.including, f.written.partialScope
		if here := was.scopes[len(was.scopes)-1]; here != c.scopes[len(c.scopes)-1] {
			c.scopes = append(slices.Clip(c.scopes), here) // a body has the context of the place that calls for it
		}
	} else {
		c.including = append(slices.Clip(c.including), f.part)
	}
	if call.context != nil {
		c.frames++
		if c.frames >= maxFrames {
			return errorAt(c.part, c.src, t.at, "more than %d #each, #with and contexts inside one another", maxFrames-1)
		}
		at := c.emit(op{code: opWith, frame: c.frames, e: call.context})
		c.prog.ops[at].to = c.here() // whatever the value is
		c.scopes = append(slices.Clip(c.scopes), c.frames)
	}
	if f.written == nil || call.given != nil {
		c.aliases, c.level = call.given, len(c.scopes)-1
	}
	c.part, c.src, c.converted = f.part, f.src, f.converted
	err = c.tokens(f.toks)
	c.part, c.src, c.converted, c.scopes, c.partialScope = was.part, was.src, was.converted, was.scopes, was.partialScope
	c.nesting, c.including, c.frames = was.nesting, was.including, frames
	return err
}

// find returns what a name stands for: the bodies in sight, then the template's partials, then the tag's own body.
func (c *compiler) find(t token, name string, fallback *fragment) (*fragment, error) {
	if l := c.bodies.named(name); l != nil && (name != partialBlock || fallback == nil) {
		return l.body, nil
	}
	if name == partialBlock {
		return nil, errorAt(c.part, c.src, t.at, "%s stands outside of a partial that was given a block", partialBlock)
	}
	p, ok := c.scope.partials[name]
	if !ok {
		if fallback != nil {
			return fallback, nil
		}
		err := errorAt(c.part, c.src, t.at, "no partial is named %q", name)
		err.Code = "partial_missing"
		err.Nearest = nearest(name, sortedKeys(c.scope.partials))
		return nil, err
	}
	f := &fragment{part: partPartial + name}
	if slices.Contains(c.including, f.part) {
		return nil, errorAt(c.part, c.src, t.at, "the partial %q stands in itself", name)
	}
	src := p.HTML
	if c.prog.mode != modeHTML || c.escaped || src == "" {
		var err error
		if src, f.converted, err = c.partialText(name, p.HTML, p.Text); err != nil {
			return nil, err
		}
	}
	f.src = normalLines(src)
	if styled, ok := c.styled[f.part]; ok && c.prog.mode == modeHTML && !c.escaped {
		f.src = styled
	}
	var err error
	f.toks, err = lex(f.part, f.src, !f.converted)
	return f, err
}

// partialText is a partial's text, made from its HTML where it has none.
func (c *compiler) partialText(name, html, text string) (string, bool, error) {
	if strings.TrimSpace(text) != "" || html == "" {
		return text, false, nil
	}
	if made, ok := c.texts[name]; ok {
		return made, true, nil
	}
	made, err := htmlToText(partPartial+name, html)
	made = strings.TrimRight(made, "\n")
	c.texts[name] = made
	return made, true, err
}

// given returns what the tag of the partial gave for the first name of a path, nil for nothing.
func (c *compiler) given(p *path) *expr {
	if len(c.aliases) == 0 || !p.named || p.level != c.level || p.meta != "" || len(p.segs) == 0 {
		return nil
	}
	return c.aliases[p.segs[0]]
}

// follow is the expression for a path that begins with a given value.
func (e *expr) follow(p *path, c *compiler, at int) (*expr, error) {
	rest := p.segs[1:]
	switch {
	case e.path != nil && e.path.meta == "":
		longer := *e.path
		longer.segs, longer.text = append(slices.Clip(longer.segs), rest...), p.text
		return &expr{path: &longer, at: at, place: -1}, nil
	case len(rest) > 0:
		return nil, errorAt(c.part, c.src, at, "%q has no fields: the partial was given a single value", p.segs[0])
	}
	return e, nil
}
