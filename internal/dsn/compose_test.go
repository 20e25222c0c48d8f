package dsn

import (
	"bytes"
	"encoding/base64"
	"errors"
	"flag"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	netmail "net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
)

var update = flag.Bool("update", false, "write golden files")

func notice() Notice {
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	return Notice{
		Hostname: "relay.example", To: mail.MustParsePath("kim@shop.example"), EnvelopeID: "order+2B7", QueueID: "06gzmrq9761tb5f36yr0",
		AcceptedAt: at, At: at.Add(time.Hour), Subject: "주문 확인",
		Header: []byte("From: Kim <kim@shop.example>\r\nTo: gone@dest.example\r\nSubject: =?utf-8?B?7KO866y4IO2ZleyduA==?=\r\nMessage-ID: <1@shop.example>\r\n"),
		Recipients: []Recipient{
			{
				To: mail.MustParsePath("gone@dest.example"), ORCPT: "rfc822;Gone+40dest.example", Host: "mx.dest.example[192.0.2.1]", LastAt: at,
				Reply: mail.Reply{Code: 550, Status: mail.Status{Class: 5, Subject: 1, Detail: 1}, Text: "no such user " + strings.Repeat("really ", 20)},
			},
			{To: mail.MustParsePath("late@dest.example"), Expired: true, Reply: mail.Reply{Code: 451, Status: mail.Status{Class: 4, Subject: 7, Detail: 1}, Text: "later"}},
		},
	}
}

func TestNoticeIsAsRecorded(t *testing.T) {
	t.Parallel()
	got, err := Compose(notice())
	require.NoError(t, err)
	file := filepath.Join("testdata", "failure.eml")
	if *update {
		require.NoError(t, os.WriteFile(file, got, 0o644)) //nolint:gosec // test data
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
	again, err := Compose(notice())
	require.NoError(t, err)
	require.Equal(t, got, again)
}

// parts takes a notice apart with the standard library.
func parts(t *testing.T, raw []byte) (netmail.Header, []string, []string) {
	t.Helper()
	m, err := netmail.ReadMessage(bytes.NewReader(raw))
	require.NoError(t, err)
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	require.NoError(t, err)
	require.Equal(t, "multipart/report", kind)
	require.Equal(t, "delivery-status", params["report-type"])
	var kinds, bodies []string
	r := multipart.NewReader(m.Body, params["boundary"])
	for {
		p, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return m.Header, kinds, bodies
		}
		require.NoError(t, err)
		kind, _, _ := mime.ParseMediaType(p.Header.Get("Content-Type"))
		var body io.Reader = p
		if p.Header.Get("Content-Transfer-Encoding") == "quoted-printable" {
			body = quotedprintable.NewReader(p)
		}
		b, err := io.ReadAll(body)
		require.NoError(t, err)
		kinds, bodies = append(kinds, kind), append(bodies, string(b))
	}
}

func TestNoticeIsAReport(t *testing.T) {
	t.Parallel()
	raw, err := Compose(notice())
	require.NoError(t, err)
	header, kinds, bodies := parts(t, raw)
	require.Equal(t, "auto-replied", header.Get("Auto-Submitted"))
	require.Equal(t, "<1@shop.example>", header.Get("In-Reply-To"))
	require.Equal(t, []string{"text/plain", "message/delivery-status", "text/rfc822-headers"}, kinds)
	require.Contains(t, bodies[0], "gone@dest.example")
	require.Contains(t, bodies[0], "주문 확인")
	require.Contains(t, bodies[1], "Original-Envelope-Id: order+7\r\n")
	require.Contains(t, bodies[1], "Original-Recipient: rfc822; Gone@dest.example\r\n")
	require.Contains(t, bodies[1], "Status: 5.1.1\r\n")
	require.Contains(t, bodies[1], "Status: 5.4.7\r\n")
	require.Contains(t, bodies[1], "Remote-MTA: dns; mx.dest.example\r\n")
	require.Equal(t, string(notice().Header), bodies[2])
	for line := range bytes.SplitSeq(raw, []byte("\r\n")) {
		require.LessOrEqual(t, len(line), 100)
	}
}

func TestMessageGoesBackInFull(t *testing.T) {
	t.Parallel()
	n := notice()
	n.Message = append(bytes.Clone(n.Header), "\r\nHello\r\n.\r\n--=_x\r\nlast line\r\n"...)
	raw, err := Compose(n)
	require.NoError(t, err)
	_, kinds, bodies := parts(t, raw)
	require.Equal(t, []string{"text/plain", "message/delivery-status", "message/rfc822"}, kinds)
	require.Equal(t, string(n.Message), bodies[2])
	clean(t, raw)

	for why, want := range map[Omission]string{TooLarge: "too large to be returned", EightBit: "cannot be returned", Unreadable: "could not be read"} {
		n = notice()
		n.Omitted = why
		raw, err = Compose(n)
		require.NoError(t, err)
		_, kinds, bodies = parts(t, raw)
		require.Equal(t, "text/rfc822-headers", kinds[2])
		require.Contains(t, bodies[0], want)
		clean(t, raw)
	}
}

