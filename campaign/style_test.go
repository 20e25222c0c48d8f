package campaign

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/html"
	"pgregory.net/rapid"

	"relayd/internal/api"
	"relayd/internal/mail"
)

// styled returns the sources of a template after its rules were written into style attributes.
func styled(t *testing.T, template *api.CampaignTemplate, data map[string]any) (map[string]string, []api.Warning) {
	t.Helper()
	c := &composition{scope: scope{data: data, vars: template.Variables, partials: template.Partials}}
	sh := &sheet{}
	first, err := c.compileStyled(template, &imageSet{}, sh, nil)
	require.NoError(t, err)
	out := sh.styles()
	again, err := c.compileStyled(template, &imageSet{}, nil, out)
	require.NoError(t, err)
	require.True(t, sameTags(first, again))
	return out, sh.warnings
}

func TestStyleRulesAreWrittenIntoAttributes(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ css, body, want string }{
		"element":                    {"p{color:red}", "<p>x</p>", `<p style="color:red">x</p>`},
		"attributes_stay":            {"p{color:red}", `<P ALIGN=left>x`, `<P style="color:red" ALIGN=left>x`},
		"class_beats_element":        {".a{color:blue}p{color:red;margin:0}", `<p class="a b">x</p>`, `<p style="margin:0;color:blue" class="a b">x</p>`},
		"later_beats_earlier":        {"p{color:blue}p{color:red}", "<p>", `<p style="color:red">`},
		"id_beats_class":             {"#i{color:blue}.a{color:red}", "<p id=i class=a>", `<p style="color:blue" id=i class=a>`},
		"descendant":                 {"td p, h1 > b{margin:0}", "<table><tr><td><p>x</p></td></tr></table><h1><b>y</b></h1><p>", `<table><tr><td><p style="margin:0">x</p></td></tr></table><h1><b style="margin:0">y</b></h1><p>`},
		"child":                      {"td > p{margin:0} body p>b{top:0}", "<table><tr><td><p><b></b></p><div><p></p></div></td></tr></table>", `<table><tr><td><p style="margin:0"><b style="top:0"></b></p><div><p></p></div></td></tr></table>`},
		"chain_goes_on_above":        {"div > div p{margin:0}", "<div><div><i><p></p></i></div></div>", `<div><div><i><p style="margin:0"></p></i></div></div>`},
		"broken_chain":               {"> p{a:b} p >{c:d} p > > b{e:f} b{g:h}", "<p><b>", `<p><b style="g:h">`},
		"attribute_selector":         {`a[target="x"]{color:red}`, `<a target="x"><a>`, `<a style="color:red" target="x"><a>`},
		"style_attribute_wins":       {"p{color:red;margin:0}", `<p style="color:blue">`, `<p style="margin:0;color:blue">`},
		"style_attribute_bytes_stay": {"p{margin:0}", `<p style='COLOR : blue; '>`, `<p style='margin:0;COLOR : blue; '>`},
		"important_beats_attribute":  {"p{color:red !important}", `<p style="color:blue">`, `<p style="color:blue;color:red">`},
		"empty_style_attribute":      {"p{color:red}", `<p style="">`, `<p style="color:red">`},
		"bare_style_attribute":       {"p{margin:0}", `<p style=color:red>`, `<p style="margin:0;color:red">`},
		"quote_in_a_bare_attribute":  {"p{margin:0}", `<p style=a"b>`, ""},
		"quotes":                     {`p{font-family:"Open Sans",serif}`, "<p>", `<p style="font-family:'Open Sans',serif">`},
		"shorthand_before_longhand":  {"p{margin:1px}", `<p style="margin-top:0">`, `<p style="margin:1px;margin-top:0">`},
		"media_stays":                {"@media (max-width:600px){p{color:red}} b{color:blue}", "<p><b>", `<p><b style="color:blue">`},
		"states_stay":                {"a:hover{color:red}a{color:blue}p:first-child{x:y}", "<p><a>", `<p><a style="color:blue">`},
		"font_face_stays":            {"@font-face{font-family:x;src:url(y)}@import url(z);p{margin:0}", "<p>", `<p style="margin:0">`},
		"comments":                   {"/* a{} */p/* x */{/* y */color:red/* ; */}", "<p>", `<p style="color:red">`},
		"old_comment_marks":          {"<!-- p{color:red} -->", "<p>", `<p style="color:red">`},
		"comma_in_parentheses":       {"p{background:url(data:x;y,z)}", "<p>", `<p style="background:url(data:x;y,z)">`},
		"semicolon_in_quotes":        {`p{quotes:";"}`, "<p>", `<p style="quotes:';'">`},
		"unclosed_rule":              {"p{color:red", "<p>", `<p style="color:red">`},
		"broken_declarations":        {"p{color;:red;mar gin:0;color:blue;x:'y}", "<p>", `<p style="color:blue">`},
		"loop_in_a_table":            {"td{padding:0}", "<table>{{#each items}}<tr><td>{{this}}</td></tr>{{/each}}</table>", `<table>{{#each items}}<tr><td style="padding:0">{{this}}</td></tr>{{/each}}</table>`},
		"outlook_comments":           {"td{padding:0}", "<!--[if mso]><table><tr><td><![endif]--><![if !mso]><p>x</p><![endif]>", ""},
		"name_that_goes_on":          {"p{margin:0}", "<p{{! x}}>", `<p style="margin:0"{{! x}}>`},
		"unclosed_elements":          {"p{margin:0}", "<p>a<p>b<br>", `<p style="margin:0">a<p style="margin:0">b<br>`},
		"tag_in_a_tag":               {"p{margin:0}", `<p {{#if Name}}class="x"{{/if}}>`, `<p style="margin:0" {{#if Name}}class="x"{{/if}}>`},
		"tag_in_the_style_attribute": {"p{margin:0}", `<p style="color:{{default c "red"}}">`, `<p style="margin:0;color:{{default c "red"}}">`},
		"conditional_style":          {"p{margin:0}", `<p {{#if Name}}style="color:red"{{/if}}>`, ""},
		"conditional_styles":         {"p{margin:0}", `<p {{#if Name}}style="color:red"{{else}}style="color:blue"{{/if}}>`, `<p {{#if Name}}style="margin:0;color:red"{{else}}style="margin:0;color:blue"{{/if}}>`},
		"class_from_a_tag":           {".x{margin:0}", `<p class="{{Name}}">`, ""},
		"bare_value_from_a_tag":      {".x{margin:0}", `<a href={{Name}} class=x>`, `<a style="margin:0" href={{Name}} class=x>`},
		"merge_tag_in_a_rule":        {"p{color:{{{c}}};margin:0}", "<p>", `<p style="margin:0">`},
		"self_closing":               {"img{border:0}", "<img src=x/><br/>", `<img style="border:0" src=x/><br/>`},
		"ampersand":                  {`p{background:url("x?a=1&b=2")}`, "<p>", `<p style="background:url('x?a=1&amp;b=2')">`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			head := "<html><head><style>" + tt.css + "</style></head><body>"
			out, _ := styled(t, &api.CampaignTemplate{HTML: head + tt.body}, map[string]any{"items": []any{"1"}, "c": "red"})
			if tt.want == "" {
				require.NotContains(t, out, partHTML)
				return
			}
			require.Equal(t, head+tt.want, out[partHTML])
		})
	}
}

