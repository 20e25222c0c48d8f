package checklist

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"unicode"

	"golang.org/x/net/html"
	"golang.org/x/net/idna"
)

// clipped is where Gmail hides the rest of a message's HTML, in bytes.
const clipped = 102_000

// unsubscribeURI is the https URI of List-Unsubscribe.
func (c *check) unsubscribeURI() string {
	for _, uri := range uris(c.header.Get("List-Unsubscribe")) {
		if strings.HasPrefix(uri, "https://") || strings.HasPrefix(uri, "http://") {
			return uri
		}
	}
	return ""
}

// visibleLink is F09: the link is in the text and in the HTML where it can be seen.
func (c *check) visibleLink() {
	uri := c.unsubscribeURI()
	if !c.opts.Broadcast || uri == "" {
		return // F08 says so
	}
	if p := c.body.leaf("text"); p != nil && !strings.Contains(p.text, uri) {
		c.add("F09", Error, "text", "no unsubscribe link", "write {{unsubscribe_url}} into the text")
	}
	p := c.body.leaf("html")
	if p == nil {
		return
	}
	found := false
	walk(p.text, func(e element) {
		found = found || e.name == "a" && !e.hidden && strings.TrimSpace(e.attr("href")) == uri
	})
	if !found {
		c.add("F09", Error, "html", "no visible unsubscribe link", `write <a href="{{unsubscribe_url}}">Unsubscribe</a> into the HTML`)
	}
}

// element is a start tag of the HTML.
type element struct {
	name   string
	attrs  []html.Attribute
	at     int  // offset
	hidden bool // it or one around it is not shown
	self   bool // it itself is hidden by its style
}

