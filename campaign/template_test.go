package campaign

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

func render(t *testing.T, m mode, src string, data map[string]any, attributes map[string]any) (string, error) {
	t.Helper()
	sc := &scope{data: data}
	part := map[mode]string{modeText: partText, modeHTML: partHTML, modeSubject: partSubject}[m]
	p, err := compilePart(part, src, m, sc)
	if err != nil {
		return "", err
	}
	list, err := attributesOf(attributes)
	require.NoError(t, err)
	c := &contact{address: "ann@example.com", attributes: list, system: system{unsubscribeURL: "https://u.example/u/tok", campaignName: "Sale", messageID: "m@h", sender: "deals@shop.example"}}
	mach := new(machine)
	err = mach.run(p, sc, c, encodeNone)
	return string(mach.buf), err
}

func TestTemplate(t *testing.T) {
	t.Parallel()
	ann := map[string]any{"Name": "Ann", "Age": float64(30), "Vip": true, "City": map[string]any{"name": "Seoul", "tags": []any{"a", "b"}}, "Empty": "", "Orders": []any{map[string]any{"id": "1"}, map[string]any{"id": "2"}}}
	tests := map[string]struct{ src, want string }{
		"plain":                   {"no tags", "no tags"},
		"variable":                {"Hi {{Name}}!", "Hi Ann!"},
		"blanks_in_tag":           {"{{ Name }}{{\nName\n}}", "AnnAnn"},
		"number":                  {"{{Age}}", "30"},
		"dotted":                  {"{{City.name}} {{City.tags.[1]}} {{City.tags.0}}", "Seoul b a"},
		"contact_prefix":          {"{{contact.Name}} {{contact.email}} {{email}}", "Ann ann@example.com ann@example.com"},
		"comment":                 {"a{{! no }}b{{!-- }} --}}c", "abc"},
		"raw":                     {"{{{Name}}}{{&Name}}", "AnnAnn"},
		"literal_braces":          {`\{{Name}} x`, "{{Name}} x"},
		"if":                      {"{{#if Vip}}vip{{/if}}{{#if Nothing}}no{{/if}}", "vip"},
		"if_else":                 {"{{#if Nothing}}a{{else}}b{{/if}}", "b"},
		"else_if":                 {"{{#if Nothing}}a{{else if Vip}}b{{else}}c{{/if}}", "b"},
		"else_if_last":            {"{{#if Nothing}}a{{else if None}}b{{else}}c{{/if}}", "c"},
		"if_empty_is_false":       {"{{#if Empty}}a{{else}}b{{/if}}", "b"},
		"unless":                  {"{{#unless Vip}}a{{else}}b{{/unless}}{{#unless Nothing}}c{{/unless}}", "bc"},
		"each":                    {"{{#each City.tags}}{{@index}}{{this}}{{#if @last}}.{{else}},{{/if}}{{/each}}", "0a,1b."},
		"each_objects":            {"{{#each Orders}}[{{id}} {{../Name}} {{@root.Name}}]{{/each}}", "[1 Ann Ann][2 Ann Ann]"},
		"each_map":                {"{{#each City}}{{@key}};{{/each}}", "name;tags;"},
		"each_else":               {"{{#each Nothing}}a{{else}}none{{/each}}", "none"},
		"each_nested":             {"{{#each Orders}}{{#each ../City.tags}}{{../id}}{{this}} {{/each}}{{/each}}", "1a 1b 2a 2b "},
		"with":                    {"{{#with City}}{{name}}{{/with}}{{#with Nothing}}a{{else}}b{{/with}}", "Seoulb"},
		"default":                 {`{{default Nothing "there"}} {{default Empty "e"}} {{default Name "x"}}`, "there e Ann"},
		"helpers":                 {`{{upper Name}} {{lower Name}} {{trim "  x "}} {{truncate "abcdef" 3}} {{urlencode "a b&c"}}`, "ANN ann x abc… a+b%26c"},
		"sub_expression":          {`{{upper (default Nothing "x")}}`, "X"},
		"eq_ne":                   {`{{#if (eq Name "Ann")}}y{{/if}}{{#if (ne Name 'Ann')}}n{{/if}}{{#if (eq Age 30)}}30{{/if}}`, "y30"},
		"not_and_or":              {`{{#if (and Vip (not Nothing))}}1{{/if}}{{#if (or Nothing Vip)}}2{{/if}}`, "12"},
		"date":                    {`{{date "2023-01-05T07:00:00.000Z" "2 Jan 2006 15:04" "Asia/Seoul"}} {{date "2023-01-05 07:00:00" "2006/01/02"}}`, "5 Jan 2023 16:00 2023/01/05"},
		"number_helper":           {`{{number 1234567.891}} {{number 1234567.891 2}} {{number "-1234" 0}}`, "1,234,567.891 1,234,567.89 -1,234"},
		"length":                  {"{{length City.tags}}", "2"},
		"trim_markers":            {"a  {{~Name~}}  b", "aAnnb"},
		"block_alone_on_its_line": {"a\n{{#if Vip}}\nb\n{{/if}}\nc\n", "a\nb\nc\n"},
		"campaign_value":          {"{{Greeting}}", "Hello Ann"},
		"contact_before_campaign": {"{{Title}} {{Shadow}}", "T contact"},
		"crlf_is_one_line_end":    {"a\r\nb\rc", "a\nb\nc"},
		"nested_campaign_value":   {"{{shop.name}} {{#each items}}{{this}},{{/each}}", "S 1,2,"},
	}
	data := map[string]any{"Greeting": "Hello {{Name}}", "Title": "T", "Shadow": "campaign", "shop": map[string]any{"name": "S"}, "items": []any{"1", "2"}}
	ann["Shadow"] = "contact"
	maps.Copy(tests, helperTests)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := render(t, modeText, tt.src, data, ann)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestTemplateErrors(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		src          string
		line, column int
		detail       string
		nearest      string
	}{
		"unclosed_block":        {"a\nb {{#if Name}}", 2, 3, "{{#if}} without its {{/if}}", ""},
		"unclosed_tag":          {"a {{Name", 1, 3, "{{ without its }}", ""},
		"wrong_close":           {"{{#if Name}}\n{{/each}}", 2, 1, "{{/each}} closes {{#if}} of line 1", ""},
		"close_alone":           {"{{/if}}", 1, 1, "{{/if}} without its {{#if}}", ""},
		"else_alone":            {"{{else}}", 1, 1, "{{else}} without a block", ""},
		"second_else":           {"{{#if a}}{{else}}{{else}}{{/if}}", 1, 18, "second {{else}}", ""},
		"unknown_helper":        {"한글 {{uper Name}}", 1, 6, `unknown helper "uper"`, "upper"},
		"unknown_block":         {"{{#iff Name}}{{/iff}}", 1, 1, "unknown block {{#iff}}", "if"},
		"partial":               {"a {{> foter}}", 1, 3, `no partial is named "foter"`, "footer"},
		"partial_in_itself":     {"{{> loop}}", 1, 3, `the partial "loop" stands in itself`, ""},
		"partial_block_outside": {"x{{> @partial-block}}", 1, 2, "stands outside of a partial", ""},
		"partial_without_end":   {"\n{{#> footer}}x", 2, 1, "without its {{/footer}}", ""},
		"partial_wrong_end":     {"{{#> footer}}\n{{/fotter}}", 2, 1, "{{/fotter}} closes {{#footer}} of line 1", ""},
		"partial_name":          {"{{> (x)}}", 1, 5, "the name of a partial is needed", ""},
		"inline_without_name":   {"{{#*inline x}}{{/inline}}", 1, 1, "is the only decorator", ""},
		"given_has_no_fields":   {`{{> card title="x"}}`, 1, 8, `"title" has no fields`, ""},
		"empty_tag":             {"{{}}", 1, 3, "empty tag", ""},
		"too_few_arguments":     {"{{truncate Name}}", 1, 3, "truncate takes 2 to 3 arguments, not 1", ""},
		"bad_path":              {"{{a..b}}", 1, 3, `"a..b" is not a path`, ""},
		"leads_out":             {"{{../Name}}", 1, 3, "../ leads out of the template", ""},
		"meta_outside":          {"{{@index}}", 1, 3, "@index stands outside of #each", ""},
		"unknown_meta":          {"{{@indx}}", 1, 3, `unknown name "@indx"`, "@index"},
		"string_without_end":    {`{{default Name "x}}`, 1, 16, "text without its closing", ""},
		"bracket":               {"{{a.[0}}", 1, 3, "[ without its ]", ""},
		"unknown_field_of_data": {"{{shop.nme}}", 1, 1, `the campaign's data has no "shop.nme"`, "name"},
		"list_as_text":          {"{{items}}", 1, 1, `"items" is a list`, ""},
		"block_parameters":      {"{{#each items as |x|}}{{/each}}", 1, 1, "block parameters", ""},
		"campaign_value_broken": {"{{Broken}}", 1, 5, "unknown helper", ""},
	}
	data := map[string]any{"shop": map[string]any{"name": "S"}, "items": []any{"1"}, "Broken": "x {{foo bar}}"}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := compilePart(partText, tt.src, modeText, &scope{data: data, partials: map[string]api.Partial{
				"footer": {Text: "f"}, "loop": {Text: "a {{> loop}}"}, "card": {Text: "card {{title.x}}"},
			}})
			e, ok := errors.AsType[*TemplateError](err)
			require.True(t, ok, "%v", err)
			require.Contains(t, e.Detail, tt.detail)
			require.Equal(t, [2]int{tt.line, tt.column}, [2]int{e.Line, e.Column}, "%v", e)
			require.Equal(t, tt.nearest, e.Nearest)
			if name == "campaign_value_broken" {
				require.Equal(t, "data.Broken", e.Part)
			}
		})
	}
}

