package intake

import (
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFieldsThatDoNotLeave, in every case and folding: hidden recipients, the reverse-path, control fields, signatures in
// our name, and Date and Message-ID that are empty. All else stays as it is.
func TestFieldsThatDoNotLeave(t *testing.T) {
	t.Parallel()
	f := open(t)
	for _, field := range []string{
		"Bcc: hidden@example.net", "bcc:hidden@example.net", "BCC:\r\n hidden@example.net", "bCc: a@example.net,\r\n\thidden@example.net,\r\n b@example.net", "Bcc:",
		"Bcc: \"hidden\" <x@example.net>\r\nbcc: y@example.net", "Resent-Bcc: hidden@example.net", "RESENT-BCC:\r\n\thidden@example.net", "Return-Path: <hidden@example.net>",
		"RETURN-PATH:\r\n <hidden@example.net>", "X-Relay-Hidden: hidden", "x-relay-hidden:\r\n hidden", "X-RELAY-: hidden",
		"x-rElAy-StReAm:\r\n hidden", "X-Relay-Tags: x,\r\n\thidden", "X-Relay-TTL:\r\n 60", "x-relay-idempotency-key:\r\n\thidden-NUMBER", "x-relay-send-at:\r\n 0",
		"DKIM-Signature: v=1; d=example.com; s=hidden; b=AAAA", "dkim-signature: v=1; s=hidden; b=AA\r\n AA; d =\r\n\tEXAMPLE.com", "DKIM-SIGNATURE: v=1; d=example.com.; s=hidden",
		"DKIM-Signature: v=1; s=hidden; b=AAAA", "DKIM-Signature: d=hidden..example; s=x", "DKIM-Signature: v=1; d=unsigned.example; s=hidden",
	} {
		for i, message := range []string{field + "\r\n" + head, head + field + "\r\n", strings.Replace(head, "To:", field+"\r\nTo:", 1)} {
			message = strings.Replace(message, "NUMBER", strconv.Itoa(i), 1)
			id, err := f.Accept(t.Context(), submission(message+"\r\nHello\r\n"))
			require.NoError(t, err, field)
			_, text := f.stored(t, id)
			lower := strings.ToLower(text)
			for _, gone := range []string{"hidden", "\r\nbcc", "resent-bcc", "return-path", "x-relay"} {
				require.NotContains(t, lower, gone, field)
			}
			require.Contains(t, text, "\r\nFrom: a@example.com\r\n")
			require.Contains(t, text, "\r\nTo: b@example.net\r\n")
			require.Contains(t, text, "\r\nSubject: x\r\n")
			require.Equal(t, 2, strings.Count(text, "DKIM-Signature:"))
		}
	}
	for _, field := range []string{
		"Resent-From: c@example.org", "Resent-To: d@example.org", "Resent-Date: Thu, 19 Nov 2026 12:00:00 +0000", "X-Relayed-By: x", "X-Bcc: x", "Bcc-Note: x", "TLS-Required: No",
		"DKIM-Signature: v=1; a=rsa-sha256; d=elsewhere.example; s=x; b=BBBB", "Received: from x by y; Thu, 19 Nov 2026 12:00:00 +0000", "Reply-To: c@example.org", "Authentication-Results: other.example; none",
	} {
		id, err := f.Accept(t.Context(), submission(head+field+"\r\n\r\nHello\r\n"))
		require.NoError(t, err, field)
		_, text := f.stored(t, id)
		require.Contains(t, text, "\r\n"+field+"\r\n")
	}
	for _, empty := range []string{"Date:\r\n", "date: \r\n", "Message-ID:\r\n", "MESSAGE-ID: \r\n", "Date:\r\nMessage-ID:\r\n"} {
		id, err := f.Accept(t.Context(), submission(head+empty+"\r\nHello\r\n"))
		require.NoError(t, err, empty)
		_, text := f.stored(t, id)
		require.Equal(t, 1, strings.Count(strings.ToLower(text), "\r\ndate:"), text)
		require.Contains(t, text, "\r\nDate: Fri, 20 Nov 2026 12:00:00 +0000\r\n")
		require.Equal(t, 1, strings.Count(strings.ToLower(text), "\r\nmessage-id:"), text)
		require.Contains(t, text, "\r\nMessage-ID: <"+id.String()+"@relay.example.com>\r\n")
	}
	for _, disguised := range []string{"Bcc : hidden@example.net", "Bcc\t: hidden@example.net", "X-Relay-Stream : x"} {
		_, err := f.Accept(t.Context(), submission(head+disguised+"\r\n\r\nHello\r\n"))
		require.ErrorContains(t, err, "has a blank before its colon")
	}
}
