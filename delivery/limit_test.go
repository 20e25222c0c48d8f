package delivery

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseRate(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Rate{
		"100/s":                   {100, time.Second, 100},
		"6000/m":                  {6000, time.Minute, 100},
		"10_000/d,max_burst=1":    {10_000, 24 * time.Hour, 1},
		"10000/d":                 {10_000, 24 * time.Hour, 1},
		" 5 / h , max_burst = 7 ": {5, time.Hour, 7},
	} {
		got, err := ParseRate(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		again, err := ParseRate(got.String())
		require.NoError(t, err, got.String())
		require.Equal(t, got, again)
	}
	for text, want := range map[string]string{
		"100": "is not like", "": "is not like", "x/s": `count "x"`, "0/s": `count "0"`, "-1/s": `count "-1"`, "1/w": `unit "w"`,
		"1/s,burst=3": `option "burst"`, "1/s,max_burst": `max_burst ""`, "1/s,max_burst=0": `max_burst "0"`, "_1/s": `count "_1"`,
		"1__0/s": "count", "99999999999999999999/s": "count", "1/s,max_burst=1,max_burst=2": "max_burst",
	} {
		_, err := ParseRate(text)
		require.ErrorContains(t, err, want, text)
	}
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"100/s", "10_000/d,max_burst=1", "1/h,max_burst=", "/", ",", "9999999999/s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRate(text)
		if err != nil {
			return
		}
		require.Positive(t, r.Count)
		require.Positive(t, r.Burst)
		again, err := ParseRate(r.String())
		require.NoError(t, err)
		require.Equal(t, r, again)
		newGCRA(r).take(time.Now(), 1)
	})
}

func TestLimitsTellEveryFault(t *testing.T) {
	t.Parallel()
	c := DefaultConfig()
	c.Limits = Limits{
		Site:     map[string]Limit{"MX.example.com": {}, "a b": {}, "default": {Weight: 3}},
		Provider: map[string]Limit{"gogle": {}, "google": {Connections: -1, Rate: "fast"}},
		Account:  map[string]Limit{"acme": {MessagesPerConnection: 3, Recipients: 101, Weight: 1001}},
	}
	err := c.Validate()
	for _, want := range []string{
		"delivery.limits.site.MX.example.com: host names are written in lower case", `delivery.limits.site: "a b" is not a name`,
		"delivery.limits.site.default.weight: only an account", `delivery.limits.provider.gogle: the provider rules know no "gogle"`,
		"delivery.limits.provider.google.connections: -1", "delivery.limits.provider.google.rate: ", "delivery.limits.account.acme.messages_per_connection",
		"delivery.limits.account.acme.recipients_per_transaction: 101", "delivery.limits.account.acme.weight: 1001",
	} {
		require.ErrorContains(t, err, want)
	}
	c.Limits = Limits{
		Site: map[string]Limit{"default": {Connections: 5}, "mx.example.com": {Rate: "1/s"}}, Account: map[string]Limit{"acme": {Weight: 3}},
		Source: map[string]Limit{"default": {Rate: "100/s"}}, Campaign: map[string]Limit{"default": {Rate: "50/s"}},
	}
	require.NoError(t, c.Validate())
	require.Equal(t, Limit{Connections: 5, Rate: "1/s"}, c.Limits.of(scopeSite, "mx.example.com"))
	require.Equal(t, Limit{Connections: 5}, c.Limits.of(scopeSite, "other.example.com"))
}

