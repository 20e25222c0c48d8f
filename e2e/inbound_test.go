package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/mail"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

// newInbound is a relay with an inbound listener and an operator.
func newInbound(t *testing.T, s *sink) (r *relay, port int) {
	t.Helper()
	port = freePort(t)
	r = newRelay(t, options{mxPort: s.port, extra: fmt.Sprintf(
		"[[smtp.listener]]\nkind = \"inbound\"\naddress = \"127.0.0.1:%d\"\ntls = \"starttls\"\n"+
			"[smtp]\nreturn_path_host = \"bounces.relay.example\"\noperator_address = \"ops@dest.example\"\n", port)})
	r.mx("dest.example")
	return r, port
}

// events returns the events of one type, oldest first.
func (r *relay) events(kind string) []api.Event {
	r.t.Helper()
	page, err := r.client().Events(r.t.Context(), api.EventFilter{Type: kind}, api.List{Limit: 100})
	require.NoError(r.t, err)
	return page.Data
}

// hand gives one message to the inbound listener.
func hand(t *testing.T, port int, from, to, message string) error {
	t.Helper()
	c, err := smtp.Dial("127.0.0.1:" + itoa(port))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.Hello("mx.dest.example"))
	return c.SendMail(from, []string{to}, strings.NewReader(message))
}

var mailto = regexp.MustCompile(`<mailto:([^?>]+)\?subject=([a-z2-7]+)>`)

func TestInboundMail(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r, port := newInbound(t, s)
	r.domain("shop.example")
	id := r.campaign(short(true, "ann@dest.example", "bob@dest.example"))
	wait(t, "the campaign to complete", 20*time.Second, func() bool { return r.progress(id).State == "completed" })
	paths := map[string]string{}
	for _, d := range s.all() {
		paths[d.To] = d.From
	}
	path := paths["ann@dest.example"]
	require.Regexp(t, `^b\.[a-z2-7]{53}@bounces\.relay\.example$`, path)
	require.NotEqual(t, path, paths["bob@dest.example"], "each envelope has its own return path")

	// A bounce comes back.
	bounce := "From: MAILER-DAEMON@mx.dest.example\r\nTo: " + path + "\r\nSubject: Undelivered\r\n\r\nNo such user\r\n"
	require.NoError(t, hand(t, port, "", path, bounce))
	got := r.events("inbound.bounce")
	require.Len(t, got, 1)
	require.Equal(t, id, got[0].Campaign)
	require.NotEmpty(t, got[0].Envelope)
	require.Equal(t, "default", got[0].Account)

	// What we did not issue is refused at RCPT.
	for _, to := range []string{"x" + path, strings.Replace(path, "b.a", "b.c", 1), "ceo@shop.example", "victim@dest.example"} {
		if to != path {
			require.ErrorContains(t, hand(t, port, "", to, bounce), "550", to)
		}
	}

	// The mailto of List-Unsubscribe works, a wrong token is refused before 250.
	m, err := mail.ReadMessage(bytes.NewReader(s.all()[0].Data))
	require.NoError(t, err)
	found := mailto.FindStringSubmatch(m.Header.Get("List-Unsubscribe"))
	require.Len(t, found, 3, m.Header.Get("List-Unsubscribe"))
	require.Equal(t, "unsubscribe@bounces.relay.example", found[1])
	wrong := "From: a@dest.example\r\nSubject: " + found[2][1:] + "\r\n\r\n"
	require.ErrorContains(t, hand(t, port, "a@dest.example", found[1], wrong), "550")
	ask := "From: somebody@else.example\r\nSubject: " + found[2] + "\r\n\r\n"
	require.NoError(t, hand(t, port, "a@dest.example", found[1], ask))
	require.NoError(t, hand(t, port, "a@dest.example", found[1], ask), "twice is once")
	require.Len(t, r.events("contact.unsubscribed"), 1)
	require.Equal(t, s.all()[0].To, r.events("contact.unsubscribed")[0].To)
	require.Len(t, r.events("inbound.unsubscribe"), 2)

	require.NoError(t, hand(t, port, "fbl@dest.example", "fbl@bounces.relay.example", "From: fbl@dest.example\r\n\r\nx\r\n"))
	require.Len(t, r.events("inbound.complaint"), 1)

	// Mail for the postmaster reaches the operator.
	before := s.count()
	require.NoError(t, hand(t, port, "a@dest.example", "postmaster@relay.example", "From: a@dest.example\r\nSubject: help\r\n\r\nYou send spam\r\n"))
	wait(t, "the operator's mail", 10*time.Second, func() bool { return s.count() == before+1 })
	last := s.all()[before]
	require.Equal(t, "ops@dest.example", last.To)
	require.Empty(t, last.From, "the null reverse-path: it cannot loop")
	require.Contains(t, string(last.Data), "You send spam")
	require.Contains(t, string(last.Data), "Subject: Mail for postmaster@relay.example: help")
	require.Contains(t, string(last.Data), "Authentication-Results: relay.example;")
	wait(t, "the log", 5*time.Second, func() bool { return r.logged("message.unsigned") })
	require.Equal(t, 1, strings.Count(r.logText(), `"message.unsigned"`), "no key of relay.example: said in the log")
}

