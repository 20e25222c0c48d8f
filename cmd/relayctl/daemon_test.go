package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	relayd "relayd/internal/app"
	"relayd/internal/resolver/resolvertest"
)

// relay is a whole relayd in this process. Look-ups of slow.example fail for the time being: mail to it stays queued.
type relay struct {
	t      *testing.T
	d      *relayd.Daemon
	socket *daemon // only its socket, for ctl
}

func newRelay(t *testing.T) *relay {
	t.Helper()
	zone, err := resolvertest.NewServer(nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, zone.Close()) })
	zone.SetRcode("slow.example", dns.RcodeServerFailure)
	dir, err := os.MkdirTemp("", "ctl") // a socket's path must be short
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	d, err := relayd.Start(t.Context(), fmt.Sprintf(`hostname = "relay.example.com"
data_dir = %q
[[smtp.listener]]
kind = "submission"
address = "127.0.0.1:0"
tls = "none"
[admin]
address = "127.0.0.1:0"
public_url = "http://127.0.0.1:1"
[dns]
servers = [%q]
[delivery]
allow_private_mx = true
`, dir, zone.Addr))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return &relay{t: t, d: d, socket: &daemon{socket: d.SocketPath()}}
}

// json runs a command that must succeed.
func (r *relay) json(v any, in string, args ...string) {
	r.t.Helper()
	code, out, errOut := ctl(r.t, r.socket, in, append(args, "-o", "json")...)
	require.Zero(r.t, code, "%v: %s", args, errOut)
	require.Empty(r.t, errOut)
	requireOneValue(r.t, out)
	if v != nil {
		require.NoError(r.t, json.Unmarshal([]byte(out), v), out)
	}
}

// refused runs a command that the daemon must refuse with that text.
func (r *relay) refused(text string, args ...string) {
	r.t.Helper()
	code, out, errOut := ctl(r.t, r.socket, "", append(args, "-o", "json")...)
	require.Equal(r.t, exitFailed, code, errOut)
	require.Empty(r.t, out)
	require.Contains(r.t, errOut, text)
}

