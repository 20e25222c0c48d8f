package mailauth_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"relayd/internal/mailauth"
	"relayd/internal/resolver"
	"relayd/internal/resolver/resolvertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const servfail = 2

func serve(t *testing.T, zones map[string][]string) (*resolver.Resolver, *resolvertest.Server) {
	t.Helper()
	s, err := resolvertest.NewServer(zones)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	r, err := resolver.New(resolver.Config{Servers: []string{s.Addr}, Timeout: 10 * time.Second}, resolver.Deps{})
	require.NoError(t, err)
	return r, s
}

func TestCheckSPF(t *testing.T) {
	t.Parallel()
	zone := []string{
		`ip TXT "v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::/32 -all"`,
		`soft TXT "v=spf1 mx ~all"`, `soft MX 10 mx`, `mx A 192.0.2.25`, `mx AAAA 2001:db8::25`,
		`open TXT "v=spf1 +all"`, `neutral TXT "v=spf1 ?all"`, `silent TXT "v=spf1 a"`, `silent A 192.0.2.1`,
		`incl TXT "v=spf1 include:ip.a.example -all"`, `redir TXT "v=spf1 redirect=ip.a.example"`,
		`deep TXT "v=spf1 include:other.a.example include:incl.a.example ~all"`, `other TXT "v=spf1 ip4:198.51.100.1 -all"`,
		`two TXT "v=spf1 -all"`, `two TXT "v=spf1 +all"`, `none TXT "something else"`, `addr A 192.0.2.9`,
		`typo TXT "v=spf1 ip4:192.0.2.9 ipv4:192.0.2.10 -all"`, `tab TXT "v=spf1	-all"`, `long TXT "v=spf1 ip4:192.0.2.0/24 " "-all"`,
		`many TXT "v=spf1 a:a1.a.example a:a2.a.example a:a3.a.example a:a4.a.example a:a5.a.example a:a6.a.example a:a7.a.example a:a8.a.example a:a9.a.example a:a10.a.example a:a11.a.example -all"`,
		`ten TXT "v=spf1 a:a1.a.example a:a2.a.example a:a3.a.example a:a4.a.example a:a5.a.example a:a6.a.example a:a7.a.example a:a8.a.example a:a9.a.example a:a10.a.example -all"`,
		`void TXT "v=spf1 a:v1.a.example a:v2.a.example a:v3.a.example -all"`, `void2 TXT "v=spf1 a:v1.a.example a:v2.a.example -all"`,
		`mx11 TXT "v=spf1 mx -all"`, `noincl TXT "v=spf1 include:addr.a.example -all"`, `loop TXT "v=spf1 include:loop.a.example -all"`,
		`ptr TXT "v=spf1 ptr -all"`, `implicit TXT "v=spf1 mx -all"`, `implicit A 192.0.2.77`,
		`macro TXT "v=spf1 exists:%{l}.%{d1r}.users.a.example -all"`, `me.macro.users A 127.0.0.2`, `postmaster.macro.users A 127.0.0.2`,
		`bad TXT "v=spf1 include:fail.a.example -all"`,
	}
	for i := range 11 {
		zone = append(zone, fmt.Sprintf("a%d A 198.51.100.%d", i+1, i+1), fmt.Sprintf("mx11 MX %d a%d", i, i+1))
	}
	r, s := serve(t, map[string][]string{"a.example": zone, "2.0.192.in-addr.arpa": {"5 PTR host.ptr.a.example."}})
	require.NoError(t, s.Add("host.ptr.a.example A 192.0.2.5"))
	s.SetRcode("fail.a.example", servfail)
	for name, c := range map[string]struct {
		ip, from, helo string
		result         mailauth.Result
		mechanism      string
		explanation    string
	}{
		"ip4":                         {"192.0.2.3", "x@ip.a.example", "", mailauth.Pass, "ip4:192.0.2.0/24", "192.0.2.3 may send mail of ip.a.example (ip4:192.0.2.0/24)"},
		"ip4_mapped":                  {"::ffff:192.0.2.3", "x@ip.a.example", "", mailauth.Pass, "ip4:192.0.2.0/24", "192.0.2.3 may"},
		"ip6":                         {"2001:db8::9", "x@ip.a.example", "", mailauth.Pass, "ip6:2001:db8::/32", "may send"},
		"fail":                        {"198.51.100.1", "x@ip.a.example", "", mailauth.Fail, "-all", "198.51.100.1 may not send mail of ip.a.example: nothing that allows it stands before -all"},
		"mx":                          {"192.0.2.25", "x@soft.a.example", "", mailauth.Pass, "mx", "may send"},
		"mx_by_ip6":                   {"2001:db8::25", "x@soft.a.example", "", mailauth.Pass, "mx", "may send"},
		"softfail":                    {"192.0.2.26", "x@soft.a.example", "", mailauth.SoftFail, "~all", "should not send"},
		"all":                         {"192.0.2.26", "x@open.a.example", "", mailauth.Pass, "+all", "may send"},
		"neutral":                     {"192.0.2.26", "x@neutral.a.example", "", mailauth.Neutral, "?all", "leaves open"},
		"no_term_matches":             {"192.0.2.26", "x@silent.a.example", "", mailauth.Neutral, "", "does not end in -all"},
		"include":                     {"192.0.2.3", "x@incl.a.example", "", mailauth.Pass, "include:ip.a.example > ip4:192.0.2.0/24", "(include:ip.a.example > ip4:192.0.2.0/24)"},
		"include_not_matching":        {"198.51.100.9", "x@incl.a.example", "", mailauth.Fail, "-all", "before -all"},
		"redirect":                    {"192.0.2.3", "x@redir.a.example", "", mailauth.Pass, "redirect=ip.a.example > ip4:192.0.2.0/24", "may send"},
		"include_in_include":          {"192.0.2.3", "x@deep.a.example", "", mailauth.Pass, "include:incl.a.example > include:ip.a.example > ip4:192.0.2.0/24", "may send"},
		"no_record":                   {"192.0.2.3", "x@none.a.example", "", mailauth.None, "", "none.a.example has no SPF record"},
		"no_domain":                   {"192.0.2.3", "x@void.b.example", "", mailauth.None, "", "void.b.example does not exist"},
		"no_txt":                      {"192.0.2.3", "x@addr.a.example", "", mailauth.None, "", "has no SPF record"},
		"two_records":                 {"192.0.2.3", "x@two.a.example", "", mailauth.PermError, "", "two.a.example has more than one SPF record"},
		"error_behind_a_match":        {"192.0.2.9", "x@typo.a.example", "", mailauth.PermError, "", `term "ipv4:192.0.2.10": no such mechanism`},
		"tab_is_no_separator":         {"192.0.2.9", "x@tab.a.example", "", mailauth.None, "", "no SPF record"},
		"strings_are_joined":          {"192.0.2.9", "x@long.a.example", "", mailauth.Pass, "ip4:192.0.2.0/24", "may send"},
		"eleven_lookups":              {"192.0.2.9", "x@many.a.example", "", mailauth.PermError, "a:a11.a.example", "more than 10 DNS look-ups"},
		"ten_lookups":                 {"192.0.2.9", "x@ten.a.example", "", mailauth.Fail, "-all", "may not send"},
		"three_void_lookups":          {"192.0.2.9", "x@void.a.example", "", mailauth.PermError, "a:v3.a.example", "more than 2 of its DNS look-ups find nothing"},
		"two_void_lookups":            {"192.0.2.9", "x@void2.a.example", "", mailauth.Fail, "-all", "may not"},
		"eleven_exchangers":           {"192.0.2.9", "x@mx11.a.example", "", mailauth.PermError, "mx", "more than 10 exchangers"},
		"include_without_record":      {"192.0.2.9", "x@noincl.a.example", "", mailauth.PermError, "include:addr.a.example", "include:addr.a.example: there is no SPF record"},
		"include_loop":                {"192.0.2.9", "x@loop.a.example", "", mailauth.PermError, strings.TrimSuffix(strings.Repeat("include:loop.a.example > ", 11), " > "), "more than 10"},
		"ptr":                         {"192.0.2.5", "x@ptr.a.example", "", mailauth.Pass, "ptr", "may send"},
		"no_implicit_mx":              {"192.0.2.77", "x@implicit.a.example", "", mailauth.Fail, "-all", "may not"},
		"servfail":                    {"192.0.2.5", "x@fail.a.example", "", mailauth.TempError, "", "could not be found out now: look up TXT of fail.a.example: temporary DNS failure: server"},
		"servfail_in_include":         {"192.0.2.5", "x@bad.a.example", "", mailauth.TempError, "include:fail.a.example", "SERVFAIL"},
		"macro":                       {"192.0.2.5", "me@macro.a.example", "", mailauth.Pass, "exists:%{l}.%{d1r}.users.a.example", "may send"},
		"macro_of_other_user":         {"192.0.2.5", "you@macro.a.example", "", mailauth.Fail, "-all", "may not"},
		"postmaster_without_local":    {"192.0.2.5", "macro.a.example", "", mailauth.Pass, "exists:%{l}.%{d1r}.users.a.example", "may send"},
		"at_in_local_part":            {"192.0.2.3", `"a@two.a.example"@ip.a.example`, "", mailauth.Pass, "ip4:192.0.2.0/24", "of ip.a.example"},
		"null_reverse_path_uses_helo": {"192.0.2.3", "<>", "ip.a.example", mailauth.Pass, "ip4:192.0.2.0/24", "of ip.a.example"},
		"angle_brackets":              {"192.0.2.3", "<x@IP.a.example>", "", mailauth.Pass, "ip4:192.0.2.0/24", "of ip.a.example"},
		"helo_is_one_label":           {"192.0.2.3", "", "localhost", mailauth.None, "", "no domain name that can have"},
		"helo_is_an_address":          {"192.0.2.3", "", "[192.0.2.3]", mailauth.None, "", "no domain name that can have"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res := mailauth.CheckSPF(t.Context(), r, netip.MustParseAddr(c.ip), c.helo, c.from)
			require.Equal(t, c.result, res.Result, "%+v", res)
			if c.result != mailauth.PermError || c.mechanism != "" {
				require.Equal(t, cut(c.mechanism), cut(res.Mechanism))
			}
			require.Contains(t, res.Explanation, c.explanation)
		})
	}
	res := mailauth.CheckSPF(t.Context(), r, netip.Addr{}, "", "x@ip.a.example")
	require.Equal(t, mailauth.PermError, res.Result)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	res = mailauth.CheckSPF(ctx, r, netip.MustParseAddr("192.0.2.3"), "", "x@fresh.a.example")
	require.Equal(t, mailauth.TempError, res.Result)
}

