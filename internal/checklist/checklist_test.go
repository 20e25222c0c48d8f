package checklist

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// good is a broadcast that keeps every rule.
const good = "From: Shop <deals@shop.example>\n" +
	"To: ann@example.com\n" +
	"Subject: Sale\n" +
	"Date: Fri, 20 Nov 2026 09:00:00 +0000\n" +
	"Message-ID: <1@relay.example>\n" +
	"List-Unsubscribe: <https://u.shop.example/u/t>\n" +
	"List-Unsubscribe-Post: List-Unsubscribe=One-Click\n" +
	"List-Id: <broadcast.shop.example>\n" +
	"Precedence: bulk\n" +
	"Feedback-ID: c1:a1:t1:shop1\n" +
	"MIME-Version: 1.0\n" +
	"DKIM-Signature: v=1; h=from:list-unsubscribe:\n list-unsubscribe-post; b=x\n" +
	"Content-Type: multipart/alternative; boundary=\"b\"\n\n" +
	"--b\nContent-Type: text/plain; charset=utf-8\n\n" +
	"Hi. Stop: https://u.shop.example/u/t 1 First Street\n\n" +
	"--b\nContent-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n" +
	"<p>Hi</p>\n<a href=3D\"https://u.shop.example/u/t\">Stop</a> 1 First\n Street\n\n--b--\n"

func options() Options {
	return Options{
		Broadcast: true, Now: time.Date(2026, 11, 20, 9, 1, 0, 0, time.UTC), Host: "relay.example", Domains: []string{"cdn.example"},
		PostalAddress: "1 First Street",
	}
}

func crlf(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", "\r\n")) }

func TestAGoodMessageHasNoFindings(t *testing.T) {
	t.Parallel()
	require.Empty(t, Check(crlf(good), options()))
}

func TestEachRule(t *testing.T) {
	t.Parallel()
	html := func(s string) [2]string { return [2]string{"<p>Hi</p>", s} }
	tests := map[string]struct {
		change          [2]string // what stands in the good message, and what takes its place
		id, level, what string
	}{
		"two_from":             {[2]string{"To: ann", "From: b@shop.example\nTo: ann"}, "F01", Error, "2 From fields"},
		"two_authors":          {[2]string{"Shop <deals@shop.example>", "a@shop.example, b@shop.example"}, "F01", Error, "exactly one address"},
		"from_without_domain":  {[2]string{"deals@shop.example", "deals@localhost"}, "F01", Error, "not at a domain"},
		"two_subjects":         {[2]string{"Subject: Sale", "Subject: Sale\nSubject: Sale"}, "F02", Error, "stands 2 times"},
		"two_list_unsubscribe": {[2]string{"List-Id:", "List-Unsubscribe: <https://x.example/y>\nList-Id:"}, "F02", Error, "stands 2 times"},
		"no_message_id":        {[2]string{"Message-ID: <1@relay.example>\n", ""}, "F03", Error, "is missing"},
		"bad_message_id":       {[2]string{"<1@relay.example>", "1@relay.example"}, "F03", Error, "not of the form"},
		"foreign_message_id":   {[2]string{"<1@relay.example>", "<1@other.example>"}, "F03", Warning, "is not at relay.example"},
		"no_date":              {[2]string{"Date: Fri, 20 Nov 2026 09:00:00 +0000\n", ""}, "F02", Error, "is missing"},
		"bad_date":             {[2]string{"Fri, 20 Nov 2026 09:00:00 +0000", "yesterday"}, "F04", Error, "cannot be read"},
		"late_date":            {[2]string{"09:00:00", "08:00:00"}, "F04", Warning, "1h1m0s away"},
		"long_line":            {[2]string{"Hi. Stop", strings.Repeat("x", 999) + " Hi. Stop"}, "F05", Error, "more than 998"},
		"raw_utf8_header":      {[2]string{"Subject: Sale", "Subject: Sälé"}, "F05", Error, "outside of ASCII"},
		"unfolded_header":      {[2]string{"Subject: Sale", "Subject: " + strings.Repeat("word ", 20) + "x"}, "F05", Info, "more than 78"},
		"html_first":           {[2]string{"Content-Type: text/plain; charset=utf-8\n\n", "Content-Type: text/enriched\n\n"}, "F06", Error, "begins with text/enriched"},
		"no_end":               {[2]string{"\n--b--", ""}, "F06", Error, "does not end with its boundary"},
		"charset":              {[2]string{"text/plain; charset=utf-8\n\nHi", "text/plain; charset=latin1\n\nHï"}, "F06", Error, "charset latin1"},
		"not_utf8":             {[2]string{"<p>Hi</p>", "=FF"}, "F06", Error, "not UTF-8"},
		"bad_encoding":         {[2]string{"Transfer-Encoding: quoted-printable", "Transfer-Encoding: rot13"}, "F06", Error, "not known"},
		"injected":             {[2]string{"Subject: Sale", "Subject: =?utf-8?q?a=0D=0ABcc:_x?="}, "F07", Error, "once it is decoded"},
		"bidi":                 {[2]string{"Subject: Sale", "Subject: =?utf-8?q?a=E2=80=AEb?="}, "F07", Error, "once it is decoded"},
		"no_one_click":         {[2]string{"List-Unsubscribe-Post: List-Unsubscribe=One-Click\n", ""}, "F08", Error, "One-Click"},
		"http_one_click":       {[2]string{"<https://u.shop.example/u/t>", "<http://u.shop.example/u/t>"}, "F08", Error, "0 https URIs"},
		"unsigned_one_click":   {[2]string{":\n list-unsubscribe-post;", ";"}, "F08", Error, "does not cover"},
		"no_link_in_text":      {[2]string{"Stop: https://u.shop.example/u/t", ""}, "F09", Error, "no unsubscribe link"},
		"hidden_link":          {[2]string{"<a href=3D", "<a style=3Ddisplay:none href=3D"}, "F09", Error, "no visible unsubscribe link"},
		"link_in_hidden":       {html(`<div style=3D"display: none"><br>`), "F09", Error, "no visible unsubscribe link"},
		"no_list_id":           {[2]string{"List-Id: <broadcast.shop.example>\n", ""}, "F10", Warning, "is missing"},
		"not_bulk":             {[2]string{"Precedence: bulk", "Precedence: list"}, "F10", Warning, "is not bulk"},
		"long_sender_id":       {[2]string{"t1:shop1", "t1:shop1234567890123"}, "F11", Warning, "5 to 15"},
		"id_twice":             {[2]string{"c1:a1:t1", "c1:c1:t1"}, "F11", Warning, "twice"},
		"fake_reply":           {[2]string{"Subject: Sale", "Subject: RE: Sale"}, "F12", Warning, "like an answer"},
		"emoji_sender":         {[2]string{"From: Shop", "From: =?utf-8?q?=F0=9F=8E=81?="}, "F12", Warning, "pictograph"},
		"count_in_sender":      {[2]string{"From: Shop", "From: \"Shop (2)\""}, "F12", Warning, "count of messages"},
		"script":               {html("<script>x</script>"), "F13", Warning, "<script>"},
		"hidden_text":          {html(`<p style=3D"font-size:0px">x</p>`), "F13", Warning, "hidden by its style"},
		"event_handler":        {html("<p onclick=3Dx>"), "F13", Warning, "onclick"},
		"javascript":           {html("<a href=3Djavascript:x>y</a>"), "F13", Error, "runs a script"},
		"ip_link":              {html("<a href=3Dhttp://203.0.113.1/>y</a>"), "F13", Warning, "IP address"},
		"shortener":            {html("<a href=3Dhttps://bit.ly/x>y</a>"), "F13", Warning, "bit.ly"},
		"foreign_link":         {html("<a href=3Dhttps://else.example/x>y</a>"), "F13", Info, "else.example"},
		"long_field":           {[2]string{"Subject: Sale", "Subject: " + strings.Repeat("x\n ", 900)}, "F15", Warning, "more than 2048"},
		"clipped":              {html(strings.Repeat("<p>x</p>\n", 12000)), "F16", Warning, "hides the rest"},
		"amp":                  {[2]string{"--b\nContent-Type: text/html", "--b\nContent-Type: text/x-amp-html\n\nx\n--b\nContent-Type: text/html"}, "F18", Warning, "AMP"},
		"look_alike":           {html("<a href=3Dhttps://xn--pypal-4ve.example/>y</a>"), "F19", Warning, "several scripts"},
		"look_alike_sender":    {[2]string{"deals@shop.example", "deals@xn--pypal-4ve.example"}, "F19", Warning, "several scripts"},
		"no_postal_address":    {[2]string{"1 First Street\n\n--b", "\n\n--b"}, "F20", Warning, "postal address"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			changed := strings.Replace(good, tt.change[0], tt.change[1], 1)
			require.NotEqual(t, good, changed)
			found := Check(crlf(changed), options())
			for _, f := range found {
				if f.ID == tt.id && f.Level == tt.level && strings.Contains(f.Detail, tt.what) {
					require.NotEmpty(t, f.Advice)
					require.NotEmpty(t, f.Pointer)
					return
				}
			}
			t.Fatalf("no %s %s with %q in %v", tt.id, tt.level, tt.what, found)
		})
	}
}

