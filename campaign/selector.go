package campaign

import (
	"cmp"
	"errors"
	"slices"

	"github.com/andybalholm/cascadia"
	"golang.org/x/net/html"
)

// styleRule is a rule that can be matched: a chain of simple selectors, each an ancestor or the parent of the next.
type styleRule struct {
	chain  []cascadia.Sel
	child  []bool // that the selector before is the parent's
	weight cascadia.Specificity
	decls  []cssDecl
}

// maxChain bounds the selectors of one chain: their states are bits.
const maxChain = 32

// newStyleRule cuts a selector into its chain. Matching it as a whole would try every way to lay the chain over the
// ancestors, which are too many for a selector made to be slow.
func newStyleRule(selector string, decls []cssDecl) (styleRule, error) {
	r := styleRule{decls: decls}
	p := &cssScanner{s: selector}
	for child := false; ; {
		p.blanks()
		if p.pos < len(selector) && selector[p.pos] == '>' && len(r.chain) > 0 && !child {
			child = true
			p.pos++
			continue
		}
		start := p.pos
		if p.until(" \t\n\r\f>"); p.pos == start {
			if child || len(r.chain) == 0 || p.pos < len(selector) {
				return r, errors.New("a selector is missing")
			}
			return r, nil
		}
		sel, err := cascadia.Parse(selector[start:p.pos])
		if err != nil {
			return r, err
		}
		if len(r.chain) == maxChain {
			return r, errors.New("too long")
		}
		r.chain, r.child = append(r.chain, sel), append(r.child, child)
		r.weight = r.weight.Add(sel.Specificity())
		child = false
	}
}

// chainState tells by bits which beginnings of a chain end at an element, and which end at it or above it.
type chainState struct{ here, above uint32 }

// step is the state of an element whose parent has the given one, and whether the whole chain ends there.
func (r *styleRule) step(n *html.Node, parent chainState) (chainState, bool) {
	var s chainState
	for i, sel := range r.chain {
		before := parent.above
		if r.child[i] {
			before = parent.here
		}
		if (i == 0 || before>>(i-1)&1 == 1) && sel.Match(n) {
			s.here |= 1 << i
		}
	}
	s.above = s.here | parent.above
	return s, s.here>>(len(r.chain)-1)&1 == 1
}

// matching returns the states of an element, and what the rules give to it, the weakest first.
func matching(n *html.Node, rules []styleRule, parents []chainState) (states []chainState, normal, important []cssDecl) {
	var found []*styleRule
	states = make([]chainState, len(rules))
	for i := range rules {
		var whole bool
		if states[i], whole = rules[i].step(n, parents[i]); whole {
			found = append(found, &rules[i])
		}
	}
	slices.SortStableFunc(found, func(a, b *styleRule) int {
		x, y := a.weight, b.weight
		return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1]), cmp.Compare(x[2], y[2]))
	})
	for _, r := range found {
		for _, d := range r.decls {
			if d.important {
				important = append(important, d)
			} else {
				normal = append(normal, d)
			}
		}
	}
	return states, normal, important
}
