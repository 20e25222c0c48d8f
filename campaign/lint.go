package campaign

import (
	"fmt"
	"strings"

	"golang.org/x/net/html"

	"relayd/internal/api"
)

// maxWarnings bounds what lint tells.
const maxWarnings = 50

// lint notes what does not stop a campaign but costs it readers.
func (c *composition) lint(t *api.CampaignTemplate, set *imageSet) {
	warn := func(code, part string, line int, format string, args ...any) {
		if len(c.warnings) < maxWarnings {
			c.warnings = append(c.warnings, api.Warning{Code: code, Part: part, Line: line, Detail: fmt.Sprintf(format, args...)})
		}
	}
	for _, prefix := range []string{"re:", "fwd:", "fw:"} {
		if strings.HasPrefix(strings.ToLower(strings.TrimSpace(t.Subject)), prefix) {
			warn("subject_fake_reply", partSubject, 1, "begins like a reply or a forwarded message")
		}
	}
	if c.html != nil && c.html.size > clippedHTML {
		warn("html_clipped", partHTML, 0, "%d bytes: Gmail shows about %d and hides the rest", c.html.size, clippedHTML)
	}
	for _, img := range set.list {
		if !img.used {
			warn("image_unused", partHTML, 0, "nothing refers to the image %q", img.name)
		}
	}
	z := html.NewTokenizer(strings.NewReader(t.HTML))
	for line := 1; ; {
		kind := z.Next()
		if kind == html.ErrorToken {
			return
		}
		at := line
		line += strings.Count(string(z.Raw()), "\n")
		if kind != html.StartTagToken && kind != html.SelfClosingTagToken {
			continue
		}
		switch tok := z.Token(); tok.Data {
		case "img":
			if !hasAttr(tok, "alt") {
				warn("img_missing_alt", partHTML, at, "an image without alt text")
			}
		case "script", "form", "iframe":
			warn("html_not_shown", partHTML, at, "mail programs do not show <%s>", tok.Data)
		}
	}
}

func hasAttr(t html.Token, name string) bool {
	for _, a := range t.Attr {
		if a.Key == name {
			return true
		}
	}
	return false
}
