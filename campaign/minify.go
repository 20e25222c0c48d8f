package campaign

import (
	"regexp"
	"strings"
	"sync"
)

// minifier takes out what no reader of the HTML sees: every run of white space becomes one character, and comments go, but
// for those that Outlook reads and those with merge tags. What stands in <pre>, <textarea>, <title>, <style>, <script> and
// in attributes stays as it is. It works on the static text that the compiler emits, so that no merge tag is touched.
type minifier struct {
	off   bool // a style rule keeps white space somewhere
	pre   int  // <pre> elements that are open
	space bool // the last byte was white space that stands for a run
}

// keepsSpace finds declarations by which white space is shown as it stands.
var keepsSpace = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)white-space(?:-collapse)?\s*:\s*(?:pre|break-spaces|preserve)`)
})

// append appends text, which begins in the state st.
func (m *minifier) append(b []byte, text string, st htmlState) []byte {
	if m.off {
		return append(b, text...)
	}
	for i := 0; i < len(text); i++ {
		if st.at == inText && strings.HasPrefix(text[i:], "<!--") {
			if n := hiddenComment(text[i:]); n > 0 {
				i += n - 1
				continue
			}
		}
		c, was := text[i], st
		st = st.advance(text[i:i+1], nil)
		if was.at != inText && was.elem == "pre" && c == '>' && st.at == inText {
			if was.closing {
				m.pre = max(m.pre-1, 0)
			} else {
				m.pre++
			}
		}
		if !isSpace(c) || !was.collapses(m.pre) {
			b, m.space = append(b, c), false
			continue
		}
		if !m.space {
			b, m.space = append(b, ' '), true
		}
		if c == '\n' && len(b) > 0 {
			b[len(b)-1] = '\n' // lines stay short
		}
	}
	return b
}

// collapses tells whether white space may be one character here.
func (s htmlState) collapses(pre int) bool {
	switch s.at {
	case inText:
		return pre == 0
	case inTagName, inTag, afterAttrName, beforeValue:
		return true
	}
	return false
}

// hiddenComment returns the length of the comment that text begins with, 0 where somebody reads it or it does not end here.
func hiddenComment(text string) int {
	const open, end = "<!--", "-->"
	body, _, ended := strings.Cut(text[len(open):], end)
	if !ended || strings.Contains(body, "[if") || strings.Contains(body, "[endif") {
		return 0
	}
	return len(open) + len(body) + len(end)
}
