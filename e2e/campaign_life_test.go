package e2e

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"mime"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

// bigCampaign makes a draft with so many recipients in ten domains.
func (r *relay) bigCampaign(total int) string {
	r.t.Helper()
	var text bytes.Buffer
	text.WriteString("email,name\n")
	for i := range 10 {
		r.mx(fmt.Sprintf("d%d.example", i))
	}
	for i := range total {
		fmt.Fprintf(&text, "user%d@d%d.example,이름 %d\n", i, i%10, i)
	}
	file := filepath.Join(r.t.TempDir(), "c.csv")
	require.NoError(r.t, os.WriteFile(file, text.Bytes(), 0o600))
	r.domain("shop.example")
	body := short(false)
	delete(body, "recipients")
	id := r.campaign(body)
	var report struct{ Created int }
	r.json(&report, "campaign", "recipients", "add", id, file)
	require.Equal(r.t, total, report.Created)
	return id
}

// Complaint 1: a pause sends nobody twice and leaves nobody out, however often it comes.
func TestCampaignIsExactUnderPauseAndResume(t *testing.T) {
	t.Parallel()
	pauses := repeats(t, "RELAYD_E2E_PAUSES", 20)
	total := 100 * pauses
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port, level: "info", extra: "[campaign]\npage_size = 50\n"})
	id := r.bigCampaign(total)
	c := r.client()
	defer c.Close()
	act := func(action string) {
		t.Helper()
		_, err := c.CampaignAction(t.Context(), id, action)
		require.NoError(t, err, action)
	}
	act("start")
	for i := range pauses {
		wait(t, "some more deliveries", 60*time.Second, func() bool {
			return s.count() >= i*total/pauses/2+1 || r.progress(id).State != "running"
		})
		p, err := c.CampaignProgress(t.Context(), id)
		require.NoError(t, err)
		if p.State != "running" {
			break
		}
		if _, err := c.CampaignAction(t.Context(), id, "pause"); err != nil {
			require.Equal(t, "completed", r.progress(id).State, "%v", err) // meanwhile
			break
		}
		p, err = c.CampaignProgress(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, p.Total, p.Counts.Sum())
		require.Equal(t, "paused", p.State)
		act("resume")
	}
	wait(t, "the campaign to complete", 180*time.Second, func() bool { return r.progress(id).State == "completed" })
	n := copies(t, s.all())
	require.Len(t, n, total, "everybody was reached")
	require.Equal(t, total, s.count(), "and nobody twice")
	require.Equal(t, total, r.progress(id).Counts["delivered"])
}

// Complaint 1 again: a crash loses nobody, and doubles at most those who were in doubt.
func TestCampaignIsExactUnderKills(t *testing.T) {
	t.Parallel()
	kills := repeats(t, "RELAYD_E2E_CAMPAIGN_KILLS", 8)
	total := 200 * kills
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port, level: "info", extra: "[campaign]\npage_size = 50\n"})
	id := r.bigCampaign(total)
	r.json(nil, "campaign", "start", id)
	doubted, killed := 0, 0
	for i := range kills {
		ended := false
		wait(t, "some more deliveries", 60*time.Second, func() bool {
			ended = s.count() >= total
			return ended || s.count() >= i*total/kills+1
		})
		if ended {
			break
		}
		r.kill()
		killed++
		r.start()
		doubted += r.doubted()
	}
	wait(t, "the campaign to complete", 180*time.Second, func() bool { return r.progress(id).State == "completed" })
	n := copies(t, s.all())
	require.Len(t, n, total, "everybody was reached")
	twice := s.count() - total
	t.Logf("%d kills, %d in doubt, %d duplicates of %d", killed, doubted, twice, total)
	require.LessOrEqual(t, twice, doubted)
	require.Equal(t, total, r.progress(id).Counts["delivered"])
	require.Zero(t, r.stats().Queued)
}

