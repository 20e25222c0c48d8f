package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/testutil"
)

// oldMX is a host that takes 7-bit mail only, and notes every octet that has no business on the wire.
func oldMX(t *testing.T) *testutil.MX {
	t.Helper()
	return (&testutil.MX{Extensions: []string{"PIPELINING", "SIZE 52428800"}}).Start(t)
}

// pythonRead parses a message with Python's email package and prints each leaf: its type and its decoded content in
// hexadecimal digits. Line ends of text are Python's.
const pythonRead = `import email, sys
for p in email.message_from_binary_file(sys.stdin.buffer).walk():
    if not p.is_multipart():
        print(p.get_content_type(), p.get_payload(decode=True).hex())
`

const binarySubmit = `import smtplib, sys
s = smtplib.SMTP('127.0.0.1', int(sys.argv[3])); s.ehlo('client.example')
assert 'binarymime' in s.esmtp_features and 'chunking' in s.esmtp_features
s.login(sys.argv[1], sys.argv[2])
m = sys.stdin.buffer.read()
def want(code, line):
    got = s.docmd(line)
    assert got[0] == code, (line, got)
want(250, 'MAIL FROM:<news@shop.example> BODY=BINARYMIME')
want(250, 'RCPT TO:<ann@dest.example>')
want(503, 'DATA')
for at in range(0, len(m), 1000):
    s.send(b'BDAT %d\r\n' % len(m[at:at+1000]) + m[at:at+1000])
    assert s.getreply()[0] == 250
want(250, 'BDAT 0 LAST')
s.quit()
`

// TestBinaryAndEightBitMailLeavesAs7Bit: a host without 8BITMIME gets what others can read and verify.
func TestBinaryAndEightBitMailLeavesAs7Bit(t *testing.T) {
	t.Parallel()
	needs(t, "python3", "dkimverify", "unshare")
	mx := oldMX(t)
	r := newRelay(t, options{mxPort: mx.PortNumber()})
	r.mx("dest.example")
	l := r.domain("shop.example")
	picture := "\x89PNG\r\n\x1a\n\x00\r\r\n.\r\n--c\n" + strings.Repeat("\xff\x00.", 20_000)
	text := "안녕하세요 \r\n.dot\r\n\r\nend = x"
	message := "From: news@shop.example\r\nTo: ann@dest.example\r\nSubject: binary\r\nMIME-Version: 1.0\r\n" +
		"Content-Type: multipart/mixed; boundary=\"c c\"\r\nContent-Transfer-Encoding: binary\r\n\r\n--c c\r\n" +
		"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: binary\r\n\r\n" + text + "\r\n--c c\r\n" +
		"Content-Type: image/png\r\nContent-Transfer-Encoding: binary\r\n\r\n" + picture + "\r\n--c c--"
	program(t, message, "python3", "-c", binarySubmit, l.Username, l.Password, itoa(r.plain))
	r.submit(l, "news@shop.example", []string{"ann@dest.example"}, korean)

	mails := map[string]*testutil.Mail{}
	for _, m := range mx.Wait(t, 2) {
		subject := "korean"
		if bytes.Contains(m.Data, []byte("Subject: binary")) {
			subject = "binary"
		}
		mails[subject] = m
		require.NotContains(t, m.MailArg, "BODY=")
		require.Negative(t, bytes.IndexFunc(m.Data, func(c rune) bool { return c > '~' }), "7-bit: %q", m.Data)
		require.Equal(t, 2, r.verify(m.Data))
	}
	require.Empty(t, mx.Faults())
	require.Len(t, mails, 2)
	read := strings.Split(program(t, string(mails["binary"].Data), "python3", "-c", pythonRead), "\n")
	require.Len(t, read, 3)
	require.Equal(t, fmt.Sprintf("text/plain %x", unixText(text)), read[0])
	require.Equal(t, sha256.Sum256(fmt.Appendf(nil, "image/png %x", picture)), sha256.Sum256([]byte(read[1])), "the picture is what it was")
	require.Equal(t, fmt.Sprintf("text/plain %x\n", unixText("안녕하세요\r\n.leading dot\r\n\r\ntrailing blanks  \r\n\r\n\r\n")),
		program(t, string(mails["korean"].Data), "python3", "-c", pythonRead))
	run := r.asResolver()
	for name, m := range mails {
		for i := range 2 {
			out, code := run(alone(t, m.Data, i), "dkimverify")
			require.Zero(t, code, "%s: %s", name, out)
		}
	}
}

