package campaign

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"

	"relayd/internal/api"
)

// maxFrames bounds #each and #with inside one another, the root included.
const maxFrames = maxDepth + 1

// contact is the recipient as a rendering sees it.
type contact struct {
	address    string
	attributes []attribute
	system     system
}

// system holds what relayd itself fills in.
type system struct {
	unsubscribeURL string
	campaignName   string
	messageID      string // without angle brackets
	sender         string
}

func (c *contact) attribute(name string) (attribute, bool) {
	for _, a := range c.attributes {
		if a.name == name {
			return a, true
		}
	}
	return attribute{}, false
}

// frame is the state of one #each or #with.
type frame struct {
	v     value
	list  []any
	keys  []string       // of an object that is looped over, sorted
	from  map[string]any // that object
	index int
	count int
}

// machine runs a program for one contact. Machines are reused.
type machine struct {
	encoder
	scope   *scope
	contact *contact
	prog    *program
	frames  [maxFrames]frame
	deep    int // frames that were used
	loops   int
	scratch []byte
	memo    []memo // by slot
	forms   []byte // of values in quoted-printable
	small   []byte // for subjects
	lenient bool   // collect what is missing, and go on
	missing []*use // what was
}

// memo is a value that was shown: where its form stands in machine.forms, or in base64, whose form depends on what stands
// before it, its escaped text.
type memo struct {
	start, end int
	text       string
}

// longestForm bounds forms that are remembered: they must fit on a line.
const longestForm = lineLength - 2

var machines = sync.Pool{New: func() any { return new(machine) }}

// run appends the program's output, encoded, to m.buf.
func (m *machine) run(p *program, sc *scope, c *contact, e encoding) error {
	m.prog, m.scope, m.contact, m.enc, m.col, m.n, m.loops = p, sc, c, e, 0, 0, 0
	m.forget(p.slots)
	start := len(m.buf)
	for pc := 0; pc < len(p.ops); {
		next, err := m.step(pc)
		if err != nil {
			return err
		}
		if len(m.buf)-start > maxOutput {
			return m.fail(&p.ops[pc], "output of more than %d bytes", maxOutput)
		}
		pc = next
	}
	m.finish()
	return nil
}

func (m *machine) step(pc int) (next int, err error) {
	o := &m.prog.ops[pc]
	switch o.code {
	case opText:
		m.static(o)
	case opJump:
		return o.to, nil
	case opHas:
		if a, ok := m.contact.attribute(o.text); !ok || a.s == "" {
			return o.to, nil
		}
	case opOut:
		return pc + 1, m.out(o)
	case opIf, opUnless:
		v, err := m.eval(o.e, false)
		if err != nil {
			return 0, m.fail(o, "%w", err)
		}
		if v.truthy() == (o.code == opUnless) {
			return o.to, nil
		}
	case opWith, opEach:
		v, err := m.eval(o.e, false)
		if err != nil {
			return 0, m.fail(o, "%w", err)
		}
		if !m.enter(o, v) {
			return o.to, nil
		}
	case opNext:
		if m.loops++; m.loops > maxIterations {
			return 0, m.fail(o, "more than %d iterations", maxIterations)
		}
		if f := &m.frames[o.frame]; f.index+1 < f.count {
			f.index++
			f.item()
			return o.to, nil
		}
	}
	return pc + 1, nil
}

// enter sets the frame of #with or #each; false leads to the other branch.
func (m *machine) enter(o *op, v value) bool {
	f := &m.frames[o.frame]
	m.deep = max(m.deep, o.frame+1)
	if o.code == opWith {
		*f = frame{v: v}
		return v.truthy()
	}
	switch v.kind {
	case kindList:
		*f = frame{v: v, list: v.list, count: len(v.list)}
	case kindMap:
		*f = frame{v: v, from: v.fields, count: len(v.fields)}
		for k := range v.fields {
			f.keys = append(f.keys, k)
		}
		sort.Strings(f.keys)
	default:
		return false
	}
	if f.count == 0 {
		return false
	}
	f.item()
	return true
}

