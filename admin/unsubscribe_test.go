package admin

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/mail"
)

const (
	oneClick       = "List-Unsubscribe=One-Click"
	formURLEncoded = "application/x-www-form-urlencoded"
)

// link makes the path of an unsubscribe link and the recipient that it names.
func (h *harness) link(address string) string {
	h.t.Helper()
	link, err := h.campaign.UnsubscribeURL("default", "cmp_"+mail.NewQueueID(h.now()).String(), mail.MustParsePath(address))
	require.NoError(h.t, err)
	u, err := url.Parse(link)
	require.NoError(h.t, err)
	return u.Path
}

func (h *harness) suppressed(address string) bool {
	h.t.Helper()
	e, err := h.list.Check(h.t.Context(), "default", mail.MustParsePath(address), true)
	require.NoError(h.t, err)
	return e != nil
}

func multipartBody(boundary string) string {
	return "--" + boundary + "\r\nContent-Disposition: form-data; name=\"List-Unsubscribe\"\r\n\r\nOne-Click\r\n--" + boundary + "--\r\n"
}

func TestOneClickForms(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for name, c := range map[string]struct{ contentType, body string }{
		"urlencoded":                   {formURLEncoded, oneClick},
		"urlencoded_with_line_end":     {formURLEncoded, oneClick + "\r\n"},
		"urlencoded_with_more":         {formURLEncoded, "a=b&" + oneClick + "&c"},
		"urlencoded_escaped":           {formURLEncoded, "List%2DUnsubscribe=One%2dClick"},
		"case":                         {formURLEncoded, "list-unsubscribe=one-click"},
		"no_content_type":              {"", oneClick},
		"text_plain":                   {"text/plain", oneClick},
		"multipart":                    {"multipart/form-data; boundary=abc", multipartBody("abc")},
		"multipart_with_LF":            {"multipart/form-data; boundary=abc", strings.ReplaceAll(multipartBody("abc"), "\r\n", "\n")},
		"multipart_other_boundary":     {"multipart/form-data; boundary=---FormBoundaryjWmhtjORrn", multipartBody("---FormBoundaryjWmhtjORrnX")},
		"multipart_without_boundary":   {"multipart/form-data", multipartBody("abc")},
		"multipart_as_urlencoded":      {formURLEncoded, multipartBody("abc")},
		"multipart_unclosed":           {"multipart/form-data; boundary=abc", strings.TrimSuffix(multipartBody("abc"), "--abc--\r\n")},
		"multipart_preceded_by_CRLF":   {"multipart/form-data; boundary=abc", "\r\n" + multipartBody("abc")},
		"multipart_with_charset_parts": {"multipart/form-data; boundary=abc", strings.Replace(multipartBody("abc"), "\r\n\r\n", "\r\nContent-Type: text/plain; charset=UTF-8\r\n\r\n", 1)},
		"empty":                        {formURLEncoded, ""},
		"blank":                        {"", "\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			address := strings.ReplaceAll(name, "_", ".") + "@example.net"
			link := h.link(address)
			require.False(t, h.suppressed(address))
			for range 2 { // the second is as good
				a := h.raw("POST", link, "", c.body, "Content-Type", c.contentType, "Cookie", "session=x", "Origin", "https://evil.example",
					"Sec-Fetch-Site", "cross-site")
				require.Equal(t, http.StatusOK, a.status, a.body)
				require.Equal(t, "text/plain; charset=utf-8", a.header.Get("Content-Type"))
				require.Equal(t, "Unsubscribed\n", a.body)
				requirePrivate(t, a)
				require.True(t, h.suppressed(address), "before the answer")
			}
		})
	}
	entries, _, err := h.list.List(t.Context(), "default", "", 100)
	require.NoError(t, err)
	require.Len(t, entries, 17)
}

// requirePrivate wants what keeps a link secret and a one-click target in order.
func requirePrivate(t testing.TB, a answer) {
	t.Helper()
	for name, value := range map[string]string{
		"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Robots-Tag": "noindex, nofollow",
		"X-Content-Type-Options": "nosniff", "Location": "", "Set-Cookie": "",
	} {
		require.Equal(t, value, a.header.Get(name), name)
	}
	require.Contains(t, a.header.Get("Content-Security-Policy"), "default-src 'none'")
}

func TestGetChangesNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	link := h.link("ann@example.net")
	for range 50 {
		for _, method := range []string{"GET", "HEAD", "OPTIONS", "PROPFIND", "PUT", "DELETE"} {
			a := h.raw(method, link+"?"+oneClick, "", oneClick, "Content-Type", formURLEncoded)
			require.NotEqual(t, http.StatusInternalServerError, a.status)
			require.Empty(t, a.header.Get("Location"))
		}
	}
	require.False(t, h.suppressed("ann@example.net"))
	a := h.raw("GET", link, "", "")
	require.Equal(t, http.StatusOK, a.status)
	requirePrivate(t, a)
	require.Contains(t, a.body, "a***@example.net")
	require.NotContains(t, a.body, "ann@")
	require.Contains(t, a.body, `method="post"`)
	require.NotContains(t, a.body, "<script")
	require.NotContains(t, a.body, "http://")
	require.NotContains(t, a.body, "https://")
}

