package campaign

import (
	"bytes"
	"context"
	"flag"
	"io"
	netmail "net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"relayd/internal/api"
	"relayd/internal/checklist"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/spool"
)

var update = flag.Bool("update", false, "write golden files anew")

type kvTx = kv.Tx

func contextWith(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

func header(t failer, msg []byte) netmail.Header {
	t.Helper()
	m, err := netmail.ReadMessage(bytes.NewReader(msg))
	require.NoError(t, err)
	return m.Header
}

// onePixel is a PNG.
const onePixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

// parts parses a message with go-message and returns its leaves by type, decoded.
func parts(t failer, msg []byte) (map[string]string, []string) {
	t.Helper()
	e, err := message.Read(bytes.NewReader(msg))
	require.NoError(t, err)
	leaves, order := map[string]string{}, []string(nil)
	require.NoError(t, e.Walk(func(_ []int, e *message.Entity, err error) error {
		require.NoError(t, err)
		kind, _, err := e.Header.ContentType()
		require.NoError(t, err)
		order = append(order, kind)
		if !strings.HasPrefix(kind, "multipart/") {
			b, err := io.ReadAll(e.Body)
			require.NoError(t, err)
			leaves[kind] = string(b)
		}
		return nil
	}))
	return leaves, order
}

// lintMessage checks what holds for every broadcast: all rules of the checklist, and what our own messages keep beyond them.
func lintMessage(t failer, msg []byte) {
	t.Helper()
	for _, f := range checklist.Check(msg, checklist.Options{Broadcast: true, Host: "relay.example"}) {
		require.NotEqual(t, checklist.Error, f.Level, "%s", f)
	}
	for i, line := range strings.Split(string(msg), "\r\n") {
		require.LessOrEqual(t, len(line), 998, "line %d", i)
		for _, c := range []byte(line) {
			require.Less(t, c, byte(0x80), "line %d", i)
		}
	}
	head, _, ok := bytes.Cut(msg, []byte("\r\n\r\n"))
	require.True(t, ok)
	h, err := mail.ParseHeader(append(head, "\r\n"...))
	require.NoError(t, err)
	for _, name := range []string{
		"From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type", "List-Unsubscribe", "List-Unsubscribe-Post",
		"List-Id", "Precedence", "Feedback-ID",
	} {
		require.Equal(t, 1, h.Count(name), name)
	}
	for _, name := range []string{"Bcc", "Cc", "Sender", "Return-Path", "Auto-Submitted"} {
		require.Zero(t, h.Count(name), name)
	}
	require.True(t, strings.HasPrefix(h.Get("List-Unsubscribe"), "<https://u.shop.example/u/"))
}

func goldenRequests() map[string]*api.CreateCampaign {
	korean := request(api.Recipient{Email: "minsu@example.com", Attributes: map[string]any{"Name": "김민수", "CreateTime": "2023-01-05 16:00:00"}})
	korean.From.Name = "행복한 가게"
	korean.Data = map[string]any{
		"Subject": "{{Name}}님, 블랙 프라이데이 특별 할인 소식을 가장 먼저 전해 드립니다. 놓치지 마세요",
		"Body":    "<h1>안녕하세요</h1><p>모든 상품을 <b>50%</b> 할인합니다. 지금 바로 만나 보세요.</p><ul><li>의류</li><li>전자제품</li></ul>",
	}
	korean.Template.HTML = `<html><head><meta charset="utf-8"><style>p{color:#333}</style></head><body bgcolor="#ffffff">
<table><tr><td><img src="cid:logo.png" alt="행복한 가게" width="160"></td><td>{{Name}}님</td></tr></table>
{{Body}}
<p>가입일: {{date CreateTime "2006년 1월 2일"}}</p>
<p><a href="{{unsubscribe_url}}">수신거부</a></p></body></html>`
	korean.Template.Preheader = "48시간만"
	korean.Template.Images = []api.CampaignImage{{Name: "logo.png", Content: onePixel}}
	korean.ReplyTo = "help@shop.example"

	emoji := request(to("ann@example.com", "Ann 🎉"))
	emoji.From.Name = `Ann "The Shop" O'Neil`
	emoji.Data["Subject"] = "Café 😀 for {{Name}}"

	rtl := request(to("layla@example.com", "ليلى"))
	rtl.Data = map[string]any{"Subject": "تخفيضات الجمعة البيضاء من أجل {{Name}}", "Body": `<p dir="rtl">مرحبا {{Name}}، كل شيء رخيص اليوم.</p>`}

	ascii := request(to("bob@example.com", "Bob"))
	ascii.Template.Text = "Hi {{Name}}\n\nA line that ends in blanks  \n.a dot begins this line\nFrom here on\n\nUnsubscribe: {{unsubscribe_url}}\n"
	ascii.Data["Subject"] = strings.Repeat("a subject that is long enough to be folded ", 4) + "{{Name}}"

	japanese := request(to("hanako@example.jp", "花子"))
	japanese.Data = map[string]any{"Subject": "{{Name}}様、特別セールのお知らせ", "Body": "<p>{{Name}}様</p><p>すべての商品が半額です。</p>"}

	text := request(to("carl@example.com", "Carl"))
	text.Template.HTML, text.Template.Text = "", "Hi {{Name}}, only text.\nUnsubscribe: {{unsubscribe_url}}"
	return map[string]*api.CreateCampaign{
		"korean": korean, "emoji": emoji, "rtl": rtl, "ascii": ascii, "japanese": japanese, "text_only": text,
	}
}

func TestGoldenMessages(t *testing.T) {
	t.Parallel()
	id, err := mail.ParseQueueID("0000000000000000000g"[:19] + "0")
	require.NoError(t, err)
	for name, req := range goldenRequests() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := newComposition(id, "default", req, "relay.example", "https://u.shop.example")
			require.NoError(t, err)
			attributes, err := attributesOf(req.Recipients[0].Attributes)
			require.NoError(t, err)
			l := &letter{
				id: mail.EnvelopeID{Message: id, N: 7}, to: mail.MustParsePath(req.Recipients[0].Email), attributes: attributes,
				at: time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC), token: "abctoken",
			}
			msg, _, err := c.write(nil, l)
			require.NoError(t, err)
			lintMessage(t, msg)
			again, _, err := c.write(nil, l)
			require.NoError(t, err)
			require.Equal(t, msg, again)
			file := filepath.Join("testdata", name+".eml")
			if *update {
				require.NoError(t, os.MkdirAll("testdata", 0o755))
				require.NoError(t, os.WriteFile(file, msg, 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), string(msg))
		})
	}
}

