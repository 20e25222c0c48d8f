package mail

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParsePath(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, in, want string }{
		{"plain", "ann@example.com", "ann@example.com"},
		{"domain_is_lowered_local_is_kept", "Ann.B@EXAMPLE.Com", "Ann.B@example.com"},
		{"trailing_dot_is_dropped", "a@example.com.", "a@example.com"},
		{"needless_quotes_are_dropped", `"ann"@example.com`, "ann@example.com"},
		{"needed_quotes_are_kept", `"a b"@example.com`, `"a b"@example.com`},
		{"quoted_at_sign", `"a@b"@example.com`, `"a@b"@example.com`},
		{"quoted_pair", `"a\"b\\c"@example.com`, `"a\"b\\c"@example.com`},
		{"empty_quoted_local", `""@example.com`, `""@example.com`},
		{"plus_and_symbols", "a+b!#$%&'*-/=?^_`{|}~@example.com", "a+b!#$%&'*-/=?^_`{|}~@example.com"},
		{"u_label_becomes_a_label", "a@bücher.example", "a@xn--bcher-kva.example"},
		{"korean_domain", "a@한국.example", "a@xn--3e0b707e.example"},
		{"underscore_in_domain", "a@_x.example.com", "a@_x.example.com"},
		{"ipv4_literal", "a@[192.0.2.1]", "a@[192.0.2.1]"},
		{"ipv6_literal_is_canonical", "a@[ipv6:2001:DB8:0::1]", "a@[IPv6:2001:db8::1]"},
		{"utf8_local", "한글@example.com", "한글@example.com"},
		{"smuggled_address_stays_one_mailbox", `"xclow3n@gmail.com x"@internal.domain`, `"xclow3n@gmail.com x"@internal.domain`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := ParsePath(tt.in)
			require.NoError(t, err)
			require.Equal(t, tt.want, p.String())
		})
	}
}

func TestParsePathRefuses(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]string{
		"empty": "", "no_at": "ann", "no_local": "@example.com", "no_domain": "ann@", "two_ats": "a@b@example.com",
		"leading_dot": ".a@example.com", "trailing_dot_local": "a.@example.com", "double_dot": "a..b@example.com",
		"blank": "a b@example.com", "crlf": "a@example.com\r\nRCPT TO:<b@example.com>", "nul": "a\x00@example.com",
		"angle": "a>@example.com", "source_route": "@a.example:b@example.com", "open_quote": `"a@example.com`,
		"bytes_after_quote": `"a"b@example.com`, "control_in_quote": "\"a\tb\"@example.com", "lone_backslash": `"a\`,
		"empty_label": "a@example..com", "hyphen_first": "a@-x.example", "hyphen_last": "a@x-.example",
		"bad_literal": "a@[999.1.1.1]", "zone_literal": "a@[IPv6:fe80::1%eth0]", "v6_without_tag": "a@[2001:db8::1]",
		"not_utf8": "a\xff@example.com", "long_local": strings.Repeat("a", 65) + "@example.com",
		"long_domain": "a@" + strings.Repeat("abcdefg.", 32) + "com", "long_label": "a@" + strings.Repeat("a", 64) + ".com",
		"long_path": strings.Repeat("a", 64) + "@" + strings.Repeat("abcdefg.", 23) + "comcom", "bidi": "a\u202eb@example.com",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ParsePath(in)
			require.ErrorIs(t, err, ErrBadPath)
		})
	}
}

func TestKeyMeetsEverySpelling(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"Ann@Example.com", `"ann"@example.COM`, "ANN@example.com.", `"a\nn"@example.com`} {
		p, err := ParsePath(in)
		require.NoError(t, err, in)
		require.Equal(t, "ann@example.com", p.Key(), in)
	}
}

func TestNullPath(t *testing.T) {
	t.Parallel()
	require.True(t, Path{}.IsNull())
	require.Empty(t, Path{}.String())
	require.False(t, MustParsePath(`""@example.com`).IsNull())
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"a@b.c", `"a b"@c`, "a@[IPv6:::1]", "a@bücher.example", `"\""@x`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePath(s)
		if err != nil {
			return
		}
		out := p.String()
		if strings.ContainsAny(out, "\r\n\x00<>") && !strings.HasPrefix(out, `"`) || strings.ContainsAny(out, "\r\n\x00") {
			t.Fatalf("%q became %q", s, out)
		}
		again, err := ParsePath(out)
		if err != nil || again != p {
			t.Fatalf("%q became %q, which parses as %v, %v", s, out, again, err)
		}
	})
}
