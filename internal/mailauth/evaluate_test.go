package mailauth

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/resolver"
)

// records are TXT records; every name that is asked for otherwise, or ends in .missing.example, does not exist.
type records map[string]string

func (r records) LookupTXT(_ context.Context, name string) ([]string, error) {
	v, ok := r[name]
	switch {
	case !ok:
		return nil, resolver.ErrNXDomain
	case v == "SERVFAIL":
		return nil, fmt.Errorf("%s: %w", name, resolver.ErrTemporary)
	}
	return strings.Split(v, "\n"), nil
}

func (r records) LookupIP(_ context.Context, host string) ([]netip.Addr, error) {
	if strings.HasPrefix(host, "gone.") {
		return nil, resolver.ErrNXDomain
	}
	return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
}

func (records) LookupMXRecords(context.Context, string) ([]resolver.MX, error) {
	return nil, resolver.ErrNoData
}

func (records) LookupPTR(context.Context, netip.Addr) ([]string, error) {
	return nil, resolver.ErrNoData
}

// TestDMARCExamples has the examples of RFC 9989: alignment of its appendix B.1 and the tree walks of section 4.10 and
// appendix B.
func TestDMARCExamples(t *testing.T) {
	t.Parallel()
	plain := records{"_dmarc.example.com": "v=DMARC1; p=none; rua=mailto:d@example.com"}
	strict := records{"_dmarc.example.com": "v=DMARC1; p=reject; adkim=s; aspf=s"}
	bank := records{ // a public suffix that asks for policy of its own, and banks below it
		"_dmarc.bank.example":       "v=DMARC1; p=reject; psd=y",
		"_dmarc.giant.bank.example": "v=DMARC1; p=quarantine; sp=reject; psd=n",
		"_dmarc.mega.bank.example":  "v=DMARC1; p=none",
	}
	tree := records{
		"_dmarc.example.com":        "v=DMARC1; p=reject; sp=quarantine; np=reject; t=y",
		"_dmarc.g.mail.example.com": "v=DMARC1; p=none",
		"_dmarc.apart.example.com":  "v=DMARC1; p=none; psd=n",
	}
	deep := records{"_dmarc.example.com": "v=DMARC1; p=reject"}
	for name, c := range map[string]struct {
		zone   records
		from   string
		ids    Identifiers
		want   Result
		policy string
	}{
		"B.1.1 example 1: SPF, equal":                     {plain, "example.com", Identifiers{SPF: "example.com"}, Pass, "none"},
		"B.1.1 example 1: equal is aligned strictly":      {strict, "example.com", Identifiers{SPF: "example.com"}, Pass, "reject"},
		"B.1.1 example 2: SPF, child of From":             {plain, "example.com", Identifiers{SPF: "child.example.com"}, Pass, "none"},
		"B.1.1 example 2: not strictly":                   {strict, "example.com", Identifiers{SPF: "child.example.com"}, Fail, "reject"},
		"B.1.1 example 3: SPF, other organisation":        {plain, "child.example.com", Identifiers{SPF: "sample.net"}, Fail, "none"},
		"B.1.2 example 1: DKIM, equal":                    {strict, "example.com", Identifiers{DKIM: []string{"example.com"}}, Pass, "reject"},
		"B.1.2 example 2: DKIM, parent of From":           {plain, "child.example.com", Identifiers{DKIM: []string{"example.com"}}, Pass, "none"},
		"B.1.2 example 2: not strictly":                   {strict, "child.example.com", Identifiers{DKIM: []string{"example.com"}}, Fail, "reject"},
		"B.1.2 example 3: DKIM, other organisation":       {plain, "child.example.com", Identifiers{DKIM: []string{"sample.net"}}, Fail, "none"},
		"siblings of one organisation":                    {plain, "a.example.com", Identifiers{DKIM: []string{"b.example.com"}}, Pass, "none"},
		"one that passes is enough":                       {plain, "example.com", Identifiers{SPF: "sample.net", DKIM: []string{"x.example", "example.com"}}, Pass, "none"},
		"nothing passed":                                  {plain, "example.com", Identifiers{}, Fail, "none"},
		"no record":                                       {plain, "example.org", Identifiers{SPF: "example.org"}, None, ""},
		"PSD: giant.bank.example, own subdomain":          {bank, "giant.bank.example", Identifiers{SPF: "mail.giant.bank.example"}, Pass, "quarantine"},
		"PSD: another bank is another organisation":       {bank, "giant.bank.example", Identifiers{SPF: "mega.bank.example"}, Fail, "quarantine"},
		"PSD: subdomain of giant.bank.example":            {bank, "mail.giant.bank.example", Identifiers{SPF: "giant.bank.example"}, Pass, "reject"},
		"PSD: a bank without psd":                         {bank, "mail.mega.bank.example", Identifiers{DKIM: []string{"mega.bank.example"}}, Pass, "none"},
		"PSD: a bank without a record, policy of the PSD": {bank, "small.bank.example", Identifiers{}, Fail, "reject"},
		"PSD: the suffix itself is not its banks":         {bank, "small.bank.example", Identifiers{SPF: "bank.example"}, Fail, "reject"},
		"tree: sp of the organisational domain":           {tree, "news.example.com", Identifiers{}, Fail, "quarantine"},
		"tree: np where the domain does not exist":        {tree, "gone.example.com", Identifiers{}, Fail, "reject"},
		"tree: the nearest record of From decides":        {tree, "g.mail.example.com", Identifiers{SPF: "example.com"}, Pass, "none"},
		"tree: psd=n parts an organisation":               {tree, "apart.example.com", Identifiers{SPF: "example.com"}, Fail, "none"},
		"tree: more than eight labels are shortened":      {deep, "a.b.c.d.e.f.g.h.i.j.mail.example.com", Identifiers{SPF: "example.com"}, Pass, "reject"},
		"temporary failure":                               {records{"_dmarc.example.com": "SERVFAIL"}, "example.com", Identifiers{SPF: "example.com"}, TempError, ""},
		"two records are none":                            {records{"_dmarc.example.com": "v=DMARC1; p=none\nv=DMARC1; p=reject"}, "example.com", Identifiers{SPF: "example.com"}, None, ""},
		"From without a domain":                           {plain, "[192.0.2.1]", Identifiers{}, PermError, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := EvaluateDMARC(t.Context(), c.zone, c.from, c.ids)
			require.Equal(t, c.want, got.Result, "%+v", got)
			require.Equal(t, c.policy, got.Policy, "%+v", got)
			require.NotEmpty(t, got.Explanation)
		})
	}
}
