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

// TestDMARCExamples has the examples of RFC 9989, alignment of appendix B.1 and records of B.2 and B.3, and cases of our
// own: public suffixes, trees.
func TestDMARCExamples(t *testing.T) {
	t.Parallel()
	plain := records{"_dmarc.example.com": "v=DMARC1; p=none; rua=mailto:d@example.com"}
	strict := records{"_dmarc.example.com": "v=DMARC1; p=reject; adkim=s; aspf=s"}
	bank := records{ // a public suffix that asks for policy of its own, and banks below it
		"_dmarc.bank.example":       "v=DMARC1; p=reject; psd=y",
		"_dmarc.giant.bank.example": "v=DMARC1; p=quarantine; sp=reject; psd=n",
		"_dmarc.mega.bank.example":  "v=DMARC1; p=none",
	}
	probing := records{"_dmarc.test.example.com": "v=DMARC1; p=quarantine; rua=mailto:dmarc-feedback@example.com,mailto:tld-test@thirdparty.example.net; t=y"}
	session := records{"_dmarc.example.com": "v=DMARC1; p=reject; aspf=r; rua=mailto:dmarc-feedback@example.com"}
	above := records{
		"_dmarc.example":                "v=DMARC1; p=none",
		"_dmarc.bank.example":           "v=DMARC1; p=reject; psd=y",
		"_dmarc.mail.tiny.bank.example": "v=DMARC1; p=quarantine",
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
		"B.1.1 example 3: SPF, other organisation":        {plain, "child.example.com", Identifiers{SPF: "example.net"}, Fail, "none"},
		"B.1.2 example 1: DKIM, equal":                    {strict, "example.com", Identifiers{DKIM: []string{"example.com"}}, Pass, "reject"},
		"B.1.2 example 2: DKIM, parent of From":           {plain, "child.example.com", Identifiers{DKIM: []string{"example.com"}}, Pass, "none"},
		"B.1.2 example 2: not strictly":                   {strict, "child.example.com", Identifiers{DKIM: []string{"example.com"}}, Fail, "reject"},
		"B.1.2 example 3: DKIM, other organisation":       {plain, "child.example.com", Identifiers{DKIM: []string{"example.net"}}, Fail, "none"},
		"B.2.4: testing, two report addresses":            {probing, "test.example.com", Identifiers{}, Fail, "quarantine"},
		"B.3.1: both identifiers are aligned":             {session, "example.com", Identifiers{SPF: "mail.example.com", DKIM: []string{"example.com"}}, Pass, "reject"},
		"B.3.1: none is":                                  {session, "example.com", Identifiers{SPF: "mail.example.net"}, Fail, "reject"},
		"siblings of one organisation":                    {plain, "a.example.com", Identifiers{DKIM: []string{"b.example.com"}}, Pass, "none"},
		"one that passes is enough":                       {plain, "example.com", Identifiers{SPF: "example.net", DKIM: []string{"x.example", "example.com"}}, Pass, "none"},
		"nothing passed":                                  {plain, "example.com", Identifiers{}, Fail, "none"},
		"no record":                                       {plain, "example.org", Identifiers{SPF: "example.org"}, None, ""},
		"PSD: giant.bank.example, own subdomain":          {bank, "giant.bank.example", Identifiers{SPF: "mail.giant.bank.example"}, Pass, "quarantine"},
		"PSD: another bank is another organisation":       {bank, "giant.bank.example", Identifiers{SPF: "mega.bank.example"}, Fail, "quarantine"},
		"PSD: subdomain of giant.bank.example":            {bank, "mail.giant.bank.example", Identifiers{SPF: "giant.bank.example"}, Pass, "reject"},
		"PSD: a bank without psd":                         {bank, "mail.mega.bank.example", Identifiers{DKIM: []string{"mega.bank.example"}}, Pass, "none"},
		"PSD: a bank without a record, policy of the PSD": {bank, "small.bank.example", Identifiers{}, Fail, "reject"},
		"PSD: the walk stops at the suffix":               {above, "small.bank.example", Identifiers{}, Fail, "reject"},
		"PSD: a record that is of neither domain":         {above, "a.mail.tiny.bank.example", Identifiers{}, Fail, "reject"},
		"PSD: the suffix as author is an organisation":    {above, "bank.example", Identifiers{SPF: "example"}, Fail, "reject"},
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

// TestOrganizationalDomainExamples has those of RFC 9989 section 4.10.2.
func TestOrganizationalDomainExamples(t *testing.T) {
	t.Parallel()
	const record = "v=DMARC1; p=none"
	for name, c := range map[string]struct {
		zone records
		want string
	}{
		"the fewest labels": {records{"_dmarc.mail.example.com": record, "_dmarc.example.com": record}, "example.com"},
		"psd=n":             {records{"_dmarc.mail.example.com": record + "; psd=n", "_dmarc.example.com": record}, "mail.example.com"},
		"psd=y":             {records{"_dmarc.com": record + "; psd=y"}, "example.com"},
		"psd=y, one below":  {records{"_dmarc.mail.example.com": record, "_dmarc.example.com": record + "; psd=y"}, "mail.example.com"},
		"no record at all":  {records{}, "a.mail.example.com"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := organizationalDomain(t.Context(), c.zone, "a.mail.example.com")
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

// TestTreeWalkExample has the eight names of RFC 9989 section 4.10.
func TestTreeWalkExample(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{
		"a.b.c.d.e.f.g.h.i.j.mail.example.com", "g.h.i.j.mail.example.com", "h.i.j.mail.example.com", "i.j.mail.example.com",
		"j.mail.example.com", "mail.example.com", "example.com", "com",
	}, treeWalk("a.b.c.d.e.f.g.h.i.j.mail.example.com"))
	require.Equal(t, []string{
		"a.b.c.d.e.f.example.com", "b.c.d.e.f.example.com", "c.d.e.f.example.com", "d.e.f.example.com", "e.f.example.com",
		"f.example.com", "example.com", "com",
	}, treeWalk("a.b.c.d.e.f.example.com"))
}
