package campaign

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/html"
)

// wrapAt is where lines of a text part made from HTML are broken.
const wrapAt = 76

// maskOpen and maskClose stand around the number of a tag while the HTML around it is read: characters for private use,
// that no template needs.
const (
	maskOpen  = '\uE000'
	maskClose = '\uE001'
)

// looksLikeHTML tells text that has a tag or a character reference in it.
func looksLikeHTML(s string) bool {
	for i := range len(s) {
		rest := s[i+1:]
		switch {
		case s[i] == '<' && rest != "" && (isLetter(rest[0]) || rest[0] == '/' || rest[0] == '!'):
			return true
		case s[i] == '&' && rest != "" && (isLetter(rest[0]) || rest[0] == '#') && strings.IndexByte(rest[:min(len(rest), 32)], ';') > 0:
			return true
		}
	}
	return false
}

// startsBlock tells HTML that begins with an element that takes lines of its own.
func startsBlock(s string) bool {
	s = strings.TrimSpace(s)
	if len(s) < 3 || s[0] != '<' {
		return false
	}
	name := strings.ToLower(s[1 : 1+nameLength([]byte(s[1:]))])
	switch name {
	case "p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "blockquote", "section", "article", "center", "pre", "hr":
		return true
	}
	return false
}

// htmlToText turns template source of HTML into template source of text: tags in braces are kept as they are, links
// become "text (URL)", images their alternative text, tables are read row by row, hidden content is left out.
func htmlToText(part, src string) (string, error) {
	src = strings.NewReplacer(string(maskOpen), "", string(maskClose), "").Replace(normalLines(src))
	toks, err := lex(part, src, true)
	if err != nil {
		return "", err
	}
	w := &textWriter{tags: toks}
	var masked strings.Builder
	for i, t := range toks {
		if t.tag || strings.Contains(t.text, "{{") {
			masked.WriteString(string(maskOpen) + strconv.Itoa(i) + string(maskClose))
		} else {
			masked.WriteString(t.text)
		}
	}
	z := html.NewTokenizer(strings.NewReader(masked.String()))
	for {
		switch kind := z.Next(); kind {
		case html.ErrorToken: // the end: a string reader has no other error
			return w.end(), nil
		case html.TextToken:
			raw := string(z.Raw())
			if w.skip != "" {
				w.blocks(raw)
			} else {
				w.text(html.UnescapeString(raw))
			}
		case html.StartTagToken, html.SelfClosingTagToken, html.EndTagToken:
			w.blocks(string(z.Raw()))
			w.tag(z.Token(), kind)
		default:
			w.blocks(string(z.Raw()))
		}
	}
}

// plainOf is htmlToText for a value, which holds no tags in braces whatever it holds.
func plainOf(s string) string {
	const apart = "\uE002"
	text, err := htmlToText(partHTML, strings.ReplaceAll(strings.ReplaceAll(s, apart, ""), "{", "{"+apart))
	if err != nil {
		return s // not for a source without tags
	}
	return strings.TrimRight(strings.ReplaceAll(text, apart, ""), "\n")
}

// textWriter lays out text.
type textWriter struct {
	tags    []token
	b       strings.Builder
	newline int  // line ends due before the next word
	space   bool // a blank is due before the next word
	col     int
	skip    string // hidden element whose end is looked for
	depth   int    // elements of that name inside it
	lists   []int  // numbers of the open lists, -1 for those with dashes
	links   []link
	some    bool
}

type link struct {
	href  string
	start int // length of the text before it
}

// hiddenElements show nothing that belongs to the text.
func isHidden(name string) bool {
	switch name {
	case "style", "script", "title", "template", "svg", "select", "object", "head":
		return true
	}
	return false
}

func isVoid(name string) bool {
	switch name {
	case "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr":
		return true
	}
	return false
}

func (w *textWriter) tag(t html.Token, kind html.TokenType) {
	end := kind == html.EndTagToken
	if w.skip != "" {
		switch {
		case t.Data == "body" && w.skip == "head":
			w.skip = ""
		case t.Data != w.skip || kind == html.SelfClosingTagToken:
		case end && w.depth == 0:
			w.skip = ""
		case end:
			w.depth--
		default:
			w.depth++
		}
		return
	}
	if !end && kind != html.SelfClosingTagToken && !isVoid(t.Data) && (isHidden(t.Data) || isInvisible(t)) {
		w.skip, w.depth = t.Data, 0
		return
	}
	switch t.Data {
	case "br":
		w.space = false
		w.newline = min(w.newline+1, 2)
	case "hr":
		w.line(2)
		w.word(strings.Repeat("-", 20))
		w.line(2)
	case "img":
		if alt := attr(t, "alt"); !end && alt != "" {
			w.text(alt)
		}
	case "a":
		w.anchor(t, end)
	case "ul", "ol":
		w.list(t, end)
	case "li":
		w.item(end)
	case "td", "th":
		if end {
			w.space = true
		}
	case "h1", "h2", "h3", "h4", "h5", "h6", "p", "table", "blockquote", "pre", "form", "dl":
		w.line(2)
	case "div", "section", "article", "header", "footer", "main", "nav", "tr", "center", "address", "dt", "dd", "tbody", "figure":
		w.line(1)
	}
}

func attr(t html.Token, name string) string {
	for _, a := range t.Attr {
		if a.Key == name {
			return strings.TrimSpace(a.Val)
		}
	}
	return ""
}

func isInvisible(t html.Token) bool {
	style := strings.ToLower(strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, attr(t, "style")))
	return strings.Contains(style, "display:none") || strings.Contains(style, "visibility:hidden") || strings.Contains(style, "mso-hide:all")
}