func TestProvidersAreFoundByMX(t *testing.T) {
	t.Parallel()
	r := builtInProviders()
	require.Regexp(t, `^20\d\d-\d\d$`, r.dated)
	for host, want := range map[string]string{
		"gmail-smtp-in.l.google.com":               "google",
		"alt1.aspmx.l.google.com":                  "google",
		"aspmx2.googlemail.com":                    "google",
		"outlook-com.olc.protection.outlook.com":   "microsoft",
		"example-com.mail.protection.outlook.com":  "microsoft365",
		"example-com.k-v1.mx.microsoft":            "microsoft365",
		"mta5.am0.yahoodns.net":                    "yahoo",
		"mx01.mail.icloud.com":                     "apple",
		"mx1.naver.com":                            "naver",
		"mx1.hanmail.net":                          "kakao",
		"mx01.emig.gmx.net":                        "gmx",
		"mx-ha02.web.de":                           "gmx",
		"smtp-in.orange.fr":                        "orange",
		"mx1.comcast.net":                          "comcast",
		"eu-smtp-inbound-1.mimecast.com":           "mimecast",
		"mx0a-00012345.pphosted.com":               "proofpoint",
		"mx1.qq.com":                               "qq",
		"mxs.mail.ru":                              "mail-ru",
		"mx.zoho.com":                              "zoho",
		"in1-smtp.messagingengine.com":             "fastmail",
		"google.com.evil.example":                  "",
		"notgoogle.com":                            "",
		"mx.example.com":                           "",
		"":                                         "",
		"localhost":                                "",
		strings.Repeat("a.", 100) + "yahoodns.net": "yahoo",
		"mail.protection.outlook.com":              "",
		"outlook.com":                              "",
		"a.b.c.d.olc.protection.outlook.com":       "microsoft",
	} {
		got := ""
		if p := r.find(host); p != nil {
			got = p.Name
		}
		require.Equal(t, want, got, host)
	}
}

func TestProviderFileIsReadStrictly(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"nonsense":                                     "line 1: nonsense: nothing follows",
		"nonsense at all":                              `line 1: "nonsense" is none of`,
		"# x\n\nprovider a conections=3":               `line 3: provider a: unknown key "conections"`,
		"provider A":                                   `name "A"`,
		"provider default":                             `name "default"`,
		"provider a\nmx a":                             "line 2: mx a: no host",
		"provider a\nmx a *.a.b":                       `"*.a.b" is neither`,
		"provider a\nmx a .A.b":                        `".A.b" is neither`,
		"mx a .a.b":                                    `there is no provider "a" above`,
		"provider a rate=x":                            "rate: ",
		"provider a pause=1":                           "pause=1: want a duration",
		"provider a shared=maybe":                      "shared=maybe: want yes or no",
		"provider a connections":                       `"connections" is not like`,
		"provider a connections_per_site=-1":           "connections_per_site=-1: want a number",
		"provider a recipients_per_transaction=101":    "within 1 and 100",
		"provider a\nprovider a":                       "provider a stands twice",
		"provider a\nmx a .a.b\nprovider b\nmx b .a.b": "line 4: mx b: .a.b belongs to a already",
	} {
		_, err := parseProviders(text)
		require.ErrorContains(t, err, want, text)
	}
	c := DefaultConfig()
	c.ProvidersFile = filepath.Join(t.TempDir(), "none.txt")
	require.ErrorContains(t, c.Validate(), "delivery.providers_file: ")
	require.NoError(t, os.WriteFile(c.ProvidersFile, []byte("provider own connections=3\nmx own .own.example"), 0o600))
	c.Limits.Provider = map[string]Limit{"own": {Rate: "1/s"}}
	require.NoError(t, c.Validate())
}

func FuzzParseProviders(f *testing.F) {
	f.Add(providersText)
	f.Add("provider a rate=1/s pause=1m shared=no\nmx a .a.b c.d")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseProviders(text)
		if err == nil {
			r.find("mx.example.com")
		} else {
			require.Contains(t, err.Error(), "line ")
		}
	})
}

func TestGCRA(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	r, err := ParseRate("60/m,max_burst=3")
	require.NoError(t, err)
	g := newGCRA(r)
	require.Equal(t, 3, g.allows(now, now))
	require.Equal(t, 13, g.allows(now, now.Add(10*time.Second)))
	for range 3 {
		require.False(t, g.next().After(now), "the burst")
		g.take(now, 1)
	}
	require.Equal(t, now.Add(time.Second), g.next())
	require.Zero(t, g.allows(now, now.Add(time.Second-1)))
	require.Equal(t, 1, g.allows(now, now.Add(time.Second)))
	g.refund(1)
	require.False(t, g.next().After(now))
	g.take(now, 100) // a transaction with many recipients is one, and those after it wait
	require.Equal(t, now.Add(100*time.Second), g.next())
	sent := 0
	for at := now; at.Before(now.Add(time.Hour)); at = at.Add(100 * time.Millisecond) {
		if !g.next().After(at) {
			g.take(at, 1)
			sent++
		}
	}
	require.InDelta(t, 3600-100, sent, 3, "an hour's worth")
}
