package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/dkim"
	"relayd/internal/resolver/resolvertest"
)

func newZone(t *testing.T) *resolvertest.Server {
	t.Helper()
	s, err := resolvertest.NewServer(map[string][]string{
		"example.com": {
			`@ 300 IN TXT "v=spf1 ip4:192.0.2.0/24 -all"`,
			`soft 300 IN TXT "v=spf1 ~all"`,
			`broken 300 IN TXT "v=spf1 what:ever -all"`,
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func TestSPFCheck(t *testing.T) {
	t.Parallel()
	dns := newZone(t)
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"pass":      {[]string{"--ip", "192.0.2.7", "--mail-from", "a@example.com"}, "pass"},
		"fail":      {[]string{"--ip", "198.51.100.7", "--mail-from", "a@example.com"}, "fail"},
		"softfail":  {[]string{"--ip", "198.51.100.7", "--mail-from", "a@soft.example.com"}, "softfail"},
		"permerror": {[]string{"--ip", "198.51.100.7", "--mail-from", "a@broken.example.com"}, "permerror"},
		"none":      {[]string{"--ip", "2001:db8::1", "--mail-from", "a@other.example"}, "none"},
		"null_path": {[]string{"--ip", "192.0.2.7", "--mail-from", "<>", "--helo", "example.com"}, "pass"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, out, errOut := ctl(t, nil, "", append([]string{"spf", "check", "--dns", dns.Addr, "-o", "json"}, c.args...)...)
			require.Zero(t, code, errOut)
			var got struct{ Result, Explanation string }
			require.NoError(t, json.Unmarshal([]byte(out), &got))
			require.Equal(t, c.want, got.Result)
			require.NotEmpty(t, got.Explanation)
			requireOneValue(t, out)
		})
	}
}

func TestDKIMVerify(t *testing.T) {
	t.Parallel()
	dns := newZone(t)
	ring, err := dkim.Open(filepath.Join(t.TempDir(), "keys"))
	require.NoError(t, err)
	keys, err := ring.AddDomain("example.com")
	require.NoError(t, err)
	for _, k := range keys {
		require.NoError(t, dns.Add(k.RecordName()+". 300 IN TXT "+quoted(k.RecordValue())))
	}
	header, body := "From: a@example.com\r\nTo: b@example.net\r\nSubject: Hi\r\nDate: Fri, 20 Nov 2026 10:00:00 +0000\r\n", "Hello\r\n"
	h := dkim.NewBodyHasher()
	_, err = h.Write([]byte(body))
	require.NoError(t, err)
	signatures, err := dkim.Sign(keys, []byte(header), h.Sum(), time.Now())
	require.NoError(t, err)
	message := string(signatures) + header + "\r\n" + body

	verify := func(in string, args ...string) (int, []map[string]string) {
		code, out, _ := ctl(t, nil, in, append([]string{"dkim", "verify", "--dns", dns.Addr, "-o", "json"}, args...)...)
		var got []map[string]string
		require.NoError(t, json.Unmarshal([]byte(out), &got))
		require.NotNil(t, got, "a list, even an empty one")
		return code, got
	}
	code, got := verify(message)
	require.Zero(t, code)
	require.Len(t, got, 2)
	for _, v := range got {
		require.Equal(t, "pass", v["result"], v["error"])
		require.Equal(t, "example.com", v["domain"])
	}
	code, got = verify(strings.ReplaceAll(message, "\r\n", "\n"))
	require.Zero(t, code)
	require.Equal(t, "pass", got[0]["result"], "a file as Unix editors write it")
	file := filepath.Join(t.TempDir(), "m.eml")
	require.NoError(t, os.WriteFile(file, []byte(message+"changed\r\n"), 0o600))
	code, got = verify("", file)
	require.Zero(t, code, "the verdict is the answer")
	require.Equal(t, "fail", got[0]["result"])
	require.NotEmpty(t, got[0]["error"])
	code, _ = verify("", file, "--require-pass")
	require.Equal(t, exitFailed, code)
	code, got = verify(header + "\r\n" + body)
	require.Zero(t, code)
	require.Empty(t, got)
}

// quoted writes a TXT value as strings of at most 255 octets.
func quoted(value string) string {
	out := ""
	for len(value) > 0 {
		n := min(255, len(value))
		out += ` "` + value[:n] + `"`
		value = value[n:]
	}
	return out
}

func TestReplyClassify(t *testing.T) {
	t.Parallel()
	code, out, errOut := ctl(t, nil, "", "reply", "classify", "550 5.1.1 user unknown", "-o", "json")
	require.Zero(t, code, errOut)
	var got map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &got))
	require.Equal(t, true, got["hard"])
	require.Equal(t, "recipient", got["blame"])
	require.Equal(t, "bounce", got["action"])
	require.NotEmpty(t, got["class"])
	code, _, errOut = ctl(t, nil, "", "reply", "classify", "user unknown")
	require.Equal(t, exitUsage, code)
	require.NotEmpty(t, errOut)
}