// TestInternationalNotice holds what RFC 6533 asks for, in 7 bits.
func TestInternationalNotice(t *testing.T) {
	t.Parallel()
	n := notice()
	n.UTF8 = true
	n.Header = []byte("Subject: 안녕\r\n")
	n.Recipients = []Recipient{
		{To: mail.Path{Local: "길동+a", Domain: "dest.example"}, ORCPT: `utf-8;\x{AE38}@dest.example`, Reply: mail.Reply{Code: 550}},
		{To: mail.MustParsePath("b@dest.example"), ORCPT: "utf-8;길@dest.example", Reply: mail.Reply{Code: 550}},
	}
	raw, err := Compose(n)
	require.NoError(t, err)
	_, kinds, bodies := parts(t, raw)
	require.Equal(t, "message/global-headers", kinds[2])
	require.Equal(t, string(n.Header), bodies[2])
	require.Contains(t, bodies[1], "Final-Recipient: utf-8; \\x{AE38}\\x{B3D9}\\x{2B}a@dest.example\r\n")
	require.Equal(t, 2, strings.Count(bodies[1], "Original-Recipient: utf-8; \\x{AE38}@dest.example\r\n"))
	clean(t, raw)

	n.Message = append(bytes.Clone(n.Header), "\r\n본문 여러 줄\r\n"+strings.Repeat("긴 줄 ", 100)+"\r\n"...)
	raw, err = Compose(n)
	require.NoError(t, err)
	_, kinds, bodies = parts(t, raw)
	require.Equal(t, "message/global", kinds[2])
	back, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(bodies[2], "\r\n", ""))
	require.NoError(t, err)
	require.Equal(t, string(n.Message), string(back))
	clean(t, raw)
}

func TestNoticeNeedsSomebody(t *testing.T) {
	t.Parallel()
	n := notice()
	n.Recipients = nil
	_, err := Compose(n)
	require.Error(t, err)
	n = notice()
	n.To = mail.Path{}
	_, err = Compose(n)
	require.Error(t, err)
}

func TestEightBitHeaderIsEncoded(t *testing.T) {
	t.Parallel()
	n := notice()
	n.Header = []byte("Subject: 안녕\r\nX: \x01\xff\r\n")
	raw, err := Compose(n)
	require.NoError(t, err)
	_, _, bodies := parts(t, raw)
	require.Equal(t, string(n.Header), bodies[2])
	clean(t, raw)
}

func TestLongHeaderIsCutAtALine(t *testing.T) {
	t.Parallel()
	n := notice()
	n.Header = bytes.Repeat([]byte("X-Line: something\r\n"), 100_000)
	raw, err := Compose(n)
	require.NoError(t, err)
	require.Less(t, len(raw), 70_000)
	_, _, bodies := parts(t, raw)
	require.True(t, strings.HasSuffix(bodies[2], "something\r\n"))
}

// clean requires what every host can take: 7 bits, CRLF, no NUL.
func clean(t *testing.T, raw []byte) {
	t.Helper()
	require.Equal(t, bytes.Count(raw, []byte("\r\n")), bytes.Count(raw, []byte("\n")))
	require.Equal(t, bytes.Count(raw, []byte("\r\n")), bytes.Count(raw, []byte("\r")))
	for _, c := range raw {
		require.True(t, c < 0x80 && c != 0)
	}
	for line := range bytes.SplitSeq(raw, []byte("\r\n")) {
		require.LessOrEqual(t, len(line), 998)
	}
}

func FuzzCompose(f *testing.F) {
	f.Add("subject", "X: y\r\n", "rfc822;a+40b", "env+0D+0Aid", "text", "host[1]")
	f.Fuzz(func(t *testing.T, subject, header, orcpt, envid, text, host string) {
		n := notice()
		n.Subject, n.Header, n.EnvelopeID = subject, []byte(strings.ReplaceAll(header, "\x00", "")), envid
		n.Recipients[0].ORCPT, n.Recipients[0].Host, n.Recipients[0].Reply.Text = orcpt, host, mail.ReplyText(text)
		raw, err := Compose(n)
		require.NoError(t, err)
		clean(t, raw)
		_, kinds, bodies := parts(t, raw)
		require.Len(t, kinds, 3)
		for line := range strings.SplitSeq(bodies[1], "\r\n") {
			if line == "" || line[0] == ' ' {
				continue
			}
			name, _, ok := strings.Cut(line, ": ")
			require.True(t, ok, line)
			require.Contains(t, []string{
				"Original-Envelope-Id", "Reporting-MTA", "X-Relay-Queue-ID", "Arrival-Date", "Original-Recipient", "Final-Recipient", "Action",
				"Status", "Remote-MTA", "Diagnostic-Code", "Last-Attempt-Date",
			}, name)
		}
	})
}

// TestRemoteOfAnAddressLiteralIsNamed: mail to user@[192.0.2.1] has no host name to tell.
func TestRemoteOfAnAddressLiteralIsNamed(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"[192.0.2.1][192.0.2.1]": "[192.0.2.1]", "[192.0.2.1]": "[192.0.2.1]", "[IPv6:2001:db8::1][2001:db8::1]": "[IPv6:2001:db8::1]",
		"mx.dest.example[192.0.2.1]": "mx.dest.example", "mx.dest.example": "mx.dest.example",
	} {
		n := notice()
		n.Recipients[0].Host = host
		raw, err := Compose(n)
		require.NoError(t, err)
		_, _, bodies := parts(t, raw)
		require.Contains(t, bodies[1], "Remote-MTA: dns; "+want+"\r\n", host)
	}
}