func TestStyleRulesReachPartialsAndValues(t *testing.T) {
	t.Parallel()
	out, _ := styled(t, &api.CampaignTemplate{
		HTML: `{{#> layout}}<p>{{> button}}</p>{{Body}}{{/layout}}`,
		Partials: map[string]api.Partial{
			"layout": {HTML: "<style>.main p{margin:0} a{color:red} h1{top:0}</style><div class=main>{{> @partial-block}}</div>"},
			"button": {HTML: "<a href=x>go</a>"},
		},
	}, map[string]any{"Body": "<h1>{{Name}}</h1><p>"})
	require.Equal(t, map[string]string{
		partHTML:               `{{#> layout}}<p style="margin:0">{{> button}}</p>{{Body}}{{/layout}}`,
		partPartial + "button": `<a style="color:red" href=x>go</a>`,
		partData + "Body":      `<h1 style="top:0">{{Name}}</h1><p style="margin:0">`,
	}, out)
}

func TestStyleSwitches(t *testing.T) {
	t.Parallel()
	for _, open := range []string{`<style media="print">`, `<style data-inline="false">`} {
		out, _ := styled(t, &api.CampaignTemplate{HTML: open + "p{margin:0}</style><p>"}, nil)
		require.Empty(t, out)
	}
	req := request()
	req.Template.HTML = `<style>p{margin:0}</style><p>x</p>` + req.Template.HTML
	off := false
	for _, on := range []*bool{nil, &off} {
		req.Template.Options.InlineCSS = on
		c, err := newComposition(mail.QueueID{1}, "default", req, "relay.example", "https://u.shop.example")
		require.NoError(t, err)
		msg, _, err := c.write(nil, &letter{to: mail.MustParsePath("a@b.example"), attributes: []attribute{{"Name", kindString, "A"}}})
		require.NoError(t, err)
		leaves, _ := parts(t, msg)
		require.Equal(t, on == nil, strings.Contains(leaves["text/html"], `<p style="margin:0">`))
	}
}

