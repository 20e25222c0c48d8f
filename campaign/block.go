package campaign

import (
	"slices"
	"strings"
)

// openBlock compiles {{#if x}} and its kin.
func (c *compiler) openBlock(t token) error {
	word := firstWord(t.text)
	k := blockKind(0)
	for ; int(k) < len(blockNames); k++ {
		if word == "#"+blockNames[k] {
			break
		}
	}
	if int(k) == len(blockNames) {
		err := errorAt(c.part, c.src, t.at, "unknown block {{%s}}", word)
		err.Nearest = nearest(word[1:], blockNames[:])
		return err
	}
	if len(c.blocks) >= maxDepth {
		return errorAt(c.part, c.src, t.at, "more than %d blocks inside one another", maxDepth)
	}
	c.blocks = append(c.blocks, block{kind: k, at: t.at, before: c.st})
	return c.test(t, len(word))
}

// test compiles the condition of the block on top of the stack.
func (c *compiler) test(t token, skip int) error {
	b := &c.blocks[len(c.blocks)-1]
	if strings.Contains(t.text, " as |") {
		return errorAt(c.part, c.src, t.at, "block parameters are not supported: use this and ../")
	}
	seen := len(c.prog.uses)
	e, err := c.parse(t, skip)
	if err != nil {
		return err
	}
	for i := seen; i < len(c.prog.uses); i++ { // a condition on what is missing is false
		c.prog.uses[i].required = false
		if b.kind != unlessBlock && c.prog.uses[i].root != "" && e.helper == nil {
			b.guards = append(b.guards, c.prog.uses[i].root)
		}
	}
	switch o := (op{e: e}); b.kind {
	case ifBlock:
		o.code = opIf
		b.test = c.emit(o)
	case unlessBlock:
		o.code = opUnless
		b.test = c.emit(o)
	default:
		if o.code = opEach; b.kind == withBlock {
			o.code = opWith
		}
		c.frames++
		o.frame = c.frames
		if o.frame >= maxFrames {
			return errorAt(c.part, c.src, t.at, "more than %d #each and #with inside one another", maxFrames-1)
		}
		b.test = c.emit(o)
		c.scopes = append(slices.Clip(c.scopes), o.frame)
		b.framed = true
	}
	b.start = c.here()
	return nil
}

// branchEnd closes the branch that is being compiled.
func (c *compiler) branchEnd(b *block, at int) error {
	if b.framed {
		if b.kind == eachBlock {
			if _, same := join(b.before, c.st); !same {
				return errorAt(c.part, c.src, at, "the body of #each begins in %s and ends in %s", b.before.where(), c.st.where())
			}
			c.emit(op{code: opNext, frame: c.frames, to: b.start, e: c.prog.ops[b.test].e})
		}
		c.scopes = c.scopes[:len(c.scopes)-1]
		c.frames--
		b.framed = false
	}
	return c.meet(b, c.st, at)
}

// meet requires that all branches end in the same place of the HTML.
func (c *compiler) meet(b *block, st htmlState, at int) error {
	if !b.ended {
		b.after, b.ended = st, true
		return nil
	}
	after, same := join(b.after, st)
	if !same {
		return errorAt(c.part, c.src, at, "the branches of {{#%s}} end in different places: one in %s, another in %s",
			blockNames[b.kind], b.after.where(), st.where())
	}
	b.after = after
	return nil
}

func (c *compiler) elseBranch(t token, open int) error {
	if len(c.blocks) <= open {
		return errorAt(c.part, c.src, t.at, "{{else}} without a block")
	}
	b := &c.blocks[len(c.blocks)-1]
	if b.hasElse {
		return errorAt(c.part, c.src, t.at, "second {{else}}")
	}
	if err := c.branchEnd(b, t.at); err != nil {
		return err
	}
	b.ends = append(b.ends, c.emit(op{code: opJump}))
	c.prog.ops[b.test].to = c.here()
	b.test, b.guards = -1, nil
	c.st = b.before
	rest := strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(t.text, "else"), "^"))
	if rest == "" {
		b.hasElse = true
		return nil
	}
	if firstWord(rest) != "if" || rest == "if" {
		return errorAt(c.part, c.src, t.at, "after {{else only if may follow")
	}
	b.kind = ifBlock
	return c.test(t, strings.Index(t.text, "if")+len("if"))
}

func (c *compiler) closeBlock(t token, open int) error {
	name := strings.TrimSpace(t.text[1:])
	if len(c.blocks) <= open {
		return errorAt(c.part, c.src, t.at, "{{/%s}} without its {{#%s}}", name, name)
	}
	b := &c.blocks[len(c.blocks)-1]
	opened := firstWord(c.src[b.at:])
	opened = strings.TrimLeft(opened, "{~#")
	if name != opened {
		line, _ := position(c.src, b.at)
		return errorAt(c.part, c.src, t.at, "{{/%s}} closes {{#%s}} of line %d", name, opened, line)
	}
	if err := c.branchEnd(b, t.at); err != nil {
		return err
	}
	if !b.hasElse {
		if err := c.meet(b, b.before, t.at); err != nil {
			return err
		}
	}
	if b.test >= 0 {
		c.prog.ops[b.test].to = c.here()
	}
	for _, j := range b.ends {
		c.prog.ops[j].to = c.here()
	}
	c.st = b.after
	c.blocks = c.blocks[:len(c.blocks)-1]
	return nil
}

// guarded tells roots that an enclosing condition has found to be there.
func (c *compiler) guarded(root string) bool {
	for _, b := range c.blocks {
		if slices.Contains(b.guards, root) {
			return true
		}
	}
	return false
}