func (e element) attr(name string) string {
	for _, a := range e.attrs {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// walk calls fn for every start tag. Elements that are not closed hide nothing behind their parent's end.
func walk(src string, fn func(element)) {
	z := html.NewTokenizer(strings.NewReader(src))
	hidden, depth := "", 0
	for at := 0; ; {
		kind := z.Next()
		if kind == html.ErrorToken {
			return
		}
		start := at
		at += len(z.Raw())
		switch kind {
		case html.StartTagToken, html.SelfClosingTagToken:
			t := z.Token()
			e := element{name: t.Data, attrs: t.Attr, at: start, hidden: hidden != ""}
			e.self = hides(e.attr("style"))
			e.hidden = e.hidden || e.self
			fn(e)
			switch {
			case kind == html.SelfClosingTagToken || isVoid(t.Data):
			case hidden == t.Data:
				depth++
			case hidden == "" && e.self:
				hidden, depth = t.Data, 0
			}
		case html.EndTagToken:
			if name, _ := z.TagName(); string(name) == hidden && hidden != "" {
				if depth--; depth < 0 {
					hidden, depth = "", 0
				}
			}
		}
	}
}

func isVoid(name string) bool {
	switch name {
	case "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr":
		return true
	}
	return false
}

// hides tells styles that take an element from sight.
func hides(style string) bool {
	s := strings.ToLower(strings.Join(strings.Fields(style), ""))
	for _, mark := range []string{"display:none", "visibility:hidden", "font-size:0;", "font-size:0px", "opacity:0;", "mso-hide:all"} {
		if strings.Contains(s+";", mark) {
			return true
		}
	}
	return false
}

// shorteners are hosts whose links hide where they lead.
func isShortener(host string) bool {
	switch strings.TrimPrefix(host, "www.") {
	case "bit.ly", "t.co", "goo.gl", "tinyurl.com", "ow.ly", "is.gd", "buff.ly", "rebrand.ly", "cutt.ly", "t.ly", "me2.do", "han.gl", "url.kr", "vo.la":
		return true
	}
	return false
}

// content is F13: what readers are shown and where links lead.
func (c *check) content() {
	p := c.body.leaf("html")
	if p == nil {
		return
	}
	concealed := 0
	walk(p.text, func(e element) {
		if len(c.findings) >= maxFindings {
			return
		}
		switch e.name {
		case "script", "iframe", "object", "embed", "applet", "form":
			c.addAt("F13", Warning, p, e.at, "<"+e.name+"> is not shown by mail programs, and marks spam", "take it out; link to a page")
		}
		if e.self && !strings.Contains(strings.ToLower(e.attr("style")), "max-height:0") {
			if concealed++; concealed == 1 {
				c.addAt("F13", Warning, p, e.at, "<"+e.name+"> is hidden by its style", "show what you send, or do not send it")
			}
		}
		for _, a := range e.attrs {
			if strings.HasPrefix(a.Key, "on") && len(a.Key) > 3 {
				c.addAt("F13", Warning, p, e.at, "the attribute "+clean(a.Key)+" is for scripts", "take it out")
			}
		}
		if e.name == "a" || e.name == "area" {
			c.link(p, e)
		}
	})
}

func (c *check) link(p *part, e element) {
	href := strings.TrimSpace(e.attr("href"))
	u, err := url.Parse(href)
	if href == "" || strings.HasPrefix(href, "#") {
		return
	}
	if err != nil {
		c.addAt("F13", Warning, p, e.at, "a link that cannot be read", "write a whole https address")
		return
	}
	host := strings.ToLower(u.Hostname())
	switch {
	case u.Scheme == "javascript" || u.Scheme == "vbscript" || u.Scheme == "data":
		c.addAt("F13", Error, p, e.at, "a link that runs a script", "link to a page")
	case u.Scheme != "http" && u.Scheme != "https":
	case net.ParseIP(host) != nil && !net.ParseIP(host).IsLoopback():
		c.addAt("F13", Warning, p, e.at, "a link to an IP address", "link to a name")
	case isShortener(host):
		c.addAt("F13", Warning, p, e.at, "a link through "+clean(host)+", which hides where it leads", "link to your own domain")
	case len(c.opts.Domains) > 0 && c.from != "" && !c.isOurs(host):
		c.addAt("F13", Info, p, e.at, "a link to "+clean(host)+", which is not a domain of the sender", "lead links over your own domain where you can")
	}
	if mixedScripts(host) {
		c.addAt("F19", Warning, p, e.at, "the link's domain mixes letters of several scripts", "use a domain in one script")
	}
}

func (c *check) isOurs(host string) bool {
	for _, d := range append([]string{c.from}, c.opts.Domains...) {
		if host == d || strings.HasSuffix(host, "."+d) || strings.HasSuffix(d, "."+host) {
			return true
		}
	}
	return false
}

// htmlSize is F16.
func (c *check) htmlSize() {
	if p := c.body.leaf("html"); p != nil && len(p.text) > clipped {
		c.add("F16", Warning, "html", fmt.Sprintf("%d bytes: Gmail shows about %d and hides the rest", len(p.text), clipped), "make it shorter; the unsubscribe link at its end may be hidden")
	}
}

// lookAlikes is F19 for the header: domains that mix scripts (UTS #39 section 5.2, highly restrictive).
func (c *check) lookAlikes() {
	for _, name := range []string{"From", "Reply-To"} {
		value := c.header.Get(name)
		if _, domain, ok := strings.Cut(value, "@"); ok && mixedScripts(strings.TrimRight(strings.TrimSpace(domain), ">")) {
			c.add("F19", Warning, "header/"+name, "the domain mixes letters of several scripts", "use a domain in one script")
		}
	}
}

// mixedScripts tells domains one of whose labels holds letters of several scripts, but for those that are written
// together in East Asia.
func mixedScripts(host string) bool {
	for label := range strings.SplitSeq(strings.ToLower(host), ".") {
		if strings.HasPrefix(label, "xn--") {
			if u, err := idna.Punycode.ToUnicode(label); err == nil {
				label = u
			}
		}
		var latin, east, other int
		seen := map[*unicode.RangeTable]bool{}
		for _, r := range label {
			switch {
			case r < 0x80 && (r < 'a' || r > 'z'):
			case unicode.Is(unicode.Latin, r):
				latin = 1
			case unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana, unicode.Bopomofo):
				east = 1
			default:
				for _, script := range []*unicode.RangeTable{unicode.Cyrillic, unicode.Greek, unicode.Armenian, unicode.Hebrew, unicode.Arabic, unicode.Georgian, unicode.Thai, unicode.Devanagari, unicode.Cherokee} {
					if unicode.Is(script, r) && !seen[script] {
						seen[script] = true
						other++
					}
				}
			}
		}
		if other > 0 && latin+east+other > 1 {
			return true
		}
	}
	return false
}

// postalAddress is F20.
func (c *check) postalAddress() {
	if !c.opts.Broadcast || c.opts.PostalAddress == "" {
		return
	}
	want := strings.Join(strings.Fields(c.opts.PostalAddress), " ")
	for _, name := range []string{"text", "html"} {
		p := c.body.leaf(name)
		if p == nil {
			continue
		}
		text := p.text
		if name == "html" {
			text = html.UnescapeString(text)
		}
		if !strings.Contains(strings.Join(strings.Fields(text), " "), want) {
			c.add("F20", Warning, name, "the sender's postal address is not shown", "write it into the footer: the law of many countries asks for it")
		}
	}
}
