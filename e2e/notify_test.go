package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
)

// notice is a delivery status notification as Python's email package reads it.
type notice struct {
	Type, Report      string
	From, To, Subject string
	Auto              string
	Parts             []string
	Message           map[string]string // the fields about the message
	Recipients        []map[string]string
	Text              string // of the first part
	Returned          string // the third part
	Defects           int
}

const pythonNotice = `import email, email.policy, json, sys
m = email.message_from_binary_file(sys.stdin.buffer, policy=email.policy.default)
parts = list(m.iter_parts())
fields = [{k.lower(): str(v) for k, v in b.items()} for b in parts[1].get_payload()]
third = parts[2]
if third.get_content_type() == 'message/rfc822':
    returned = third.get_payload(0).as_bytes(policy=email.policy.SMTP.clone(refold_source='none')).decode('ascii')
else:
    returned = third.get_payload(decode=True).decode('ascii')
json.dump({
    'type': m.get_content_type(), 'report': m['content-type'].params['report-type'], 'from': str(m['from']), 'to': str(m['to']),
    'subject': str(m['subject']), 'auto': str(m['auto-submitted']), 'parts': [p.get_content_type() for p in parts],
    'message': fields[0], 'recipients': fields[1:], 'text': parts[0].get_content(), 'returned': returned,
    'defects': len(m.defects) + sum(len(p.defects) for p in m.walk()),
}, sys.stdout)
`

// notices reads those that an MX got and returns them by the recipient that they are about; each is about one.
func notices(t *testing.T, mx *testutil.MX) map[string]notice {
	t.Helper()
	found := map[string]notice{}
	for _, m := range mx.Mails() {
		if m.From != "" {
			continue
		}
		var n notice
		require.NoError(t, json.Unmarshal([]byte(program(t, string(m.Data), "python3", "-c", pythonNotice)), &n))
		require.Equal(t, "multipart/report", n.Type)
		require.Equal(t, "delivery-status", n.Report)
		require.Equal(t, "auto-replied", n.Auto)
		require.Contains(t, n.From, "<MAILER-DAEMON@relay.example>")
		require.Equal(t, []string{n.To}, m.To, "to the reverse-path")
		require.Equal(t, []string{"text/plain", "message/delivery-status"}, n.Parts[:2])
		require.Len(t, n.Parts, 3)
		require.Zero(t, n.Defects)
		require.Len(t, n.Recipients, 1)
		require.Equal(t, "dns; relay.example", n.Message["reporting-mta"])
		require.NotEmpty(t, n.Message["arrival-date"])
		_, to, _ := strings.Cut(n.Recipients[0]["final-recipient"], "; ")
		require.NotContains(t, found, to, "one notice for a recipient")
		found[to] = n
	}
	return found
}

// asking is a message with what its sender wants to hear of it.
type asking struct {
	from, to string
	mail     smtp.MailOptions
	rcpt     smtp.RcptOptions
	header   string
	body     string
}

func (r *relay) post(l login, m asking) {
	r.t.Helper()
	c := r.dial(l)
	defer c.Close()
	require.NoError(r.t, c.Mail(m.from, &m.mail))
	require.NoError(r.t, c.Rcpt(m.to, &m.rcpt))
	w, err := c.Data()
	require.NoError(r.t, err)
	_, err = io.WriteString(w, "From: "+m.from+"\r\nTo: "+m.to+"\r\nSubject: about "+m.to+"\r\n"+m.header+"\r\n"+m.body)
	require.NoError(r.t, err)
	require.NoError(r.t, w.Close())
}

// refusing takes mail but for recipients that begin with "gone".
func refusing(s testutil.Step) testutil.Act {
	if s.Verb == "RCPT" && strings.HasPrefix(s.To, "gone") {
		return testutil.Act{Reply: "550 5.1.1 <" + s.To + "> no such user here"}
	}
	return testutil.Act{}
}

