package smtpd

import (
	"context"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/dkim"
	"relayd/internal/account"
	"relayd/internal/event"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/suppression"
	"relayd/spool"
)

// The rows of the threat model that are not in a file of their own subject. A1, A2, A9, A10, A14: data_test.go; A4, A6,
// A7 (memory): policy_test.go; A12: chunk_test.go; B4, B8, B9: limit_test.go, deadline_test.go, idle_test.go. A3 is
// delivery's.

// realDoor is a server before a real intake and spool.
func realDoor(t *testing.T) (*fixture, *spool.Store) {
	t.Helper()
	dir := t.TempDir()
	db, err := kv.OpenBolt(filepath.Join(dir, "spool.db"), kv.BoltOptions{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	log, err := event.Open(db, nil)
	require.NoError(t, err)
	store, err := spool.Open(t.Context(), db, log, spool.DefaultConfig())
	require.NoError(t, err)
	keys, err := dkim.Open(filepath.Join(dir, "dkim"))
	require.NoError(t, err)
	accounts, err := account.Open(t.Context(), db, nil)
	require.NoError(t, err)
	require.NoError(t, accounts.AddDomain(t.Context(), account.Domain{Name: "example.com", Account: "default", Sign: account.SignNone}))
	door, err := intake.New(intake.DefaultConfig(), intake.Deps{
		Spool: store, Keys: keys, Domains: accounts, Suppression: suppression.New(db, nil), Hostname: "relay.example.com",
	})
	require.NoError(t, err)
	deps := testDeps(nil, io.Discard)
	deps.Accepter = door
	f := &fixture{rec: &recorder{}, log: &lockedBuffer{}}
	f.Server, err = New(testConfig(), deps)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- f.Run(context.Background()) }()
	t.Cleanup(func() {
		require.NoError(t, f.Close())
		require.NoError(t, <-done)
	})
	return f, store
}

func TestA5_AuthNeedsTLS(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.dial(t, starttls)
	c.expect("220")
	require.NotContains(t, c.cmd("EHLO x", "250 "), "AUTH")
	c.cmd("AUTH PLAIN "+plainIR("app", "secret"), "538 5.7.11")
	c.cmd("AUTH PLAIN", "538 5.7.11") // no challenge: nothing of the password is read
	require.NotContains(t, f.log.String(), plainIR("app", "secret"))
}

func TestA7_LongCommandLine(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.dial(t, plain)
	c.expect("220")
	for _, n := range []int{507, 512, 4096, 12_288, 50_000} {
		c.cmd("NOOP "+strings.Repeat("x", n), "500 5.5.2")
		c.cmd("NOOP", "250")
	}
}

// TestA8_LongLines: what fits a line of 998 octets is taken whole, anything longer is refused, and the session goes on.
func TestA8_LongLines(t *testing.T) {
	t.Parallel()
	f, store := realDoor(t)
	c := f.ready(t, plain)
	for _, how := range []string{"DATA", "BDAT"} {
		for _, n := range []int{998, 999, 1000, 4096, 65_536, 10_000_000} {
			c.cmd("MAIL FROM:<a@example.com>", "250")
			c.cmd("RCPT TO:<b@example.net>", "250")
			message := "From: a@example.com\r\n\r\n" + strings.Repeat("x", n) + "\r\n"
			if how == "DATA" {
				c.cmd("DATA", "354")
				c.send(message + ".\r\n")
			} else {
				c.send(bdat(message, true))
			}
			c.expect(map[bool]string{true: "250 2.0.0 Ok: queued", false: "554 5.6.0"}[n == 998])
		}
	}
	st, err := store.Stats(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 2, st.Queued)
}

func TestA11_OctetsThatNoCommandHas(t *testing.T) {
	t.Parallel()
	f := start(t, func(c *Config) { c.MaxErrors = 100 })
	c := f.ready(t, plain)
	for _, bad := range []string{"\x00", "\xff", "\xc3\x28", "\x1b[2J", "\x7f", "\t", "\xed\xa0\x80"} {
		for _, line := range []string{
			"EHLO x" + bad, "NOOP " + bad, "MAIL FROM:<a" + bad + "@example.com>", "MAIL FROM:<a@example.com> ENVID=" + bad,
			"MAIL FROM:<a" + bad + "@example.com> SMTPUTF8", "VRFY " + bad, "BD" + bad + "AT 1",
		} {
			c.send(line + "\r\n")
			require.Equal(t, "5", c.reply()[:1], "%q", line)
		}
	}
	c.cmd("NOOP", "250")
	for _, verb := range []string{"GET / HTTP/1.1", "POST / HTTP/1.1", "PRI * HTTP/2.0"} {
		c := f.dial(t, plain)
		c.expect("220")
		c.cmd(verb, "554 5.5.0")
		c.closed()
	}
}

// TestA13_TransactionsAreForgotten by RSET, by a second EHLO, and by a message that was refused.
func TestA13_TransactionsAreForgotten(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.dial(t, plain)
	c.expect("220")
	c.cmd("MAIL FROM:<a@example.com>", "503 5.5.1")
	for _, forget := range []string{"RSET\r\n", "EHLO x\r\n", "DATA\r\nx\ny\r\n.\r\n", bdat("x\ny\r\n", true)} {
		c := f.envelope(t, plain)
		if head, rest, found := strings.Cut(forget, "DATA\r\n"); found && head == "" {
			c.cmd("DATA", "354")
			forget = rest
		}
		c.send(forget)
		c.reply()
		c.cmd("DATA", "503 5.5.1")
		c.cmd("RCPT TO:<c@example.net>", "503 5.5.1")
	}
	require.Empty(t, f.rec.all())
}

// TestA15_MIMEBombs: the structure of a body is nobody's business here; a header that is too large or has too many
// fields is refused.
func TestA15_MIMEBombs(t *testing.T) {
	f, _ := realDoor(t)
	var nested strings.Builder
	for i := range 10_000 {
		nested.WriteString("--b" + strconv.Itoa(i) + "\r\nContent-Type: multipart/mixed; boundary=b" + strconv.Itoa(i+1) + "\r\n\r\n")
	}
	for name, tc := range map[string]struct{ header, body, want string }{
		"nesting":  {"", nested.String(), "250"},
		"parts":    {"Content-Type: multipart/mixed; boundary=b\r\n", strings.Repeat("--b\r\n\r\nx\r\n", 100_000), "250"},
		"boundary": {"Content-Type: multipart/mixed;\r\n boundary=" + strings.Repeat("b", 1<<20) + "\r\n", "", "55"},
		"lines":    {strings.Repeat("X: y\r\n", 1_000_000), "", "552 5.3.4"},
		"field":    {"X: " + strings.Repeat("y\r\n ", 25_000) + "\r\n", "", ""},
	} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		began := time.Now()
		c := f.inData(t, plain)
		c.send("From: a@example.com\r\n" + tc.header + "\r\n" + tc.body + "\r\n.\r\n")
		c.expect(tc.want)
		runtime.ReadMemStats(&after)
		require.Less(t, int64(after.HeapInuse)-int64(before.HeapInuse), int64(64<<20), name)
		require.Less(t, time.Since(began), 20*time.Second, name)
		c.cmd("NOOP", "250")
	}
}