// A shop's program sends a campaign with nothing but SMTP.
func TestCampaignBySMTP(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port})
	r.mx("dest.example")
	l := r.domain("shop.example")
	send := func(to []string, message string) error {
		c, err := smtp.Dial("127.0.0.1:" + itoa(r.plain))
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.Auth(sasl.NewPlainClient("", l.Username, l.Password)))
		return c.SendMail("deals@shop.example", to, strings.NewReader(strings.ReplaceAll(message, "\n", "\r\n")))
	}
	message := "From: Shop <deals@shop.example>\nSubject: Sale for {{email}}\nMessage-ID: <sale-1@shop.example>\nX-Relay-Campaign: Winter\n" +
		"Content-Type: text/html; charset=utf-8\n\n<p>Hello {{default Name \"you\"}} at {{email}}</p>\n"
	err := send([]string{"deals@shop.example"}, strings.Replace(message, "Winter\n", "Winter\nX-Relay-List: nobody\n", 1))
	require.ErrorContains(t, err, `no list "nobody"`)
	to := []string{"ann@dest.example", "bob@dest.example", "eve@dest.example"}
	require.NoError(t, send(to, message))
	require.NoError(t, send(to, message), "a client that lost the reply")
	wait(t, "three mails", 30*time.Second, func() bool { return s.count() >= 3 })
	var list struct{ Data []api.Campaign }
	r.json(&list, "campaign", "list")
	require.Len(t, list.Data, 1)
	wait(t, "the end", 30*time.Second, func() bool { return r.progress(list.Data[0].ID).State == "completed" })
	for _, d := range s.all() {
		m, err := mail.ReadMessage(bytes.NewReader(d.Data))
		require.NoError(t, err)
		require.Equal(t, "Sale for "+d.To, m.Header.Get("Subject"))
		require.Equal(t, d.To, m.Header.Get("To"), "nobody sees the others")
		require.NotEmpty(t, m.Header.Get("List-Unsubscribe"))
		require.NotContains(t, string(d.Data), "X-Relay")
	}
	require.Equal(t, 3, s.count())

	out, _, code := r.ctl("campaign", "report", list.Data[0].ID, "-o", "csv")
	require.Zero(t, code)
	rows, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	require.NoError(t, err)
	require.Len(t, rows, 4)
	_, bar, code := r.ctl("campaign", "watch", list.Data[0].ID)
	require.Zero(t, code)
	require.Contains(t, bar, "completed [##############################] 3/3 100%")
}

// Complaint 11: a sign-up code does not wait behind a campaign.
func TestCodeOvertakesACampaign(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	submitted, cancelled := make(chan struct{}), make(chan struct{})
	submit, cancel := sync.OnceFunc(func() { close(submitted) }), sync.OnceFunc(func() { close(cancelled) })
	t.Cleanup(func() { submit(); cancel() })
	var taken atomic.Int32
	var came atomic.Bool
	s.onData = func(_ string, to []string, _ []byte) error {
		if strings.HasPrefix(to[0], "code@") {
			came.Store(true)
			return nil
		}
		if taken.Add(1) > 20 {
			<-submitted // the host waits for what this test does, but not for the code
		}
		if came.Load() {
			<-cancelled
		}
		pause() // a slow host
		return nil
	}
	r := newRelay(t, options{mxPort: s.port, level: "info"})
	id := r.bigCampaign(2000)
	var l login
	r.json(&l, "credential", "create", "--domain", "shop.example")
	r.json(nil, "campaign", "start", id)
	wait(t, "the campaign to flow", 60*time.Second, func() bool { return taken.Load() > 20 })
	require.NoError(t, r.trySubmit(l, "code@d1.example"))
	submit()
	wait(t, "the code", 60*time.Second, came.Load)
	require.Less(t, r.progress(id).Counts["delivered"], 2000, "the campaign goes on behind it")
	r.json(nil, "campaign", "cancel", id)
	cancel()
	wait(t, "the end", 60*time.Second, func() bool { return r.progress(id).State == "cancelled" })
}

