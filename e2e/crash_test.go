package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/mail"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// copies counts the messages per recipient, and requires that all copies of one recipient's message are the same message.
func copies(t *testing.T, got []delivery) map[string]int {
	t.Helper()
	ids, n := map[string]string{}, map[string]int{}
	for _, d := range got {
		m, err := mail.ReadMessage(bytes.NewReader(d.Data))
		require.NoError(t, err)
		id := m.Header.Get("Message-Id")
		require.NotEmpty(t, id)
		if first, ok := ids[d.To]; ok {
			require.Equal(t, first, id, "a duplicate has the same Message-ID")
		}
		ids[d.To] = id
		n[d.To]++
	}
	return n
}

var inDoubt = regexp.MustCompile(`"msg":"lease\.recovered"[^\n]*"count":(\d+)`)

// doubted sums the in-doubt envelopes that this process found when it opened its spool. The log is written behind: where it
// holds none yet it is given half a second.
func (r *relay) doubted() int {
	found := inDoubt.FindAllStringSubmatch(r.logText(), -1)
	for looks := 0; len(found) == 0 && looks < 25 && !r.ended(); looks++ {
		pause()
		found = inDoubt.FindAllStringSubmatch(r.logText(), -1)
	}
	sum := 0
	for _, m := range found {
		n, err := strconv.Atoi(m[1])
		require.NoError(r.t, err)
		sum += n
	}
	return sum
}

func TestCampaignSurvivesKills(t *testing.T) {
	t.Parallel()
	const total = 10_000
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port, extra: "[campaign]\npage_size = 200\n"})
	var csv bytes.Buffer
	csv.WriteString("email,name\n")
	for i := range 20 {
		r.mx(fmt.Sprintf("d%d.example", i))
	}
	for i := range total {
		fmt.Fprintf(&csv, "user%d@d%d.example,이름 %d\n", i, i%20, i)
	}
	file := filepath.Join(t.TempDir(), "c.csv")
	require.NoError(t, os.WriteFile(file, csv.Bytes(), 0o600))
	r.domain("shop.example")
	body := short(false)
	delete(body, "recipients")
	id := r.campaign(body)
	var report struct{ Created int }
	r.json(&report, "campaign", "recipients", "add", id, file)
	require.Equal(t, total, report.Created)

	doubted, kills := 0, 0
	killAt := func(what string, cond func() bool) {
		wait(t, what, 60*time.Second, cond)
		r.kill()
		kills++
		r.start()
		doubted += r.doubted()
	}
	r.json(nil, "campaign", "start", id)
	killAt("the first pages of the fan-out", func() bool { return s.count() > 0 })
	for _, n := range []int{500, 1000, 2000, 4000, 6000, 8000} {
		killAt(fmt.Sprintf("%d deliveries", n), func() bool { return s.count() >= n })
	}
	wait(t, "the campaign to complete", 120*time.Second, func() bool { return r.progress(id).State == "completed" })

	n := copies(t, s.all())
	require.Len(t, n, total, "every recipient was reached")
	duplicates := s.count() - total
	t.Logf("%d kills, %d in doubt, %d duplicates", kills, doubted, duplicates)
	require.LessOrEqual(t, duplicates, doubted, "duplicates only among those in doubt")
	require.Equal(t, total, r.progress(id).Counts["delivered"])
	require.Zero(t, r.stats().Queued)
}

func TestSubmissionSurvivesKills(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port})
	r.mx("dest.example")
	l := r.domain("shop.example")
	accepted := map[string]bool{}
	doubted := 0
	for round := range 5 {
		stop := make(chan struct{})
		done := make(chan []string)
		for w := range 4 {
			go func() {
				var ok []string
				defer func() { done <- ok }()
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					to := fmt.Sprintf("r%d-w%d-%d@dest.example", round, w, i)
					if r.trySubmit(l, to) != nil {
						return
					}
					ok = append(ok, to)
				}
			}()
		}
		before := s.count()
		wait(t, "some mail of this round", 30*time.Second, func() bool { return s.count() >= before+20+round*7 })
		r.kill()
		close(stop)
		for range 4 {
			for _, to := range <-done {
				accepted[to] = true
			}
		}
		r.start()
		doubted += r.doubted()
	}
	r.settled(60 * time.Second)
	n := copies(t, s.all())
	duplicates := 0
	for to := range accepted {
		require.Positive(t, n[to], "%s was accepted and is lost", to)
	}
	for _, c := range n {
		duplicates += c - 1
	}
	t.Logf("%d accepted, %d in doubt, %d duplicates", len(accepted), doubted, duplicates)
	require.LessOrEqual(t, duplicates, doubted)
}