// TestInboundLoad has the Postfix project's load generator hand in complaints, several to a connection, in plain text and
// under TLS. It has no TLS of its own: OpenSSL's client carries it. Nor has it AUTH, so that submission refuses it.
func TestInboundLoad(t *testing.T) {
	t.Parallel()
	needs(t, "smtp-source", "openssl")
	s := newSink(t, "", nil)
	clear, secure := freePort(t), freePort(t)
	r := newRelay(t, options{mxPort: s.port, extra: fmt.Sprintf(
		"[[smtp.listener]]\nkind = \"inbound\"\naddress = \"127.0.0.1:%d\"\ntls = \"starttls\"\n"+
			"[[smtp.listener]]\nkind = \"inbound\"\naddress = \"127.0.0.1:%d\"\ntls = \"implicit\"\n"+
			"[smtp]\nreturn_path_host = \"bounces.relay.example\"\n", clear, secure)})
	source := func(port int, to string, args ...string) error {
		args = append(args, "-f", "m@dest.example", "-t", to, "-M", "mx.dest.example", "127.0.0.1:"+itoa(port))
		out, err := exec.CommandContext(t.Context(), "smtp-source", args...).CombinedOutput()
		t.Logf("smtp-source: %s", out)
		return err
	}
	counted := 0
	for _, w := range []struct {
		port, sessions, messages int
	}{{clear, 5, 60}, {r.tunnel(clear, "-starttls", "smtp", "-name", "mx.dest.example"), 3, 12}, {r.tunnel(secure), 3, 12}} {
		require.NoError(t, source(w.port, "fbl@bounces.relay.example", "-s", itoa(w.sessions), "-m", itoa(w.messages), "-l", "20000"))
		counted += w.messages
		require.Len(t, r.events("inbound.complaint"), counted)
		require.Error(t, source(w.port, "victim@dest.example", "-m", "1"))
	}
	require.Error(t, source(r.plain, "ann@dest.example", "-m", "1"), "AUTH is required")
	require.Zero(t, s.count())
	require.Zero(t, r.stats().Queued)
}