// The marketer's way: look, try, schedule, change, copy, clean up.
func TestCampaignCommands(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port})
	r.mx("dest.example")
	r.domain("shop.example")
	id := r.campaign(short(false, "ann@dest.example", "bob@dest.example"))

	r.json(nil, "suppression", "add", "bob@dest.example")
	var check api.CampaignCheck
	r.json(&check, "campaign", "validate", id)
	require.True(t, check.OK)
	require.Equal(t, api.RecipientFates{Total: 2, Suppressed: 1, WillSend: 1}, check.Recipients)

	var p api.CampaignPreview
	r.json(&p, "campaign", "preview", id, "--contact", "ann@dest.example")
	require.Equal(t, "블랙 프라이데이 – 친구 ann@dest.example", p.Subject)
	_, stderr, code := r.ctl("campaign", "preview", id, "--contact", "nobody@dest.example")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "neither a recipient of this campaign nor a contact")

	r.json(nil, "campaign", "test", id, "--to", "me@dest.example", "--as", "ann@dest.example")
	wait(t, "the test message", 30*time.Second, func() bool { return s.count() == 1 })
	m, err := mail.ReadMessage(bytes.NewReader(s.all()[0].Data))
	require.NoError(t, err)
	require.Equal(t, "me@dest.example", m.Header.Get("To"))
	subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
	require.NoError(t, err)
	require.Equal(t, "[TEST] 블랙 프라이데이 – 친구 ann@dest.example", subject)

	var c api.Campaign
	tomorrow := time.Now().Add(36 * time.Hour).Format("2006-01-02T15:04")
	r.json(&c, "campaign", "schedule", id, "--local", tomorrow, "--timezone", "Asia/Seoul")
	require.Equal(t, "scheduled", c.State)
	_, stderr, code = r.ctl("campaign", "schedule", id, "--at", "2001-01-01T00:00:00Z")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "is over")
	r.json(&c, "campaign", "unschedule", id)
	require.Equal(t, "draft", c.State)
	r.json(&c, "campaign", "set", id, "--rate", "20", "--concurrency", "3", "--guard-bounce", "0.2")
	require.InDelta(t, 20, c.Send.MaxRatePerSecond, 0)
	require.Equal(t, 3, c.Send.MaxConcurrency)
	_, stderr, code = r.ctl("campaign", "set", id, "--rate", "5", "--etag", `"1"`)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "changed meanwhile")

	var rules api.Compliance
	r.json(&rules, "compliance", "set", "--ad-label", "--address", "1 Teheran-ro, Seoul")
	require.True(t, rules.AdLabel)
	r.json(nil, "campaign", "start", id)
	wait(t, "the campaign", 30*time.Second, func() bool { return r.progress(id).State == "completed" })
	require.Equal(t, map[string]int{"delivered": 1, "suppressed": 1}, positive(r.progress(id).Counts))
	m, err = mail.ReadMessage(bytes.NewReader(s.all()[1].Data))
	require.NoError(t, err)
	subject, err = new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
	require.NoError(t, err)
	require.Equal(t, "(광고) 블랙 프라이데이 – 친구 ann@dest.example", subject)
	require.Contains(t, string(s.all()[1].Data), "1 Teheran-ro")

	var clone api.Campaign
	r.json(&clone, "campaign", "clone", id)
	require.Equal(t, "Hello (copy)", clone.Name)
	_, _, code = r.ctl("campaign", "delete", clone.ID)
	require.Zero(t, code)
	_, _, code = r.ctl("campaign", "show", clone.ID)
	require.Equal(t, 1, code)
}

func positive(counts map[string]int) map[string]int {
	found := map[string]int{}
	for name, n := range counts {
		if n > 0 {
			found[name] = n
		}
	}
	return found
}