func TestPageSpeaksKorean(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	link := h.link("ann@example.net")
	for header, lang := range map[string]string{
		"ko-KR,ko;q=0.9,en;q=0.8": "ko", "en-US,en;q=0.9,ko;q=0.1": "en", "fr": "en", "": "en", "ko": "ko",
		strings.Repeat("ko,", 1000): "en", ";;;q=": "en",
	} {
		a := h.raw("GET", link, "", "", "Accept-Language", header)
		require.Equal(t, lang, a.header.Get("Content-Language"), "%.40q", header)
		require.Contains(t, a.body, `<html lang="`+lang+`">`)
	}
	require.Contains(t, h.raw("GET", link, "", "", "Accept-Language", "ko").body, "수신 거부")
}

func TestOurFormUnsubscribesAndShowsAPage(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	link := h.link("ann@example.net")
	a := h.raw("POST", link, "", "confirm=1", "Content-Type", formURLEncoded)
	require.Equal(t, http.StatusOK, a.status)
	requirePrivate(t, a)
	require.Equal(t, "text/html; charset=utf-8", a.header.Get("Content-Type"))
	require.Contains(t, a.body, "You are unsubscribed")
	require.True(t, h.suppressed("ann@example.net"))
}

func TestStyleIsTheOneThatThePolicyAllows(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	a := h.raw("GET", h.link("ann@example.net"), "", "")
	_, rest, ok := strings.Cut(a.body, "<style>")
	require.True(t, ok)
	style, _, _ := strings.Cut(rest, "</style>")
	sum := sha256.Sum256([]byte(style))
	require.Contains(t, a.header.Get("Content-Security-Policy"), base64.StdEncoding.EncodeToString(sum[:]))
}

func TestOtherBodiesAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	link := h.link("ann@example.net")
	for _, body := range []string{
		"x", "List-Unsubscribe=No", "List-Unsubscribe", "confirm=0", `{"List-Unsubscribe":"One-Click"}`, "--", "--\r\n", "-- \r\n\r\n",
		"List-Unsubscribe=One-Click2", "%zz=1", "--b\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\nOne-Click\r\n--b--",
		"--b\r\n\r\nList-Unsubscribe=One-Click\r\n--b--",
	} {
		a := h.raw("POST", link, "", body, "Content-Type", formURLEncoded)
		require.Equal(t, http.StatusBadRequest, a.status, "%q", body)
		requirePrivate(t, a)
	}
	a := h.raw("POST", link, "", strings.Repeat("x", maxForm+1), "Content-Type", formURLEncoded)
	require.Equal(t, http.StatusRequestEntityTooLarge, a.status)
	require.False(t, h.suppressed("ann@example.net"))
}

func TestBadTokensAreAllAlike(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	link := h.link("ann@example.net")
	var bodies []string
	try := func(path string) {
		for _, method := range []string{"GET", "POST"} {
			a := h.raw(method, path, "", oneClick, "Content-Type", formURLEncoded)
			require.Equal(t, http.StatusNotFound, a.status, path)
			requirePrivate(t, a)
			bodies = append(bodies, a.body)
		}
	}
	for i := len("/u/"); i < len(link); i++ {
		broken := []byte(link)
		if broken[i] = 'a'; broken[i] == link[i] {
			broken[i] = 'b'
		}
		try(string(broken))
	}
	try("/u/x")
	try("/u/" + strings.Repeat("a", 5000))
	try("/u/%00%ff")
	try("/u/..%2f..%2fv1%2fqueue")
	try(link + "a")
	try(link[:len(link)-1])
	for _, body := range bodies {
		require.Equal(t, bodies[0], body)
	}
	require.False(t, h.suppressed("ann@example.net"))
	require.NotContains(t, h.logs.String(), link[3:30], "tokens are not logged")
}

func TestStoreInTroubleIsNeverASuccess(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	link := h.link("ann@example.net")
	h.fail(errors.New("write /var/lib/relayd/db: input/output error"))
	for _, body := range []string{oneClick, "confirm=1", ""} {
		a := h.raw("POST", link, "", body, "Content-Type", formURLEncoded)
		require.Equal(t, http.StatusServiceUnavailable, a.status)
		require.Equal(t, "120", a.header.Get("Retry-After"))
		require.NotContains(t, a.body, "/var/lib")
		requirePrivate(t, a)
	}
	h.fail(nil)
	require.Equal(t, http.StatusOK, h.raw("POST", link, "", oneClick, "Content-Type", formURLEncoded).status)
}

func TestRobotsAreKeptOut(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	require.Equal(t, "User-agent: *\nDisallow: /\n", h.raw("GET", "/robots.txt", "", "").body)
}

func TestUnsubscribeStopsTheNextCampaign(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	require.Equal(t, http.StatusOK, h.raw("POST", h.link("ann@example.net"), "", oneClick, "Content-Type", formURLEncoded).status)
	check, err := h.root.CheckSuppression(t.Context(), "", "ANN@Example.NET")
	require.NoError(t, err)
	require.Equal(t, api.SuppressionEffective{Transactional: "allowed", Broadcast: "blocked"}, check.Effective)
}

func FuzzForm(f *testing.F) {
	for _, seed := range []string{oneClick, "confirm=1", "", multipartBody("abc"), "--\n--\n", "--a\nContent-Disposition: form-data; name=x\n\n--a"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		form := formOf(body)
		require.Equal(t, before, body)
		lower := bytes.ToLower(body)
		switch form {
		case formOneClick:
			// Escapes apart, nothing but the pair itself may unsubscribe.
			if !bytes.ContainsAny(body, "%+") && !bytes.Contains(lower, []byte("content-disposition")) {
				require.Contains(t, string(lower), "list-unsubscribe")
			}
		case formEmpty:
			require.Empty(t, bytes.TrimSpace(body))
		case formPage, formOther:
		default:
			t.Fatal(form)
		}
	})
}