func TestKoreanMessage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	req := goldenRequests()["korean"]
	_, err := r.Create(t.Context(), "default", req)
	require.NoError(t, err)
	r.fan()
	var first []byte
	require.Equal(t, 1, r.deliver(1, func(msg []byte, e *spool.Envelope) spool.Result {
		first = msg
		return spool.Result{Outcome: spool.Deferred, Presented: true, NextAttempt: r.now().Add(time.Hour)}
	}))
	lintMessage(t, first)
	leaves, order := parts(t, first)
	require.Equal(t, []string{"multipart/alternative", "text/plain", "multipart/related", "text/html", "image/png"}, order)
	require.Contains(t, leaves["text/html"], "김민수님")
	require.Contains(t, leaves["text/html"], "가입일: 2023년 1월 5일")
	require.Contains(t, leaves["text/html"], `<body bgcolor="#ffffff"><div style="display:none;max-height:0;overflow:hidden;mso-hide:all">48시간만</div>`)
	require.Regexp(t, `<img src="cid:logo\.png\.[0-9a-z]+@relay\.example"`, leaves["text/html"])
	require.NotContains(t, leaves["text/plain"], "color:#333")
	require.NotContains(t, leaves["text/plain"], "48시간만")
	require.Contains(t, leaves["text/plain"], "행복한 가게 김민수님")
	require.Contains(t, leaves["text/plain"], "- 의류")
	require.Contains(t, leaves["text/plain"], "수신거부 (https://u.shop.example/u/")
	h := header(t, first)
	require.Equal(t, "김민수님, 블랙 프라이데이 특별 할인 소식을 가장 먼저 전해 드립니다. 놓치지 마세요", mail.DecodeText(h.Get("Subject")))
	from, err := h.AddressList("From")
	require.NoError(t, err)
	require.Equal(t, "행복한 가게", from[0].Name)
	require.Equal(t, "<help@shop.example>", "<"+h.Get("Reply-To")+">")
	date, err := h.Date()
	require.NoError(t, err)
	require.True(t, date.Equal(r.now()))

	verifications := r.verify(first)
	require.Len(t, verifications, 2)
	for _, v := range verifications {
		require.Equal(t, "pass", v.Result, "%+v", v)
		require.Equal(t, "shop.example", v.Domain)
	}
	for _, sig := range signatures(first) {
		require.Contains(t, sig, "list-unsubscribe:list-unsubscribe")
		require.Contains(t, sig, "list-unsubscribe-post")
	}

	r.pass(2 * time.Hour)
	r.reopen()
	require.Equal(t, 1, r.deliver(1, func(msg []byte, e *spool.Envelope) spool.Result {
		require.Equal(t, string(first), string(msg), "a retry after a restart sends the same bytes")
		return delivered(msg, e)
	}))
}