func cut(s string) string { return s[:min(len(s), 200)] }

func TestLookupDMARC(t *testing.T) {
	t.Parallel()
	r, s := serve(t, map[string][]string{
		"example": {
			`_dmarc.own TXT "v=DMARC1; p=reject; sp=quarantine; rua=mailto:d@own.example, https://r.example/x; adkim=s; aspf=s"`,
			`_dmarc.old TXT "v=DMARC1;p=none;pct=50;rf=afrf;ri=3600;rua=mailto:d@x.example;x=1;t=y"`,
			`_dmarc.two TXT "v=DMARC1; p=none"`, `_dmarc.two TXT "v=DMARC1; p=reject"`, `two A 192.0.2.1`,
			`_dmarc.nop TXT "v=DMARC1; rua=mailto:d@x.example"`, `_dmarc.bad TXT "v=DMARC1; p=maybe"`, `_dmarc.other TXT "v=spf1 -all"`,
			`_dmarc.suffix TXT "v=DMARC1; p=none; psd=y; rua=mailto:d@x.example"`,
			`_dmarc.shop.suffix TXT "v=DMARC1; p=reject; rua=mailto:d@x.example"`,
			`_dmarc.stop.own TXT "v=DMARC1; p=none; psd=n; rua=mailto:d@x.example"`,
			`_dmarc.bad.own TXT "v=DMARC1; p=maybe"`,
		},
	})
	s.SetRcode("_dmarc.fail.example", servfail)
	for name, c := range map[string]struct {
		domain, at, effective string
		warnings              []string
		err                   error
	}{
		"own_record":                        {domain: "own.example", at: "_dmarc.own.example", effective: "reject"},
		"organisational_domain":             {domain: "a.b.own.example", at: "_dmarc.own.example", effective: "quarantine"},
		"nine_labels":                       {domain: "1.2.3.4.5.6.7.own.example", at: "_dmarc.own.example", effective: "quarantine"},
		"psd_n_ends_the_walk":               {domain: "a.stop.own.example", at: "_dmarc.stop.own.example", effective: "none"},
		"public_suffix_without_nearer":      {domain: "new.suffix.example", at: "_dmarc.suffix.example", effective: "none"},
		"public_suffix_is_not_organisation": {domain: "www.shop.suffix.example", at: "_dmarc.shop.suffix.example", effective: "reject"},
		"removed_tags": {domain: "old.example", at: "_dmarc.old.example", effective: "none", warnings: []string{
			"pct= was removed", "rf= was removed", "ri= was removed", "unknown tag x=", "t=y: receivers apply a weaker policy",
		}},
		"without_p":                  {domain: "nop.example", at: "_dmarc.nop.example", effective: "none", warnings: []string{"counts as p=none"}},
		"bad_record":                 {domain: "bad.example", err: mailauth.ErrBadDMARC},
		"two_records":                {domain: "two.example", err: mailauth.ErrBadDMARC},
		"bad_record_is_passed_over":  {domain: "bad.own.example", at: "_dmarc.own.example", effective: "quarantine", warnings: []string{"a nearer record is passed over"}},
		"no_record":                  {domain: "none.example"},
		"other_record":               {domain: "other.example"},
		"servfail":                   {domain: "fail.example", err: resolver.ErrTemporary},
		"servfail_above_own_is_moot": {domain: "own.example", at: "_dmarc.own.example", effective: "reject"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := mailauth.LookupDMARC(t.Context(), r, c.domain)
			require.ErrorIs(t, err, c.err)
			if c.at == "" {
				require.Nil(t, d)
				return
			}
			require.Equal(t, c.at, d.Name)
			require.Equal(t, c.effective, d.Effective)
			require.Len(t, d.Warnings, len(c.warnings), "%q", d.Warnings)
			for i, w := range c.warnings {
				require.Contains(t, d.Warnings[i], w)
			}
		})
	}
	d, err := mailauth.LookupDMARC(t.Context(), r, "own.example")
	require.NoError(t, err)
	require.Equal(t, []string{"mailto:d@own.example", "https://r.example/x"}, d.Reports)
	require.True(t, d.StrictDKIM && d.StrictSPF && !d.Testing)
	_, err = mailauth.LookupDMARC(t.Context(), r, "not a domain")
	require.Error(t, err)
	before := s.Queries("", "")
	_, err = mailauth.LookupDMARC(t.Context(), r, strings.Repeat("x.", 60)+"none.example")
	require.NoError(t, err)
	require.LessOrEqual(t, s.Queries("", "")-before, 8, "the walk is bounded (RFC 9989 section 4.10)")
}

