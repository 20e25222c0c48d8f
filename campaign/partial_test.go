package campaign

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

// helperTests go on with TestTemplate. They follow what handlebars.js does, where it has the same.
var helperTests = map[string]struct{ src, want string }{
	"capitalize":              {`{{capitalize "élan vital"}}{{capitalize ""}}`, "Élan vital"},
	"currency":                {`{{currency 1234.5 "USD"}} {{currency "-1234567.891" "KRW"}} {{currency 5 "chf"}} {{currency 1 "KWD"}}`, "$1,234.50 -₩1,234,568 CHF\u00a05.00 KWD\u00a01.000"},
	"plural":                  {`{{plural 1 "item" "items"}} {{plural 2 "item" "items"}} {{plural 0 "none" "one" "some"}} {{plural 1 "none" "one" "some"}}`, "item items none one"},
	"gt_lt":                   {`{{#if (gt Age 9)}}1{{/if}}{{#if (lt Age 9)}}2{{/if}}{{#if (gt "b" "a")}}3{{/if}}{{#if (gt Nothing 1)}}4{{/if}}{{#if (lt Nothing 1)}}5{{/if}}`, "135"},
	"in":                      {`{{#if (in Name "Bob" "Ann")}}1{{/if}}{{#if (in "b" City.tags)}}2{{/if}}{{#if (in "z" City.tags)}}3{{/if}}`, "12"},
	"json":                    {`{{json City.tags}} {{json Name}} {{json Age}} {{json Vip}}`, `["a","b"] "Ann" 30 true`},
	"lookup":                  {`{{lookup City "name"}} {{lookup City.tags 1}}{{#each City.tags}}{{lookup ../City.tags @index}}{{/each}}`, "Seoul bab"},
	"join":                    {`{{join City.tags}} {{join City.tags "/"}} {{join Name}}`, "a, b a/b Ann"},
	"br_is_nothing_in_text":   {"{{br \"a\nb\"}}", "a\nb"},
	"caret_is_else":           {"{{#if Nothing}}a{{^}}b{{/if}}", "b"},
	"root_in_with":            {"{{#with City}}{{@root.Name}}{{../Name}}{{/with}}", "AnnAnn"},
	"trim_around_blocks":      {"a {{~#if Vip~}} b {{~/if~}} c", "abc"},
	"trim_of_comments":        {"a {{~! x ~}} b{{~!-- y --~}} c", "abc"},
	"zero_is_false":           {"{{#if (length Nothing)}}a{{else}}b{{/if}}", "b"},
	"empty_list_is_false":     {"{{#with Empty}}a{{else}}b{{/with}}", "b"},
	"literal_segment":         {"{{City.[name]}}", "Seoul"},
	"slash_path":              {"{{City/name}} {{this.Name}} {{./Name}}", "Seoul Ann Ann"},
	"single_quotes":           {`{{default Nothing 'it "is"'}}`, `it "is"`},
	"else_in_each":            {"{{#each City.tags}}{{this}}{{^}}none{{/each}}", "ab"},
	"nested_sub_expressions":  {`{{upper (truncate (default Nothing "abcdef") 2 "")}}`, "AB"},
	"comment_with_braces":     {"{{!-- {{Name}} --}}x", "x"},
	"comment_alone_on_a_line": {"a\n  {{! x }}\nb", "a\nb"},
}

func renderWith(t *testing.T, m mode, src string, partials map[string]api.Partial, attributes map[string]any) (string, error) {
	t.Helper()
	sc := &scope{data: map[string]any{"Shop": "The <Shop>"}, partials: partials}
	p, err := compilePart(map[mode]string{modeText: partText, modeHTML: partHTML}[m], src, m, sc)
	if err != nil {
		return "", err
	}
	list, err := attributesOf(attributes)
	require.NoError(t, err)
	mach := new(machine)
	err = mach.run(p, sc, &contact{address: "ann@example.com", attributes: list}, encodeNone)
	return string(mach.buf), err
}