func (f *frame) item() {
	if f.keys != nil {
		f.v = valueOf(f.from[f.keys[f.index]], f.v.trusted)
	} else {
		f.v = valueOf(f.list[f.index], f.v.trusted)
	}
}

// forget makes room for the forms of n values.
func (m *machine) forget(n int) {
	if cap(m.memo) < n {
		m.memo = make([]memo, n)
	}
	m.memo, m.forms = m.memo[:n], m.forms[:0]
	clear(m.memo)
}

// remember keeps the form that a value has within a line of quoted-printable.
func (m *machine) remember(slot int, s string) {
	if m.memo[slot-1].end > 0 || len(s) == 0 || len(s) > longestForm || strings.ContainsAny(s, "\r\n") {
		return
	}
	e := encoder{buf: m.forms, enc: encodeQuoted, col: 1} // not at the beginning of a line, where a dot is encoded
	start := len(e.buf)
	e.quoted(s)
	if m.forms = e.buf; len(e.buf)-start <= longestForm && e.col == 1+len(e.buf)-start {
		m.memo[slot-1] = memo{start: start, end: len(e.buf)}
	}
}

// recall appends the remembered form of a value, behind a line break that means nothing where it does not fit.
func (m *machine) recall(o *op) bool {
	if o.slot == 0 {
		return false
	}
	k := &m.memo[o.slot-1]
	if m.enc == encodeBase64 && k.text != "" {
		m.bytes(k.text)
		return true
	}
	n := k.end - k.start
	if n == 0 || m.enc != encodeQuoted {
		return false
	}
	breaks := m.col+n > lineLength-1
	if first := m.forms[k.start]; (breaks || m.col == 0) && (first == '.' || first == 'F') {
		return false // encoded at the beginning of a line
	}
	if breaks {
		m.buf, m.col = append(m.buf, "=\r\n"...), 0
	}
	m.buf = append(m.buf, m.forms[k.start:k.end]...)
	m.col += n
	return true
}

// out appends the value of {{x}}.
func (m *machine) out(o *op) error {
	if m.recall(o) {
		return nil
	}
	v, err := m.eval(o.e, true)
	switch {
	case err != nil:
		return m.fail(o, "%w", err)
	case v.kind == kindList || v.kind == kindMap:
		return m.fail(o, "the value is a list or an object: use {{#each}} or name a field")
	case m.enc == encodeVoid:
		return nil
	case o.esc == escNone:
		if v.trusted && m.scope.single && m.prog.mode == modeText && looksLikeHTML(v.s) {
			m.text(plainOf(v.s))
			return nil
		}
		m.show(o, v.s)
		return nil
	}
	m.scratch = appendEscaped(m.scratch[:0], o.esc, v.s, v.trusted)
	m.show(o, string(m.scratch))
	return nil
}

// show appends a value's text, and keeps its form where it is shown again.
func (m *machine) show(o *op, s string) {
	switch {
	case o.slot == 0:
	case m.enc == encodeQuoted:
		m.remember(o.slot, s)
	case m.enc == encodeBase64 && !strings.ContainsAny(s, "\r\n"):
		m.memo[o.slot-1].text = s
	}
	m.text(s)
}

// eval yields an expression's value; strict makes a missing one an error.
func (m *machine) eval(e *expr, strict bool) (value, error) {
	switch {
	case e.path != nil:
		v := m.lookup(e.path)
		if v.kind == kindMissing && strict {
			return v, m.lacks(e)
		}
		return v, nil
	case e.helper == nil:
		return e.lit, nil
	}
	args, absent := make([]value, len(e.args), 4), false
	for i, a := range e.args {
		v, err := m.eval(a, e.helper.strict && strict && (e.helper.name != "default" || i == len(e.args)-1))
		if err != nil {
			return v, err
		}
		args[i] = v
		absent = absent || v.kind == kindMissing
	}
	v, err := e.helper.fn(args)
	if err == nil && v.kind == kindMissing && strict && e.helper.name == "lookup" {
		return v, m.lacksEntry(e, args[1].text())
	}
	if err != nil && (m.lenient && len(m.missing) > 0 || m.scope.blank && absent) {
		return value{kind: kindString}, nil // it is the missing value that the helper cannot read
	}
	return v, err
}

