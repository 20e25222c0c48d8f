package demo

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const letter = "From: Shop <deals@shop.example>\r\n" +
	"To: ann@maple.example\r\n" +
	"Subject: =?utf-8?q?=EC=84=B8=EC=9D=BC_Sale?=\r\n" +
	"List-Unsubscribe: <mailto:u@shop.example>,\r\n <https://shop.example/u/abc>\r\n" +
	"MIME-Version: 1.0\r\n" +
	"Content-Type: multipart/related; boundary=b\r\n" +
	"\r\n" +
	"--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" +
	"<p>Hi<script>alert(1)</script> <img src=\"cid:pic\"></p>\r\n" +
	"--b\r\nContent-Type: image/png\r\nContent-ID: <pic>\r\nContent-Transfer-Encoding: base64\r\n\r\naGVsbG8=\r\n" +
	"--b\r\nContent-Type: text/plain\r\n\r\n.text <b>\r\n" +
	"--b--\r\n"

var bothPass = []Signature{{"shop.example", "r1", "rsa-sha256", "pass"}, {"shop.example", "e1", "ed25519-sha256", "pass"}}

func newTestInbox(t *testing.T, verify Verifier) *Inbox {
	t.Helper()
	b, err := NewInbox(InboxConfig{Dir: t.TempDir(), Host: inboxHost, MaxMessage: 1 << 20, Verify: verify, Now: time.Now})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func verified(_ context.Context, r io.Reader) ([]Signature, error) {
	_, err := io.Copy(io.Discard, r)
	return bothPass, err
}

func submit(t *testing.T, b *Inbox, startTLS bool, to ...string) {
	t.Helper()
	addr := fmt.Sprintf("127.0.0.1:%d", b.Port())
	var c *smtp.Client
	var err error
	if startTLS {
		c, err = smtp.DialStartTLS(addr, &tls.Config{InsecureSkipVerify: true})
	} else {
		c, err = smtp.Dial(addr)
	}
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SendMail("deals@shop.example", to, strings.NewReader(letter)))
	require.NoError(t, c.Quit())
}

// await blocks until the counts are as wanted.
func await(t *testing.T, b *Inbox, want func(Counts) bool) Counts {
	t.Helper()
	for {
		c, changed := b.Counts()
		if want(c) {
			return c
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatalf("inbox stays at %+v", c)
		}
	}
}

func TestInbox(t *testing.T) {
	t.Parallel()
	b := newTestInbox(t, verified)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() { submit(t, b, i%2 == 0, fmt.Sprintf("c%d@maple.example", i)) })
	}
	wg.Wait()
	submit(t, b, true, "c0@maple.example", "both@maple.example") // a duplicate and one more
	c := await(t, b, func(c Counts) bool { return c.Messages == 22 && c.Pending == 0 })
	require.Equal(t, 21, c.Recipients)
	require.Equal(t, 21, c.Verified)
	require.Equal(t, 12, c.TLS)
	require.EqualValues(t, len(letter), c.Smallest)
	require.True(t, b.Has("both@maple.example"))
	require.False(t, b.Has("nobody@maple.example"))

	letters, all := b.Page(0, 5)
	require.Equal(t, 22, all)
	require.Len(t, letters, 5)
	l := letters[0]
	require.Equal(t, "세일 Sale", l.Subject)
	require.Equal(t, "https://shop.example/u/abc", l.Unsubscribe)
	require.Equal(t, "deals@shop.example", l.From)
	kept, err := os.ReadFile(b.path(l.ID))
	require.NoError(t, err)
	require.Equal(t, letter, string(kept), "the bytes on disk are those that came")
	rest, _ := b.Page(20, 5)
	require.Len(t, rest, 2)
}

