package smtpd

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestLimitsAreWhatIsOffered (RFC 9422): as many messages and recipients as EHLO tells are taken, and not one more. The
// recipients that are refused do not count, nor do transactions without a message, and each recipient may have a domain of
// its own.
func TestLimitsAreWhatIsOffered(t *testing.T) {
	t.Parallel()
	for _, listener := range []int{plain, starttls, implicit, inbound} {
		f, h := startInbound(t, func(c *Config) { c.MaxMessagesPerSession, c.MaxRecipients = 2, 3 })
		var c *client
		refused, taken := "<b@[192.0.2.1]>", []string{"<b@one.example>", "<b@two.example>", "<b@three.example>", "<b@four.example>"}
		if listener == inbound {
			c = f.dial(t, inbound)
			c.expect("220")
			refused, taken = "<nobody@bounces.example>", []string{"<fbl@bounces.example>", "<postmaster@example.com>", "<abuse@relay.example.com>", "<unsubscribe@bounces.example>"}
		} else {
			c = f.ready(t, listener)
		}
		told := regexp.MustCompile(`250-LIMITS MAILMAX=(\d+) RCPTMAX=(\d+)\r\n`).FindStringSubmatch(c.cmd("EHLO x", "250 "))
		require.NotNil(t, told)
		messages, err := strconv.Atoi(told[1])
		require.NoError(t, err)
		recipients, err := strconv.Atoi(told[2])
		require.NoError(t, err)
		require.Len(t, taken, recipients+1)
		for range messages {
			c.cmd("MAIL FROM:<a@example.com>", "250")
			c.cmd("RCPT TO:"+taken[0], "250")
			c.cmd("RSET", "250")
			c.cmd("MAIL FROM:<a@example.com>", "250")
			c.cmd("RCPT TO:"+refused, "550 5.1.")
			for _, to := range taken[:recipients] {
				c.cmd("RCPT TO:"+to, "250")
			}
			c.cmd("RCPT TO:"+taken[recipients], "452 4.5.3")
			c.send(bdat("x\r\n", true))
			c.expect("250 2.0.0 Ok: queued")
		}
		c.cmd("MAIL FROM:<a@example.com>", "421 4.7.0")
		c.closed()
		var got []int
		for _, m := range f.rec.all() {
			got = append(got, len(m.sub.Recipients))
		}
		for _, m := range h.all() {
			got = append(got, len(m.Recipients))
		}
		require.Equal(t, []int{recipients, recipients}, got)
	}
}

// TestLimitsThatAreNotTold (RFC 9422): a value has at most six digits.
func TestLimitsThatAreNotTold(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		messages, recipients int
		want                 string
	}{
		{999_999, 999_999, "250-LIMITS MAILMAX=999999 RCPTMAX=999999\r\n"},
		{1_000_000, 5, "250-LIMITS RCPTMAX=5\r\n"},
		{5, 1_000_000, "250-LIMITS MAILMAX=5\r\n"},
		{1_000_000, 1_000_000, ""},
	} {
		f := start(t, func(c *Config) { c.MaxMessagesPerSession, c.MaxRecipients = tc.messages, tc.recipients })
		reply := f.ready(t, plain).cmd("EHLO x", "250 ")
		if tc.want == "" {
			require.NotContains(t, reply, "LIMITS")
			continue
		}
		require.Contains(t, reply, tc.want)
	}
}

