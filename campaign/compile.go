package campaign

import (
	"strings"

	"relayd/internal/api"
)

// compiler turns the source of one part into a program. A campaign value that is merged is compiled in its place, once:
// what it holds is source too, what a contact holds never is.
type compiler struct {
	prog      *program
	scope     *scope
	part      string // being read: the part itself, or "data.Body" inside a value of the campaign
	src       string
	st        htmlState
	value     bool   // inside a campaign value
	plain     escape // of static text inside a campaign value that does not stand between tags
	escaped   bool   // static text is escaped as plain says
	scopes    []int  // frames of the enclosing blocks, the root first
	frames    int    // how many are in use
	blocks    []block
	converted bool               // the source was made from HTML: its lines stand as they are
	apart     bool               // what comes next begins a paragraph: a value of paragraphs stands before it
	pending   []byte             // static text not yet emitted
	images    *imageSet          // those that the HTML may refer to
	onBody    func() error       // called once behind the <body> tag
	sheet     *sheet             // takes note of the HTML as it is compiled, nil for not
	mini      *minifier          // takes out what nobody sees, nil for not
	styled    map[string]string  // by part: source with its style rules written into style attributes
	cursors   map[string]*cursor // by part
	partialScope
	nesting   int               // partials inside one another
	includes  int               // partials that stood in the part so far
	including []string          // the named ones that are being compiled
	texts     map[string]string // of partials without a text of their own
}

type blockKind uint8

const (
	ifBlock blockKind = iota
	unlessBlock
	eachBlock
	withBlock
)

var blockNames = [...]string{"if", "unless", "each", "with"}

// block is an open #if, #unless, #each or #with.
type block struct {
	kind    blockKind
	at      int   // offset of its tag
	test    int   // the operation that leads to the other branch, -1 when it is patched
	start   int   // first operation of a loop's body
	ends    []int // jumps behind the block
	before  htmlState
	after   htmlState // of the branches that ended
	ended   bool
	hasElse bool
	guards  []string // roots that are there inside it
	framed  bool     // its frame is in scope
}

func compilePart(part, src string, m mode, sc *scope) (*program, error) {
	c := newCompiler(part, m, sc)
	if err := c.source(part, src); err != nil {
		return nil, err
	}
	return c.finish()
}

func newCompiler(part string, m mode, sc *scope) *compiler {
	return &compiler{
		prog: &program{part: part, mode: m}, scope: sc, scopes: []int{0}, cursors: map[string]*cursor{}, texts: map[string]string{},
	}
}

// source compiles src at the present place; its blocks must be closed in it.
func (c *compiler) source(part, src string) error {
	src = normalLines(src)
	if styled, ok := c.styled[part]; ok && !c.escaped {
		src = styled
	}
	toks, err := lex(part, src, !c.converted)
	if err != nil {
		return err
	}
	wasPart, wasSrc := c.part, c.src
	c.part, c.src = part, src
	err = c.tokens(toks)
	c.part, c.src = wasPart, wasSrc
	return err
}

// tokens compiles tokens of the present source.
func (c *compiler) tokens(toks []token) error {
	open := len(c.blocks)
	for i := 0; i < len(toks); i++ {
		t := toks[i]
		if t.isBodied() {
			end, err := c.bodyOf(toks, i)
			if err == nil {
				err = c.bodied(t, toks[i+1:end])
			}
			if err != nil {
				return err
			}
			i = end
			continue
		}
		if err := c.token(t, open); err != nil {
			return err
		}
	}
	if len(c.blocks) > open {
		b := c.blocks[len(c.blocks)-1]
		return errorAt(c.part, c.src, b.at, "{{#%s}} without its {{/%s}}", blockNames[b.kind], blockNames[b.kind])
	}
	return nil
}