func (w *textWriter) anchor(t html.Token, end bool) {
	if !end {
		w.links = append(w.links, link{attr(t, "href"), w.b.Len()})
		return
	}
	if len(w.links) == 0 {
		return
	}
	l := w.links[len(w.links)-1]
	w.links = w.links[:len(w.links)-1]
	href := strings.TrimPrefix(l.href, "mailto:")
	if href == "" || strings.HasPrefix(href, "#") || w.hasBlock(href) {
		return
	}
	href = w.unmask(href)
	shown := strings.TrimSpace(w.b.String()[min(l.start, w.b.Len()):])
	switch shown {
	case href:
	case "":
		w.word(href)
	default:
		w.space = true
		w.word("(" + href + ")")
	}
}

func (w *textWriter) list(t html.Token, end bool) {
	if !end {
		n := -1
		if t.Data == "ol" {
			n = 0
		}
		w.lists = append(w.lists, n)
	} else if len(w.lists) > 0 {
		w.lists = w.lists[:len(w.lists)-1]
	}
	if len(w.lists) > 1 || end && len(w.lists) == 1 {
		w.line(1)
	} else {
		w.line(2)
	}
}

func (w *textWriter) item(end bool) {
	w.line(1)
	if end {
		return
	}
	mark := "-"
	if n := len(w.lists); n > 0 && w.lists[n-1] >= 0 {
		w.lists[n-1]++
		mark = strconv.Itoa(w.lists[n-1]) + "."
	}
	w.word(strings.Repeat("  ", max(len(w.lists)-1, 0)) + mark)
	w.space = true
}

// line makes the next word begin a line, behind n line ends.
func (w *textWriter) line(n int) {
	w.space = false
	w.newline = max(w.newline, n)
}

// text lays out words. Tags in braces are words, but for those of blocks, which take no room.
func (w *textWriter) text(s string) {
	for s != "" {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == maskOpen:
			end := strings.IndexRune(s, maskClose)
			if end < 0 {
				return
			}
			mask := s[:end+utf8.RuneLen(maskClose)]
			if w.hasBlock(mask) {
				w.block(w.unmask(mask))
			} else if w.isPartial(mask) {
				w.line(1)
				w.word(w.unmask(mask))
				w.line(1)
			} else {
				w.word(w.unmask(mask))
			}
			s = s[len(mask):]
			continue
		case unicode.IsSpace(r) && r != '\u00a0':
			w.space = w.space || w.col > 0
			s = s[size:]
			continue
		case r == '\u200b' || r == '\u200c' || r == '\u00ad' || r == '\u034f' || r == '\ufeff': // filler of preheaders
			s = s[size:]
			continue
		}
		end := strings.IndexFunc(s, func(r rune) bool { return unicode.IsSpace(r) && r != '\u00a0' || r == maskOpen })
		if end < 0 {
			end = len(s)
		}
		w.word(strings.ReplaceAll(strings.ReplaceAll(s[:end], "\u00a0", " "), "{{", `\{{`))
		s = s[end:]
	}
}

func (w *textWriter) word(s string) {
	width := utf8.RuneCountInString(s)
	for _, r := range s {
		if r >= 0x1100 && unicode.In(r, unicode.Hangul, unicode.Han, unicode.Hiragana, unicode.Katakana) {
			width++
		}
	}
	if w.some {
		for range w.newline {
			w.b.WriteByte('\n')
			w.col = 0
		}
	}
	w.newline = 0
	if w.space && w.col > 0 {
		if w.col+1+width > wrapAt {
			w.b.WriteByte('\n')
			w.col = 0
		} else {
			w.b.WriteByte(' ')
			w.col++
		}
	}
	w.space, w.some = false, true
	w.b.WriteString(s)
	w.col += width
}

// blocks writes only the tags of blocks in s: what opens in hidden content must close.
func (w *textWriter) blocks(s string) {
	for {
		i := strings.IndexRune(s, maskOpen)
		if i < 0 {
			return
		}
		end := strings.IndexRune(s[i:], maskClose)
		if end < 0 {
			return
		}
		mask := s[i : i+end+utf8.RuneLen(maskClose)]
		if w.hasBlock(mask) {
			w.block(w.unmask(mask))
		}
		s = s[i+len(mask):]
	}
}

// block writes a tag that takes no room. What a loop repeats begins with a line end, so that its items do not run
// together.
func (w *textWriter) block(tag string) {
	if strings.HasPrefix(strings.TrimLeft(tag, "{~"), "#each") {
		for ; w.newline > 1; w.newline-- {
			if w.some {
				w.b.WriteByte('\n')
			}
		}
		w.some = true
	}
	w.b.WriteString(tag)
}

// each calls fn for every mask in s and puts its answer in its place.
func (w *textWriter) each(s string, fn func(t token) string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, string(maskOpen))
		b.WriteString(before)
		if !found {
			return b.String()
		}
		number, after, closed := strings.Cut(rest, string(maskClose))
		if n, err := strconv.Atoi(number); closed && err == nil && n >= 0 && n < len(w.tags) {
			b.WriteString(fn(w.tags[n]))
		}
		s = after
	}
}

func (w *textWriter) unmask(s string) string {
	return w.each(s, func(t token) string {
		if !t.tag {
			return `\` + t.text
		}
		if t.hidden {
			return ""
		}
		return t.source
	})
}

func (w *textWriter) hasBlock(s string) bool {
	found := false
	w.each(s, func(t token) string {
		found = found || t.isBlock()
		return ""
	})
	return found
}

// isPartial tells the mask of {{> name}}, which stands for lines of its own.
func (w *textWriter) isPartial(mask string) bool {
	found := false
	w.each(mask, func(t token) string {
		found = found || t.isPartial()
		return ""
	})
	return found
}

func (w *textWriter) end() string {
	return strings.TrimRight(w.b.String(), " \n") + "\n"
}