// TestAgainstTheDaemon walks through the commands with a real relayd.
func TestAgainstTheDaemon(t *testing.T) {
	t.Parallel()
	r := newRelay(t)

	var d api.Domain
	r.json(&d, "", "domain", "add", "Shop.Example.")
	require.Equal(t, "shop.example", d.Name)
	require.GreaterOrEqual(t, len(d.DNSRecords), 2)
	for _, rec := range d.DNSRecords {
		require.NotEmpty(t, rec.Purpose)
		require.NotEmpty(t, rec.Status)
	}
	r.refused("conflict", "domain", "add", "shop.example")
	var domains api.Page[api.Domain]
	r.json(&domains, "", "domain", "list")
	require.Len(t, domains.Data, 1)
	r.json(&d, "", "domain", "verify", "shop.example")
	require.False(t, d.Ready)
	r.json(&d, "", "domain", "dkim", "rotate", "shop.example")
	require.Len(t, d.Keys, 4)
	for _, k := range d.Keys {
		if k.State == "pending" {
			r.json(nil, "", "domain", "dkim", "activate", "shop.example", k.Selector)
		}
	}
	r.refused("not_found", "domain", "show", "other.example")

	var c api.Credential
	r.json(&c, "", "credential", "create", "--domain", "shop.example")
	require.NotEmpty(t, c.Username)
	require.NotEmpty(t, c.Password)
	var k api.Key
	r.json(&k, "", "key", "create", "--scope", "all", "--name", "test")
	require.NotEmpty(t, k.Key)
	key := passwordFile(t, k.Key)
	code, out, errOut := ctl(t, nil, "", "queue", "stats", "--url", r.d.AdminURL(), "--key-file", key, "-o", "json")
	require.Zero(t, code, errOut)
	requireOneValue(t, out)
	code, _, errOut = ctl(t, nil, "", "queue", "stats", "--url", r.d.AdminURL(), "--key", "rk_live_x_y")
	require.Equal(t, exitFailed, code)
	require.Contains(t, errOut, "unauthorized")
	r.json(nil, "", "key", "revoke", k.ID)
	code, _, _ = ctl(t, nil, "", "queue", "stats", "--url", r.d.AdminURL(), "--key-file", key)
	require.Equal(t, exitFailed, code, "a revoked key")

	var s sent
	submit := []string{
		"send", "--server", r.d.SMTPAddr(0).String(), "--user", c.Username, "--password-file", passwordFile(t, c.Password),
		"--from", "news@shop.example", "--to", "ann@slow.example,bob@slow.example",
	}
	r.json(&s, "", submit...)
	require.True(t, s.Accepted)
	require.NotEmpty(t, s.QueueID, s.Reply)
	var stats api.QueueStats
	require.Eventually(t, func() bool { // the first attempt has met the failing name server
		r.json(&stats, "", "queue", "stats")
		return stats.Deferred == 2
	}, time.Minute, 10*time.Millisecond)
	var list api.Page[api.QueueItem]
	r.json(&list, "", "queue", "list", "domain=slow.example")
	require.Len(t, list.Data, 2)
	r.json(&list, "", "queue", "list", "to=ann@slow.example", "message="+s.QueueID)
	require.Len(t, list.Data, 1)
	var m api.QueueMessage
	r.json(&m, "", "queue", "show", s.QueueID)
	require.Len(t, m.Envelopes, 2)
	require.Equal(t, "news@shop.example", m.From)
	require.Equal(t, "accepted", m.Envelopes[0].Timeline[0].Event)
	require.Equal(t, "deferred", m.Envelopes[0].Timeline[1].Event)
	var why api.QueueWhy
	r.json(&why, "", "why", s.QueueID)
	require.Len(t, why.Envelopes, 2)
	require.Equal(t, "dns", why.Envelopes[0].Reason)
	require.False(t, why.Envelopes[0].Until.IsZero())
	require.NotEmpty(t, why.Envelopes[0].Replies)

	var res api.QueueActionResult
	r.json(&res, "", "queue", "hold", "to=ann@slow.example", "--dry-run")
	require.Equal(t, 1, res.Matched)
	r.json(&stats, "", "queue", "stats")
	require.EqualValues(t, 2, stats.Queued)
	require.Zero(t, stats.Held, "a dry run changes nothing")
	r.json(&res, "", "queue", "hold", list.Data[0].ID, "--reason", "test")
	r.json(&why, "", "why", list.Data[0].ID)
	require.Equal(t, "held", why.Envelopes[0].Reason)
	require.Contains(t, why.Envelopes[0].Text, "(test)")
	r.json(&stats, "", "queue", "stats", "--queues", "5")
	require.EqualValues(t, 1, stats.Held)
	require.Len(t, stats.Outcomes, 6)
	require.NotEmpty(t, stats.Queues)
	r.json(&res, "", "queue", "release", "state=held")
	require.Equal(t, 1, res.Changed)
	r.json(nil, "", "queue", "hold", "--all")
	r.json(&res, "", "queue", "fail", s.QueueID)
	require.Equal(t, 2, res.Changed)
	r.json(&stats, "", "queue", "stats")
	require.EqualValues(t, 2, stats.Outcomes["failed"])

	r.json(nil, "", "credential", "revoke", c.Username)
	code, _, errOut = ctl(t, nil, "", submit...)
	require.Equal(t, exitFailed, code)
	require.Contains(t, errOut, "authentication refused: 535")
}

func TestSuppressionsOfTheDaemon(t *testing.T) {
	t.Parallel()
	r := newRelay(t)
	var added api.SuppressionAdded
	r.json(&added, "", "suppression", "add", "Ann@Example.com", "--note", "ticket 12")
	require.True(t, added.Created)
	r.json(&added, "", "suppression", "add", "ann@example.com")
	require.False(t, added.Created)
	var check api.SuppressionCheck
	r.json(&check, "", "suppression", "check", "ann@example.com")
	require.Equal(t, "blocked", check.Effective.Transactional)
	var rep api.SuppressionImport
	r.json(&rep, "email,reason\nbob@example.com,manual\nnot an address,manual\n", "suppression", "import", "-")
	require.Equal(t, 1, rep.Created)
	require.Equal(t, 1, rep.Rejected)
	var page api.Page[api.Suppression]
	r.json(&page, "", "suppression", "list", "--limit", "1")
	require.Len(t, page.Data, 1)
	require.True(t, page.HasMore)
	var all []api.Suppression
	r.json(&all, "", "suppression", "export")
	require.Len(t, all, 2)
	code, csv, errOut := ctl(t, r.socket, "", "suppression", "export")
	require.Zero(t, code, errOut)
	r.json(&rep, csv, "suppression", "import", "-")
	require.Equal(t, 2, rep.Unchanged, "what was exported can be imported")
	var removed api.SuppressionRemoved
	r.json(&removed, "", "suppression", "remove", "ann@example.com")
	require.Equal(t, 1, removed.Removed)
}