func signatures(msg []byte) []string {
	head, _, _ := bytes.Cut(msg, []byte("\r\n\r\n"))
	h, _ := mail.ParseHeader(append(head, "\r\n"...))
	var list []string
	for _, f := range h {
		if f.Is("DKIM-Signature") {
			list = append(list, strings.ToLower(strings.Join(strings.Fields(f.Value()), "")))
		}
	}
	return list
}

// Whatever a contact's data is, the message keeps its structure and headers, and verifies.
func TestEveryMessageIsWellFormed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	hostile := rapid.OneOf(
		rapid.String(),
		rapid.SampledFrom([]string{
			`"><script>alert(1)</script>`, "{{unsubscribe_url}}", "{{#if x}}", "a\r\nBcc: evil@example.com\r\n\r\nbody", "--=_x", "\x00\x01",
			"javascript:alert(1)", "=?utf-8?q?=0d=0aBcc:_x?=", "\u202eabc", strings.Repeat("ㅋ", 400), strings.Repeat("x", 2000), ".", "\r\n.\r\n",
		}),
	)
	req := request()
	req.Template.Subject = `{{default Short "there"}} {{truncate Clean 40}}`
	req.Template.HTML = `<body title="{{X}}"><a href="{{X}}">{{X}}</a><a href=https://x/?q={{X}}>y</a>{{Body}}{{#if X}}<p style="color:{{X}}">{{{X}}}</p>{{/if}}<a href="{{unsubscribe_url}}">u</a></body>`
	req.Data = map[string]any{"Body": "<p>{{X}}</p>"}
	c, err := newComposition(mail.NewQueueID(r.now()), "default", req, "relay.example", "https://u.shop.example")
	require.NoError(t, err)
	keys := r.keys.Keys("shop.example")
	rapid.Check(t, func(t *rapid.T) {
		x := strings.ToValidUTF8(hostile.Draw(t, "x"), "?")
		short := strings.ToValidUTF8(hostile.Draw(t, "short"), "?")
		l := &letter{
			id: mail.EnvelopeID{Message: c.id, N: 1}, to: mail.MustParsePath("ann@example.com"), at: r.now(), token: "tok",
			attributes: []attribute{{"Clean", kindString, "clean"}, {"Short", kindString, short}, {"X", kindString, x}},
		}
		msg, err := c.signed(nil, l, keys)
		if err != nil {
			require.ErrorAs(t, err, new(*RenderError))
			require.True(t, checkHeaderText(short) != nil || len(short) > maxSubject-60, "%v", err)
			return
		}
		lintMessage(t, msg)
		leaves, order := parts(t, msg)
		require.Equal(t, []string{"multipart/alternative", "text/plain", "text/html"}, order)
		require.NotContains(t, leaves["text/html"], "<script")
		require.NotContains(t, leaves["text/html"], `href="javascript:`)
		require.Equal(t, 1, strings.Count(leaves["text/html"], "<body"))
		for _, v := range r.verify(msg) {
			require.Equal(t, "pass", v.Result, "%+v", v)
		}
	})
}