func TestA16_NothingIsTold(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.dial(t, plain)
	require.Equal(t, "220 relay.example.com ESMTP relayd\r\n", c.reply()) // no version
	c.cmd("VRFY root", "252 2.5.0")
	c.cmd("EXPN staff", "502 5.5.1")
}

// TestB3_UnknownUserAndWrongPasswordAreEqual in answer and, within what a shared machine can measure, in time.
func TestB3_UnknownUserAndWrongPasswordAreEqual(t *testing.T) {
	f := start(t, func(c *Config) { c.MaxAuthFailures, c.MaxErrors = 1000, 1000 })
	c := f.dial(t, plain)
	c.expect("220")
	c.cmd("EHLO x", "250 ")
	var took [2][]time.Duration
	answers := map[string]bool{}
	for i := range 400 {
		began := time.Now()
		answers[c.cmd("AUTH PLAIN "+plainIR([]string{"app", "who"}[i%2], "wrong"), "535")] = true
		took[i%2] = append(took[i%2], time.Since(began))
	}
	require.Len(t, answers, 1)
	median := func(d []time.Duration) float64 { slices.Sort(d); return float64(d[len(d)/2]) }
	ratio := median(took[0]) / median(took[1])
	t.Logf("median of wrong password / unknown user: %.3f", ratio)
	require.InDelta(t, 1, ratio, 0.5)
}

// TestB10_WhatClientsSendIsNoKey: neither its length nor its characters enlarge or leave what is remembered of it.
func TestB10_WhatClientsSendIsNoKey(t *testing.T) {
	t.Parallel()
	f := start(t, func(c *Config) { c.MaxErrors, c.MaxAuthFailures = 1000, 1000 })
	c := f.ready(t, plain)
	for _, local := range []string{`"' OR 1=1 --"`, `"a\" b"`, `"x\\"`, `"../../etc"`, strings.Repeat("a", 64), strings.Repeat("a", 65)} {
		c.send("MAIL FROM:<" + local + "@example.com>\r\n")
		if strings.HasPrefix(c.reply(), "250") {
			c.cmd("RSET", "250")
		}
	}
	other := f.dial(t, plain)
	other.expect("220")
	other.cmd("EHLO x", "250 ")
	for i := range 20 {
		other.cmd("AUTH PLAIN "+plainIR(strings.Repeat("u", 400*i+1)+"'\"\n", "wrong"), "5")
	}
	f.limits.mu.Lock()
	require.LessOrEqual(t, len(f.limits.guessed), 20)
	f.limits.mu.Unlock()
	require.NotContains(t, f.log.String(), "uuuu")
	_, err := mail.ParsePath(strings.Repeat("a", 65) + "@example.com")
	require.Error(t, err)
}
