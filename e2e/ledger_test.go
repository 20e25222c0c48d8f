package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/mail"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

// fate is what the client of one submission was told.
type fate int

const (
	refused  fate = iota // a reply that is not 250, or the dot was never sent
	unknown              // the dot was sent and no reply came
	accepted             // 250
)

// letter is one message that a client tried to submit.
type letter struct {
	to    []string
	size  int
	fate  fate
	reply string
	id    string // queue ID of the 250
}

// arrival is what the sink got for one recipient.
type arrival struct {
	n                  int
	messageID, queueID string
}

// ledger is what the world outside of relayd knows: what was submitted and what became of it. Recipients whose address
// begins with "gone-" do not exist, those that begin with "busy-" are greylisted once.
type ledger struct {
	t *testing.T

	mu       sync.Mutex
	letters  []*letter
	arrived  map[string]*arrival
	notices  map[string]int // DSNs about an address
	greyed   map[string]bool
	wrong    []string
	expected int // recipients that were accepted
	asked    map[string]int
	chose    *rand.Rand
}

// ledgerDomains are the domains to which a ledger writes, and the one from which.
var ledgerDomains = []string{"d0.example", "d1.example", "d2.example", "d3.example", "d4.example", "shop.example"}

func newLedger(t *testing.T) *ledger {
	return &ledger{
		t: t, arrived: map[string]*arrival{}, notices: map[string]int{}, greyed: map[string]bool{}, asked: map[string]int{},
		chose: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1)), //nolint:gosec // a test
	}
}

// sink returns an MX that books what it gets.
func (b *ledger) sink() *sink {
	s := newSink(b.t, "", nil)
	s.light = true
	s.onRcpt, s.onData = b.rcpt, b.data
	return s
}

func (b *ledger) rcpt(_, to string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked[to]++
	switch {
	case strings.HasPrefix(to, "gone-"):
		return reply(550, 5, 1, 1, "No such user here")
	case strings.HasPrefix(to, "busy-") && !b.greyed[to]:
		b.greyed[to] = true
		return reply(451, 4, 7, 1, "Greylisted")
	}
	return nil
}

var (
	receivedID     = regexp.MustCompile(`\bid ([0-9a-z]{20})\b`)
	finalRecipient = regexp.MustCompile(`Final-Recipient: rfc822;\s*(\S+)`)
)

// data books one message that the sink is about to accept.
func (b *ledger) data(from string, to []string, data []byte) error {
	m, err := mail.ReadMessage(bytes.NewReader(data))
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.wrong = append(b.wrong, fmt.Sprintf("to %v: %v", to, err))
		return nil
	}
	if from == "" {
		for _, about := range finalRecipient.FindAllSubmatch(data, -1) {
			b.notices[string(about[1])]++
		}
		return nil
	}
	_, body, _ := bytes.Cut(data, []byte("\r\n\r\n"))
	if sum := m.Header.Get("X-Sum"); sum != "" && sum != sumOf(body) {
		b.wrong = append(b.wrong, fmt.Sprintf("to %v: the body of %d bytes is not what was submitted", to, len(body)))
	}
	var queueID string
	if id := receivedID.FindStringSubmatch(m.Header.Get("Received")); id != nil {
		queueID = id[1]
	}
	for _, addr := range to {
		a := b.arrived[addr]
		if a == nil {
			a = &arrival{messageID: m.Header.Get("Message-Id"), queueID: queueID}
			b.arrived[addr] = a
		}
		if a.n++; a.messageID != m.Header.Get("Message-Id") || a.queueID != queueID || a.messageID == "" {
			b.wrong = append(b.wrong, fmt.Sprintf("to %s: copies %s %s and %s %s differ", addr, a.messageID, a.queueID, m.Header.Get("Message-Id"), queueID))
		}
	}
	return nil
}

func sumOf(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:8])
}

// deliveries counts the copies of submitted mail and campaigns that arrived.
func (b *ledger) deliveries() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, a := range b.arrived {
		n += a.n
	}
	return n
}

// backlog is roughly what relayd has and the sink not yet.
func (b *ledger) backlog() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.expected - len(b.arrived)
}

// write makes the next letter: 1 KB to 1.5 MB, mostly small, to 1 to 20 recipients in a few domains.
func (b *ledger) write(name string) (*letter, []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.chose
	le := &letter{size: 1000 + r.IntN(15_000)}
	switch r.IntN(40) {
	case 0:
		le.size = 100_000 + r.IntN(1_400_000)
	case 1, 2:
		le.size = 20_000 + r.IntN(80_000)
	}
	n := 1
	if r.IntN(4) == 0 {
		n = 1 + r.IntN(20)
	}
	serial := len(b.letters)
	for k := range n {
		kind := ""
		switch r.IntN(50) {
		case 0:
			kind = "gone-"
		case 1:
			kind = "busy-"
		}
		le.to = append(le.to, fmt.Sprintf("%s%s-%d-%d@d%d.example", kind, name, serial, k, r.IntN(5)))
	}
	b.letters = append(b.letters, le)
	return le, letterText(le.to[0], le.size, serial)
}