func TestImagesAsLinks(t *testing.T) {
	t.Parallel()
	req := request()
	req.Template.HTML += `<img src='asset:logo.png' alt=""><td background="cid:bg">`
	req.Template.Options.Images = "link"
	req.Template.Images = []api.CampaignImage{{Name: "logo.png", URL: "https://img.example.com/a.png?x=1&y=2"}, {ContentID: "bg", URL: "https://img.example.com/bg.png"}}
	c, err := newComposition(mail.QueueID{1}, "default", req, "relay.example", "https://u.shop.example")
	require.NoError(t, err)
	msg, _, err := c.write(nil, &letter{to: mail.MustParsePath("a@b.example"), attributes: []attribute{{"Name", kindString, "A"}}})
	require.NoError(t, err)
	leaves, order := parts(t, msg)
	require.Equal(t, []string{"multipart/alternative", "text/plain", "text/html"}, order)
	require.Contains(t, leaves["text/html"], `<img src='https://img.example.com/a.png?x=1&amp;y=2' alt="">`)
	require.Contains(t, leaves["text/html"], `background="https://img.example.com/bg.png"`)
}

func TestAutoFooter(t *testing.T) {
	t.Parallel()
	req := request()
	req.Template.HTML, req.Template.Text = "<body><p>{{Name}}</p></body>", "Hi {{Name}}"
	req.Template.Options.AutoFooter = true
	c, err := newComposition(mail.QueueID{1}, "default", req, "relay.example", "https://u.shop.example/")
	require.NoError(t, err)
	msg, _, err := c.write(nil, &letter{to: mail.MustParsePath("a@b.example"), attributes: []attribute{{"Name", kindString, "A"}}, token: "tok"})
	require.NoError(t, err)
	leaves, _ := parts(t, msg)
	require.Contains(t, leaves["text/html"], `<a href="https://u.shop.example/u/tok">Unsubscribe</a></p></body>`)
	require.Contains(t, leaves["text/plain"], "Unsubscribe: https://u.shop.example/u/tok")
}

func TestTextFromHTML(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ src, want string }{
		"paragraphs":         {"<h1>Title</h1><p>One\n  two</p><p>three<br>four</p>", "Title\n\nOne two\n\nthree\nfour\n"},
		"links":              {`<a href="https://x/?a=1&amp;b=2">go</a> <a href="https://y">https://y</a> <a href="#top">up</a> <a href="mailto:a@b">mail</a>`, "go (https://x/?a=1&b=2) https://y up mail (a@b)\n"},
		"images":             {`<img src=x alt="Logo"><img src=y><a href="https://x"><img alt="Shop" src=z></a>`, "LogoShop (https://x)\n"},
		"layout_table":       {"<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc\n"},
		"lists":              {"<ul><li>a</li><li>b<ol><li>c</li><li>d</li></ol></li></ul>e", "- a\n- b\n  1. c\n  2. d\n\ne\n"},
		"hidden":             {`<head><title>t</title></head><style>x</style><div style="display: none">pre<div>x</div></div><script>s</script>shown`, "shown\n"},
		"entities":           {"a &amp; b&nbsp;c &lt;d&gt; &#123;&#123;x}}", "a & b c <d> \\{{x}}\n"},
		"tags_kept":          {`<p>Hi {{Name}}, <a href="{{unsubscribe_url}}">stop</a></p>{{#if x}}<p>{{x}}</p>{{/if}}`, "Hi {{Name}}, stop ({{unsubscribe_url}}){{#if x}}\n\n{{x}}{{/if}}\n"},
		"loop":               {"<ul>{{#each items}}<li>{{this}}</li>{{/each}}</ul>", "{{#each items}}\n- {{this}}{{/each}}\n"},
		"tags_in_a_tag":      {`<p {{#if x}}class="a"{{/if}}>x</p>`, "{{#if x}}{{/if}}x\n"},
		"tags_hidden":        {"<style>{{#if x}}a{{/if}}</style>b", "{{#if x}}{{/if}}b\n"},
		"quotes_in_tags":     {`<a href="{{default u "https://x"}}">go</a>`, "go ({{default u \"https://x\"}})\n"},
		"wrap":               {"<p>" + strings.Repeat("word ", 20) + "</p>", strings.Repeat("word ", 14) + "word\nword word word word word\n"},
		"outlook_is_dropped": {"<!--[if mso]><p>old</p><![endif]-->new", "new\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := htmlToText(partHTML, tt.src)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}