func TestStyleLimits(t *testing.T) {
	t.Parallel()
	_, warnings := styled(t, &api.CampaignTemplate{HTML: "<style>" + strings.Repeat("p{margin:0}", maxRules+5) + "</style><p>"}, nil)
	require.Len(t, warnings, 1)
	require.Equal(t, "css_not_inlined", warnings[0].Code)
	out, warnings := styled(t, &api.CampaignTemplate{HTML: "<style>\np[{margin:0} q{x:y}</style><q>"}, nil)
	require.Empty(t, out, "the bracket swallows the rest, as in browsers")
	require.Empty(t, warnings)
	deep := "<style>" + strings.Repeat("i ", 20) + "u{a:b}q{c:d}</style>" + strings.Repeat("<i>", 400) + "<u><q>"
	out, _ = styled(t, &api.CampaignTemplate{HTML: "<style>x " + deep[len("<style>"):]}, nil)
	require.True(t, strings.HasSuffix(out[partHTML], `<u><q style="c:d">`), "a selector that could be laid over the elements in countless ways ends")
	var bomb strings.Builder // 300 elements that are opened anew in each of 100,000 paragraphs
	bomb.WriteString("<style>p{margin:0}</style>")
	for i := range 300 {
		fmt.Fprintf(&bomb, "<p><font size=%d></p>", i)
	}
	bomb.WriteString(strings.Repeat("<p>x", 100_000))
	out, warnings = styled(t, &api.CampaignTemplate{HTML: bomb.String()}, nil)
	require.Empty(t, out)
	require.Contains(t, warnings[0].Detail, "too many open")
	_, warnings = styled(t, &api.CampaignTemplate{HTML: "<style>\n%%{margin:0}</style><p>"}, nil)
	require.Len(t, warnings, 1)
	require.Contains(t, warnings[0].Detail, "is not understood")
}

// Rendered with style attributes written and without them, a template gives the same elements and texts, whatever it is
// made of.
func TestStylesChangeNothingElse(t *testing.T) {
	t.Parallel()
	pieces := rapid.SampledFrom([]string{
		"<p class=a>{{Name}}</p>", "{{#if Name}}<td id='b'>x</td>{{else}}<p>{{/if}}", "{{#each a}}<tr><td style=\"a:b\">{{this}}</td></tr>{{/each}}",
		"<p style='x:{{Name}}'>", "<P{{> b}}>", "<p {{#if Name}}class=\"a\"{{/if}} title={{Name}}>", "<!--[if mso]><p><![endif]-->", "<![if !mso]><p/>",
		"{{> b}}", "{{Body}}", "<a href={{Name}} class=a>", "<br/>", "<style>.a{e:f}@media x{p{g:h}}</style>", "<svg><p></svg>", "<table>", "</table>",
		"<title>{{Name}}</title>", "<textarea><p></textarea>", "{{! x }}<{{! y}}p>", "<p cl{{! z}}ass=a>", "{{~Name~}} <p\tid=b\n>", "<body class=a>", "{{#> c}}<p>{{/c}}",
	})
	rules := rapid.SampledFrom([]string{"p{a:b}", ".a{c:d!important}", "td,#b{e:'f'}", "table p{g:h}", "*{i:j}", "@media x{p{k:l}}", "p:hover{m:n}", "p{o:{{{c}}};q:r}", "}{", "/*"})
	rapid.Check(t, func(t *rapid.T) {
		html := func(n int) string { return strings.Join(rapid.SliceOfN(pieces, 0, n).Draw(t, "html"), "") }
		template := &api.CampaignTemplate{
			HTML:     "<style>" + strings.Join(rapid.SliceOfN(rules, 1, 5).Draw(t, "css"), " ") + "</style>" + html(12),
			Partials: map[string]api.Partial{"b": {HTML: rapid.SampledFrom([]string{"", " class=a", " x", "q", "q id=b"}).Draw(t, "b")}, "c": {HTML: "<div>{{> @partial-block}}</div>"}},
		}
		data := map[string]any{"a": []any{"1", "2"}, "Body": rapid.SampledFrom([]string{"", "<p>{{Name}}", "<td class=a>x</td>"}).Draw(t, "body"), "c": "red"}
		c := &composition{scope: scope{data: data, partials: template.Partials}}
		sh := &sheet{}
		first, err := c.compileStyled(template, &imageSet{}, sh, nil)
		if err != nil {
			return
		}
		again, err := c.compileStyled(template, &imageSet{}, nil, sh.styles())
		if err != nil || !sameTags(first, again) {
			return // it is sent as it was written
		}
		again.uses = first.uses
		var texts [2]string
		for i, p := range []*program{first, again} {
			m := new(machine)
			if err := m.run(p, &c.scope, &contact{attributes: []attribute{{"Name", kindString, `A"><b>`}}}, encodeNone); err != nil {
				texts[i] = err.Error()
			} else {
				texts[i] = withoutStyles(string(m.buf))
			}
		}
		if texts[0] != texts[1] {
			t.Fatalf("%q became %q", texts[0], texts[1])
		}
	})
}

