package mailauth

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzParseDMARC(f *testing.F) {
	for _, s := range []string{
		"v=DMARC1; p=none", "v=DMARC1;p=reject;sp=none;np=x;rua=mailto:a@b,http://[::1;ruf=;fo=1;adkim=s;aspf=r;t=y;psd=n;pct=1;rf=x;ri=x",
		"V = DMARC1 ;; P=none;p=none", "v=DMARC1", "v=DMARC1; =;x", "v=DMARC1;rua=mailto:" + strings.Repeat("a@b,", 100),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDMARC(s)
		if err != nil {
			require.ErrorIs(t, err, ErrBadDMARC)
			return
		}
		for _, p := range []string{d.Policy, d.SubdomainPolicy} {
			require.Contains(t, []string{"none", "quarantine", "reject"}, p)
		}
		require.LessOrEqual(t, len(d.Warnings), maxWarnings)
		require.False(t, strings.ContainsAny(d.Record+strings.Join(d.Warnings, "")+strings.Join(d.Reports, ""), "\r\n\x00\x1b"))
	})
}

func FuzzCompareDKIM(f *testing.F) {
	const ours = "v=DKIM1; k=rsa; p=MIIBIjANBgkqhkiG9w0B"
	for _, s := range []string{ours, "p=MIIBIjANBgkqhkiG9w0B;", "v=DKIM1; k=ed25519; p=AAAA", "v=DKIM1; p=", "p=MII BIjANBgkqhkiG9w0B; t=y; h=sha256; s=*", ";;=", "v=DKIM1 ; n=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_, err := compareDKIM(s, ours)
		if err == nil && !strings.Contains(strings.Join(strings.Fields(s), ""), "MIIBIjANBgkqhkiG9w0B") {
			t.Fatalf("%q taken for our key", s)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\r\n\x00\x1b") {
			t.Fatalf("%q", err)
		}
		_, _ = compareDKIM(s, s)
	})
}

func FuzzCheckSyntax(f *testing.F) {
	for _, s := range []string{
		"v=spf1 a mx:x.example/24//64 ip4:1.2.3.4/8 ip6:::/0 include:%{d2r-}.x.example exists:%{i} redirect=x.example exp=y.example -all",
		"v=spf1 a:%{", "v=spf1 =", "v=spf1 /", "v=spf1 +", "v=spf1 a//", "v=spf1 ptr: ip4:",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if err := checkSyntax(s); err != nil && strings.ContainsAny(err.Error(), "\r\n\x00\x1b") {
			t.Fatalf("%q", err)
		}
	})
}