// position returns line and column of an offset in the present source.
func (c *compiler) position(at int) (line, column int) {
	k := c.cursors[c.part]
	if k == nil {
		k = &cursor{}
		c.cursors[c.part] = k
	}
	return k.position(c.src, at)
}

// normalLines makes LF of every line end; encoding makes CRLF of it.
func normalLines(s string) string {
	if strings.IndexByte(s, '\r') < 0 {
		return s
	}
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n")
}

func (c *compiler) finish() (*program, error) {
	c.flush()
	if c.prog.mode == modeHTML && c.st.at != inText {
		return nil, errorAt(c.prog.part, "", 0, "the part ends inside %s", c.st.where())
	}
	return c.prog, nil
}

func (c *compiler) token(t token, open int) error {
	if c.sheet != nil {
		c.sheet.note(c, t)
	}
	switch {
	case !t.tag:
		return c.static(t)
	case t.hidden:
		return nil
	case len(c.prog.ops) > maxOps:
		return errorAt(c.part, c.src, t.at, "more than %d operations", maxOps)
	case t.raw:
		return c.output(t)
	case strings.HasPrefix(t.text, "#"):
		return c.openBlock(t)
	case strings.HasPrefix(t.text, "/"):
		return c.closeBlock(t, open)
	case isElse(t.text):
		return c.elseBranch(t, open)
	case strings.HasPrefix(t.text, ">"):
		return c.partial(t)
	}
	return c.output(t)
}

// static emits text of the source.
func (c *compiler) static(t token) error {
	if c.prog.mode == modeSubject {
		for i, r := range t.text {
			if isHeaderControl(r) {
				return errorAt(c.part, c.src, t.at+i, "the subject holds a line break or control character")
			}
		}
	}
	if c.escaped {
		return c.plainText(t)
	}
	if c.prog.mode != modeHTML {
		if c.apart && t.text != "" && t.text[0] != '\n' {
			c.pending = append(c.pending, "\n\n"...)
		}
		c.apart = c.apart && t.text == ""
		c.pending = append(c.pending, t.text...)
		return c.grow(len(t.text), t.at)
	}
	text := t.text
	if c.images != nil {
		var err error
		if text, err = c.images.refer(c, t); err != nil {
			return err
		}
	}
	if c.onBody != nil && !c.value {
		if end := c.bodyEnd(text); end > 0 {
			if err := c.emitHTML(text[:end], t.at); err != nil {
				return err
			}
			insert := c.onBody
			c.onBody = nil
			if err := insert(); err != nil {
				return err
			}
			text = text[end:]
		}
	}
	return c.emitHTML(text, t.at)
}

// emitHTML emits static text between tags or inside of one; at is the place of errors.
func (c *compiler) emitHTML(text string, at int) error {
	n := len(text)
	if c.mini == nil {
		c.pending = append(c.pending, text...)
	} else {
		before := len(c.pending)
		c.pending = c.mini.append(c.pending, text, c.st)
		n = len(c.pending) - before
	}
	c.st = c.st.advance(text, nil)
	return c.grow(n, at)
}

// bodyEnd returns the offset behind the <body> tag that ends in text, 0 for none.
func (c *compiler) bodyEnd(text string) int {
	end := 0
	c.st.advance(text, func(at int) {
		if end == 0 {
			end = at
		}
	})
	return end
}

// plainText emits text of a campaign value that does not stand between tags. What began as a URL goes on as one.
func (c *compiler) plainText(t token) error {
	kind := c.plain &^ (bare | bareBegin)
	if kind == escURL && !isAllowedURL(strings.TrimSpace(t.text), true) {
		return errorAt(c.part, c.src, t.at, "a URL of this kind is not allowed in a message")
	}
	c.pending = appendEscaped(c.pending, c.plain, t.text, kind != escText)
	if c.mini != nil {
		c.mini.space = false
	}
	if c.st.at == beforeValue && t.text != "" {
		c.st.at, c.st.url = inBare, urlStart
	}
	if c.st.at != inText {
		for i := range len(t.text) {
			c.st = c.st.value(t.text[i])
		}
	}
	if c.plain &^= bareBegin; kind == escURL || kind == escScheme {
		c.plain = escPath | c.plain&bare
	}
	return c.grow(len(t.text), t.at)
}