// FuzzStyle shows that nothing is changed but style attributes: without them, the elements and texts of the HTML are the
// same, and every merge tag is there.
func FuzzStyle(f *testing.F) {
	for _, css := range []string{"p{color:red}", "@media x{p{a:b}}*{c:d}", ".a,#b{x:y!important}", "p{content:'{{x}}'}", "td{a:\"b;c\"}", "p{a:b;;}q[", "/*"} {
		for _, body := range []string{"<p>{{Name}}</p>", "<table>{{#each a}}<tr><td class=a>{{this}}{{/each}}</table>", "<p style=x id=b>", "<p style='a:{{Name}}'>", "<!--[if mso]><p><![endif]-->", "<p {{#if a}}style=\"x\"{{/if}}>", "<p/><P\tCLASS='a'>", "<svg><style>p{q:r}</style></svg>"} {
			f.Add(css, body)
		}
	}
	f.Fuzz(func(t *testing.T, css, body string) {
		if len(css)+len(body) > 4096 {
			return
		}
		template := &api.CampaignTemplate{HTML: "<style>" + css + "</style>" + body}
		c := &composition{scope: scope{data: map[string]any{"a": []any{"1"}}}}
		sh := &sheet{}
		if _, err := c.compileStyled(template, &imageSet{}, sh, nil); err != nil {
			return
		}
		out, ok := sh.styles()[partHTML]
		if !ok {
			return
		}
		before, after := normalLines(template.HTML), out
		require.Equal(t, tagSources(t, before), tagSources(t, after))
		again, err := c.compileStyled(template, &imageSet{}, nil, map[string]string{partHTML: out})
		if err != nil {
			return // the branches of the template cannot be told apart: it is left as it was
		}
		first, err := c.compileStyled(template, &imageSet{}, nil, nil)
		require.NoError(t, err)
		if !sameTags(first, again) || strings.Contains(body, "{{") {
			return
		}
		require.Equal(t, withoutStyles(before), withoutStyles(after))
	})
}

func tagSources(t *testing.T, src string) []string {
	t.Helper()
	toks, err := scan(partHTML, src)
	require.NoError(t, err)
	var list []string
	for _, tok := range toks {
		if tok.tag {
			list = append(list, tok.source)
		}
	}
	return list
}

// withoutStyles writes what a tokenizer sees, without style attributes.
func withoutStyles(src string) string {
	var b bytes.Buffer
	z := html.NewTokenizer(strings.NewReader(src))
	for z.Next() != html.ErrorToken {
		tok := z.Token()
		kept := tok.Attr[:0]
		for _, a := range tok.Attr {
			if a.Key != "style" {
				kept = append(kept, a)
			}
		}
		tok.Attr = kept
		b.WriteString(tok.String() + "\n")
	}
	return b.String()
}
