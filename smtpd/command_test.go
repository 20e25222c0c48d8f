package smtpd

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/account"
	"relayd/internal/mail"
)

// FuzzCommand: whatever the line, no panic; what is accepted is printable, canonical and reads back as itself.
func FuzzCommand(f *testing.F) {
	for _, s := range []string{
		"MAIL FROM:<a@example.com> SIZE=1 RET=FULL ENVID=x+2B", `RCPT TO:<"a> b\""@example.com> NOTIFY=NEVER ORCPT=rfc822;x`,
		"EHLO [IPv6:::1]", "MAIL FROM:<>", "MAIL FROM: <@a:b@c>", "RCPT TO:<Postmaster>", "AUTH PLAIN AGE=", "MAIL FROM:<홍@example.com> SMTPUTF8 REQUIRETLS HOLDFOR=60", "RCPT TO:<홍@한국.example>",
		"RCPT TO:<a@" + strings.Repeat("b.", 126) + "c>",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		c, err := parseCommand(line)
		if err != nil {
			checkRefusal(t, err)
			return
		}
		if name, err := parseHello(c.arg); err == nil {
			require.NotContains(t, name, " ")
			require.LessOrEqual(t, len(name), 255)
		}
		if m, err := parseMail(c.arg); err == nil {
			checkPath(t, m.from)
			require.GreaterOrEqual(t, m.size, int64(0))
			require.LessOrEqual(t, len(m.envID), maxEnvID)
		} else {
			checkRefusal(t, err)
		}
		if r, err := parseRcpt(c.arg, "relay.example.com"); err == nil {
			checkPath(t, r.to)
			require.False(t, r.to.IsNull())
			require.LessOrEqual(t, len(r.orcpt), maxORCPT)
		} else {
			checkRefusal(t, err)
		}
	})
}

// TestOriginalRecipient (RFC 3461 section 4.2, RFC 6533 section 3): what is kept of ORCPT, "" where it is refused.
func TestOriginalRecipient(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"rfc822;b+40example.net":              "rfc822;b+40example.net",
		"RFC822;b@example.net":                "RFC822;b@example.net",
		"x-custom;+2B":                        "x-custom;+2B",
		"utf-8;" + `b+2B\x{E4}@example.net`:   `utf-8;b+2B\x{E4}@example.net`,
		"utf-8;홍@한국.example":                  `utf-8;\x{D64D}@\x{D55C}\x{AD6D}.example`,
		"UTF-8;ä+2B@example.net":              `UTF-8;\x{E4}+2B@example.net`,
		"rfc822;" + strings.Repeat("b", 493):  "rfc822;" + strings.Repeat("b", 493),
		"rfc822;" + strings.Repeat("b", 494):  "",
		"utf-8;" + strings.Repeat("ä", 82):    "utf-8;" + strings.Repeat(`\x{E4}`, 82),
		"utf-8;" + strings.Repeat("ä", 83):    "", // it would be longer than a host takes
		"rfc822;ä@example.net":                "",
		"utf-8;a\u0085b":                      "",
		"utf-8;a\u2028b":                      "",
		"utf-8;a\u00a0b":                      "",
		"utf-8;a\ufeffb":                      "",
		"utf-8;":                              "",
		"rfc822;":                             "",
		"rfc822":                              "",
		";b@example.net":                      "",
		"ä;b@example.net":                     "",
		"rfc822;b+4":                          "",
		"rfc822;b+zz":                         "",
		"rfc822;b+2b":                         "", // hexadecimal digits are in upper case
		"rfc822;b+00":                         "",
		"rfc822;b+7F":                         "",
		"rfc822;b+C3+A4":                      "",
		"rfc822;b=c":                          "",
		"rfc822;b@example.net ORCPT=rfc822;c": "",
	} {
		r, err := parseRcpt("TO:<b@example.net> ORCPT="+value, "")
		require.Equal(t, want == "", err != nil, value)
		if err != nil {
			require.Equal(t, "501 5.5.4", err.Reply.String()[:9], value)
			continue
		}
		require.Equal(t, want, r.orcpt)
	}
}

func TestReturnOfContentIsRead(t *testing.T) {
	t.Parallel()
	for arg, want := range map[string][2]bool{"": {}, " RET=FULL": {true, false}, " ret=full": {true, false}, " RET=HDRS": {false, true}} {
		m, err := parseMail("FROM:<a@example.com>" + arg)
		require.Nil(t, err)
		require.Equal(t, want, [2]bool{m.retFull, m.retHeaders}, arg)
	}
}

func checkPath(t *testing.T, p mail.Path) {
	t.Helper()
	if p.IsNull() {
		return
	}
	again, err := mail.ParsePath(p.String())
	require.NoError(t, err)
	require.Equal(t, p, again)
	require.Equal(t, -1, strings.IndexFunc(p.String(), func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }))
}

func checkRefusal(t *testing.T, err *mail.Error) {
	t.Helper()
	line := string(appendReply(nil, replyOf(err)))
	require.Equal(t, 5, err.Reply.Code/100)
	require.Equal(t, err.Reply.Code/100, err.Reply.Status.Class)
	require.LessOrEqual(t, len(line), 512)
	require.Equal(t, 1, strings.Count(line, "\r"))
	require.Equal(t, 1, strings.Count(line, "\n"))
}

func TestReplyOf(t *testing.T) {
	t.Parallel()
	require.Equal(t, "451 4.3.0 Local error, please try again later", replyOf(mail.Refuse(250, mail.Status{}, "yes", nil)).String())
	require.Equal(t, "550 5.0.0 \r\n", string(appendReply(nil, mail.Reply{Code: 550})))
	require.Equal(t, "354 go\r\n", string(appendReply(nil, mail.Reply{Code: 354, Text: "go"})))
	require.LessOrEqual(t, len(appendReply(nil, mail.Reply{Code: 550, Text: strings.Repeat("x", 5000)})), 512)
}

// FuzzScram: whatever a client sends, nobody is let in without the proof.
func FuzzScram(f *testing.F) {
	f.Add("n,,n=app,r=x", "c=biws,r=xy,p="+strings.Repeat("A", 43)+"=")
	f.Add("p=tls-exporter,a=app,n=a=2Cpp,r=x", "c=,r=xy,p=")
	f.Fuzz(func(t *testing.T, first, final string) {
		v, err := account.NewScram("secret", []byte("salt"), 1)
		require.NoError(t, err)
		m := &scramServer{
			find: func(string) account.Scram { return v }, right: func() { t.Error("let in") },
			binding: func(string) ([]byte, bool) { return []byte("bound"), true }, plus: strings.HasPrefix(first, "p="), nonce: "y",
		}
		if _, _, err := m.Next([]byte(first)); err != nil {
			return
		}
		_, done, err := m.Next([]byte(final))
		require.False(t, done)
		require.Error(t, err)
	})
}

// FuzzProxy: a header gives an address or an error, and nothing behind it is read.
func FuzzProxy(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.7 127.0.0.1 4660 25\r\nEHLO x\r\n"))
	f.Add([]byte("PROXY UNKNOWN\r\nEHLO x\r\n"))
	f.Add([]byte(proxySignature + "\x21\x11\x00\x0c\xc0\x00\x02\x07\x7f\x00\x00\x01\x12\x34\x00\x19EHLO x\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		ip, err := readProxy(r, mustAddr("192.0.2.1"))
		if err == nil {
			require.True(t, ip.IsValid())
			require.Empty(t, ip.Zone())
		}
		require.LessOrEqual(t, len(b)-r.Len(), 16+maxProxyHeader)
	})
}