func TestBounceClassify(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := map[string]string{
		"hard": "From: MAILER-DAEMON@x.example\nSubject: Undelivered\nContent-Type: multipart/report; report-type=delivery-status; boundary=b\n\n--b\n" +
			"Content-Type: message/delivery-status\n\nReporting-MTA: dns; x.example\n\nFinal-Recipient: rfc822; gone@x.example\nAction: failed\nStatus: 5.1.1\n" +
			"Diagnostic-Code: smtp; 550 5.1.1 user unknown\n\n--b--\n",
		"full": "From: MAILER-DAEMON@x.example\nSubject: failure notice\n\n<gone@x.example>:\n552 5.2.2 mailbox is full\n",
		"spam": "From: MAILER-DAEMON@x.example\nSubject: failure notice\n\n<gone@x.example>:\n550 5.7.1 message looks like spam\n",
		"away": "From: gone@x.example\nSubject: Out of office\n\nuser unknown until Monday\n",
	}
	args := []string{"-o", "json", "bounce", "classify"}
	names := []string{"hard", "full", "spam", "away"}
	for _, name := range names {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte(files[name]), 0o600))
		args = append(args, file)
	}
	code, out, errOut := ctl(t, nil, "", args...)
	require.Zero(t, code, errOut)
	requireOneValue(t, out)
	var got []struct {
		File, Kind string
		Recipients []struct {
			Address, Status, Class string
			Hard, Suppress         bool
		}
	}
	require.NoError(t, json.Unmarshal([]byte(out), &got))
	require.Len(t, got, 4)
	text := ""
	for i, g := range got {
		require.Equal(t, filepath.Join(dir, names[i]), g.File)
		r := g.Recipients[0]
		require.Equal(t, "gone@x.example", r.Address)
		text += fmt.Sprintln(g.Kind, r.Status, r.Class, r.Hard, r.Suppress)
	}
	require.Equal(t, "bounce 5.1.1 mailbox_unknown true true\nbounce 5.2.2 mailbox_full false false\nbounce 5.7.1 spam false false\nauto-reply   false false\n", text)

	code, _, errOut = ctl(t, nil, "", "bounce", "classify", filepath.Join(dir, "missing"))
	require.Equal(t, exitFailed, code)
	require.Contains(t, errOut, "missing")
	code, out, _ = ctl(t, nil, files["hard"], "bounce", "classify", "-")
	require.Zero(t, code)
	require.Contains(t, out, "mailbox_unknown")
}

func TestLocalRulesOfReplies(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "rules")
	require.NoError(t, os.WriteFile(file, []byte("class on_holiday recipient retry retry no\nsure on_holiday on holiday\n"), 0o600))
	code, out, errOut := ctl(t, nil, "", "reply", "classify", "--rules", file, "550 5.1.1 postman is on holiday")
	require.Zero(t, code, errOut)
	require.Contains(t, out, "on_holiday")
	require.NoError(t, os.WriteFile(file, []byte("# fine\nsure nobody x\n"), 0o600))
	code, _, errOut = ctl(t, nil, "", "reply", "classify", "--rules", file, "550 x")
	require.Equal(t, exitFailed, code)
	require.Contains(t, errOut, `line 2: unknown class "nobody"`)
}