func letterText(to string, size, serial int) []byte {
	var body bytes.Buffer
	for i := 0; body.Len() < size; i++ {
		fmt.Fprintf(&body, "letter %d line %d .......................................................\r\n", serial, i)
	}
	return append([]byte("From: Shop <news@shop.example>\r\nTo: <"+to+">\r\nSubject: letter "+itoa(serial)+"\r\nX-Sum: "+sumOf(body.Bytes())+"\r\n\r\n"), body.Bytes()...)
}

// booked notes what the client was told.
func (b *ledger) booked(le *letter, f fate, reply, id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	le.fate, le.reply, le.id = f, reply, id
	if f == accepted {
		b.expected += len(le.to)
	}
}

// client is one authenticated SMTP session on the plain listener.
type client struct {
	conn net.Conn
	r    *bufio.Reader
}

// open begins a session.
func (r *relay) open(l login) (*client, error) {
	conn, err := net.DialTimeout("tcp", "127.0.0.1:"+itoa(r.plain), 5*time.Second)
	if err != nil {
		return nil, err
	}
	c := &client{conn, bufio.NewReader(conn)}
	if _, err = c.answer(); err == nil {
		err = c.command("250", "EHLO client.example")
	}
	if err == nil {
		err = c.command("235", "AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00"+l.Username+"\x00"+l.Password)))
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *client) close() { _ = c.conn.Close() }

// answer reads one reply and returns its last line.
func (c *client) answer() (string, error) {
	_ = c.conn.SetDeadline(time.Now().Add(60 * time.Second))
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return "", err
		}
		if len(line) > 4 && line[3] == ' ' {
			return strings.TrimSpace(line), nil
		}
	}
}

var errReply = errors.New("unexpected reply")

// command sends a line and wants a code.
func (c *client) command(code, line string) error {
	_ = c.conn.SetDeadline(time.Now().Add(60 * time.Second))
	if _, err := c.conn.Write([]byte(line + "\r\n")); err != nil {
		return err
	}
	got, err := c.answer()
	if err == nil && !strings.HasPrefix(got, code) {
		err = fmt.Errorf("%s: %w %s", line, errReply, got)
	}
	return err
}

// envelope sends MAIL, RCPT and DATA.
func (c *client) envelope(to []string) error {
	if err := c.command("250", "MAIL FROM:<news@shop.example>"); err != nil {
		return err
	}
	for _, a := range to {
		if err := c.command("250", "RCPT TO:<"+a+">"); err != nil {
			return err
		}
	}
	return c.command("354", "DATA")
}

// send submits one letter and says what became of it. An error ends the session.
func (c *client) send(to []string, text []byte) (f fate, reply, id string, err error) {
	if err := c.envelope(to); err != nil {
		return refused, err.Error(), "", err
	}
	_ = c.conn.SetDeadline(time.Now().Add(60 * time.Second))
	text = bytes.ReplaceAll(text, []byte("\r\n."), []byte("\r\n.."))
	if _, err := c.conn.Write(text); err != nil {
		return refused, "", "", err
	}
	if _, err := c.conn.Write([]byte(".\r\n")); err != nil {
		return unknown, "", "", err
	}
	reply, err = c.answer()
	switch {
	case err != nil:
		return unknown, "", "", err
	case !strings.HasPrefix(reply, "250"):
		return refused, reply, "", nil
	}
	if m := regexp.MustCompile(`\b[0-9a-z]{20}\b`).FindString(reply); m != "" {
		return accepted, reply, m, nil
	}
	return accepted, reply, "", fmt.Errorf("no queue ID in %q", reply)
}

// submitters keep n sessions busy until ctx ends, and pause while relayd is down or far behind. most bounds the letters.
func (b *ledger) submitters(ctx context.Context, wg *sync.WaitGroup, r *relay, l login, n, most int) {
	for w := range n {
		wg.Go(func() {
			var c *client
			for sent := 0; ctx.Err() == nil && sent < most; {
				if c == nil {
					var err error
					if c, err = r.open(l); err != nil {
						c = nil
						pause()
						continue
					}
				}
				if b.backlog() > 3000 {
					pause()
					continue
				}
				le, text := b.write("s" + itoa(w))
				f, text1, id, err := c.send(le.to, text)
				b.booked(le, f, text1, id)
				sent++
				if err != nil {
					c.close()
					c = nil
				}
			}
			if c != nil {
				c.close()
			}
		})
	}
}