// TestA3_WhatLeavesIsClean: by every way out, with everything that could break a line or end a message in every value,
// the next hop sees CRLF lines within their length, no NUL, and the octets that were signed, so every leading dot was
// doubled.
func TestA3_WhatLeavesIsClean(t *testing.T) {
	t.Parallel()
	mx := oldMX(t)
	r := newRelay(t, options{mxPort: mx.PortNumber()})
	r.mx("dest.example")
	l := r.domain("shop.example")
	nasty := []string{
		".", "..", ".\r\n.", "\r\n.\r\n", "\n.\n", "\r.\r", "\r\r\n.\r\n", "a\rb", "a\nb", "\n\n.\r\nMAIL FROM:<x@shop.example>\r\n", "\u2028.\u0085",
		strings.Repeat("x", 5000), strings.Repeat(".", 2000), "친구\r\n.끝",
	}
	want := 0
	for _, text := range nasty { // SMTP takes lines that are right only
		if clean := strings.NewReplacer("\r\n", "\r\n", "\r", "", "\n", "").Replace(text); len(clean) < 900 {
			r.submit(l, "news@shop.example", []string{"ann@dest.example"}, plain("news@shop.example", "ann@dest.example", "smtp")+clean+"\r\n")
			want++
		}
	}
	send := func(m api.SendMessage) {
		t.Helper()
		m.From, m.To = api.Mailbox{Email: "news@shop.example"}, api.Mailboxes{{Email: "ann@dest.example", Name: ". .. Ann"}}
		if _, err := r.client().SendMessage(t.Context(), m, ""); err == nil {
			want++
		} else {
			require.NotEmpty(t, m.Raw, "only raw messages may be refused: %v", err)
		}
	}
	for _, text := range nasty {
		send(api.SendMessage{Subject: ". api", Text: text})
		send(api.SendMessage{Subject: "api", HTML: "<p>" + text + "</p>", Text: text})
		send(api.SendMessage{Raw: []byte("From: news@shop.example\nTo: ann@dest.example\nSubject: raw\n\n" + text + "\n")})
		attachment := base64.StdEncoding.EncodeToString([]byte(strings.Repeat(text, 10)))
		send(api.SendMessage{Raw: []byte("From: news@shop.example\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n.\r\n--b\r\n" +
			"Content-Type: application/x\r\nContent-Disposition: attachment; filename=\"..\"\r\nContent-Transfer-Encoding: base64\r\n\r\n" +
			attachment[:min(len(attachment), 900)] + "\r\n--b--\r\n")})
	}
	var to []map[string]any
	for i, text := range nasty {
		to = append(to, map[string]any{"email": fmt.Sprintf("c%d@dest.example", i), "attributes": map[string]any{"Name": text, "Raw": text}})
	}
	c := short(true)
	c["recipients"] = to
	c["template"] = map[string]any{
		"subject": "campaign", "text": "{{Name}}\n.{{Name}}\n{{unsubscribe_url}}\n", "html": "<p>{{Name}}</p>\n.{{{Raw}}}<a href=\"{{unsubscribe_url}}\">Unsubscribe</a>",
	}
	id := r.campaign(c)
	wait(t, "the campaign to complete", time.Minute, func() bool { return r.progress(id).State == "completed" })
	want += r.progress(id).Counts["delivered"]
	require.Equal(t, len(nasty), r.progress(id).Counts["delivered"], "%+v", r.progress(id))
	mails := mx.Wait(t, want)
	require.Greater(t, want, 60)
	require.Empty(t, mx.Faults())
	for _, m := range mails {
		require.Equal(t, 2, r.verify(m.Data), "%q", m.Data)
	}
	require.Len(t, mx.Mails(), want, "nothing was smuggled")
}