// repeats is how often a test that can run for long repeats itself: few in CI, many in its own make target, and fewest
// where it is one of all tests of the repository.
func repeats(t *testing.T, name string, few int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" && os.Getenv("RELAYD_E2E") != "full" {
		return max(2, few/4)
	}
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, name)
	return n
}

// TestKillsUnderLoad kills relayd at random moments, while it starts too, under submissions by SMTP and HTTP and
// campaigns.
func TestKillsUnderLoad(t *testing.T) {
	t.Parallel()
	kills := repeats(t, "RELAYD_E2E_KILLS", 12)
	b := newLedger(t)
	s := b.sink()
	r := newRelay(t, options{mxPort: s.port, level: "info", extra: "[campaign]\npage_size = 50\n", deliv: "connect_tries = 1"})
	r.mx(ledgerDomains...)
	l := r.domain("shop.example")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var load sync.WaitGroup
	b.submitters(ctx, &load, r, l, 4, math.MaxInt)
	b.posters(ctx, &load, r, 2)
	camps := b.campaigns(ctx, &load, r)
	doubted := 0
	for range kills {
		after := time.Duration(rand.IntN(300)) * time.Millisecond //nolint:gosec // a test
		if rand.IntN(8) != 0 {                                    //nolint:gosec // a test
			after += 250 * time.Millisecond // it has started
		}
		select {
		case <-time.After(after):
		case <-r.end:
			t.Fatalf("relayd ended by itself:\n%s", tail(r.logText(), 4000))
		}
		r.kill()
		doubted += r.doubted()
		r.launch()
	}
	r.ready()
	wait(t, "a campaign to be acknowledged", 60*time.Second, func() bool { // on a slow machine each kill may have come before one
		camps.mu.Lock()
		defer camps.mu.Unlock()
		return len(camps.ids) > 0
	})
	cancel()
	load.Wait()
	st := r.settled(180 * time.Second)
	doubted += r.doubted()
	c := b.audit(r)
	reached, twice := b.auditCampaigns(r, camps)
	t.Logf("%d kills: %s; %d campaigns with %d recipients reached and %d duplicates; %d found in doubt", kills, c, len(camps.ids), reached, twice, doubted)
	sum := 0
	for _, n := range st.Outcomes {
		sum += n
	}
	require.Equal(t, st.Accepted, sum, "accepted = the sum of the outcomes")
}

func TestSecondDaemonIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	r := newRelay(t, options{mxPort: freePort(t)})
	conf := r.conf
	for _, p := range []int{r.submission, r.implicit, r.plain, r.http} {
		conf = strings.ReplaceAll(conf, ":"+itoa(p), ":"+itoa(freePort(t)))
	}
	file := filepath.Join(t.TempDir(), "second.toml")
	writeFile(t, file, conf)
	_, stderr, code := r.tool("relayd", "run", "--config", file)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "another relayd runs on")
	require.Zero(t, r.stats().Queued, "the first one goes on")
}

func TestWrongConfigurationOpensNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "relayd.toml")
	writeFile(t, file, "hostname = \"relay.example\"\ndata_dir = \""+dir+"/data\"\n[smtp]\nmax_recipents = 5\n[admin]\naddress = 7\n")
	r := &relay{t: t}
	for _, verb := range []string{"run", "check"} {
		_, stderr, code := r.tool("relayd", verb, "--config", file)
		require.Equal(t, 1, code)
		require.Contains(t, stderr, file+`:4: smtp.max_recipents: unknown key; did you mean "max_recipients"?`)
		require.Contains(t, stderr, file+`:6: admin.address: want a string, got 7`)
	}
	_, err := os.Stat(filepath.Join(dir, "data"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, _, code := r.tool("relayd", "rum")
	require.Equal(t, 2, code)
}
