package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// crashRelay is a relay between a ledger's sink and a login.
func crashRelay(t *testing.T, o options) (*ledger, *sink, *relay, login) {
	t.Helper()
	b := newLedger(t)
	s := b.sink()
	o.mxPort = s.port
	if o.deliv == "" {
		o.deliv = "connect_tries = 1"
	}
	r := newRelay(t, o)
	r.mx(ledgerDomains...)
	return b, s, r, r.domain("shop.example")
}

// one submits one letter to these recipients and books its fate.
func (b *ledger) one(r *relay, l login, size int, to ...string) fate {
	b.t.Helper()
	c, err := r.open(l)
	require.NoError(b.t, err)
	defer c.close()
	le, text := b.draft(to, size)
	return b.finish(c, le, text)
}

// draft books a letter; finish sends it.
func (b *ledger) draft(to []string, size int) (*letter, []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	le := &letter{to: to, size: size}
	b.letters = append(b.letters, le)
	return le, letterText(to[0], size, len(b.letters))
}

func (b *ledger) finish(c *client, le *letter, text []byte) fate {
	f, said, id, _ := c.send(le.to, text)
	b.booked(le, f, said, id)
	return f
}

// TestKilledAtEveryWrite kills relayd when it is about to make the Nth call of a kind, from the first one behind the
// final dot on: before and after the commit, the reply, the lease, the settlement, and the DSN of a bounce.
func TestKilledAtEveryWrite(t *testing.T) {
	t.Parallel()
	canTrace(t)
	b, _, r, l := crashRelay(t, options{level: "warn"}) // the log is written when it suits it, and would be counted
	seen := map[string]int{}
	doubted := 0
	points := repeats(t, "RELAYD_E2E_POINTS", 6)
	for _, call := range []string{"fdatasync", "pwritev", "pwrite64", "write"} {
		most := points
		if call == "write" {
			most += 4 // the replies to the commands come before the one to the dot
		}
		for n := 1; n <= most; n++ {
			to := fmt.Sprintf("%s-%d@d0.example", call, n)
			c, err := r.open(l)
			require.NoError(t, err)
			r.inject("trace="+call, fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", call, n))
			le, text := b.draft([]string{to, "b" + to, "gone-" + to}, 2000)
			f := b.finish(c, le, text)
			c.close()
			select {
			case <-r.end:
			case <-time.After(3 * time.Second): // it makes fewer such calls
				r.kill()
			}
			r.start()
			doubted += r.doubted()
			r.settled(60 * time.Second)
			b.mu.Lock()
			arrived := b.arrived[to] != nil
			b.mu.Unlock()
			seen[fmt.Sprintf("%s, delivered %v", [...]string{"refused", "no reply", "accepted"}[f], arrived)]++
		}
	}
	c := b.audit(r)
	t.Logf("%s; %d in doubt; points: %v", c, doubted, seen)
	require.Positive(t, seen["no reply, delivered false"], "killed before the commit")
	if points >= 6 { // the first few calls stand before the reply
		require.Positive(t, seen["no reply, delivered true"], "killed after the commit, before the reply")
		require.Positive(t, seen["accepted, delivered true"], "killed after the reply")
	}
	require.LessOrEqual(t, c.duplicates, doubted)
}

func TestKilledUnderLease(t *testing.T) {
	t.Parallel()
	b, s, r, l := crashRelay(t, options{})
	asked, killed := make(chan struct{}, 16), make(chan struct{})
	rcpt := s.onRcpt
	s.onRcpt = func(from, to string) error {
		select {
		case asked <- struct{}{}:
		default:
		}
		<-killed
		return rcpt(from, to)
	}
	require.Equal(t, accepted, b.one(r, l, 1000, "lease@d0.example"))
	<-asked
	require.Equal(t, 1, r.stats().Leased)
	r.kill()
	close(killed)
	r.start()
	require.Equal(t, 1, r.doubted(), "the lease was recorded before the network was touched")
	r.settled(30 * time.Second)
	require.Zero(t, b.audit(r).duplicates)
}

// TestKilledBetweenRemoteReplyAndSettlement is the duplicate window.
func TestKilledBetweenRemoteReplyAndSettlement(t *testing.T) {
	t.Parallel()
	canTrace(t)
	b, s, r, l := crashRelay(t, options{})
	taken, armed := make(chan struct{}, 16), make(chan struct{})
	data := s.onData
	s.onData = func(from string, to []string, text []byte) error {
		taken <- struct{}{}
		<-armed
		return data(from, to, text)
	}
	require.Equal(t, accepted, b.one(r, l, 1000, "twice@d0.example"))
	<-taken
	r.inject("trace=pwritev", "inject=pwritev:signal=SIGKILL:when=1") // what was written survives a kill, synced or not
	close(armed)
	<-r.end
	require.Equal(t, 1, b.deliveries())
	r.start()
	require.Equal(t, 1, r.doubted())
	r.settled(30 * time.Second)
	require.Equal(t, 1, b.audit(r).duplicates, "with the same Message-ID and the same queue ID, and known to be in doubt")
}

// TestKilledInFanOut kills relayd while the recipients of a campaign become envelopes.
func TestKilledInFanOut(t *testing.T) {
	t.Parallel()
	canTrace(t)
	b, s, r, _ := crashRelay(t, options{level: "info", extra: "[campaign]\npage_size = 10\n"})
	open := make(chan struct{})
	rcpt := s.onRcpt
	s.onRcpt = func(from, to string) error { <-open; return rcpt(from, to) }
	var to []string
	for i := range 1500 {
		to = append(to, fmt.Sprintf("fan-%d@d%d.example", i, i%5))
	}
	id := r.campaign(short(false, to...))
	stop := r.inject("trace=fdatasync", "inject=fdatasync:signal=SIGKILL:when=8+4")
	_, _, _ = r.ctl("campaign", "start", id)
	amid, doubted := 0, 0
	for range 20 {
		select {
		case <-r.end:
		case <-time.After(5 * time.Second):
		}
		if !r.ended() {
			break // it is through
		}
		stop()
		var left struct{ Accepted int }
		out, stderr, code := r.tool("relayd", "spool", "check", "--config", filepath.Join(r.dir, "relayd.toml"))
		require.Zero(t, code, "%s%s", out, stderr)
		require.NoError(t, json.Unmarshal([]byte(out), &left))
		if left.Accepted > 0 && left.Accepted < len(to) { // as the kill left it: the next start goes on at once
			amid++
		}
		r.start()
		doubted += r.doubted()
		if p := r.progress(id); p.State == "draft" {
			_, _, _ = r.ctl("campaign", "start", id)
		}
		if amid < 5 {
			stop = r.inject("trace=fdatasync", "inject=fdatasync:signal=SIGKILL:when=8+4")
		}
	}
	stop()
	if r.ended() {
		r.start()
		doubted += r.doubted()
	}
	close(open)
	wait(t, "the campaign to complete", 120*time.Second, func() bool { return r.progress(id).State == "completed" })
	r.settled(30 * time.Second)
	reached, twice := b.auditCampaigns(r, &broadcasts{ids: []string{id}, to: map[string][]string{id: to}})
	t.Logf("%d kills amid the fan-out: %d recipients reached, %d duplicates, %d in doubt", amid, reached, twice, doubted)
	require.Positive(t, amid)
}

// ended tells whether the process is gone.
func (r *relay) ended() bool {
	select {
	case <-r.end:
		return true
	default:
		return false
	}
}

// TestNothingIsSaidBeforeItIsStored reads from strace that the file is synced before the 250 is written: for the very
// first message of a new spool, whose file and directory entry must be on disk too.
func TestNothingIsSaidBeforeItIsStored(t *testing.T) {
	t.Parallel()
	canTrace(t)
	file := t.TempDir() + "/strace"
	b, _, r, l := crashRelay(t, options{wrap: append(traced(file, "trace=openat,link,linkat,fsync,fdatasync,pwrite64,pwritev,write"), "-y")})
	for _, size := range []int{3000, 1_500_000} {
		c, err := r.open(l)
		require.NoError(t, err)
		le, text := b.draft([]string{"later@d0.example"}, size) // nothing else is committed meanwhile
		text = append([]byte("X-Relay-Send-At: "+time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+"\r\n"), text...)
		require.Equal(t, accepted, b.finish(c, le, text), le.reply)
		c.close()
	}
	r.stop()
	wait(t, "strace to write what it saw", 10*time.Second, func() bool {
		return len(receivedReply.FindAllString(readFile(t, file), -1)) >= 2
	})
	b.checkOrder(file)
}

// traceLine is a line of strace -f -y: the process, whether a call is told of that another line began, the call, and the file
// of its descriptor.
var traceLine = regexp.MustCompile(`^(\d+) +(<\.\.\. )?(\w+)(?:\(\d+<([^>]*)>)?`)

// checkOrder requires, for each 250 with a queue ID, that every write to the journal before it was followed by a completed
// sync. (The store file is written later, when it suits relayd.)
func (b *ledger) checkOrder(file string) {
	t := b.t
	t.Helper()
	journal := func(name string) bool { return strings.Contains(name, ".journal-") }
	dirty, syncing := map[string]bool{}, map[string]string{} // by file; by process
	replies, writes, named, synced := 0, 0, false, false
	for line := range strings.SplitSeq(readFile(t, file), "\n") {
		m := traceLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		pid, resumed, call, name := m[1], m[2] != "", m[3], m[4]
		ended := !strings.HasSuffix(line, "<unfinished ...>")
		switch call {
		case "link", "linkat":
			named = true
		case "openat":
			if strings.Contains(line, ".journal-") && strings.Contains(line, "O_CREAT") {
				named, synced = true, false
			}
		case "fsync":
			synced = synced || named && ended
		case "pwritev", "pwrite64":
			if !resumed && journal(name) {
				dirty[name] = true
				writes++
			}
		case "fdatasync":
			if !resumed {
				syncing[pid] = name
			}
			if ended && strings.HasSuffix(line, "= 0") {
				delete(dirty, syncing[pid])
			}
		case "write":
			if receivedReply.MatchString(line) {
				replies++
				require.True(t, synced, "the directory was synced before the first reply")
				require.Empty(t, dirty, "reply %d was written before the journal was synced: %s", replies, line)
			}
		}
	}
	require.Equal(t, 2, replies, "replies with a queue ID")
	require.Positive(t, writes)
}
