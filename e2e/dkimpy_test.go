package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/resolver/resolvertest"
)

// dkimpyVerify prints, for each signature of the message on standard input, whether dkimpy takes it.
const dkimpyVerify = `import dkim, json, sys
m = sys.stdin.buffer.read(); zone = json.loads(sys.argv[1])
d = dkim.DKIM(m, minkey=1024)
n = sum(1 for k, _ in d.headers if k.lower() == b'dkim-signature')
get = lambda name, timeout=5: zone.get(name.decode().rstrip('.'), '').encode()
def ok(i):
    try: return dkim.DKIM(m, minkey=1024).verify(i, dnsfunc=get)
    except dkim.DKIMException: return False
print(json.dumps([ok(i) for i in range(n)]))
`

// TestDKIMOfDkimpysOwnVectors: relayctl dkim verify says of the messages in dkimpy's test suite, which Debian ships with
// it, what dkimpy says, as they are and when they are changed. They hold the example of RFC 8463 and one that Exim made.
func TestDKIMOfDkimpysOwnVectors(t *testing.T) {
	t.Parallel()
	needs(t, "/usr/bin/python3", "dkimverify")
	const dir = "/usr/lib/python3/dist-packages/dkim/tests/data"
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		return string(b)
	}
	zone := map[string]string{
		"test._domainkey.football.example.com":     strings.TrimSpace(read("test.txt")),
		"brisbane._domainkey.football.example.com": "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
		"sed._domainkey.test.ex":                   strings.TrimSpace(read("eximtest.dns")),
	}
	names, err := json.Marshal(zone)
	require.NoError(t, err)
	dns, err := resolvertest.NewServer(nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = dns.Close() })
	r := &relay{t: t, dns: dns}
	for name, value := range zone {
		r.txt(name, value)
	}
	passed := 0
	for file, changes := range map[string][2]string{
		"rfc6376.signed.msg": {"hungry", "Hungry"}, "rfc6376.signed.rsa.msg": {"dinner", "lunch"}, "ed25519test2.msg": {"\n\n", "\n\nx"},
	} {
		text := read(file)
		for _, message := range []string{text, strings.Replace(text, changes[0], changes[1], 1), strings.Replace(text, "From:", "from:", 1)} {
			message = strings.ReplaceAll(strings.ReplaceAll(message, "\r\n", "\n"), "\n", "\r\n")
			var want, got []bool
			out := program(t, message, "/usr/bin/python3", "-c", dkimpyVerify, string(names))
			require.NoError(t, json.Unmarshal([]byte(out), &want), out)
			require.NotEmpty(t, want)
			in := filepath.Join(t.TempDir(), "message.eml")
			writeFile(t, in, message)
			stdout, stderr, _ := r.tool("relayctl", "-o", "json", "dkim", "verify", in, "--dns", dns.Addr)
			var results []struct{ Result string }
			require.NoError(t, json.NewDecoder(bytes.NewReader([]byte(stdout))).Decode(&results), stderr)
			for _, v := range results {
				got = append(got, v.Result == "pass")
				if v.Result == "pass" {
					passed++
				}
			}
			require.Equal(t, want, got, "%s: %s", file, stdout)
		}
	}
	require.GreaterOrEqual(t, passed, 4)
}
