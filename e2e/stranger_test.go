package e2e

import (
	"net"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/require"
)

// TestStrangersLeaveLittleBehind: mail for the operator and reports that hold no token of ours are durable, and anybody may
// send them. One address gets a quarter of what there is for an hour, then 452; others get theirs.
func TestStrangersLeaveLittleBehind(t *testing.T) {
	t.Parallel()
	s := newSink(t, "", nil)
	r, port := newInbound(t, s)
	from := func(address string) *smtp.Client {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
		conn, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:"+itoa(port))
		require.NoError(t, err)
		c := smtp.NewClient(conn)
		t.Cleanup(func() { _ = c.Close() })
		require.NoError(t, c.Hello("mx.dest.example"))
		return c
	}
	const message = "From: a@dest.example\r\nSubject: again\r\n\r\nx\r\n"
	for to, most := range map[string]int{"postmaster@relay.example": 256, "fbl@bounces.relay.example": 2500} {
		c := from("127.0.0.1")
		hand := func(c *smtp.Client) error {
			return c.SendMail("a@dest.example", []string{to}, strings.NewReader(message))
		}
		taken, err := 0, error(nil)
		for ; err == nil && taken <= most+most/10; taken++ { // some is earned meanwhile
			err = hand(c)
		}
		require.ErrorContains(t, err, "Too much mail of this kind", to)
		require.Contains(t, replyText(err), "452 4.7.0", to)
		require.Greater(t, taken, most, to)
		require.NoError(t, hand(from("127.0.0.2")), to)
	}
	c := from("127.0.0.1") // and no other mail is kept out
	require.ErrorContains(t, c.SendMail("a@dest.example", []string{"nobody@bounces.relay.example"}, strings.NewReader(message)), "No such recipient")
	require.Positive(t, r.stats().Queued+s.count())
}

// replyText is the reply of an error of the client, as it came.
func replyText(err error) string {
	if e, ok := err.(*smtp.SMTPError); ok { //nolint:errorlint // SendMail wraps nothing
		return itoa(e.Code) + " " + itoa(e.EnhancedCode[0]) + "." + itoa(e.EnhancedCode[1]) + "." + itoa(e.EnhancedCode[2])
	}
	return ""
}
