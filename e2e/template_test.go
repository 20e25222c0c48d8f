package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

// promotion uses what templates have: a layout, a partial, style rules, a table in a loop, pictures of both kinds.
const promotion = `{
 "name": "promo", "subject": "{{Subject}}", "preheader": "48 hours, {{Name}}",
 "html": "{{#> layout}}<h1>{{default Name \"there\"}}</h1><table>{{#each Orders}}<tr><td class=\"c\">{{id}}</td></tr>{{/each}}</table>{{Body}}<a href=\"https://shop.example/?q={{Name}}\" title=\"{{Name}}\">go</a><img src=\"asset:logo.png\" alt=\"Shop\"><img src=\"asset:big.png\" alt=\"\">{{/layout}}",
 "partials": {"layout": {"html": "<html><head><style>td.c,p{margin:0} @media print{p{color:red}}</style></head><body>\n<!--[if mso]><table><tr><td><![endif]-->{{> @partial-block}}<!--[if mso]></td></tr></table><![endif]--><p><a href=\"{{unsubscribe_url}}\">Unsubscribe</a></p></body></html>"}},
 "variables": {"Subject": {"scope": "campaign", "required": true}, "Body": {"scope": "campaign"}, "Name": {"scope": "contact", "default": "friend"}},
 "images": [{"name": "big.png", "mode": "link"}],
 "samples": [{"name": "Ann", "data": {"Subject": "S", "Name": "Ann", "Body": "<p>B</p>"}}]
}`

// parse reads a message as Python's email package does and tells what it found.
const parse = `
import sys, json, email, email.policy
m = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)
defects, kinds, texts = [], [], {}
for p in m.walk():
    defects += [type(d).__name__ for d in p.defects]
    for name, value in p.items():
        defects += [name + ": " + type(d).__name__ for d in getattr(value, "defects", [])]
    kinds.append(p.get_content_type())
    if p.get_content_maintype() == "text":
        texts[p.get_content_type()] = p.get_content()
json.dump({"defects": defects, "kinds": kinds, "texts": texts, "subject": str(m["subject"]), "names": m.keys(),
           "from": [a.addr_spec for a in m["from"].addresses], "to": [a.addr_spec for a in m["to"].addresses],
           "date": m["date"].datetime.isoformat()}, sys.stdout)
`

type parsed struct {
	Defects, Kinds, From, To, Names []string
	Texts                           map[string]string
	Subject, Date                   string
}

func parsePython(t *testing.T, msg []byte) parsed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", parse)
	cmd.Stdin = bytes.NewReader(msg)
	out, err := cmd.Output()
	require.NoError(t, err)
	var p parsed
	require.NoError(t, json.Unmarshal(out, &p))
	return p
}

// Whatever recipients are called, their messages are read by Python's email package without a defect, verify with
// dkimpy, and hold no structure but the template's.
func TestGeneratedMessagesForOtherPeoplesReaders(t *testing.T) {
	needs(t, "/usr/bin/python3", "dkimverify", "unshare")
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port, domains: []string{"dest.example"}})
	r.domain("shop.example")
	png, err := base64.StdEncoding.DecodeString("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
	require.NoError(t, err)
	file := func(name string, text []byte) string {
		path := filepath.Join(r.dir, name)
		writeFile(t, path, string(text))
		return path
	}
	r.json(nil, "asset", "add", file("big.png", append(png, 0)))
	r.json(nil, "template", "push", "--file", file("promo.json", []byte(promotion)), "--asset", file("logo.png", png), "--publish")
	var v api.TemplateValidation
	r.json(&v, "template", "validate", "promo")
	require.True(t, v.OK, "%+v", v.Findings)

	names := []string{
		"Ann", "김민수", "山田太郎", "🎉 Zoë", "محمد علي", `"><script>alert(1)</script>`, "{{unsubscribe_url}}{{#if x}}", "a\r\nBcc: evil@dest.example\r\n\r\nbody",
		"=?utf-8?q?x=0D=0ABcc:_evil@dest.example?=", "--=_x", ".", strings.Repeat("가", 400), strings.Repeat("x", 1500), "\x01\x7f", "From me", "javascript:alert(1)",
	}
	recipients := make([]map[string]any, len(names))
	for i, name := range names {
		recipients[i] = map[string]any{"email": "r" + strconv.Itoa(i) + "@dest.example", "attributes": map[string]any{"Name": name, "Orders": []any{map[string]any{"id": "1"}, map[string]any{"id": name}}}}
	}
	id := r.campaign(map[string]any{
		"name": "Sale", "from": map[string]any{"email": "deals@shop.example", "name": "행복한 가게"}, "template": map[string]any{"name": "promo"},
		"data": map[string]any{"Subject": "블랙 프라이데이 – half price", "Body": "<p>All of it, {{Name}}</p>"}, "recipients": recipients, "start": true,
	})
	wait(t, "all messages", 60*time.Second, func() bool { return s.count() == len(names) })
	require.Equal(t, len(names), r.progress(id).Total)

	run := r.asResolver()
	for _, d := range s.all() {
		p := parsePython(t, d.Data)
		require.Empty(t, p.Defects, "%s", d.Data)
		require.Equal(t, []string{"multipart/alternative", "text/plain", "multipart/related", "text/html", "image/png"}, p.Kinds)
		require.Equal(t, "블랙 프라이데이 – half price", p.Subject)
		require.Equal(t, []string{"deals@shop.example"}, p.From)
		require.Len(t, p.To, 1)
		for _, name := range p.Names {
			require.NotContains(t, []string{"bcc", "cc"}, strings.ToLower(name))
		}
		html := p.Texts["text/html"]
		require.NotContains(t, html, "<script")
		require.NotContains(t, html, `href="javascript:`)
		require.Equal(t, 2, strings.Count(html, `<td style="margin:0" class="c">`), "%s", html)
		require.Contains(t, html, "<!--[if mso]><table><tr><td><![endif]-->")
		require.Equal(t, 1, strings.Count(html, "/a/"), "one picture is linked to")
		require.Contains(t, p.Texts["text/plain"], "/u/")
		for i := range 2 {
			out, code := run(alone(t, d.Data, i), "dkimverify")
			require.Zero(t, code, "%s", out)
		}
	}
}