func (r *relay) metrics() string {
	r.t.Helper()
	res, err := http.Get("http://127.0.0.1:" + itoa(r.http) + "/metrics")
	require.NoError(r.t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(r.t, err)
	return string(text)
}

// TestNotices asks for notices as RFC 3461 lets a client, and reads them with another program.
func TestNotices(t *testing.T) {
	t.Parallel()
	needs(t, "python3")
	mx := (&testutil.MX{Rule: refusing}).Start(t)
	old := (&testutil.MX{IP: "127.0.0.2", Port: mx.PortNumber(), Extensions: []string{"PIPELINING"}}).Start(t)
	r := newRelay(t, options{mxPort: mx.PortNumber()})
	r.mx("dest.example", "shop.example")
	require.NoError(t, r.dns.Add("old.example. 60 IN MX 10 mx.old.example."))
	require.NoError(t, r.dns.Add("mx.old.example. 60 IN A 127.0.0.2"))
	l := r.domain("shop.example")

	line := strings.Repeat("x", 70) + "\r\n"
	body := ".begins with a dot\r\n" + strings.Repeat(line, 300) + "From the last line\r\n"
	failure, never, success := []smtp.DSNNotify{smtp.DSNNotifyFailure}, []smtp.DSNNotify{smtp.DSNNotifyNever}, []smtp.DSNNotify{smtp.DSNNotifySuccess}
	full := smtp.MailOptions{Return: smtp.DSNReturnFull, EnvelopeID: "QQ=314+159"}
	sent := 0
	send := func(m asking) {
		m.from, sent = "news@shop.example", sent+1
		if m.body == "" {
			m.body = body
		}
		r.post(l, m)
	}
	send(asking{to: "gone.full@dest.example", mail: full, rcpt: smtp.RcptOptions{
		Notify: failure, OriginalRecipientType: smtp.DSNAddressTypeRFC822, OriginalRecipient: "old+gone=full@dest.example",
	}})
	send(asking{to: "gone.hdrs@dest.example", mail: smtp.MailOptions{Return: smtp.DSNReturnHeaders}, rcpt: smtp.RcptOptions{Notify: failure}})
	send(asking{to: "gone.large@dest.example", mail: full, rcpt: smtp.RcptOptions{Notify: failure}, body: strings.Repeat(line, 5000)})
	send(asking{to: "gone.default@dest.example"})
	send(asking{to: "gone.never@dest.example", rcpt: smtp.RcptOptions{Notify: never}})
	send(asking{to: "gone.success@dest.example", rcpt: smtp.RcptOptions{Notify: success}})
	send(asking{to: "gone.automatic@dest.example", rcpt: smtp.RcptOptions{Notify: failure}, header: "Auto-Submitted: auto-generated\r\n"})
	send(asking{to: "gone.listed@dest.example", rcpt: smtp.RcptOptions{Notify: failure}, header: "Precedence: list\r\n"})
	send(asking{to: "taken@old.example", mail: full, rcpt: smtp.RcptOptions{
		Notify: success, OriginalRecipientType: smtp.DSNAddressTypeRFC822, OriginalRecipient: "first@dest.example",
	}})
	send(asking{to: "silent@old.example", rcpt: smtp.RcptOptions{Notify: failure}})
	send(asking{to: "taken@dest.example", mail: full, rcpt: smtp.RcptOptions{
		Notify: []smtp.DSNNotify{smtp.DSNNotifySuccess, smtp.DSNNotifyDelayed}, OriginalRecipientType: smtp.DSNAddressTypeRFC822,
		OriginalRecipient: "first@dest.example",
	}})
	out := r.settled(time.Minute).Outcomes
	require.Equal(t, 8, out["bounced"])
	require.Equal(t, 3+5, out["delivered"], "letters and notices")

	got := notices(t, mx)
	require.Len(t, got, 5)
	for to, n := range got {
		require.Equal(t, "news@shop.example", n.To, to)
		require.NotEmpty(t, n.Message["x-relay-queue-id"])
		require.Contains(t, n.Returned, "Subject: about "+to)
		if strings.HasPrefix(to, "gone") {
			require.Equal(t, "failed", n.Recipients[0]["action"])
			require.Equal(t, "5.1.1", n.Recipients[0]["status"])
			require.Equal(t, "smtp; 550 5.1.1 <"+to+"> no such user here", n.Recipients[0]["diagnostic-code"])
			require.Equal(t, "dns; mx.dest.example", n.Recipients[0]["remote-mta"])
			require.Contains(t, n.Text, "no such user here")
		}
	}
	// RET=FULL: the message as it was sent, to the last octet, and still signed.
	n := got["gone.full@dest.example"]
	require.Equal(t, "message/rfc822", n.Parts[2])
	_, back, _ := strings.Cut(n.Returned, "\r\n\r\n")
	require.Equal(t, body, back)
	require.Equal(t, 2, r.verify([]byte(n.Returned)))
	require.Equal(t, "QQ=314+159", n.Message["original-envelope-id"])
	require.Equal(t, "RFC822; old+gone=full@dest.example", strings.Replace(n.Recipients[0]["original-recipient"], "rfc822", "RFC822", 1))
	// RET=HDRS, no RET, and what is too large: the header alone.
	for _, to := range []string{"gone.hdrs@dest.example", "gone.default@dest.example", "gone.large@dest.example"} {
		n := got[to]
		require.Equal(t, "text/rfc822-headers", n.Parts[2], to)
		require.NotContains(t, n.Returned, line[:70], to)
		require.Less(t, len(n.Returned), 4000, to)
		require.Equal(t, strings.Contains(to, "large"), strings.Contains(n.Text, "too large to be returned"), to)
		require.Equal(t, strings.Contains(to, "large"), n.Message["original-envelope-id"] != "", to)
		require.Empty(t, n.Recipients[0]["original-recipient"], to)
	}
	// NOTIFY=SUCCESS at a host that does not tell: we do, with the header.
	n = got["taken@old.example"]
	require.Equal(t, "relayed", n.Recipients[0]["action"])
	require.Equal(t, "2.0.0", n.Recipients[0]["status"])
	require.Equal(t, "text/rfc822-headers", n.Parts[2])
	require.Equal(t, "QQ=314+159", n.Message["original-envelope-id"])
	require.Contains(t, n.Recipients[0]["original-recipient"], "first@dest.example")
	for _, m := range old.Mails() {
		require.NotContains(t, m.MailArg+strings.Join(m.RcptArg, ""), "=", "nothing that it does not offer")
	}
	// At a host that tells itself it is asked for: RFC 3461 section 5.2.1.
	for _, m := range mx.Mails() {
		switch {
		case m.From == "":
			require.NotContains(t, m.MailArg, "RET=")
			require.Contains(t, m.RcptArg[0], "NOTIFY=NEVER")
		case m.To[0] == "taken@dest.example":
			require.Contains(t, m.MailArg, "RET=FULL")
			require.Contains(t, m.MailArg, "ENVID=QQ+3D314+2B159")
			require.Contains(t, m.RcptArg[0], "NOTIFY=SUCCESS,DELAY")
			require.Contains(t, strings.ToLower(m.RcptArg[0]), "orcpt=rfc822;first@dest.example")
		}
	}
	require.Empty(t, mx.Faults())

	t.Run("null_reverse_path", func(t *testing.T) {
		c := r.dial(l)
		defer c.Close()
		require.ErrorContains(t, c.Mail("", nil), "553", "nobody could be told")
	})
	t.Run("double_bounce", func(t *testing.T) {
		before := len(mx.Mails())
		r.post(l, asking{from: "gone.sender@shop.example", to: "gone.double@dest.example", body: body})
		wait(t, "both bounces", 20*time.Second, func() bool { return r.stats().Outcomes["bounced"] == 8+2 })
		require.Zero(t, r.settled(10*time.Second).Queued)
		require.Len(t, mx.Mails(), before)
		for what, n := range map[string]int{"double_bounce": 1, "sent": 5, "relayed": 1, "not_wanted": 4, "failed": 0} {
			require.Contains(t, r.metrics(), fmt.Sprintf("relayd_delivery_notices_total{result=%q} %d\n", what, n))
		}
		r.record("notice.dropped")
	})
}

// TestNoticeOfDelay waits the minute that delay_notice is at least.
func TestNoticeOfDelay(t *testing.T) {
	t.Parallel()
	needs(t, "python3")
	if os.Getenv("RELAYD_E2E") != "full" {
		t.Skip("takes more than a minute; RELAYD_E2E=full runs it")
	}
	open := make(chan struct{})
	mx := (&testutil.MX{Rule: func(s testutil.Step) testutil.Act {
		select {
		case <-open:
		default:
			if s.Verb == "RCPT" && strings.HasPrefix(s.To, "late") {
				return testutil.Act{Reply: "451 4.3.0 not now"}
			}
		}
		return testutil.Act{}
	}}).Start(t)
	r := newRelay(t, options{
		mxPort: mx.PortNumber(), deliv: "delay_notice = \"1m\"",
		retry: "attempts = 1000\nfirst_delay = \"2s\"\nmultiplier = 1.0\nmax_age = \"1h\"",
	})
	r.mx("dest.example", "shop.example")
	l := r.domain("shop.example")
	for to, notify := range map[string][]smtp.DSNNotify{
		"late.asked@dest.example": {smtp.DSNNotifyDelayed}, "late.default@dest.example": nil,
		"late.never@dest.example": {smtp.DSNNotifyNever}, "late.failure@dest.example": {smtp.DSNNotifyFailure},
	} {
		r.post(l, asking{
			from: "news@shop.example", to: to, body: "x\r\n", mail: smtp.MailOptions{Return: smtp.DSNReturnFull, EnvelopeID: "late"},
			rcpt: smtp.RcptOptions{Notify: notify},
		})
	}
	tries := func() int {
		n := 0
		for _, c := range mx.Commands() {
			if strings.HasPrefix(c, "RCPT TO:<late.") {
				n++
			}
		}
		return n
	}
	wait(t, "notices", 3*time.Minute, func() bool { return len(mx.Mails()) == 2 })
	before := tries()
	wait(t, "further attempts", time.Minute, func() bool { return tries() > before+16 })
	got := notices(t, mx)
	require.Len(t, got, 2, "once for each")
	for _, to := range []string{"late.asked@dest.example", "late.default@dest.example"} {
		n := got[to]
		require.Equal(t, "delayed", n.Recipients[0]["action"])
		require.Equal(t, "4.3.0", n.Recipients[0]["status"])
		require.NotEmpty(t, n.Recipients[0]["will-retry-until"])
		require.Equal(t, "late", n.Message["original-envelope-id"])
		require.Equal(t, "text/rfc822-headers", n.Parts[2], "a delay returns no content")
	}
	close(open)
	require.Equal(t, 4+2, r.settled(time.Minute).Outcomes["delivered"])
	require.Len(t, mx.Mails(), 4+2, "nothing more is told")
	require.Contains(t, r.metrics(), "relayd_delivery_notices_total{result=\"delayed\"} 2\n")
}
