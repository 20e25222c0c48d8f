package campaign

import (
	"strconv"
	"strings"
)

// expr is what stands in a tag: a literal, a path, or a helper with its arguments.
type expr struct {
	lit    value
	path   *path
	helper *helper
	args   []*expr
	at     int // offset in its source
	place  int // index into program.uses, -1 for none: where it is read
}

// path leads to a value: from the root, from a frame of an enclosing block, or from the state of a loop.
type path struct {
	frame int      // 0: the root; else the frame of an enclosing #each or #with
	meta  string   // "@index", "@key", "@first", "@last": of frame
	segs  []string // names and indexes to follow
	text  string   // as written
	level int      // index of the frame among the enclosing ones
	named bool     // begins at that frame by a name of it, not at @root
}

// parser reads the expression of one tag.
type parser struct {
	c   *compiler
	s   string
	pos int
	at  int // offset of s in the source
}

const maxArgs = 16

func (p *parser) fail(format string, args ...any) error {
	return errorAt(p.c.part, p.c.src, p.at+p.pos, format, args...)
}

func (p *parser) blanks() {
	for p.pos < len(p.s) && strings.IndexByte(" \t\n", p.s[p.pos]) >= 0 {
		p.pos++
	}
}

// whole parses all of the tag: a value, or a helper with arguments.
func (p *parser) whole(depth int) (*expr, error) {
	p.blanks()
	start := p.pos
	if name := p.word(); name != "" && !strings.ContainsAny(name, ".[/@") {
		p.blanks()
		if p.pos < len(p.s) && p.s[p.pos] != ')' {
			return p.call(name, start, depth)
		}
	}
	p.pos = start
	e, err := p.term(depth, true)
	if err != nil {
		return nil, err
	}
	p.blanks()
	if p.pos < len(p.s) && p.s[p.pos] != ')' {
		return nil, p.fail("unexpected %q", firstWord(p.s[p.pos:]))
	}
	return e, nil
}

func (p *parser) call(name string, start, depth int) (*expr, error) {
	h := helperNamed(name)
	if h == nil {
		p.pos = start
		err := errorAt(p.c.part, p.c.src, p.at+start, "unknown helper %q", name)
		err.Nearest = nearest(name, helperNames())
		return nil, err
	}
	if name == "br" && p.c.prog.mode != modeHTML {
		h = helperNamed("text") // line ends stay as they are
	}
	e := &expr{helper: h, at: p.at + start, place: -1}
	for {
		p.blanks()
		if p.pos == len(p.s) || p.s[p.pos] == ')' {
			break
		}
		if len(e.args) == maxArgs {
			return nil, p.fail("more than %d arguments", maxArgs)
		}
		arg, err := p.term(depth, h.strict && (h.name != "default" || len(e.args) > 0))
		if err != nil {
			return nil, err
		}
		e.args = append(e.args, arg)
	}
	if len(e.args) < h.least || len(e.args) > h.most {
		p.pos = start
		return nil, p.fail("%s takes %s, not %d", name, h.arity(), len(e.args))
	}
	return e, nil
}

// term parses one value. required says that the rendering fails where a path leads to nothing.
func (p *parser) term(depth int, required bool) (*expr, error) {
	p.blanks()
	if p.pos == len(p.s) {
		return nil, p.fail("empty tag")
	}
	at := p.at + p.pos
	switch c := p.s[p.pos]; c {
	case '(':
		if depth >= maxDepth {
			return nil, p.fail("more than %d sub-expressions inside one another", maxDepth)
		}
		p.pos++
		e, err := p.whole(depth + 1)
		if err != nil {
			return nil, err
		}
		if p.pos == len(p.s) || p.s[p.pos] != ')' {
			return nil, p.fail("( without its )")
		}
		p.pos++
		return e, nil
	case '"', '\'':
		end := strings.IndexByte(p.s[p.pos+1:], c)
		if end < 0 {
			return nil, p.fail("text without its closing %c", c)
		}
		lit := p.s[p.pos+1 : p.pos+1+end]
		p.pos += end + 2
		return &expr{lit: value{kind: kindString, s: lit, trusted: true}, at: at, place: -1}, nil
	}
	w := p.word()
	switch w {
	case "":
		return nil, p.fail("unexpected %q", firstWord(p.s[p.pos:]))
	case "true", "false":
		return &expr{lit: value{kind: kindBool, s: w, trusted: true}, at: at, place: -1}, nil
	case "null", "undefined":
		return &expr{lit: value{kind: kindMissing, trusted: true}, at: at, place: -1}, nil
	}
	if _, err := strconv.ParseFloat(w, 64); err == nil && strings.IndexByte("-0123456789", w[0]) >= 0 {
		return &expr{lit: value{kind: kindNumber, s: w, trusted: true}, at: at, place: -1}, nil
	}
	pa, err := p.c.resolve(w, at)
	if err != nil {
		return nil, err
	}
	e := &expr{path: pa, at: at, place: -1}
	if given := p.c.given(pa); given != nil {
		if e, err = given.follow(pa, p.c, at); err != nil || e.path == nil {
			return e, err
		}
	}
	e.place = p.c.note(e.path, at, required)
	return e, nil
}

