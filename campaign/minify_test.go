package campaign

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/spool"
)

func TestMinifyTakesOutWhatNobodySees(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ in, want string }{
		"runs":            {"<p>a  \t b\n\n  c</p>\n\n<p>d</p>", "<p>a b\nc</p>\n<p>d</p>"},
		"between_attrs":   {"<p   class=\"a  b\"\n  id='x  y' >z</p>", "<p class=\"a  b\"\nid='x  y' >z</p>"},
		"comment":         {"a<!-- note -->b<!--\n-->c", "abc"},
		"comment_in_run":  {"a <!-- x --> b", "a b"},
		"outlook":         {"<!--[if mso]>  <table>  <![endif]-->x<!--[if !mso]><!-->  y  <!--<![endif]-->", "<!--[if mso]>  <table>  <![endif]-->x<!--[if !mso]><!--> y <!--<![endif]-->"},
		"pre":             {"<pre>a\n   b <b>c  d</b></pre>  e  f", "<pre>a\n   b <b>c  d</b></pre> e f"},
		"textarea_title":  {"<title>a  b</title><textarea>c  d</textarea>", "<title>a  b</title><textarea>c  d</textarea>"},
		"style":           {"<style>p  {}  /* x */</style>  y", "<style>p  {}  /* x */</style> y"},
		"value":           {"a  {{Name}}  b", "a Ann b"},
		"value_spaces":    {"<p>{{Wide}}</p>", "<p>x  y</p>"},
		"branch_keeps":    {"a{{#if No}} 1 {{/if}} b", "a b"},
		"branch_taken":    {"a{{#if Name}} 1 {{/if}} b", "a 1  b"}, // what stands before it is not known when it is compiled
		"two_branches":    {"x{{#if No}}1  {{/if}}{{#if No}}2{{/if}}  y", "x y"},
		"comment_of_tags": {"<!-- a  {{{Note}}} -->b", "<!-- a  n  n -->b"},
		"style_keeps":     {"<p style=\"white-space : pre-wrap\">a  b</p>", "<p style=\"white-space : pre-wrap\">a  b</p>"},
		"nowrap":          {"<p style=\"white-space:nowrap\">a  b</p>", "<p style=\"white-space:nowrap\">a b</p>"},
		"nested_pre":      {"<pre>a  <pre>b  </pre>c  </pre>d  e", "<pre>a  <pre>b  </pre>c  </pre>d e"},
		"not_a_comment":   {"<p title=\"<!-- x -->\">a</p>", "<p title=\"<!-- x -->\">a</p>"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &composition{scope: scope{data: map[string]any{"Note": "n  n"}}}
			src := &api.CampaignTemplate{HTML: tt.in, Options: api.TemplateOptions{Minify: true}}
			p, err := c.compileStyled(src, nil, nil, nil)
			require.NoError(t, err)
			attributes, err := attributesOf(map[string]any{"Name": "Ann", "Wide": "x  y"})
			require.NoError(t, err)
			m := &machine{}
			require.NoError(t, m.run(p, &c.scope, &contact{attributes: attributes}, encodeNone))
			require.Equal(t, tt.want, string(m.buf))
			require.LessOrEqual(t, p.size, len(tt.in))
		})
	}
}

// A minified campaign says the same: same text part, same values, style rules in attributes.
func TestMinifiedCampaignSaysTheSame(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	send := func(minify bool) (html, text string) {
		c := r.draftOf(1, func(req *api.CreateCampaign) {
			req.Template.HTML = "<html>\n  <head><style>p { color: red }</style></head>\n  <body>\n    <!-- greeting -->\n    <p>Hi   {{Name}}</p>\n" +
				"    {{Body}}\n    <p><a href=\"{{unsubscribe_url}}\">Unsubscribe</a></p>\n  </body>\n</html>"
			req.Template.Options.Minify = minify
		})
		p, err := r.Preview(t.Context(), "default", c.ID, &api.PreviewCampaign{})
		require.NoError(t, err)
		_, err = r.Start(t.Context(), "default", c.ID)
		require.NoError(t, err)
		r.fan()
		require.Equal(t, 1, r.deliver(1, func(msg []byte, _ *spool.Envelope) spool.Result {
			require.Equal(t, !minify, strings.Contains(string(msg), "<!-- greeting -->"))
			return delivered(msg, nil)
		}))
		_, token, _ := strings.Cut(p.HTML, "/u/")
		token, _, _ = strings.Cut(token, `"`)
		return strings.ReplaceAll(p.HTML, token, ""), strings.ReplaceAll(p.Text, token, "")
	}
	html, text := send(false)
	small, same := send(true)
	require.Equal(t, text, same)
	require.Less(t, len(small), len(html))
	require.Contains(t, small, "<p style=\"color:red\">Hi User 0</p>")
	require.Equal(t, strings.Join(strings.Fields(strings.Replace(html, "<!-- greeting -->", "", 1)), " "), strings.Join(strings.Fields(small), " "))
}

// Whatever the HTML: what is left ends in the same place, is no longer, and has the same words in the same order.
func FuzzMinify(f *testing.F) {
	for _, s := range []string{"<p  a='x  y'>b  <!-- c -->d</p>", "<pre> a </pre>  b", "<<!-- x -->", "a <!--[if mso]> b <![endif]--> c", "<style> x </style> <!", "</pre> <pre  >  "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		out := string((&minifier{}).append(nil, src, htmlState{}))
		require.LessOrEqual(t, len(out), len(src))
		require.Equal(t, htmlState{}.advance(src, nil), htmlState{}.advance(out, nil), out)
		if !strings.Contains(src, "<!--") {
			require.Equal(t, strings.Fields(src), strings.Fields(out))
		}
	})
}