// TestFutureRelease (RFC 4865): what is offered is taken to the second, and nothing beyond it.
func TestFutureRelease(t *testing.T) {
	t.Parallel()
	f := start(t, func(c *Config) { c.MaxErrors = 1000 })
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	f.deps.Now = func() time.Time { return now }
	c := f.ready(t, implicit)
	told := regexp.MustCompile(`250-FUTURERELEASE (\d+) (\S+)\r\n`).FindStringSubmatch(c.cmd("EHLO x", "250 "))
	require.NotNil(t, told)
	most, err := strconv.Atoi(told[1])
	require.NoError(t, err)
	latest, err := time.Parse(time.RFC3339, told[2])
	require.NoError(t, err)
	require.Equal(t, now.Add(time.Duration(most)*time.Second), latest)
	for param, want := range map[string]time.Time{ // zero: refused
		"HOLDFOR=1":                                   now.Add(time.Second),
		"holdfor=" + told[1]:                          latest,
		"HOLDFOR=" + strconv.Itoa(most+1):             {},
		"HOLDFOR=0":                                   {},
		"HOLDFOR=-1":                                  {},
		"HOLDFOR=+1":                                  {},
		"HOLDFOR=1.5":                                 {},
		"HOLDFOR=1e3":                                 {},
		"HOLDFOR":                                     {},
		"HOLDFOR=":                                    {},
		"HOLDFOR=9999999999":                          {},
		"HOLDFOR=18446744073709551617":                {},
		"HOLDFOR=01":                                  {},
		"HOLDFOR=000000001":                           {},
		"HOLDFOR=00":                                  {},
		"HOLDFOR=1_0":                                 {},
		"HOLDFOR=0x1":                                 {},
		"HOLDUNTIL=2026-11-20T13:00:00.5z":            now.Add(time.Hour + 500*time.Millisecond),
		"HOLDUNTIL=2026-11-21T12:59:00+23:59":         now.Add(time.Hour),
		"HOLDUNTIL=2026-11-20T13:00:00-00:00":         now.Add(time.Hour),
		"HOLDUNTIL=2026-11-21T9:00:00Z":               {},
		"HOLDUNTIL=2026-11-20T13:00:00,5Z":            {},
		"HOLDUNTIL=2026-11-20T13:00:00.Z":             {},
		"HOLDUNTIL=2026-11-21T13:00:00+24:00":         {},
		"HOLDUNTIL=2026-11-20T14:00:00+00:60":         {},
		"HOLDUNTIL=2026-11-20T13:00:00+1:00":          {},
		"HOLDUNTIL=2026-11-20T24:00:00Z":              {},
		"HOLDUNTIL=02026-11-20T13:00:00Z":             {},
		"HOLDUNTIL=+2026-11-20T13:00:00Z":             {},
		"HOLDUNTIL=99999-11-20T13:00:00Z":             {},
		"HOLDUNTIL=":                                  {},
		"HOLDUNTIL=" + told[2]:                        latest,
		"HOLDUNTIL=" + strings.ToLower(told[2]):       latest,
		"HOLDUNTIL=2026-11-20T14:00:00+01:00":         now.Add(time.Hour),
		"HOLDUNTIL=2026-11-20T11:59:59Z":              now.Add(-time.Second), // over: at once
		"HOLDUNTIL=2026-12-20T12:00:01Z":              {},
		"HOLDUNTIL=2026-11-20T13:00:00":               {},
		"HOLDUNTIL=2026-11-31T13:00:00Z":              {},
		"HOLDUNTIL=1795000000":                        {},
		"HOLDUNTIL":                                   {},
		"HOLDFOR=5 HOLDFOR=5":                         {},
		"HOLDFOR=5 HOLDUNTIL=2026-11-20T13:00:00Z":    {},
		"HOLDUNTIL=2026-11-20T13:00:00Z HOLDFOR=5":    {},
		"HOLDUNTIL=2026-11-20T13:00:00Z\x1fHOLDFOR=5": {},
	} {
		if want.IsZero() {
			c.cmd("MAIL FROM:<a@example.com> "+param, "50")
			continue
		}
		c.cmd("MAIL FROM:<a@example.com> "+param, "250")
		c.cmd("RCPT TO:<b@example.net>", "250")
		c.send(bdat("x\r\n", true))
		c.expect("250")
		all := f.rec.all()
		require.Equal(t, want, all[len(all)-1].sub.SendAt.UTC(), param)
	}
	c = f.dial(t, inbound)
	c.expect("220")
	require.NotContains(t, c.cmd("EHLO x", "250 "), "FUTURERELEASE")
	c.cmd("MAIL FROM:<> HOLDFOR=5", "555 5.5.4")
}