func (c *compiler) grow(n, at int) error {
	if c.prog.size += n; c.prog.size > maxOutput {
		return errorAt(c.part, c.src, at, "the part grows beyond %d bytes", maxOutput)
	}
	return nil
}

// flush turns pending text into an operation. Whoever sets a target for a jump flushes first.
func (c *compiler) flush() {
	if c.mini != nil {
		c.mini.space = false // what stands before what follows depends on the branch
	}
	if len(c.pending) > 0 {
		c.prog.ops = append(c.prog.ops, op{code: opText, text: string(c.pending)})
		c.pending = c.pending[:0]
	}
}

func (c *compiler) emit(o op) int {
	c.flush()
	c.prog.ops = append(c.prog.ops, o)
	return len(c.prog.ops) - 1
}

// here is where the next operation will stand.
func (c *compiler) here() int {
	c.flush()
	return len(c.prog.ops)
}

func (c *compiler) parse(t token, skip int) (*expr, error) {
	p := &parser{c: c, s: t.text[skip:], at: t.inner + skip}
	e, err := p.whole(0)
	if err == nil && p.pos < len(p.s) {
		err = p.fail("unexpected %q", firstWord(p.s[p.pos:]))
	}
	return e, err
}

// output compiles {{x}} and {{{x}}}.
func (c *compiler) output(t token) error {
	e, err := c.parse(t, 0)
	if err != nil {
		return err
	}
	if e.path != nil && e.path.frame == 0 && e.path.meta == "" && !isReserved(e.path.segs[0]) {
		if v, ok := c.constant(e.path); ok {
			return c.merge(t, e, v)
		}
		if x, ok := c.scope.data[e.path.segs[0]]; ok {
			return c.unknownField(t, e.path, x)
		}
	}
	esc, err := c.escape(t, c.isAuthors(e))
	if err != nil {
		return err
	}
	if c.prog.mode == modeHTML && esc != escText && e.makesHTML() {
		return errorAt(c.part, c.src, t.at, "br makes HTML, which may not stand in %s", c.st.where())
	}
	c.emit(op{code: opOut, e: e, esc: esc})
	c.st = c.st.merged()
	return nil
}

// isAuthors tells expressions that can only yield what the campaign's author wrote.
func (c *compiler) isAuthors(e *expr) bool {
	switch {
	case e.helper != nil:
		for _, a := range e.args {
			if !c.isAuthors(a) {
				return false
			}
		}
		return true
	case e.path != nil:
		return e.path.frame == 0 && e.path.meta == "" && (e.path.segs[0] == "unsubscribe_url" || e.path.segs[0] == "amazonSESUnsubscribeUrl")
	}
	return true
}

func (c *compiler) escape(t token, author bool) (escape, error) {
	if c.prog.mode != modeHTML {
		return escNone, nil
	}
	if c.escaped && c.plain == escText {
		return escText, nil
	}
	esc, err := c.st.escapeFor(t.raw, author)
	if err != nil {
		return 0, errorAt(c.part, c.src, t.at, "%s", err)
	}
	return esc, nil
}

// constant returns what a root path leads to in the campaign's data, or the declared default.
func (c *compiler) constant(p *path) (value, bool) {
	x, ok := c.scope.data[p.segs[0]]
	if !ok {
		d := c.scope.vars[p.segs[0]].Default
		if d == nil || len(p.segs) > 1 {
			return value{}, false
		}
		return value{kind: kindString, s: *d, trusted: true}, true
	}
	v := valueOf(x, true)
	for _, seg := range p.segs[1:] {
		v = v.step(seg)
	}
	return v, v.kind != kindMissing
}