// tunnel returns a port whose connections reach the relay's port by way of OpenSSL, which speaks for them until TLS begins.
func (r *relay) tunnel(port int, args ...string) int {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(r.t, err)
	args = append([]string{"s_client", "-quiet", "-CAfile", r.ca, "-verify_return_error", "-connect", "127.0.0.1:" + itoa(port)}, args...)
	var carrying sync.WaitGroup
	carrying.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			carrying.Go(func() {
				defer conn.Close()
				if slices.Contains(args, "-starttls") { // OpenSSL has read the banner
					_, _ = io.WriteString(conn, "220 relay.example ESMTP\r\n")
				}
				ctx, hangUp := context.WithCancel(r.t.Context())
				defer hangUp()
				cmd := exec.CommandContext(ctx, "openssl", args...)
				in, err := cmd.StdinPipe()
				if err != nil {
					return
				}
				carrying.Go(func() {
					_, _ = io.Copy(in, conn)
					hangUp()
				})
				cmd.Stdout = conn
				_ = cmd.Run()
			})
		}
	})
	r.t.Cleanup(func() {
		_ = l.Close()
		carrying.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// TestB1Nmap asks the scanner that attackers use.
func TestB1Nmap(t *testing.T) {
	t.Parallel()
	needs(t, "nmap")
	s := newSink(t, "", nil)
	r, port := newInbound(t, s)
	out, err := exec.CommandContext(t.Context(), "nmap", "-Pn", "-n", "-sT", "--min-rtt-timeout", "5s", "-p", fmt.Sprintf("%d,%d,%d", port, r.submission, r.plain),
		"--script", "+smtp-open-relay", "--script-args", "smtp-open-relay.to=victim@dest.example,smtp-open-relay.from=x@dest.example",
		"127.0.0.1").CombinedOutput()
	require.NoError(t, err, string(out))
	t.Logf("%s", out)
	require.Equal(t, 3, strings.Count(string(out), "smtp-open-relay:"), "%s", out)
	require.NotContains(t, string(out), "Server is an open relay", "%s", out)
	require.Zero(t, s.count())
	var stats struct{ Queued int }
	r.json(&stats, "queue", "stats")
	require.Zero(t, stats.Queued)
}

// TestB7QuotasOverSMTPAndHTTP: one account, one quota, both doors, over a restart.
func TestB7QuotasOverSMTPAndHTTP(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port, extra: "[quota]\naccount_recipients_per_day = 4\n"})
	r.mx("dest.example")
	l := r.domain("shop.example")
	r.submit(l, "news@shop.example", []string{"ann@dest.example", "bob@dest.example"}, plain("news@shop.example", "ann@dest.example", "1"))
	send := func() error {
		_, err := r.client().SendMessage(t.Context(), api.SendMessage{
			From: api.Mailbox{Email: "news@shop.example"}, To: []api.Mailbox{{Email: "ann@dest.example"}}, Subject: "x", Text: "x",
		}, "")
		return err
	}
	require.NoError(t, send())
	r.kill()
	r.start()
	require.NoError(t, send())
	require.ErrorContains(t, send(), "quota_exceeded")
	err := r.dial(l).SendMail("news@shop.example", []string{"ann@dest.example"}, strings.NewReader(plain("news@shop.example", "ann@dest.example", "2")))
	require.ErrorContains(t, err, "452: Quota of this account", "temporary: the client tries again")
}

func TestControlFields(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port})
	r.mx("dest.example")
	l := r.domain("shop.example")
	msg := "From: news@shop.example\r\nSubject: once\r\nX-Relay-Idempotency-Key: order-17\r\nX-Relay-Tags: order\r\nX-Relay-Send-At: " +
		time.Now().Add(2*time.Second).UTC().Format(time.RFC3339) + "\r\n\r\nHello\r\n"
	for range 2 {
		r.submit(l, "news@shop.example", []string{"ann@dest.example"}, msg)
	}
	r.kill()
	r.start()
	r.submit(l, "news@shop.example", []string{"ann@dest.example"}, msg)
	require.Len(t, r.events("message.accepted"), 1, "three submissions, one message")
	wait(t, "the message", 20*time.Second, func() bool { return s.count() >= 1 })
	require.NotContains(t, strings.ToLower(string(s.all()[0].Data)), "x-relay")
	require.Len(t, s.all(), 1)
	err := r.dial(l).SendMail("news@shop.example", []string{"ann@dest.example"}, strings.NewReader(strings.Replace(msg, "Hello", "Other", 1)))
	require.ErrorContains(t, err, "554")
}
