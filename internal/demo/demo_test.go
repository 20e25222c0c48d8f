package demo

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/mail"
	"relayd/internal/resolver"
)

func TestOptions(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Options{
		"too_few":   {Recipients: -1},
		"too_many":  {Recipients: MaxRecipients + 1},
		"too_small": {Size: -1},
		"too_large": {Size: MaxSize + 1},
	} {
		require.Error(t, Run(t.Context(), o), name)
	}
	o := Options{}
	require.NoError(t, o.check())
	require.Equal(t, 200, o.Recipients)
	require.EqualValues(t, 100_000, o.Size)
}

// TestFailedStartLeavesNothing counts on TestMain for goroutines.
func TestFailedStartLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	var configs []string
	var out bytes.Buffer
	err := Run(t.Context(), Options{Out: &out, Start: func(_ context.Context, text string) (Daemon, error) {
		configs = append(configs, text)
		return nil, errors.New("address in use")
	}})
	require.EqualError(t, err, "start relayd: address in use")
	require.Len(t, configs, startTries)
	require.Contains(t, configs[0], "allow_private_mx = true")
	require.Empty(t, out.String())
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestZones(t *testing.T) {
	t.Parallel()
	s, err := newZones()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	long := "v=DKIM1; k=rsa; p=" + strings.Repeat("A", 600)
	require.NoError(t, publish(s, []api.DNSRecord{
		{Type: "TXT", Name: "r1._domainkey.shop.example", Value: long},
		{Type: "TXT", Name: "_dmarc.shop.example.", Value: `v=DMARC1; p=none; x="q\"`},
		{Type: "PTR", Name: "127.0.0.1", Value: relayHost},
	}))
	r, err := resolver.New(resolver.Config{Servers: []string{s.Addr}}, resolver.Deps{})
	require.NoError(t, err)
	got, err := r.LookupTXT(t.Context(), "r1._domainkey.shop.example")
	require.NoError(t, err)
	require.Equal(t, []string{long}, got)
	got, err = r.LookupTXT(t.Context(), "_dmarc.shop.example")
	require.NoError(t, err)
	require.Equal(t, []string{`v=DMARC1; p=none; x="q\"`}, got)
	for _, c := range Customers(50) {
		p, err := mail.ParsePath(c.Email)
		require.NoError(t, err)
		mx, err := r.LookupMX(t.Context(), p.Domain)
		require.NoError(t, err, p.Domain)
		require.Equal(t, inboxHost, strings.TrimSuffix(mx[0].Host, "."))
	}
	_, err = r.LookupMX(t.Context(), "stranger.example")
	require.Error(t, err)
}

func TestPromotion(t *testing.T) {
	t.Parallel()
	c, err := Promotion(100_000)
	require.NoError(t, err)
	require.Contains(t, c.Template.HTML, "{{unsubscribe_url}}")
	require.Contains(t, c.Template.HTML, "{{Name}}")
	require.Contains(t, c.Template.HTML, "{{Body}}")
	require.Contains(t, c.Template.HTML, `src="cid:`+c.Template.Images[0].ContentID+`"`)
	b, err := base64.StdEncoding.DecodeString(c.Template.Images[0].Content)
	require.NoError(t, err)
	require.Equal(t, "\x89PNG", string(b[:4]))
	small, err := Promotion(1)
	require.NoError(t, err)
	require.Less(t, len(small.Template.Images[0].Content), 20_000)
}

func TestSummaryText(t *testing.T) {
	t.Parallel()
	s := Summary{
		Recipients: 2, Delivered: 2, DKIMVerified: 2, ElapsedSeconds: 0.5, MessagesPerSecond: 4, PeakRSSBytes: 90e6, OK: true,
		Campaign: "cmp_1", InboxURL: "http://127.0.0.1:1/", UnsubscribeURL: "http://127.0.0.1:2/u/x", Socket: "/tmp/d/admin.sock",
	}
	text := s.text(false)
	require.Contains(t, text, "delivered      2 of 2")
	require.Contains(t, text, "0.50 s, 4 messages/s")
	require.Contains(t, text, "90 MB")
	for _, try := range []string{s.InboxURL, s.UnsubscribeURL, "campaign show cmp_1", "campaign recipients cmp_1", "queue stats"} {
		require.Contains(t, text, try)
	}
	require.Equal(t, 3, strings.Count(text, "--socket /tmp/d/admin.sock"))
	require.NotContains(t, s.text(true), "Try next", "after --exit there is nothing to try")
	s.OK = false
	require.Contains(t, s.text(true), "Not everything was delivered and verified.")
}

func TestScreenWritesLinesWhereThereIsNoTerminal(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	s := newScreen(Options{Out: &out})
	at := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	for i := range 30 {
		s.bar(at.Add(time.Duration(i)*100*time.Millisecond), Counts{Recipients: i, Verified: i}, 30, time.Second, false)
	}
	s.bar(at, Counts{Recipients: 30, Verified: 30}, 30, time.Second, true)
	s.line("done")
	require.Equal(t, 5, strings.Count(out.String(), "\n"), out.String())
	require.Contains(t, out.String(), "["+strings.Repeat("#", barWidth)+"] 30/30 delivered, 30 verified  30/s\n")
	require.NotContains(t, out.String(), "\x1b")
	var none bytes.Buffer
	newScreen(Options{Out: &none, JSON: true}).line("x")
	require.Empty(t, none.String())
}

func TestPeakRSS(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("no /proc")
	}
	require.Greater(t, peakRSS(), int64(1<<20))
}