func TestPartials(t *testing.T) {
	t.Parallel()
	partials := map[string]api.Partial{
		"plain":       {Text: "plain {{Name}}"},
		"card":        {Text: "[{{title}} {{name}}]"},
		"person":      {Text: "<{{name}}{{#if ../Name}} of {{../Name}}{{/if}}>"},
		"rows":        {Text: "{{#each list}}{{this}}{{../mark}}{{/each}}"},
		"layout":      {Text: "HEAD {{> nav}} {{> @partial-block}} FOOT"},
		"shared/menu": {Text: "menu"},
		"outer":       {Text: "({{#> inner}}{{> @partial-block}}{{/inner}})"},
		"inner":       {Text: "<{{> @partial-block}}>"},
		"made":        {HTML: "<p>Made <b>of</b> HTML</p>"},
		"deep":        {Text: "{{city.name}}"},
		"line":        {Text: "one\n"},
	}
	ann := map[string]any{"Name": "Ann", "People": []any{map[string]any{"name": "A"}, map[string]any{"name": "B"}}, "Tags": []any{"x", "y"}, "City": map[string]any{"name": "Seoul"}}
	tests := map[string]struct{ src, want string }{
		"named":                    {"a {{> plain}} b", "a plain Ann b"},
		"name_in_quotes_or_folder": {`{{> "plain"}} {{> shared/menu}}`, "plain Ann menu"},
		"context":                  {"{{> person City}}", "<Seoul of Ann>"},
		"context_in_a_loop":        {"{{#each People}}{{> person}}{{/each}}", "<A of Ann><B of Ann>"},
		"this_as_context":          {"{{#each People}}{{> person this}}{{/each}}", "<A of Ann><B of Ann>"},
		"values":                   {`{{> card title="Hi" name=Name}}`, "[Hi Ann]"},
		"value_of_an_expression":   {`{{> card City title=(upper Name)}}`, "[ANN Seoul]"},
		"values_in_a_loop":         {`{{> rows list=Tags mark="."}}`, "x.y."},
		"value_with_fields":        {`{{> deep city=City}}`, "Seoul"},
		"inline":                   {`{{#*inline "hi"}}hi {{Name}}{{/inline}}{{> hi}} {{> hi}}`, "hi Ann hi Ann"},
		"inline_over_named":        {`{{#*inline "plain"}}mine{{/inline}}{{> plain}}`, "mine"},
		"inline_has_its_context":   {`{{#*inline "row"}}{{name}};{{/inline}}{{#each People}}{{> row}}{{/each}}`, "A;B;"},
		"layout":                   {`{{#> layout}}{{#*inline "nav"}}NAV{{/inline}}body {{Name}}{{/layout}}`, "HEAD NAV body Ann FOOT"},
		"block_in_a_block":         {"{{#> outer}}{{Name}}{{/outer}}", "(<Ann>)"},
		"layout_twice":             {"{{#> inner}}{{#> inner}}x{{/inner}}{{/inner}}", "<<x>>"},
		"fallback":                 {"{{#> nothing}}instead {{Name}}{{/nothing}}", "instead Ann"},
		"text_made_of_html":        {"{{> made}}", "Made of HTML"},
		"alone_on_its_line":        {"a\n{{> line}}\nb", "a\none\nb"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := renderWith(t, modeText, tt.src, partials, ann)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

// A partial's text goes through the contexts of the HTML around it.
func TestPartialsAreEscapedWhereTheyStand(t *testing.T) {
	t.Parallel()
	partials := map[string]api.Partial{
		"query": {HTML: "q={{X}}"}, "cell": {HTML: "<td title='{{t}}'>{{X}}</td>"}, "open": {HTML: `<p title="`},
		"layout": {HTML: "<html><body>{{> @partial-block}}</body></html>"},
	}
	x := map[string]any{"X": `"<b>&`}
	for src, want := range map[string]string{
		`<a href="https://x/?{{> query}}">`:             `<a href="https://x/?q=%22%3Cb%3E%26">`,
		"<tr>{{> cell t=X}}</tr>":                       "<tr><td title='&#34;&lt;b&gt;&amp;'>&#34;&lt;b&gt;&amp;</td></tr>",
		`{{> open}}{{X}}">`:                             `<p title="&#34;&lt;b&gt;&amp;">`,
		"{{#> layout}}<p>{{X}}</p>{{/layout}}":          "<html><body><p>&#34;&lt;b&gt;&amp;</p></body></html>",
		"{{br X}}":                                      "&#34;&lt;b&gt;&amp;",
		`{{> cell t="it's" X=(br X)}}`:                  "<td title='it&#39;s'>&#34;&lt;b&gt;&amp;</td>",
		`<p title="{{json X}}">`:                        `<p title="&#34;\&#34;&lt;b&gt;&amp;&#34;">`,
		`{{#*inline "u"}}{{X}}{{/inline}}<p x={{> u}}>`: `<p x=&#34;&lt;b&gt;&amp;>`,
	} {
		got, err := renderWith(t, modeHTML, src, partials, x)
		require.NoError(t, err, src)
		require.Equal(t, want, got, src)
	}
	got, err := renderWith(t, modeHTML, "{{br X}}", partials, map[string]any{"X": "a<\r\nb\nc"})
	require.NoError(t, err)
	require.Equal(t, "a&lt;<br>\nb<br>\nc", got)
	_, err = renderWith(t, modeHTML, `<p title="{{br X}}">`, partials, x)
	require.ErrorContains(t, err, "br makes HTML")
}

func TestPartialLimits(t *testing.T) {
	t.Parallel()
	bomb := map[string]api.Partial{}
	for i := range 20 {
		name := string(rune('a' + i))
		next := string(rune('a' + i + 1))
		bomb[name] = api.Partial{Text: "{{> " + next + "}}{{> " + next + "}}"}
	}
	bomb["u"] = api.Partial{Text: "x"}
	_, err := renderWith(t, modeText, "{{> a}}", bomb, nil)
	require.ErrorContains(t, err, "more than 1000 partials")
	_, err = renderWith(t, modeText, "{{#> a}}"+strings.Repeat("{{#> nothing}}", 40)+strings.Repeat("{{/nothing}}", 40)+"{{/a}}", map[string]api.Partial{"a": {Text: "{{> @partial-block}}"}}, nil)
	require.ErrorContains(t, err, "inside one another")
	list := make([]any, 101)
	for i := range list {
		list[i] = map[string]any{"n": "1"}
	}
	_, err = renderWith(t, modeText, "x\n{{#each l}}{{#each @root.l}}{{#each @root.l}}{{/each}}{{/each}}{{/each}}", nil, map[string]any{"l": list})
	require.ErrorContains(t, err, "text:2:")
	require.ErrorContains(t, err, "more than 100000 iterations")
}