func (c *compiler) unknownField(t token, p *path, x any) error {
	v := valueOf(x, true)
	for _, seg := range p.segs[1:] {
		next := v.step(seg)
		if next.kind != kindMissing {
			v = next
			continue
		}
		err := errorAt(c.part, c.src, t.at, "the campaign's data has no %q", p.text)
		err.Code = api.CodeTemplateVariable
		names := make([]string, 0, len(v.fields))
		for name := range v.fields {
			names = append(names, name)
		}
		err.Nearest = nearest(seg, names)
		return err
	}
	err := errorAt(c.part, c.src, t.at, "the campaign's data has null for %q", p.text)
	err.Code = api.CodeTemplateVariable
	return err
}

// merge compiles a value of the campaign in the place of its tag. A contact's own attribute of that name goes before it.
func (c *compiler) merge(t token, e *expr, v value) error {
	if v.kind == kindList || v.kind == kindMap {
		return errorAt(c.part, c.src, t.at, "%q is a list or an object: use {{#each}} or name a field", e.path.text)
	}
	esc, err := c.escape(t, true)
	if err != nil {
		return err
	}
	apart := c.prog.mode == modeText && c.converted && !c.value && startsBlock(v.s)
	if apart && len(c.pending) > 0 && c.pending[len(c.pending)-1] != '\n' {
		c.pending = append(c.pending, "\n\n"...)
	}
	before := c.st
	skip, over := -1, before
	if contactEsc, err := c.escape(t, false); err == nil && esc != escRaw {
		has := c.emit(op{code: opHas, text: e.path.segs[0]})
		c.emit(op{code: opOut, e: e, esc: contactEsc})
		over = c.st.merged()
		skip = c.emit(op{code: opJump})
		c.prog.ops[has].to = c.here()
	}
	if err := c.mergeText(t, e, v, esc); err != nil {
		return err
	}
	c.apart = apart
	if skip >= 0 {
		c.prog.ops[skip].to = c.here()
		after, same := join(c.st, over)
		if !same {
			return errorAt(c.part, c.src, t.at, "the campaign's %s ends inside %s", e.path.text, c.st.where())
		}
		c.st = after
	}
	return nil
}

func (c *compiler) mergeText(t token, e *expr, v value, esc escape) error {
	text := v.text()
	isText := c.scope.vars[e.path.segs[0]].Type == "text"
	if c.value || v.kind != kindString {
		if c.value && strings.Contains(text, "{{") {
			return errorAt(c.part, c.src, t.at, "%s has merge tags of its own: values of the campaign go one level deep", e.path.text)
		}
		c.pending = appendEscaped(c.pending, esc, text, !isText)
		if c.st = c.st.merged(); esc == escText && !isText || esc == escRaw {
			c.st = c.st.advance(text, nil)
		}
		return c.grow(len(text), t.at)
	}
	if c.prog.mode == modeText && !isText && looksLikeHTML(text) {
		converted, err := htmlToText(partData+e.path.text, text)
		if err != nil {
			return err
		}
		text = strings.TrimRight(converted, "\n")
	}
	was := *c
	c.value, c.converted = true, c.converted || text != v.s
	c.scopes, c.partialScope = []int{0}, partialScope{}
	if c.prog.mode == modeHTML {
		c.escaped = c.st.at != inText && esc != escRaw || isText
		if c.plain = esc; isText && c.st.at == inText {
			c.plain = escText
		}
	}
	if err := c.source(partData+e.path.text, text); err != nil {
		return err
	}
	if c.escaped && text == "" && esc&bareBegin != 0 {
		c.pending = append(c.pending, `""`...)
		c.st = c.st.merged()
	}
	c.value, c.converted, c.scopes, c.escaped, c.plain = was.value, was.converted, was.scopes, was.escaped, was.plain
	c.partialScope = was.partialScope
	return nil
}