// posters do the same through POST /v1/messages.
func (b *ledger) posters(ctx context.Context, wg *sync.WaitGroup, r *relay, n int) {
	for w := range n {
		wg.Go(func() {
			c := r.client()
			defer c.Close()
			for ctx.Err() == nil {
				if b.backlog() > 3000 {
					pause()
					continue
				}
				le, text := b.write("h" + itoa(w))
				in := api.SendMessage{From: api.Mailbox{Email: "news@shop.example"}, Raw: text}
				for _, a := range le.to {
					in.To = append(in.To, api.Mailbox{Email: a})
				}
				out, err := c.SendMessage(context.WithoutCancel(ctx), in, "")
				_, answered := errors.AsType[*api.Problem](err)
				var op *net.OpError
				switch {
				case err == nil:
					b.booked(le, accepted, "", out.ID)
				case answered, errors.As(err, &op) && op.Op == "dial":
					b.booked(le, refused, err.Error(), "")
					pause()
				default:
					b.booked(le, unknown, err.Error(), "")
				}
			}
		})
	}
}

// tally is the sum of a ledger.
type tally struct {
	letters, accepted, unknown, refused, recipients, delivered, duplicates, bounced int
}

func (c tally) String() string {
	return fmt.Sprintf("%d letters tried (%d accepted, %d unknown, %d refused) with %d accepted recipients: %d delivered, %d bounced, %d duplicates",
		c.letters, c.accepted, c.unknown, c.refused, c.recipients, c.delivered, c.bounced, c.duplicates)
}

// audit requires that what was accepted was delivered or reported, all of it, and that what was refused was not. The
// queue must be empty. Duplicates must be among the envelopes that were in doubt, and never more than they were.
func (b *ledger) audit(r *relay) tally {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(b.t, b.wrong)
	var c tally
	copies := map[string]int{} // of envelopes with duplicates, by address
	for _, le := range b.letters {
		c.letters++
		there := 0
		for _, to := range le.to {
			a := b.arrived[to]
			gone := strings.HasPrefix(to, "gone-")
			if a != nil {
				require.False(b.t, gone, "%s does not exist", to)
				require.True(b.t, le.id == "" || a.queueID == le.id, "queue ID %s became %s", le.id, a.queueID)
				c.duplicates += a.n - 1
				if a.n > 1 {
					copies[to] = a.n
				}
			}
			if a != nil || gone && b.notices[to] > 0 {
				there++
			}
			if le.fate == accepted {
				require.True(b.t, a != nil || gone, "%s of message %s was accepted and is lost", to, le.id)
				require.True(b.t, !gone || b.notices[to] > 0, "%s of message %s bounced without a notice", to, le.id)
				if gone {
					c.bounced++
				} else {
					c.delivered++
				}
			}
		}
		switch le.fate {
		case accepted:
			c.accepted++
			c.recipients += len(le.to)
		case unknown:
			c.unknown++
			require.True(b.t, there == 0 || there == len(le.to), "%d of %d recipients of %v: half a message", there, len(le.to), le.to)
		case refused:
			c.refused++
			require.Zero(b.t, there, "%v was refused (%s) and delivered", le.to, le.reply)
		}
		for _, to := range le.to {
			if n := copies[to]; n > 1 {
				require.LessOrEqual(b.t, n-1, r.doubts(b.arrived[to].queueID, to), "duplicates of %s beyond its doubts", to)
			}
		}
	}
	b.suppressions(r)
	return c
}

// suppressions requires that exactly the bounced addresses are suppressed.
func (b *ledger) suppressions(r *relay) {
	ctx := b.t.Context()
	want := map[string]bool{}
	for to := range b.notices {
		want[to] = true
	}
	cursor := ""
	for {
		page, err := r.client().Suppressions(ctx, "", api.List{Limit: 200, Cursor: cursor})
		require.NoError(b.t, err)
		for _, s := range page.Data {
			require.True(b.t, want[s.Email], "%s is suppressed (%s) without a bounce", s.Email, s.Reason)
			delete(want, s.Email)
		}
		if cursor = page.NextCursor; cursor == "" {
			break
		}
	}
	require.Empty(b.t, want, "bounced, and not suppressed")
}

// doubts tells how often an envelope was in doubt.
func (r *relay) doubts(message, to string) int {
	r.t.Helper()
	m, err := r.client().QueueMessage(r.t.Context(), message)
	require.NoError(r.t, err)
	for _, e := range m.Envelopes {
		if e.To == to {
			return e.InDoubt
		}
	}
	r.t.Errorf("message %s has no envelope to %s", message, to)
	return 0
}
