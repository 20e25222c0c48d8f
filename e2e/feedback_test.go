package e2e

import (
	"bytes"
	"net/mail"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// bounceTo is a delivery status notification to a return path.
func bounceTo(path, fields string) string {
	return "From: MAILER-DAEMON@mx.dest.example\r\nTo: " + path + "\r\nSubject: Undelivered Mail\r\nMIME-Version: 1.0\r\n" +
		"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n" +
		"Reporting-MTA: dns; mx.dest.example\r\n\r\n" + fields + "\r\n--b--\r\n"
}

// TestBouncesAndComplaintsSuppressWhomWeWroteTo hands in what comes back after a campaign.
func TestBouncesAndComplaintsSuppressWhomWeWroteTo(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r, port := newInbound(t, s)
	r.domain("shop.example")
	id := r.campaign(short(true, "ann@dest.example", "bob@dest.example", "cid@dest.example"))
	wait(t, "the campaign to complete", 20*time.Second, func() bool { return r.progress(id).State == "completed" })
	sent := map[string]delivery{}
	for _, d := range s.all() {
		sent[d.To] = d
	}
	suppressed := func(address string) string {
		out, _, _ := r.ctl("suppression", "check", address)
		return out
	}
	ann, cid := sent["ann@dest.example"], sent["cid@dest.example"]

	// E8: what is not about the mailbox for good suppresses nobody.
	for _, fields := range []string{
		"Final-Recipient: rfc822; ann@dest.example\r\nAction: failed\r\nStatus: 5.2.2\r\nDiagnostic-Code: smtp; 552 5.2.2 mailbox full\r\n",
		"Final-Recipient: rfc822; ann@dest.example\r\nAction: failed\r\nStatus: 5.7.1\r\nDiagnostic-Code: smtp; 550 5.7.1 looks like spam\r\n",
		"Final-Recipient: rfc822; ann@dest.example\r\nAction: delayed\r\nStatus: 5.1.1\r\n",
	} {
		require.NoError(t, hand(t, port, "", ann.From, bounceTo(ann.From, fields)))
	}
	require.NoError(t, hand(t, port, "", ann.From, "From: ann@dest.example\r\nSubject: Out of office\r\n\r\nuser unknown\r\n"))
	// Nor what people write about a bounce: it comes with a reverse-path.
	require.NoError(t, hand(t, port, "ann@dest.example", ann.From, "From: ann@dest.example\r\nReturn-Path: <>\r\nSubject: Undeliverable\r\n\r\n"+
		"Your message could not be delivered.\r\n\r\nann@dest.example\r\n550 5.1.1 user unknown\r\n"))
	require.NotContains(t, suppressed("ann@dest.example"), "hard_bounce")

	// E3, E6: a hard bounce, three times and in other line ends, is one event and suppresses the one that we wrote to.
	hard := "Final-Recipient: rfc822; ann@dest.example\r\nAction: failed\r\nStatus: 5.1.1\r\nDiagnostic-Code: smtp; 550 5.1.1 user unknown\r\n\r\n" +
		"Final-Recipient: rfc822; victim@dest.example\r\nAction: failed\r\nStatus: 5.1.1\r\n"
	before := len(r.events("inbound.bounce"))
	for range 3 {
		require.NoError(t, hand(t, port, "", ann.From, bounceTo(ann.From, hard)))
	}
	events := r.events("inbound.bounce")
	require.Len(t, events, before+1)
	require.Contains(t, suppressed("ann@dest.example"), "hard_bounce")
	require.NotContains(t, suppressed("victim@dest.example"), "hard_bounce")
	require.NotContains(t, suppressed("bob@dest.example"), "hard_bounce")
	var ev struct {
		Reason, Campaign string
		Data             map[string]any
	}
	for _, e := range events {
		if e.Reason == "mailbox_unknown" {
			ev.Reason, ev.Campaign, ev.Data = e.Reason, e.Campaign, e.Data
		}
	}
	require.Equal(t, id, ev.Campaign)
	require.Equal(t, "ann@dest.example", ev.Data["recipient"])
	require.Equal(t, true, ev.Data["hard"])

	// E2: a return path that was altered is refused, whatever the report says.
	wrong := "b." + strings.Repeat("a", 53) + "@bounces.relay.example"
	require.ErrorContains(t, hand(t, port, "", wrong, bounceTo(wrong, strings.ReplaceAll(hard, "ann@", "bob@"))), "550")
	require.NotContains(t, suppressed("bob@dest.example"), "hard_bounce")

	// E5: a complaint with the address taken out finds the recipient by the token of its mail.
	m, err := mail.ReadMessage(bytes.NewReader(cid.Data))
	require.NoError(t, err)
	arf := func(kind string) string {
		return "From: fbl@dest.example\r\nSubject: complaint\r\nContent-Type: multipart/report; report-type=feedback-report; boundary=b\r\n\r\n" +
			"--b\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: " + kind + "\r\nUser-Agent: Provider/1\r\nVersion: 1\r\n\r\n" +
			"--b\r\nContent-Type: message/rfc822\r\n\r\nTo: redacted@dest.example\r\nList-Unsubscribe: " + m.Header.Get("List-Unsubscribe") + "\r\n\r\nx\r\n--b--\r\n"
	}
	require.NoError(t, hand(t, port, "fbl@dest.example", "fbl@bounces.relay.example", arf("auth-failure")))
	require.NotContains(t, suppressed("cid@dest.example"), "complaint")
	require.NoError(t, hand(t, port, "fbl@dest.example", "fbl@bounces.relay.example", arf("abuse")))
	require.Contains(t, suppressed("cid@dest.example"), "complaint")
	require.NotContains(t, suppressed("redacted@dest.example"), "complaint")
	require.NotContains(t, suppressed("bob@dest.example"), "complaint")
}