func TestTemplateLimits(t *testing.T) {
	t.Parallel()
	many := make([]any, 1000)
	for i := range many {
		many[i] = "x"
	}
	_, err := render(t, modeText, "{{#each a}}{{#each ../a}}{{this}}{{/each}}{{/each}}", map[string]any{"a": many}, nil)
	require.ErrorContains(t, err, "more than 100000 iterations")
	_, err = render(t, modeText, strings.Repeat("x", maxSource+1), nil, nil)
	require.ErrorContains(t, err, "longer than")
	_, err = render(t, modeText, strings.Repeat("{{#if a}}", 40)+strings.Repeat("{{/if}}", 40), nil, nil)
	require.ErrorContains(t, err, "inside one another")
	_, err = render(t, modeText, strings.Repeat("{{Big}}", 40), map[string]any{"Big": strings.Repeat("x", 1<<20)}, nil)
	require.ErrorContains(t, err, "grows beyond")
	_, err = render(t, modeText, "{{"+strings.Repeat("(not ", 60)+"a"+strings.Repeat(")", 60)+"}}", nil, nil)
	require.Error(t, err)
}

func TestMissingVariableIsAnError(t *testing.T) {
	t.Parallel()
	_, err := render(t, modeText, "line\n  Hi {{name}}", nil, map[string]any{"Name": "Ann"})
	e, ok := errors.AsType[*RenderError](err)
	require.True(t, ok)
	require.Equal(t, "template_variable_missing", e.Code())
	require.Equal(t, [2]int{2, 8}, [2]int{e.Line, e.Column})
	_, err = render(t, modeText, "{{#each Orders}}{{nope}}{{/each}}", nil, map[string]any{"Orders": []any{map[string]any{"id": "1"}}})
	require.ErrorContains(t, err, `no "nope"`)
}