// TestParametersOfMailAndRcpt that nobody offers, that come twice, or that are of the other command.
func TestParametersOfMailAndRcpt(t *testing.T) {
	t.Parallel()
	f := start(t, func(c *Config) { c.MaxErrors = 1000 })
	c := f.ready(t, implicit)
	for param, want := range map[string]string{
		"X=1": "555 5.5.4", "NOTIFY=NEVER": "555 5.5.4", "ORCPT=rfc822;x": "555 5.5.4", "BY=60;R": "555 5.5.4", "MT-PRIORITY=3": "555 5.5.4",
		"=": "501 5.5.4", "=1": "501 5.5.4", "A=B=C": "501 5.5.4", "X*=1": "501 5.5.4", "SMTPUTF8=": "501 5.5.4", "REQUIRETLS=1": "501 5.5.4",
		"RET=FULL RET=FULL": "501 5.5.4", "RET=FULL ret=hdrs": "501 5.5.4", "ENVID=a ENVID=a": "501 5.5.4", "BODY=7BIT BODY=8BITMIME": "501 5.5.4",
		"SMTPUTF8 SMTPUTF8": "501 5.5.4", "REQUIRETLS REQUIRETLS": "501 5.5.4", "AUTH=<> AUTH=<>": "501 5.5.4", "BODY": "501 5.5.4", "RET": "501 5.5.4",
		"ENVID": "501 5.5.4", "ENVID=": "501 5.5.4", "ENVID=a+2": "501 5.5.4", "ENVID=a+": "501 5.5.4", "ENVID=a+2b": "501 5.5.4", "ENVID=a+00": "501 5.5.4", "ENVID=a+80": "501 5.5.4",
		"ENVID=" + strings.Repeat("e", 100): "250", "ENVID=a+2Bb": "250", "SIZE": "501 5.5.4", "SIZE=1k": "501 5.5.4", "SIZE=000000000000000000000001": "501 5.5.4", "SIZE=0": "250",
		"SIZE=00000000000000000001": "250", "SIZE=": "501 5.5.4", "SIZE=+1": "501 5.5.4", "SIZE=-1": "501 5.5.4", "SIZE=1_0": "501 5.5.4", "SIZE=0x1": "501 5.5.4", "SIZE=1.0": "501 5.5.4",
		"SIZE=26214400": "250", "SIZE=26214401": "552 5.3.4", "SIZE=9223372036854775808": "552 5.3.4", "SIZE=99999999999999999999": "552 5.3.4", "SIZE=999999999999999999999": "501 5.5.4",
		"AUTH=a+3Db@example.com": "250", "AUTH=": "501 5.5.4", "body=7bit  size=5": "250",
	} {
		if c.send("MAIL FROM:<a@example.com> " + param + "\r\n"); want == "250" {
			c.expect(want)
			c.cmd("RSET", "250")
			continue
		}
		require.Contains(t, c.expect(want[:3]), want, param)
	}
	c.cmd("MAIL FROM:<a@example.com>", "250")
	for param, want := range map[string]string{
		"SIZE=1": "555 5.5.4", "BODY=7BIT": "555 5.5.4", "SMTPUTF8": "555 5.5.4", "REQUIRETLS": "555 5.5.4", "RET=FULL": "555 5.5.4", "ENVID=x": "555 5.5.4", "RRVS=x": "555 5.5.4",
		"NOTIFY=NEVER NOTIFY=NEVER": "501 5.5.4", "NOTIFY": "501 5.5.4", "NOTIFY=": "501 5.5.4", "NOTIFY=SUCCESS,": "501 5.5.4", "NOTIFY=,SUCCESS": "501 5.5.4", "NOTIFY=SUCCESS,NEVER": "501 5.5.4",
		"NOTIFY=SUCCESS,FAILURE,DELAY": "250", "notify=never": "250",
	} {
		require.Contains(t, c.cmd("RCPT TO:<b@example.net> "+param, want[:3]), want, param)
	}
}

// TestCommandsWithoutEffect answer the same with and without an argument, before EHLO and in a transaction.
func TestCommandsWithoutEffect(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.dial(t, plain)
	c.expect("220")
	ask := func() {
		for command, want := range map[string]string{
			"NOOP": "250 2.0.0", "NOOP x y": "250 2.0.0", "noop": "250 2.0.0", "VRFY": "252 2.5.0", "VRFY <a@example.com>": "252 2.5.0", "VRFY nobody": "252 2.5.0",
			"HELP": "214 2.0.0", "HELP MAIL": "214 2.0.0", "EXPN list": "502 5.5.1", "ETRN x": "502 5.5.1", "RSET x": "501 5.5.4", "NOOPX": "500 5.5.1", " NOOP": "500 5.5.1",
		} {
			c.cmd(command, want)
		}
	}
	ask()
	c.cmd("EHLO x", "250 ")
	c.cmd("AUTH PLAIN "+plainIR("app", "secret"), "235")
	c.cmd("MAIL FROM:<a@example.com>", "250")
	c.cmd("RCPT TO:<b@example.net>", "250")
	ask()
	c.cmd("DATA", "354")
	c.cmd("x\r\n.", "250 2.0.0 Ok: queued")
	c.cmd("QUIT", "221 2.0.0")
	c.closed()
}

