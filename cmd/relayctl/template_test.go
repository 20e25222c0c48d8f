package main

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

// TestTemplatesOfTheDaemon takes a template from its files to a message in the queue, with a real relayd.
func TestTemplatesOfTheDaemon(t *testing.T) {
	t.Parallel()
	r := newRelay(t)
	r.json(nil, "", "domain", "add", "shop.example")
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	png, err := base64.StdEncoding.DecodeString("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
	require.NoError(t, err)
	html := file("promo.html", `<style>p{margin:0}</style><p>Hi {{Name}}</p>{{Body}}<img src="asset:logo.png" alt="Shop"><a href="{{unsubscribe_url}}">Stop</a>`)

	var v api.TemplateValidation
	r.refused("html:1:", "template", "validate", "promo", "--subject", "x", "--html", file("bad.html", "{{#if x}}"))
	var tpl api.Template
	r.json(&tpl, "", "template", "push", "promo", "--subject", "{{Subject}}", "--html", html, "--asset", file("logo.png", string(png)), "--publish")
	require.Equal(t, [2]int{1, 1}, [2]int{tpl.Version, tpl.Published})
	require.Equal(t, 1, tpl.Compiled.InlineImages)
	r.json(&v, "", "template", "validate", "promo")
	require.True(t, v.OK)
	r.refused(`did you mean "name"`, "template", "render", "promo", "--data", "Subject=S", "--data", "Body=B", "--attribute", "name=Ann")
	var out api.RenderedTemplate
	r.json(&out, "", "template", "render", "promo", "--data", "Subject=S", "--data", "Body=<p>B</p>", "--attribute", "Name=A&n")
	require.Contains(t, out.HTML, `<p style="margin:0">Hi A&amp;n</p><p style="margin:0">B</p>`)
	code, text, errOut := ctl(t, r.socket, "", "template", "render", "promo", "--data", "Subject=S", "--data", "Body=<p>B</p>", "--attribute", "Name=Ann", "--part", "text")
	require.Zero(t, code, errOut)
	require.Contains(t, text, "Hi Ann\n\nB\n")
	r.json(&tpl, "", "template", "push", "promo", "--subject", "New {{Subject}}")
	require.Equal(t, 2, tpl.Version)
	r.json(&tpl, "", "template", "show", "promo", "--version", "1")
	require.Equal(t, "{{Subject}}", tpl.Subject)
	var page api.Page[api.Template]
	r.json(&page, "", "template", "versions", "promo")
	require.Len(t, page.Data, 2)
	r.json(&page, "", "template", "list")
	require.Len(t, page.Data, 1)
	r.json(&tpl, "", "template", "publish", "promo")
	require.Equal(t, 2, tpl.Published)
	var c api.Campaign
	r.json(&c, "", "campaign", "create", "--stored-template", "promo@1", "--from", "deals@shop.example", "--data", "Subject=S", "--data", "Body=B")
	require.Equal(t, "draft", c.State)
	code, _, errOut = ctl(t, r.socket, "", "campaign", "create", "--stored-template", "promo@x", "--from", "deals@shop.example")
	require.Equal(t, exitUsage, code, errOut)
	var assets api.Page[api.Asset]
	r.json(&assets, "", "asset", "list")
	require.Len(t, assets.Data, 1)
	r.json(nil, "", "asset", "delete", assets.Data[0].ID)
	r.json(nil, "", "template", "delete", "promo")
	r.refused("not_found", "template", "show", "promo")
}

func TestMergeData(t *testing.T) {
	t.Parallel()
	got, err := mergeData("--data", []string{"a=b=c", "list:=[1,2]", "e="})
	require.NoError(t, err)
	require.Equal(t, "b=c", got["a"])
	require.Len(t, got["list"], 2)
	require.Empty(t, got["e"])
	for _, bad := range []string{"a", "=x", ":=1", "x:={"} {
		_, err := mergeData("--data", []string{bad})
		require.ErrorAs(t, err, new(*usageError))
	}
}