// word takes the characters of a path or number.
func (p *parser) word() string {
	start, bracket := p.pos, false
	for ; p.pos < len(p.s); p.pos++ {
		c := p.s[p.pos]
		if bracket {
			bracket = c != ']'
			continue
		}
		if c == '[' {
			bracket = true
		} else if strings.IndexByte(" \t\n()\"'={}|", c) >= 0 {
			break
		}
	}
	return p.s[start:p.pos]
}

func firstWord(s string) string {
	if i := strings.IndexAny(s, " \t\n"); i > 0 {
		return s[:i]
	}
	return s
}

// resolve turns a written path into frame and segments.
func (c *compiler) resolve(text string, at int) (*path, error) {
	p := &path{text: text, frame: c.scopes[len(c.scopes)-1]}
	rest := text
	level := len(c.scopes) - 1
	for strings.HasPrefix(rest, "../") || rest == ".." {
		if level == 0 {
			return nil, errorAt(c.part, c.src, at, "../ leads out of the template")
		}
		level--
		rest = strings.TrimPrefix(strings.TrimPrefix(rest, ".."), "/")
	}
	p.frame, p.level, p.named = c.scopes[level], level, true
	switch name, tail, dotted := strings.Cut(rest, "."); {
	case name == "@root":
		p.frame, rest, p.named = 0, tail, false
	case name == "this" && (dotted || tail == ""):
		rest = tail
	case strings.HasPrefix(rest, "this/"):
		rest = rest[len("this/"):]
	case strings.HasPrefix(rest, "./"):
		rest = rest[len("./"):]
	case strings.HasPrefix(name, "@"):
		switch name {
		case "@index", "@key", "@first", "@last":
		default:
			err := errorAt(c.part, c.src, at, "unknown name %q", name)
			err.Nearest = nearest(name, []string{"@index", "@key", "@first", "@last", "@root"})
			return nil, err
		}
		if p.frame == 0 || dotted {
			return nil, errorAt(c.part, c.src, at, "%s stands outside of #each", rest)
		}
		p.meta = name
		return p, nil
	}
	for rest != "" && rest != "." {
		seg := ""
		if strings.HasPrefix(rest, "[") {
			end := strings.IndexByte(rest, ']')
			if end < 0 {
				return nil, errorAt(c.part, c.src, at, "[ without its ]")
			}
			seg, rest = rest[1:end], rest[end+1:]
		} else {
			end := strings.IndexAny(rest, ".[/")
			if end < 0 {
				end = len(rest)
			}
			seg, rest = rest[:end], rest[end:]
		}
		if seg == "" {
			return nil, errorAt(c.part, c.src, at, "%q is not a path", text)
		}
		p.segs = append(p.segs, seg)
		if rest == "." {
			return nil, errorAt(c.part, c.src, at, "%q is not a path", text)
		}
		if rest != "" && (rest[0] == '.' || rest[0] == '/') {
			rest = rest[1:]
		}
		if len(p.segs) > maxDepth {
			return nil, errorAt(c.part, c.src, at, "path of more than %d names", maxDepth)
		}
	}
	if c.given(p) != nil {
		return p, nil
	}
	if p.frame == 0 && len(p.segs) == 0 && p.meta == "" {
		return nil, errorAt(c.part, c.src, at, "%q names no variable", text)
	}
	if p.frame == 0 && p.segs[0] == "contact" && len(p.segs) < 2 {
		return nil, errorAt(c.part, c.src, at, "contact is not a value: write contact.Name")
	}
	return p, nil
}

// note remembers that the template reads a root variable and returns its index in uses, or -1.
func (c *compiler) note(p *path, at int, required bool) int {
	name := strings.Join(p.segs, ".")
	if p.meta != "" {
		name = p.meta
	}
	line, column := c.position(at)
	u := use{name: name, part: c.part, line: line, column: column, required: required}
	if p.frame == 0 {
		u.root = p.segs[0]
		if u.root == "contact" {
			u.root = p.segs[1]
			u.system = u.root == "email"
		} else {
			u.system = isReserved(u.root)
			_, u.constant = c.scope.data[u.root]
		}
		u.required = required && !c.guarded(u.root)
	} else {
		u.required = false // known only when a recipient's list is looped over
	}
	c.prog.uses = append(c.prog.uses, u)
	return len(c.prog.uses) - 1
}