// TestScramDeviations: every message that is not to the letter is refused, and nobody is anybody after it.
func TestScramDeviations(t *testing.T) {
	t.Parallel()
	f := start(t)
	const right = "n,,n=app,r=clientnonce"
	for name, d := range map[string]struct {
		first string
		final func(nonce, proof string) string
		want  string
	}{
		"nonce_of_another":       {right, func(n, p string) string { return "c=biws,r=" + n + "x,p=" + p }, "535"},
		"nonce_cut":              {right, func(n, p string) string { return "c=biws,r=" + n[:len(n)-1] + ",p=" + p }, "535"},
		"nonce_of_client_only":   {right, func(_, p string) string { return "c=biws,r=clientnonce,p=" + p }, "535"},
		"header_of_another":      {right, func(n, p string) string { return "c=eSws,r=" + n + ",p=" + p }, "535"}, // y,,
		"binding_without_plus":   {right, func(n, p string) string { return "c=" + b64("n,,x") + ",r=" + n + ",p=" + p }, "535"},
		"proof_of_nothing":       {right, func(n, p string) string { return "c=biws,r=" + n + ",p=" + b64(strings.Repeat("\x00", 32)) }, "535"},
		"no_proof":               {right, func(n, _ string) string { return "c=biws,r=" + n }, "501"},
		"empty_proof":            {right, func(n, _ string) string { return "c=biws,r=" + n + ",p=" }, "501"},
		"short_proof":            {right, func(n, _ string) string { return "c=biws,r=" + n + ",p=" + b64(strings.Repeat("x", 31)) }, "501"},
		"long_proof":             {right, func(n, _ string) string { return "c=biws,r=" + n + ",p=" + b64(strings.Repeat("x", 33)) }, "501"},
		"proof_is_no_base64":     {right, func(n, _ string) string { return "c=biws,r=" + n + ",p=!" }, "501"},
		"attributes_in_disorder": {right, func(n, p string) string { return "r=" + n + ",c=biws,p=" + p }, "535"},
		"mandatory_extension":    {right, func(n, p string) string { return "m=x,c=biws,r=" + n + ",p=" + p }, "535"},
		"nothing":                {right, func(string, string) string { return "" }, "501"},
		"cancelled":              {right, nil, "501 5.7.0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := f.dial(t, plain)
			c.expect("220")
			c.cmd("EHLO x", "250 ")
			line := c.cmd("AUTH SCRAM-SHA-256 "+b64(d.first), "334 ")
			challenge, err := base64.StdEncoding.DecodeString(strings.TrimSpace(line[4:]))
			require.NoError(t, err)
			m := regexp.MustCompile(`^r=(clientnonce[ -~]{18,}),s=[A-Za-z0-9+/=]{16,},i=(\d+)$`).FindStringSubmatch(string(challenge))
			require.NotNil(t, m, "%s", challenge)
			rounds, err := strconv.Atoi(m[2])
			require.NoError(t, err)
			require.GreaterOrEqual(t, rounds, 4096, "RFC 7677 section 4")
			response := "*"
			if d.final != nil {
				response = b64(d.final(m[1], b64(strings.Repeat("x", 32))))
			}
			c.cmd(response, d.want)
			c.cmd("MAIL FROM:<a@example.com>", "530")
		})
	}
}

// TestScramOnEveryTransport: a client that could bind channels and is offered none may say so, and TLS 1.2 is bound like 1.3
// (RFC 9266: with the extended master secret).
func TestScramOnEveryTransport(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := f.dial(t, plain)
	c.expect("220")
	c.cmd("EHLO x", "250 ")
	require.Contains(t, c.scramLogin(scramSHA256, "y,,", nil, "app", "secret"), "235 2.7.0")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, kind := range []string{"tls-exporter", "tls-server-end-point"} {
			c := f.dial(t, implicit)
			conn := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true, MaxVersion: version}) //nolint:gosec // a test
			require.NoError(t, conn.Handshake())
			c.Conn, c.r = conn, bufio.NewReader(conn)
			c.expect("220")
			c.cmd("EHLO x", "250 ")
			state := conn.ConnectionState()
			require.Equal(t, version, state.Version)
			bound, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
			require.NoError(t, err)
			if kind == "tls-server-end-point" {
				sum := sha256.Sum256(state.PeerCertificates[0].Raw)
				bound = sum[:]
			}
			require.Contains(t, c.scramLogin(scramSHA256Plus, "p="+kind+",,", bound, "app", "secret"), "235 2.7.0")
		}
	}
}