const (
	rsaValue = "v=DKIM1; k=rsa; p=MIIBIjANBgkqhkiG9w0B"
	edValue  = "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
)

func TestVerifyDomain(t *testing.T) {
	t.Parallel()
	r, s := serve(t, map[string][]string{"shop.example": {
		`@ TXT "v=spf1 ip4:192.0.2.1 -all"`, `@ TXT "unrelated"`,
		`ok._domainkey TXT "` + rsaValue[:30] + `" "` + rsaValue[30:] + `"`,
		`spaced._domainkey TXT "v=DKIM1;  p=MIIBIjANBgk qhkiG9w0B ; s=email; h=sha1:sha256;t=y"`,
		`other._domainkey TXT "v=DKIM1; k=rsa; p=AAAA"`, `short._domainkey TXT "v=DKIM1; k=rsa; p=MIIBIjAN"`,
		`revoked._domainkey TXT "v=DKIM1; p="`, `type._domainkey TXT "` + edValue + `"`, `ed._domainkey TXT "` + edValue + `"`,
		`two._domainkey TXT "` + rsaValue + `"`, `two._domainkey TXT "v=DKIM1; p=AAAA"`,
		`nosha._domainkey TXT "` + rsaValue + `; h=sha1"`, `web._domainkey TXT "` + rsaValue + `; s=tlsrpt"`,
		`broken._domainkey TXT "v=DKIM1; k=rsa; p=MII"`, `late._domainkey TXT "k=rsa; v=DKIM1; p=AAAA"`, `text._domainkey TXT "hello"`,
		`_dmarc TXT "v=DMARC1; p=quarantine; rua=mailto:d@shop.example"`,
	}})
	s.SetRcode("fail._domainkey.shop.example", servfail)
	var keys []mailauth.Record
	for _, k := range []string{"ok", "spaced", "other", "short", "revoked", "type", "two", "nosha", "web", "broken", "late", "text", "none", "fail"} {
		keys = append(keys, mailauth.Record{Name: k + "._domainkey.shop.example", Value: rsaValue})
	}
	keys = append(keys, mailauth.Record{Name: "ed._domainkey.shop.example", Value: edValue})
	checks := mailauth.Verify(t.Context(), r, mailauth.Domain{
		Name: "shop.example", Keys: keys, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
	})
	type row struct {
		status      mailauth.Status
		explanation string
	}
	want := []row{
		{mailauth.StatusOK, "192.0.2.1 may send mail of shop.example (ip4:192.0.2.1)"},
		{mailauth.StatusMismatch, "Add ip6:2001:db8::1 to the record"},
		{mailauth.StatusOK, "is the one that signs"},
		{mailauth.StatusOK, "is the one that signs"},
		{mailauth.StatusMismatch, "another key"},
		{mailauth.StatusMismatch, "cut off"},
		{mailauth.StatusMismatch, "revoked"},
		{mailauth.StatusMismatch, `of type "ed25519"`},
		{mailauth.StatusMismatch, "2 TXT records"},
		{mailauth.StatusMismatch, "h= does not allow sha256"},
		{mailauth.StatusMismatch, "s= does not allow email"},
		{mailauth.StatusMismatch, "not base64"},
		{mailauth.StatusMismatch, "does not start with v=DKIM1"},
		{mailauth.StatusMismatch, `"hello" is no tag`},
		{mailauth.StatusMissing, "not published"},
		{mailauth.StatusTemporaryFailure, "SERVFAIL"},
		{mailauth.StatusOK, "is the one that signs"},
		{mailauth.StatusOK, "the policy for shop.example is p=quarantine"},
	}
	require.Len(t, checks, len(want))
	for i, w := range want {
		require.Equal(t, w.status, checks[i].Status, "%+v", checks[i])
		require.Contains(t, checks[i].Explanation, w.explanation)
	}
	require.Equal(t, []string{"v=spf1 ip4:192.0.2.1 -all"}, checks[0].Observed)
	require.Equal(t, []string{rsaValue}, checks[2].Observed)
	require.Contains(t, checks[3].Warnings[0], "t=y")
	require.True(t, checks[2].Required)
	require.False(t, checks[16].Required, "Ed25519 is the second signature")

	checks = mailauth.Verify(t.Context(), r, mailauth.Domain{
		Name: "new.example", Keys: keys[:1], IPs: []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
	})
	require.Equal(t, mailauth.StatusMissing, checks[0].Status)
	require.Equal(t, "v=spf1 ip4:192.0.2.1 ip6:2001:db8::1 -all", checks[0].Expected)
	require.Equal(t, mailauth.StatusMissing, checks[3].Status)
	require.Equal(t, "v=DMARC1; p=none; rua=mailto:dmarc@new.example", checks[3].Expected)
}
