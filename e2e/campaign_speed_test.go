package e2e

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// anonymous is the memory of relayd that no file backs, in bytes.
func (r *relay) anonymous() int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}

// ed25519Only writes a key file and returns the configuration of a domain that signs with nothing else.
func ed25519Only(t *testing.T, domain string) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "e1.pem")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	return fmt.Sprintf("[[domain]]\nname = %q\ndkim = [{ selector = \"e1\", key_file = %q }]\n", domain, file)
}

// TestCampaignSpeed sends a large campaign to a local sink, looks at progress every second, and tells the rate and the
// memory. RELAYD_E2E_CAMPAIGN is how many recipients; make campaign has a million.
func TestCampaignSpeed(t *testing.T) {
	if os.Getenv("RELAYD_E2E_CAMPAIGN") == "" {
		t.Parallel()
	}
	total := repeats(t, "RELAYD_E2E_CAMPAIGN", 8000)
	s := newSink(t, "", nil)
	s.light = true
	r := newRelay(t, options{
		mxPort: s.port, level: "warn", deliv: "max_messages_per_connection = 1000\nmax_connections_per_site = 100",
		extra: ed25519Only(t, "shop.example"),
	})
	r.mx("dest.example")
	body := short(false)
	delete(body, "recipients")
	body["template"] = map[string]any{
		"subject": "{{Subject}} – {{Name}}",
		"html":    "<p>Hi {{Name}}</p>{{Body}}<p>" + strings.Repeat("All of it is cheap today, and good. ", 220) + "</p><p><a href=\"{{unsubscribe_url}}\">Unsubscribe</a></p>",
		"text":    "Hi {{Name}} {{unsubscribe_url}}",
	}
	body["send"] = map[string]any{"max_concurrency": 20}
	id := r.campaign(body)
	var text bytes.Buffer
	text.WriteString("email,Name\n")
	for i := range total {
		fmt.Fprintf(&text, "user%d@dest.example,User %d\n", i, i)
	}
	file := filepath.Join(t.TempDir(), "c.csv")
	require.NoError(t, os.WriteFile(file, text.Bytes(), 0o600))
	imported := time.Now()
	r.json(nil, "campaign", "recipients", "add", id, file)
	t.Logf("imported %d recipients in %v", total, time.Since(imported).Round(time.Millisecond))

	c := r.client()
	defer c.Close()
	_, err := c.CampaignAction(t.Context(), id, "start")
	require.NoError(t, err)
	began, most, peak := time.Now(), int64(0), 0.0
	for polled := time.Now(); ; {
		pause()
		if time.Since(polled) < time.Second && s.count() < total {
			continue
		}
		polled = time.Now()
		p, err := c.CampaignProgress(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, p.Total, p.Counts.Sum())
		most, peak = max(most, r.anonymous()), max(peak, p.Rate.Last10s)
		if p.State == "completed" {
			break
		}
		require.Equal(t, "running", p.State)
		require.Less(t, time.Since(began), 20*time.Minute)
	}
	took := time.Since(began)
	t.Logf("%d messages in %v: %.0f/s, %.0f/s at best; %d MB of anonymous memory", total, took.Round(time.Millisecond), float64(total)/took.Seconds(), peak, most>>20)
	require.Less(t, most, int64(500<<20))
	require.Equal(t, total, s.count())
}

// TestCampaignToASlowHost is 500 messages of 100 KB to a host that takes 200 ms for each, with the default concurrency.
func TestCampaignToASlowHost(t *testing.T) {
	t.Parallel()
	total := min(500, repeats(t, "RELAYD_E2E_SLOW", 100))
	s := newSink(t, "", nil)
	var running, most atomic.Int64
	s.onData = func(string, []string, []byte) error {
		now := running.Add(1)
		for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); seen = most.Load() {
		}
		for range 10 {
			pause()
		}
		running.Add(-1)
		return nil
	}
	r := newRelay(t, options{mxPort: s.port, level: "info"})
	r.mx("dest.example", "other.example")
	r.domain("shop.example")
	to := make([]string, total)
	for i := range to {
		to[i] = fmt.Sprintf("user%d@%s", i, []string{"dest.example", "other.example"}[i%2])
	}
	body := short(true, to...)
	body["data"] = map[string]any{"Subject": "Big", "Body": "<p>" + strings.Repeat("All of it is cheap today, and good. ", 2700) + "</p>"}
	began := time.Now()
	id := r.campaign(body)
	wait(t, "the campaign to complete", 5*time.Minute, func() bool { return r.progress(id).State == "completed" })
	ideal := time.Duration(total) * 200 * time.Millisecond / 10
	t.Logf("%d messages of 100 KB in %v; ten at a time the host alone takes %v", total, time.Since(began).Round(time.Millisecond), ideal)
	require.Equal(t, total, r.progress(id).Counts["delivered"])
	require.LessOrEqual(t, most.Load(), int64(10), "send.max_concurrency holds over all sites")
	require.Greater(t, most.Load(), int64(1))
}
