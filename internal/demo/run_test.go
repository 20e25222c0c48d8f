package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/app"
)

func startApp(ctx context.Context, text string) (Daemon, error) { return app.Start(ctx, text) }

func TestRunJSON(t *testing.T) {
	t.Parallel()
	var out, errOut bytes.Buffer
	require.NoError(t, Run(t.Context(), Options{Recipients: 60, Size: 20_000, Exit: true, JSON: true, Out: &out, Err: &errOut, Start: startApp}))
	require.Empty(t, errOut.String())
	var s Summary
	d := json.NewDecoder(&out)
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(&s))
	_, err := d.Token()
	require.ErrorIs(t, err, io.EOF, "one object and nothing else")
	require.True(t, s.OK)
	require.Equal(t, 60, s.Recipients)
	require.Equal(t, 60, s.Delivered)
	require.Equal(t, 60, s.DKIMVerified)
	require.Equal(t, 60, s.TLS)
	require.Equal(t, 3, s.Unsubscribed)
	require.Zero(t, s.Duplicates)
	require.EqualValues(t, 60, s.CampaignDelivered)
	require.InDelta(t, 20_500, s.MessageBytes, 500, "a message reaches its size")
	require.Positive(t, s.ElapsedSeconds)
	require.Positive(t, s.MessagesPerSecond)
}

// lockedBuffer may be read while it is written.
type lockedBuffer struct {
	mu      sync.Mutex
	b       strings.Builder
	written chan struct{}
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.written <- struct{}{}:
	default:
	}
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestRunStaysUpToBeTried(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out := &lockedBuffer{written: make(chan struct{}, 1)}
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, Options{Recipients: 5, Size: 10_000, Out: out, Start: startApp}) }()
	for !strings.Contains(out.String(), "Ctrl-C") {
		select {
		case <-out.written:
		case err := <-ended:
			t.Fatalf("it ended: %v\n%s", err, out.String())
		}
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	link := func(name string) string {
		_, rest, ok := strings.Cut(out.String(), "\n  "+name+" ")
		require.True(t, ok, out.String())
		return strings.Fields(rest)[0]
	}
	do := func(method, url, body string) string {
		req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		res, err := client.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, res.StatusCode, string(b))
		return string(b)
	}
	inbox := link("inbox")
	require.Contains(t, do(http.MethodGet, inbox, ""), "5 messages to 5 recipients, 5 with both signatures verified")
	page := do(http.MethodGet, inbox+"letter/1/html", "")
	require.Contains(t, page, "data:image/png;base64,")
	require.NotContains(t, page, "cid:")
	require.Contains(t, do(http.MethodGet, inbox+"letter/1", ""), "겨울 세일")
	require.NotEmpty(t, do(http.MethodGet, link("unsubscribe"), ""), "the page of the link")
	do(http.MethodPost, link("unsubscribe"), "List-Unsubscribe=One-Click")
	stop()
	require.NoError(t, <-ended)
}

func TestRunInterrupted(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	err := Run(ctx, Options{Recipients: 50, Exit: true, Out: io.Discard, Start: func(ctx context.Context, text string) (Daemon, error) {
		d, err := app.Start(ctx, text)
		stop()
		return d, err
	}})
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, ErrIncomplete)
}
