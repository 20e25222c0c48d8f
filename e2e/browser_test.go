package e2e

import (
	"context"
	"regexp"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
)

// browser opens a real browser that speaks one language; the context is for chromedp.Run.
func browser(t *testing.T, language string) context.Context {
	t.Helper()
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"), chromedp.NoSandbox, chromedp.WSURLReadTimeout(2*time.Minute),
		chromedp.Flag("accept-lang", language), chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	do(t, ctx, chromedp.Navigate("about:blank"))
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// do runs one step, which must succeed.
func do[T any](t *testing.T, ctx context.Context, a chromedp.Action[T]) T {
	t.Helper()
	v, err := chromedp.Run(ctx, a)
	require.NoError(t, err)
	return v
}

func TestUnsubscribePageInABrowser(t *testing.T) {
	t.Parallel()
	needs(t, "chromium")
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port})
	r.mx("dest.example")
	r.domain("shop.example")
	r.campaign(short(true, "ann@dest.example", "bob@dest.example"))
	wait(t, "both mails", 20*time.Second, func() bool { return s.count() == 2 })
	links := map[string]string{}
	for _, d := range s.all() {
		found := regexp.MustCompile(`<(http[^>]+/u/[^>]+)>`).FindSubmatch(d.Data)
		require.Len(t, found, 2)
		links[d.To] = string(found[1])
	}
	for _, tt := range []struct{ to, language, heading, masked string }{
		{"ann@dest.example", "ko-KR", "수신 거부", "a***@dest.example"},
		{"bob@dest.example", "en-US", "Unsubscribe", "b***@dest.example"},
	} {
		tab := browser(t, tt.language)
		do(t, tab, chromedp.Navigate(links[tt.to]))
		before := do(t, tab, chromedp.Text("body"))
		out, _, _ := r.ctl("suppression", "check", tt.to)
		require.NotContains(t, out, "unsubscribe", "opening the page changes nothing")
		do(t, tab, chromedp.Evaluate[any]("document.querySelector('form button').click()"))
		wait(t, "the answer", 60*time.Second, func() bool {
			text, err := chromedp.Run(tab, chromedp.Text("body")) // an error where the page goes away meanwhile
			return err == nil && text != before
		})
		require.Contains(t, before, tt.heading)
		require.Contains(t, before, tt.masked)
		require.NotContains(t, before, tt.to)
		out, _, _ = r.ctl("suppression", "check", tt.to)
		require.Contains(t, out, "unsubscribe")
	}
}
