package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/delivery"
)

func parse(t *testing.T, text string, environ ...string) (*Config, *Problems) {
	t.Helper()
	c, err := Parse("relayd.toml", []byte(text), environ)
	if err == nil {
		return c, nil
	}
	var p *Problems
	require.ErrorAs(t, err, &p)
	return nil, p
}

// settled returns the defaults as Parse leaves them.
func settled(t *testing.T) *Config {
	t.Helper()
	c, p := parse(t, "")
	require.Nil(t, p)
	return c
}

func example(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../config.example.toml")
	require.NoError(t, err)
	return string(b)
}

func TestExampleShowsEveryDefault(t *testing.T) {
	t.Parallel()
	text := regexp.MustCompile(`(?m)^#([a-z\[])`).ReplaceAllString(example(t), "$1")
	c, p := parse(t, text)
	require.Nil(t, p)
	want := settled(t)
	want.DNS.Servers = []string{}
	require.Equal(t, want, c)

	for name, s := range defaultScalars() {
		key := s[strings.LastIndex(s, ".")+1:]
		require.Regexp(t, `(?m)^##?`+key+`\s*=`, example(t), "%s (%s) is not in the example", s, name)
	}
}

func defaultScalars() map[string]string {
	found := map[string]scalar{}
	scalars("", valueOf(Default()), found)
	out := map[string]string{}
	for name, s := range found {
		out[name] = s.key
	}
	return out
}

func TestExamplesOfListsAreValid(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := regexp.MustCompile(`(?m)^##`).ReplaceAllString(example(t), "")
	secret := filepath.Join(dir, "password")
	require.NoError(t, os.WriteFile(secret, []byte("s3cret\n"), 0o600))
	text = strings.ReplaceAll(text, "/etc/relayd/upstream.password", secret)
	c, p := parse(t, text+"\n[tls]\ncert_file = \"c\"\nkey_file = \"k\"\n")
	require.Nil(t, p)
	require.Len(t, c.SMTP.Listeners, 2)
	require.Equal(t, "s3cret", c.Delivery.Smarthosts[0].Password)
	require.Equal(t, delivery.Retry{Attempts: 5, FirstDelay: 10 * time.Second, Multiplier: 2, MaxAge: 10 * time.Minute}, c.Delivery.Policies["urgent"])
	require.Equal(t, "r1", c.Domains[0].DKIM[0].Selector)
}

func TestEveryErrorHasItsLine(t *testing.T) {
	t.Parallel()
	_, p := parse(t, `hostname = "relay example"
data_dir = 7

[smtp]
max_mesage_bytes = 1
max_recipients = "many"
max_message_bytes = "25 apples"

[[smtp.listener]]
kind = "submission"
address = "0.0.0.0:587"
tls = "none"

[[smtp.listener]]
kind = "submision"
address = "nowhere"
tls = "starttls"

[delivery]
route = "upstraem"
connect_timeout = "soon"

[delivery.retry]
attempts = 0

[[domain]]
name = "example"
sign = "maybe"

[surprise]
x = 1
`)
	require.NotNil(t, p)
	text := p.Error()
	for _, want := range []string{
		`relayd.toml:1: hostname: "relay example" is not a host name`,
		`relayd.toml:2: data_dir: want a string, got 7`,
		`relayd.toml:5: smtp.max_mesage_bytes: unknown key; did you mean "max_message_bytes"?`,
		`relayd.toml:6: smtp.max_recipients: want a whole number, got "many"`,
		`relayd.toml:7: smtp.max_message_bytes: want a size`,
		`relayd.toml:12: smtp.listener[0].tls: none is for loopback addresses only`,
		`relayd.toml:15: smtp.listener[1].kind: "submision" is neither`,
		`relayd.toml:16: smtp.listener[1].address: "nowhere" is not`,
		`relayd.toml:17: smtp.listener[1].tls: starttls needs [tls] cert_file and key_file`,
		`relayd.toml:20: delivery.route:`,
		`relayd.toml:21: delivery.connect_timeout: want a duration such as "15m"`,
		`relayd.toml:24: delivery.retry.attempts:`,
		`relayd.toml:27: domain[0].name: "example" is not a domain name`,
		`relayd.toml:28: domain[0].sign: "maybe" is neither`,
		`relayd.toml:30: surprise: unknown key`,
	} {
		require.Contains(t, text, want)
	}
	require.Len(t, strings.Split(text, "\n"), 15, text)
}

func TestSyntaxErrorHasItsLine(t *testing.T) {
	t.Parallel()
	_, p := parse(t, "hostname = \"a.example\"\n[smtp\n")
	require.NotNil(t, p)
	require.Contains(t, p.Error(), "relayd.toml:2")
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	c, p := parse(t, "", "RELAYD_ADMIN_ADDRESS=127.0.0.1:9", "RELAYD_DELIVERY_MX_PORT=2525", "RELAYD_DELIVERY_RETRY_FIRST_DELAY=1m",
		"RELAYD_DELIVERY_ALLOW_PRIVATE_MX=true", "RELAYD_SMTP_MAX_MESSAGE_BYTES=1MiB", "PATH=/bin")
	require.Nil(t, p)
	require.Equal(t, "127.0.0.1:9", c.Admin.Address)
	require.Equal(t, 2525, c.Delivery.MXPort)
	require.Equal(t, time.Minute, c.Delivery.Retry.FirstDelay)
	require.True(t, c.Delivery.AllowPrivateMX)
	require.EqualValues(t, 1<<20, c.SMTP.MaxMessageBytes)

	_, p = parse(t, "", "RELAYD_ADMIN_ADDREZZ=x")
	require.NotNil(t, p)
	require.Contains(t, p.Error(), "RELAYD_ADMIN_ADDREZZ: no configuration key has this environment variable")
}

func TestSecretFilesHoldOneLine(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "p")
	text := "[[delivery.smarthost]]\nname = \"u\"\naddress = \"h.example:587\"\nusername = \"u\"\npassword_file = \"" + file + "\"\n"
	_, p := parse(t, text)
	require.NotNil(t, p)
	require.Contains(t, p.Error(), "relayd.toml:5: delivery.smarthost[0].password_file: open ")
	require.NoError(t, os.WriteFile(file, []byte("a\nb\n"), 0o600))
	_, p = parse(t, text)
	require.NotNil(t, p)
	require.Contains(t, p.Error(), "must hold one line")
}

func TestParseSize(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int64{"0": 0, "1048576": 1 << 20, "100KB": 100_000, "25MiB": 25 << 20, "1 GiB": 1 << 30, "5b": 5} {
		got, err := ParseSize(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, in := range []string{"", "MiB", "-1", "1.5MiB", "1TiB", "99999999999GiB"} {
		_, err := ParseSize(in)
		require.Error(t, err, in)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("[smtp]\nmax_recipients = 1\n[[smtp.listener]]\ntls='x'\n")
	f.Add("a.b.c = 1\n[a]\nb = {c = 2}\n")
	f.Fuzz(func(_ *testing.T, text string) {
		if strings.Contains(text, "password_file") {
			return // would read files
		}
		_, _ = Parse("f", []byte(text), nil)
	})
}

func valueOf(c *Config) reflect.Value { return reflect.ValueOf(c).Elem() }