func TestOtherFindings(t *testing.T) {
	t.Parallel()
	single := options()
	single.Broadcast = false
	require.Equal(t, "F14", Check(crlf(good), single)[0].ID, "a single message that claims to be a broadcast")
	has := func(msg []byte, id string) bool {
		for _, f := range Check(msg, options()) {
			if f.ID == id {
				return true
			}
		}
		return false
	}
	require.True(t, has([]byte(strings.Replace(string(crlf(good)), "Hi.", "Hi.\n", 1)), "F05"), "a bare LF")
	require.True(t, has([]byte(strings.Replace(string(crlf(good)), "Hi.", "Hi.\r", 1)), "F05"), "a bare CR")
	require.True(t, has([]byte("no header"), "F05"))
	require.True(t, has([]byte("no header\r\n\r\n"), "F05"))
	big := strings.Replace(good, "Hi.", strings.Repeat(strings.Repeat("x", 70)+"\n", 380_000), 1)
	require.True(t, has(crlf(big), "F17"))
	finding := Check(crlf(strings.Replace(good, "<p>Hi</p>", "<p>\n  <form>", 1)), options())[0]
	require.Equal(t, [3]any{"html", 2, 3}, [3]any{finding.Pointer, finding.Line, finding.Column})
	require.Contains(t, finding.String(), "F13 warning html:2:3: <form>")
	for host, mixed := range map[string]bool{"shop.example": false, "쇼핑몰shop.example": false, "xn--3e0b707e": false, "pаypal.example": true, "почта.example": false} {
		require.Equal(t, mixed, mixedScripts(host), host)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(good)
	f.Add("From: a\n\nx")
	f.Add("Content-Type: multipart/mixed; boundary=b\n\n--b\n\n--b\nContent-Type: multipart/mixed; boundary=b\n\n--b--")
	f.Fuzz(func(t *testing.T, s string) {
		for _, msg := range [][]byte{crlf(s), []byte(s)} {
			for _, found := range Check(msg, options()) {
				require.Regexp(t, "^F[012][0-9]$", found.ID)
				require.NotContains(t, found.Detail+found.Pointer, "\n")
			}
		}
	})
}