func TestCampaignsOfTheDaemon(t *testing.T) {
	t.Parallel()
	r := newRelay(t)
	r.json(nil, "", "domain", "add", "shop.example")
	dir := t.TempDir()
	html := filepath.Join(dir, "t.html")
	require.NoError(t, os.WriteFile(html, []byte(`<p>Hi {{Name}}</p><p><a href="{{unsubscribe_url}}">Unsubscribe</a></p>`), 0o600))
	customers := filepath.Join(dir, "customers.csv")
	require.NoError(t, os.WriteFile(customers, []byte("Email,Name,SubscriptionStatus\nann@slow.example,Ann,true\nbob@slow.example,Bob,no\nbad,X,true\n"), 0o600))
	var made createdCampaign
	r.json(&made, "", "campaign", "create", "--subject", "Hello {{Name}}", "--template", html, "--from", "Shop <deals@shop.example>", "--recipients", customers)
	require.Equal(t, "draft", made.State)
	require.EqualValues(t, 1, made.Total)
	require.EqualValues(t, 1, made.Import.Rejected)
	require.EqualValues(t, 1, made.Import.SkippedUnsubscribed)
	r.json(nil, "Email,Name\ncho@slow.example,조\n", "campaign", "recipients", "add", made.ID, "-")
	var p api.Progress
	r.json(&p, "", "campaign", "show", made.ID)
	require.EqualValues(t, 2, p.Total)
	var c api.Campaign
	r.json(&c, "", "campaign", "start", made.ID)
	r.json(&c, "", "campaign", "pause", made.ID)
	require.Equal(t, "paused", c.State)
	r.json(&c, "", "campaign", "resume", made.ID)
	r.json(&c, "", "campaign", "cancel", made.ID)
	code, _, _ := ctl(t, r.socket, "", "campaign", "show", made.ID, "--watch")
	require.Zero(t, code)
	var results api.RecipientList
	r.json(&results, "", "campaign", "recipients", made.ID)
	require.Len(t, results.Data, 2)
	for _, x := range results.Data {
		require.Equal(t, "cancelled", x.State)
	}
	var list api.CampaignList
	r.json(&list, "", "campaign", "list")
	require.Len(t, list.Data, 1)
	r.refused("unsubscribe_url", "campaign", "create", "--subject", "x", "--text", customers, "--from", "deals@shop.example")
	r.refused("from_not_verified", "campaign", "create", "--subject", "x", "--template", html, "--from", "deals@other.example")
}

func TestSitesOfTheDaemon(t *testing.T) {
	t.Parallel()
	r := newRelay(t)
	var page api.Page[api.Site]
	r.json(&page, "", "site", "list")
	require.Empty(t, page.Data)
	var c api.SiteChanged
	r.json(&c, "", "site", "suspend", "Provider:Google", "--for", "90m", "--reason", "ticket 12")
	require.True(t, c.Changed)
	require.WithinDuration(t, time.Now().Add(90*time.Minute), c.Until, time.Minute)
	r.json(&c, "", "site", "suspend", "mx.slow.example")
	r.json(&page, "", "site", "list", "--state", "suspended")
	require.Len(t, page.Data, 2)
	r.json(&page, "", "site", "show", "provider:google")
	require.Equal(t, "ticket 12", page.Data[0].Hold.Reason)
	code, out, _ := ctl(t, r.socket, "", "site", "show", "provider:google")
	require.Zero(t, code)
	require.Contains(t, out, "suspended_by_operator provider:google")
	var events api.Page[map[string]any]
	require.NoError(t, api.NewUnixClient(r.d.SocketPath()).Do(t.Context(), "GET", "/v1/events", map[string][]string{"type": {"site.suspended"}}, nil, &events))
	require.Len(t, events.Data, 2, "audited")

	r.json(&c, "", "site", "resume", "mx.slow.example")
	require.True(t, c.Changed)
	r.json(&c, "", "site", "resume", "mx.slow.example")
	require.False(t, c.Changed)
	r.refused("provider rules know no", "site", "suspend", "provider:gogle")
	r.refused("neither a host name nor a smarthost", "site", "suspend", "nonsense")
	r.refused("no such site", "site", "show", "mx.unknown.example")
	for _, args := range [][]string{{"site", "suspend", "mx.example.com", "--for", "1ms"}, {"site", "list", "--state", "lazy"}, {"site", "show"}} {
		code, _, errOut := ctl(t, r.socket, "", args...)
		require.Equal(t, exitUsage, code, errOut)
	}
}