// The table of api.md: what hostile contact data may do in each place of the HTML is nothing.
func TestHTMLEscaping(t *testing.T) {
	t.Parallel()
	evil := `"><script>alert('x')</script>{{Name}}` + "\r\n& `=\x00"
	esc := "&#34;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;{{Name}}\r\n&amp; `=\uFFFD"
	tests := map[string]struct{ src, want string }{
		"text":                     {"<p>{{X}}</p>", "<p>" + esc + "</p>"},
		"raw_contact_is_escaped":   {"<p>{{{X}}}</p>", "<p>" + esc + "</p>"},
		"double_quoted":            {`<p title="{{X}}">`, `<p title="` + esc + `">`},
		"single_quoted":            {`<p title='{{X}}'>`, `<p title='` + esc + `'>`},
		"unquoted":                 {`<p title={{X}}>`, `<p title=` + strings.NewReplacer("\r", "&#13;", "\n", "&#10;", " ", "&#32;", "`", "&#96;", "=", "&#61;").Replace(esc) + `>`},
		"unquoted_empty":           {`<p title={{E}} id=x>`, `<p title="" id=x>`},
		"title":                    {"<title>{{X}}</title>", "<title>" + esc + "</title>"},
		"url_scheme_blocked":       {`<a href="{{J}}">`, `<a href="#">`},
		"url_scheme_blocked_upper": {`<a href="{{J2}}">`, `<a href="#">`},
		"url_ok":                   {`<a href="{{U}}">`, `<a href="https://x.example/a%20b?c=d&amp;e=%22">`},
		"url_unquoted":             {`<a href={{U}}>`, `<a href=https://x.example/a%20b?c&#61;d&amp;e&#61;%22>`},
		"url_query":                {`<a href="https://x/?q={{U}}">`, `<a href="https://x/?q=https%3A%2F%2Fx.example%2Fa%20b%3Fc%3Dd%26e%3D%22">`},
		"url_path":                 {`<a href="https://x/{{P}}/y">`, `<a href="https://x/a/b%20c/y">`},
		"url_scheme_built":         {`<a href="java{{S}}">`, `<a href="javascript%3Aalert(1)">`},
		"style_attribute":          {`<p style="color:{{C}};background:{{CX}}">`, `<p style="color:#ff0000;background:">`},
		"uppercase_attribute":      {`<A HREF="{{J}}">`, `<A HREF="#">`},
		"outlook_comment_is_kept":  {"<!--[if mso]><table><tr><td><![endif]-->{{P}}<!--[if mso]></td></tr></table><![endif]-->", "<!--[if mso]><table><tr><td><![endif]-->a/b c<!--[if mso]></td></tr></table><![endif]-->"},
		"reveal_comment_is_kept":   {"<![if !mso]>{{P}}<![endif]>", "<![if !mso]>a/b c<![endif]>"},
		"script_text_is_kept":      {"<style>a{b:c} </style ><p>{{P}}</p>", "<style>a{b:c} </style ><p>a/b c</p>"},
		"less_than_in_text":        {"1 < 2 {{P}}", "1 < 2 a/b c"},
		"branches":                 {`<a href="{{#if P}}{{U}}{{else}}https://y/{{/if}}">`, `<a href="https://x.example/a%20b?c=d&amp;e=%22">`},
		"ses_sample":               {`<a href=https://www.example.com/?id={{P}}>`, `<a href=https://www.example.com/?id=a%2Fb%20c>`},
		"helper_of_contact":        {"{{upper P}}{{default E X}}", "A/B C" + esc},
	}
	attributes := map[string]any{
		"X": evil, "E": "", "J": "javascript:alert(1)", "J2": " \tJaVaScRiPt:alert(1)", "U": `https://x.example/a b?c=d&e="`, "P": "a/b c",
		"S": "script:alert(1)", "C": "#ff0000", "CX": "url(javascript:1)",
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := render(t, modeHTML, tt.src, nil, attributes)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestHTMLPlacesThatTakeNoTag(t *testing.T) {
	t.Parallel()
	for name, src := range map[string]string{
		"script":            "<script>var x = '{{X}}'</script>",
		"style":             "<style>p{color:{{X}}}</style>",
		"style_raw_contact": "<style>p{color:{{{X}}}}</style>",
		"comment":           "<!-- {{X}} -->",
		"event_handler":     `<p onclick="{{X}}">`,
		"tag_name":          "<{{X}}>",
		"attribute_name":    "<p {{X}}=1>",
		"srcset":            `<img srcset="{{X}}">`,
		"srcdoc":            `<iframe srcdoc="{{X}}"></iframe>`,
		"open_branch":       `<p title="{{#if X}}">{{/if}}`,
		"open_loop":         `{{#each X}}<p title="{{/each}}`,
		"unfinished":        `<p title="{{X}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := compilePart(partHTML, src, modeHTML, &scope{})
			e, ok := errors.AsType[*TemplateError](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, partHTML, e.Part)
		})
	}
}

func TestCampaignDataIsHTML(t *testing.T) {
	t.Parallel()
	data := map[string]any{
		"Body": `<p>Dear {{Name}} & Co</p><a href="https://x/?n={{Name}}&amp;c=1">go</a>`, "Link": "https://shop.example/?a=1&b=2",
		"Track": "https://t.example/?n={{Name}}&c=1", "CSS": "p{color:red}", "Typed": "<b>", "items": []any{"<i>1</i>"}, "Script": "javascript:x",
	}
	contact := map[string]any{"Name": `A"><b>`}
	tests := map[string]struct{ src, want string }{
		"body":              {"{{Body}}", `<p>Dear A&#34;&gt;&lt;b&gt; & Co</p><a href="https://x/?n=A%22%3E%3Cb%3E&amp;c=1">go</a>`},
		"body_raw":          {"{{{Body}}}", `<p>Dear A&#34;&gt;&lt;b&gt; & Co</p><a href="https://x/?n=A%22%3E%3Cb%3E&amp;c=1">go</a>`},
		"link":              {`<a href="{{Link}}">`, `<a href="https://shop.example/?a=1&amp;b=2">`},
		"link_with_contact": {`<a href="{{Track}}">`, `<a href="https://t.example/?n=A%22%3E%3Cb%3E&amp;c=1">`},
		"css":               {"<style>{{{CSS}}}</style>", "<style>p{color:red}</style>"},
		"loop":              {"{{#each items}}{{this}}{{/each}}", "<i>1</i>"},
		"in_attribute":      {`<p title="{{Typed}}">`, `<p title="&lt;b&gt;">`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := render(t, modeHTML, tt.src, data, contact)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
	_, err := render(t, modeHTML, `<a href="{{Script}}">`, data, contact)
	require.ErrorContains(t, err, "not allowed")
	_, err = render(t, modeHTML, "{{Open}}", map[string]any{"Open": "<p title='"}, contact)
	require.ErrorContains(t, err, "ends inside")
	p, err := compilePart(partHTML, "{{Typed}} {{Name}}", modeHTML, &scope{data: data, vars: map[string]api.Variable{"Typed": {Type: "text"}, "Name": {Default: new(string)}}})
	require.NoError(t, err)
	m := new(machine)
	require.NoError(t, m.run(p, &scope{data: data, vars: map[string]api.Variable{"Name": {Default: new(string)}}}, &contact2, encodeNone))
	require.Equal(t, "&lt;b&gt; ", string(m.buf))
}

var contact2 = contact{address: "a@b.example"}

func TestContactDataIsNeverCompiled(t *testing.T) {
	t.Parallel()
	for _, m := range []mode{modeText, modeHTML} {
		got, err := render(t, m, "{{X}} {{Body}}", map[string]any{"Body": "[{{X}}]"}, map[string]any{"X": "{{email}} {{#if"})
		require.NoError(t, err)
		require.Equal(t, "{{email}} {{#if [{{email}} {{#if]", got)
	}
}

func FuzzTemplate(f *testing.F) {
	for _, s := range []string{
		"{{Name}}", "{{#if a}}x{{else}}y{{/if}}", "{{#each a}}{{this}}{{/each}}", "<p title='{{Name}}'>{{{Body}}}</p>",
		"{{default Name (upper \"x\")}}", `\{{x}}`, "{{~#if a~}} {{/if}}", "<a href={{U}}>", "{{!-- x --}}", "{{Body}}{{Name}}",
		"<!--[if mso]>{{{Body}}}<![endif]-->", "{{#with a}}{{../b}}{{/with}}",
	} {
		f.Add(s, "value")
	}
	f.Fuzz(func(t *testing.T, src, v string) {
		if len(src) > 4096 || len(v) > 4096 {
			return
		}
		for _, m := range []mode{modeText, modeHTML, modeSubject} {
			data := map[string]any{"Body": v, "a": []any{"1", map[string]any{"b": "2"}}}
			sc := &scope{data: data}
			p, err := compilePart("html", src, m, sc)
			if err != nil {
				e, ok := errors.AsType[*TemplateError](err)
				require.True(t, ok)
				require.Positive(t, e.Line)
				require.Positive(t, e.Column)
				continue
			}
			list, err := attributesOf(map[string]any{"Name": strings.ToValidUTF8(v, ""), "U": "javascript:x", "a2": float64(1)})
			if err != nil {
				continue
			}
			c := &contact{address: "a@b.example", attributes: list}
			plain := new(machine)
			errPlain := plain.run(p, sc, c, encodeNone)
			for _, enc := range []encoding{encodeQuoted, encodeBase64} {
				p.number()
				for i := range p.ops {
					if o := &p.ops[i]; o.code == opText {
						o.breaks, o.chunk = strings.Count(o.text, "\n"), nil
						if len(o.text) >= 8 {
							o.chunk = newChunk(o.text, enc)
						}
					}
				}
				encoded := new(machine)
				err := encoded.run(p, sc, c, enc)
				require.Equal(t, errPlain == nil, err == nil, fmt.Sprint(errPlain, err))
				if err == nil {
					require.Equal(t, toCRLF(string(plain.buf)), decode(t, enc, encoded.buf))
				}
			}
		}
		_, _ = htmlToText("html", src)
	})
}