func TestInboxCountsOnlyBothSignatures(t *testing.T) {
	t.Parallel()
	for name, s := range map[string][]Signature{
		"none":               nil,
		"only_rsa":           bothPass[:1],
		"twice_rsa":          {bothPass[0], bothPass[0]},
		"one_of_them_failed": {bothPass[0], {"shop.example", "e1", "ed25519-sha256", "fail"}},
		"a_third_one_failed": {bothPass[0], bothPass[1], {"other.example", "x", "rsa-sha256", "permerror"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newTestInbox(t, func(context.Context, io.Reader) ([]Signature, error) { return s, nil })
			submit(t, b, true, "ann@maple.example")
			c := await(t, b, func(c Counts) bool { return c.Messages == 1 && c.Pending == 0 })
			require.Zero(t, c.Verified)
		})
	}
	t.Run("verification_error", func(t *testing.T) {
		t.Parallel()
		b := newTestInbox(t, func(context.Context, io.Reader) ([]Signature, error) { return nil, io.ErrUnexpectedEOF })
		submit(t, b, true, "ann@maple.example")
		require.Zero(t, await(t, b, func(c Counts) bool { return c.Messages == 1 && c.Pending == 0 }).Verified)
		l, ok := b.Letter(1)
		require.True(t, ok)
		require.Equal(t, "unexpected EOF", l.Signatures[0].Result)
	})
}

func TestInboxCloseEndsOpenSessions(t *testing.T) {
	t.Parallel()
	b := newTestInbox(t, verified)
	c, err := smtp.Dial(fmt.Sprintf("127.0.0.1:%d", b.Port()))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.Hello("client"))
	require.NoError(t, b.Close())
	require.Error(t, c.Noop())
	require.NoError(t, b.Close(), "twice")
}

func TestWeb(t *testing.T) {
	t.Parallel()
	b := newTestInbox(t, verified)
	submit(t, b, true, "ann@maple.example")
	await(t, b, func(c Counts) bool { return c.Verified == 1 })
	w, err := NewWeb(b)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path, host string) (int, string, http.Header) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, strings.TrimSuffix(w.URL(), "/")+path, nil)
		require.NoError(t, err)
		if host != "" {
			req.Host = host
		}
		res, err := client.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, string(body), res.Header
	}

	t.Run("list", func(t *testing.T) {
		code, body, h := get("/", "")
		require.Equal(t, http.StatusOK, code)
		require.Contains(t, body, "ann@maple.example")
		require.Contains(t, body, "세일 Sale")
		require.Contains(t, body, "verified")
		require.Contains(t, h.Get("Content-Security-Policy"), "default-src 'none'")
		code, body, _ = get("/?page=99", "")
		require.Equal(t, http.StatusOK, code)
		require.NotContains(t, body, "ann@maple.example")
	})
	t.Run("letter", func(t *testing.T) {
		code, body, _ := get("/letter/1", "")
		require.Equal(t, http.StatusOK, code)
		require.Contains(t, body, `href="https://shop.example/u/abc"`)
		require.Contains(t, body, ".text &lt;b&gt;")
		require.Contains(t, body, `sandbox="allow-popups allow-popups-to-escape-sandbox"`)
		require.NotContains(t, body, "<script>")
	})
	t.Run("foreign_html_is_sandboxed_and_loads_nothing", func(t *testing.T) {
		code, body, h := get("/letter/1/html", "")
		require.Equal(t, http.StatusOK, code)
		require.Contains(t, body, `src="data:image/png;base64,aGVsbG8="`)
		csp := h.Get("Content-Security-Policy")
		require.Contains(t, csp, "sandbox")
		require.Contains(t, csp, "default-src 'none'")
		require.NotContains(t, csp, "allow-scripts")
		require.NotContains(t, csp, "allow-same-origin")
	})
	t.Run("source_is_plain_text", func(t *testing.T) {
		_, body, h := get("/letter/1/source", "")
		require.Equal(t, letter, body)
		require.Equal(t, "text/plain; charset=utf-8", h.Get("Content-Type"))
		require.Equal(t, "nosniff", h.Get("X-Content-Type-Options"))
	})
	t.Run("unknown", func(t *testing.T) {
		for _, path := range []string{"/letter/2", "/letter/0", "/letter/-1", "/letter/x", "/letter/1/../../etc", "/other"} {
			code, _, _ := get(path, "")
			require.Equal(t, http.StatusNotFound, code, path)
		}
	})
	t.Run("foreign_host_name", func(t *testing.T) {
		code, body, _ := get("/", "evil.example")
		require.Equal(t, http.StatusMisdirectedRequest, code)
		require.NotContains(t, body, "ann@")
	})
}

func FuzzParseParts(f *testing.F) {
	f.Add([]byte(letter))
	f.Add([]byte("Content-Type: multipart/mixed; boundary=\"\"\r\n\r\n----\r\n"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		p, err := parseParts(strings.NewReader(string(b)))
		if err == nil {
			_ = p.withPictures()
		}
	})
}