var errMissing = errors.New("missing")

func (m *machine) lacks(e *expr) error {
	u := &m.prog.uses[e.place]
	if m.lenient {
		m.missing = append(m.missing, u)
		return nil
	}
	if m.scope.blank {
		return nil
	}
	return fmt.Errorf("%w: the recipient has no %q", errMissing, e.path.text)
}

// lacksEntry is lacks for what {{lookup x y}} did not find.
func (m *machine) lacksEntry(e *expr, name string) error {
	if at := places(e); m.lenient && len(at) > 0 {
		m.missing = append(m.missing, &m.prog.uses[at[0]])
		return nil
	}
	if m.scope.blank {
		return nil
	}
	return fmt.Errorf("%w: lookup finds no %q", errMissing, clip(name, 40))
}

func (m *machine) lookup(p *path) value {
	var v value
	segs := p.segs
	switch {
	case p.meta != "":
		return m.frames[p.frame].meta(p.meta)
	case p.frame > 0:
		v = m.frames[p.frame].v
	default:
		v = m.root(segs)
		if segs[0] == "contact" {
			segs = segs[1:]
		}
		segs = segs[1:]
	}
	for _, seg := range segs {
		v = v.step(seg)
	}
	return v
}

func (f *frame) meta(name string) value {
	switch name {
	case "@index":
		return valueOf(f.index, true)
	case "@key":
		if f.keys != nil {
			return valueOf(f.keys[f.index], false)
		}
		return valueOf(f.index, true)
	case "@first":
		return boolean(f.index == 0)
	}
	return boolean(f.index == f.count-1)
}

// root finds a name: ours, then the contact's, then the campaign's, then its declared default. An empty attribute of
// the contact gives way to the latter two.
func (m *machine) root(segs []string) value {
	name := segs[0]
	if name == "contact" {
		if segs[1] == "email" {
			return value{kind: kindString, s: m.contact.address}
		}
		a, _ := m.contact.attribute(segs[1])
		return a.value()
	}
	switch name {
	case "unsubscribe_url", "amazonSESUnsubscribeUrl":
		return value{kind: kindString, s: m.contact.system.unsubscribeURL, trusted: true}
	case "campaign_name":
		return value{kind: kindString, s: m.contact.system.campaignName}
	case "message_id":
		return value{kind: kindString, s: m.contact.system.messageID}
	case "sender_address":
		return value{kind: kindString, s: m.contact.system.sender}
	case "email":
		return value{kind: kindString, s: m.contact.address}
	}
	a, ok := m.contact.attribute(name)
	if ok && a.s != "" {
		v := a.value()
		v.trusted = m.scope.single && m.scope.vars[name].Type == "html"
		return v
	}
	if x, known := m.scope.data[name]; known && x != nil {
		return valueOf(x, m.scope.vars[name].Type != "text")
	}
	if d := m.scope.vars[name].Default; d != nil {
		return value{kind: kindString, s: *d, trusted: true}
	}
	return a.value()
}

// fail makes an error with the place of an operation.
func (m *machine) fail(o *op, format string, args ...any) error {
	err := &RenderError{Part: m.prog.part, Err: fmt.Errorf(format, args...)}
	if o.e != nil {
		for _, place := range places(o.e) {
			u := m.prog.uses[place]
			err.Part, err.Line, err.Column = u.part, u.line, u.column
			break
		}
	}
	return err
}

// places lists the uses of an expression.
func places(e *expr) []int {
	if e.path != nil {
		return []int{e.place}
	}
	var list []int
	for _, a := range e.args {
		list = append(list, places(a)...)
	}
	return list
}

// RenderError is why one recipient's message cannot be made.
type RenderError struct {
	Part         string
	Line, Column int
	Err          error
}

func (e *RenderError) Error() string {
	if e.Line == 0 {
		return e.Part + ": " + e.Err.Error()
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.Part, e.Line, e.Column, e.Err)
}

func (e *RenderError) Unwrap() error { return e.Err }

// Code is the code of the API for it.
func (e *RenderError) Code() string {
	if errors.Is(e.Err, errMissing) {
		return api.CodeTemplateVariable
	}
	return "render_failed"
}
